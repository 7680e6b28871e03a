"""Data sets and metrics by name: every task reads them from the Hub, and report and card say which they were.

One file, so that one client pays for the imports.
"""

from __future__ import annotations

import json

import pytest

from tasks_kit import pair_rows, question_rows, save_models, tagged_rows, text_rows

ROWS = {
    "token-classification": tagged_rows,
    "question-answering": question_rows,
    "text-generation": text_rows,
    "text2text-generation": pair_rows,
    "fill-mask": text_rows,
}


def command(words):
    import contextlib
    import io

    from hf_mpruner.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_models(folder)
    return folder


@pytest.fixture(scope="module")
def data(shared_hub):
    """`ann/{task}`: JSON lines in two splits."""
    for task, make in ROWS.items():
        lines = "".join(json.dumps(row) + "\n" for row in make()).encode()
        shared_hub.add_repo(f"ann/{task}", {"train.jsonl": lines, "validation.jsonl": lines}, kind="dataset")


@pytest.mark.parametrize("task", ROWS)
def test_each_task_reads_a_data_set_of_the_hub(task, hub, client, models, data):
    done = client.call(command, words=["analyze", str(models / task), "--dataset", f"ann/{task}", "--format", "quiet"])
    assert done["code"] == 0, done["err"]
    assert "layers" in done["out"]


def test_the_report_and_the_card_name_the_data_set(hub, client, models, data, tmp_path):
    words = [
        "prune",
        str(models / "token-classification"),
        "--dataset",
        "ann/token-classification",
        "--threshold",
        "0",
    ]
    words += [
        "--max_metric_drop",
        "1",
        "--recovery_epochs",
        "0",
        "--max_rounds",
        "1",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    done = client.call(command, words=words)
    assert done["code"] == 0, done["err"]
    record = json.loads((tmp_path / "out" / "report.json").read_text())["record"]
    judging = record["data"]["judging"]
    assert (judging["dataset"], judging["split"]) == ("ann/token-classification", "validation")
    assert record["data"]["calibration"]["split"] == "train"
    assert record["baseline"]["num_examples"] == len(tagged_rows())
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- ann/token-classification" in card
    assert "pipeline_tag: token-classification" in card


def test_a_column_that_a_data_set_of_the_hub_lacks(hub, client, models, data):
    words = ["analyze", str(models / "fill-mask"), "--dataset", "ann/fill-mask", "--text_column", "body"]
    done = client.call(command, words=words)
    assert done["code"] == 2
    assert "ann/fill-mask: text_column='body' is not a column of the data. Its columns are 'text'." in done["err"]


# -- metrics of evaluate, which are Spaces ----------------------------------------------------------------------------

SCRIPT = b"""
import datasets
import evaluate


class Share(evaluate.Metric):
    def _info(self):
        number = datasets.Value("int32")
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="",
            features=datasets.Features({"predictions": number, "references": number}),
        )

    def _compute(self, predictions, references):
        return {"share": sum(p == r for p, r in zip(predictions, references)) / len(references)}
"""


def compute(name):
    import numpy as np
    from transformers import EvalPrediction

    from hf_mpruner import make_compute_metrics

    function = make_compute_metrics(name)
    logits = np.array([[1.0, 0.0], [0.0, 1.0]])
    return {"values": function(EvalPrediction(logits, np.array([0, 0]))), "sources": function.sources}


def test_a_plain_name_is_a_space_and_stays_known_when_the_hub_is_gone(hub, client):
    hub.add_repo("evaluate-metric/share", {"share.py": SCRIPT}, kind="space")
    found = client.call(compute, name="share")
    assert found["values"] == {"share": 0.5}
    assert found["sources"]["share"]["name"] == "share"
    assert client.call(compute, name="evaluate-metric/share")["values"] == {"share": 0.5}
    fault = hub.faults.add("*", r"evaluate-metric/share", status=503, times=99)
    assert client.call(compute, name="share")["values"] == {"share": 0.5}  # from the cache
    assert fault.used


def test_a_name_that_the_hub_does_not_know(hub, client):
    failure = client.fails(compute, name="acuracy")
    assert failure.type == "FileNotFoundError"
    assert "Did you mean 'accuracy'? Its script comes from the Hub (Space evaluate-metric/acuracy)." in failure.message


def test_a_hub_that_does_not_answer_is_named(hub, client):
    hub.add_repo("evaluate-metric/rest", {"rest.py": SCRIPT.replace(b"Share", b"Rest")}, kind="space")
    hub.faults.add("*", r"evaluate-metric/rest", status=503, times=99)
    failure = client.fails(compute, name="rest")
    assert failure.type == "FileNotFoundError"
    assert "No metric 'rest' could be loaded" in failure.message
    assert "Without a network name a folder" in failure.message
    hub.faults.clear()
    assert client.call(compute, name="rest")["values"] == {"share": 0.5}
