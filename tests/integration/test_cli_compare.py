"""`hf-mpruner compare`: what goes where, what is kept, what is refused; every task in the slow ones."""

from __future__ import annotations

import json

import pytest

from hf_mpruner import Comparison
from hf_mpruner.cli import main
from tasks_kit import pair_rows, question_rows, save_models, tagged_rows, text_rows, write_rows

ROWS = {
    "text-generation": text_rows,
    "fill-mask": text_rows,
    "token-classification": tagged_rows,
    "question-answering": question_rows,
    "text2text-generation": pair_rows,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    import datasets.config

    folder = tmp_path_factory.mktemp("compare")
    kept, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, folder / "cache"
    save_models(folder)
    for task, rows in ROWS.items():
        write_rows(rows(), folder / "data" / task, "json")
    yield folder
    datasets.config.HF_DATASETS_CACHE = kept


@pytest.fixture
def run(world, tmp_path, capsys):
    def call(*words, task="text-generation", criteria=("tail", "loss"), num_layers=("2",)):
        capsys.readouterr()
        given = ["compare", world / task, "--dataset", world / "data" / task, "--output_dir", tmp_path / "out"]
        given += ["--criteria", *criteria, "--num_layers", *num_layers, *words]
        code = main([str(word) for word in given])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_data_goes_to_stdout_and_into_the_folder_and_is_computed_once(run, tmp_path):
    code, out, err = run("--seeds", 1, "--learning_rate", "1e-3", "--format", "json")
    assert code == 0, err
    found = Comparison.from_dict(json.loads(out))
    assert found == Comparison.load(tmp_path / "out")
    assert {row.criterion for row in found.rows} == {"tail", "loss"}
    assert (found.metric, found.greater_is_better, found.seeds) == ("loss", False, (0,))
    assert found.rows[0].after != found.rows[0].before
    assert found.uncut.num_layers == {"transformer.h": 4}
    assert "|" not in err, "no bars where nobody looks at a terminal"
    assert "hf-mpruner prune" in err
    cells = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "cells").iterdir()}
    code, out, err = run("--seeds", 1, "--learning_rate", "1e-3", "--format", "quiet")
    assert (code, out.strip(), err) == (0, str(tmp_path / "out"), "")
    assert cells == {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "cells").iterdir()}
    assert found.to_markdown().splitlines()[0] in (tmp_path / "out" / "comparison.md").read_text()
    code, _, err = run("--seeds", 1, "--learning_rate", "2e-3")
    assert code == 1
    assert "training.learning_rate=0.001 (now 0.002)" in err


@pytest.mark.parametrize(
    ("options", "words", "message"),
    [
        ({"criteria": ["tial"]}, [], "Did you mean 'tail'"),
        ({"num_layers": ["9"]}, [], "has only 4 layers"),
        ({"num_layers": ["h:2"]}, [], "'h' is no block stack"),
        ({}, ["--seeds", 0], "--seeds 0 is below 1"),
        ({}, ["--training", "seed=3"], "seed is said with --seed"),
        ({}, ["--threshold", "0.9"], "unknown argument --threshold"),
    ],
)  # fmt: skip
def test_wrong_use_is_refused_before_anything_is_written(run, tmp_path, options, words, message):
    code, out, err = run(*words, **options)
    assert (code, out) == (2, ""), err
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("task", ROWS)
def test_every_task_is_compared(run, task, tmp_path):
    depth = "encoder.block:3,decoder.block:2" if task == "text2text-generation" else "3"
    code, _, err = run("--seeds", 2, task=task, criteria=["cka", "taylor", "metric_drop"], num_layers=[depth])
    assert code == 0, err
    found = Comparison.load(tmp_path / "out")
    failed = {row.criterion for row in found.rows if row.failed}
    assert failed == ({"metric_drop"} if task == "question-answering" else set())
    assert all(len(row.after) == 2 for row in found.rows if not row.failed)
    assert found.rows[0].scoring["forward_passes"] == 1.0


def test_there_is_a_flag_for_every_setting_that_means_something():
    from hf_mpruner.cli.compare import FIELDS
    from hf_mpruner.comparison.request import FIELDS as USED

    assert FIELDS == USED
