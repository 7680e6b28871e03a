"""The scripts of MPruner's own tables run at tiny size, twice: the second time from what the first one finished."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = {
    "mpruner.py": "--subject text --epochs 1 --train 64 --test 40 --thresholds 0.9 --granularities 1 2 --recovery_epochs 1",
    "wanda.py": "--subject resnet --epochs 1 --train 64 --test 40 --threshold 0.9 --sparsities 0.5 --recovery_epochs 1",
    "searched.py": "--widths 4 --depths 1 2 --epochs 1 --seeds 1 --train 64",
}


def run(script: str, *words: object) -> str:
    source = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(ROOT / "reproduce" / script), *map(str, words)],
        env={**os.environ, "PYTHONPATH": source}, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("script", TINY)
def test_a_script_goes_on_from_what_is_finished(script: str, tmp_path: Path) -> None:
    words = [*TINY[script].split(), "--output_dir", tmp_path]
    run(script, *words)
    (page,) = tmp_path.rglob("table.md")
    text = page.read_text()
    assert "## Beside the paper" in text
    results = json.loads((page.parent / "results.json").read_text())
    assert {claim["agrees"] for claim in results["claims"]} <= {True, False, None}
    # one cell and all weights are lost: only that cell is computed again, with the weights that it needs
    cells = sorted((page.parent / "cells").glob("*.json"), key=lambda file: file.stat().st_mtime)
    before = {file.name: file.stat().st_mtime_ns for file in cells}
    cells[-1].unlink()
    for weights in page.parent.glob("weights/*/model.safetensors"):
        weights.unlink()
        (weights.parent / "config.json").unlink()
    run(script, *words)
    after = {file.name: file.stat().st_mtime_ns for file in (page.parent / "cells").glob("*.json")}
    assert [name for name in after if after[name] != before[name]] == [cells[-1].name]
    assert text.count("\n") == page.read_text().count("\n")


def test_the_search_takes_the_shallowest_that_is_good_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "reproduce"))
    searched = importlib.import_module("searched")
    accuracies = {1: (0.90, 0.92), 2: (0.95, 0.97), 4: (0.96, 0.97), 8: (0.97, 0.93)}
    runs = {(8, depth): [{"validation": one} for one in some] for depth, some in accuracies.items()}
    runs[4, 1] = [{"validation": 1.0}]
    assert searched.search(runs, 8, tolerance=0.01) == 2
    assert searched.search(runs, 8, tolerance=0.0) == 4
    assert searched.search(runs, 8, tolerance=0.1) == 1


def test_pairs_differ_in_one_setting_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "reproduce"))
    mpruner = importlib.import_module("mpruner")
    names = ("seed", "preset", "threshold", "k", "freeze", "iteration")
    settings = [(0, "paper", 0.9, 1, False, 1), (0, "paper", 0.9, 2, False, 1), (1, "paper", 0.9, 2, False, 1)]
    rows = [dict(zip(names, one, strict=True)) for one in settings]
    assert mpruner._pairs(rows, "k", 1, 2) == [(rows[0], rows[1])]
    assert mpruner._pairs(rows, "freeze", False, True) == []
