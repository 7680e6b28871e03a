"""Data sets by their ids: every task reads them from the Hub, and the report and the card say which they were."""

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
