"""Each task from the command line: data in every form, a run end to end, what is asked and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import transformers

from hf_mpruner.cli import main
from hf_mpruner.cli.flags import COLUMNS, TASK_NAMES
from hf_mpruner.report import PruningReport
from hf_mpruner.tasks import ALIASES, TASKS
from tasks_kit import (
    FORMATS,
    pair_rows,
    question_rows,
    save_image_model,
    save_models,
    tagged_rows,
    text_rows,
    write_rows,
)

# Random weights: every two layers are alike, and any drop is accepted.
EAGER = ["--threshold", "0", "--max_metric_drop", "1000", "--calibration_batch_size", "8", "--max_rounds", "1"]
ROWS = {
    "token-classification": tagged_rows,
    "question-answering": question_rows,
    "text-generation": text_rows,
    "text2text-generation": pair_rows,
    "fill-mask": text_rows,
}


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    def call(*words: object) -> Result:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`{task}` is a model, `{task}_{csv|json|parquet}` its data."""
    import datasets.config

    folder = tmp_path_factory.mktemp("tasks")
    kept, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, folder / "cache"
    save_models(folder)
    for task, make in ROWS.items():
        for kind in FORMATS:
            write_rows(make(), folder / f"{task}_{kind}", kind)
    save_image_model(folder)
    for kind in FORMATS:
        (folder / f"digits_{kind}").rename(folder / f"image-classification_{kind}")
    yield folder
    datasets.config.HF_DATASETS_CACHE = kept


@pytest.mark.parametrize(
    ("task", "kind", "auto", "metric", "stack"),
    [
        ("token-classification", "json", "AutoModelForTokenClassification", "f1", "bert.encoder.layer"),
        ("question-answering", "csv", "AutoModelForQuestionAnswering", "f1", "bert.encoder.layer"),
        ("text-generation", "parquet", "AutoModelForCausalLM", "loss", "transformer.h"),
        ("text2text-generation", "json", "AutoModelForSeq2SeqLM", "loss", "decoder.block"),
        ("fill-mask", "csv", "AutoModelForMaskedLM", "loss", "bert.encoder.layer"),
        ("image-classification", "csv", "AutoModelForImageClassification", "accuracy", "vit.layers"),
    ],
)
def test_prune_each_task(task, kind, auto, metric, stack, world, tmp_path, run):
    out = tmp_path / "smaller"
    words = ["prune", world / task, "--dataset", world / f"{task}_{kind}", *EAGER, "--recovery_epochs", "1"]
    result = run(*words, "--output_dir", out)
    assert result.code == 0, result.err
    report = PruningReport.load(out)
    assert report.record.metric == metric
    assert report.record.baseline.metric is not None
    assert [round_.verdict for round_ in report.record.rounds] == ["accepted"]
    assert f"{auto}.from_pretrained('{out}')" in result.err
    model = getattr(transformers, auto).from_pretrained(out)
    assert len(model.get_submodule(stack)) == len(report.plan.kept[stack]) < 4


@pytest.mark.parametrize("task", [*ROWS, "image-classification"])
def test_analyze_gives_the_same_from_every_form_of_data(task, world, run):
    found = []
    for kind in FORMATS:
        result = run("analyze", world / task, "--dataset", world / f"{task}_{kind}", "--format", "json", *EAGER[:2])
        assert result.code == 0, result.err
        found.append(json.loads(result.out)["adjacent"])
    assert found[0] == found[1] == found[2]
    stacks = ["decoder.block", "encoder.block"] if task == "text2text-generation" else list(found[0])
    assert sorted(found[0]) == stacks
    assert len(stacks) == 1 + (task == "text2text-generation")


def test_the_names_of_tasks_in_the_help_are_those_there_are():
    assert sorted(TASK_NAMES) == sorted([*TASKS, *ALIASES])
    roles = {role for task in TASKS.values() for role in task.roles}
    assert roles == set(COLUMNS)
