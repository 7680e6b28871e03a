"""docs/quality.md says what the results beside reproduce/quality.py say, and nothing else."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from hf_mpruner import Comparison
from hf_mpruner.comparison import Row
from hf_mpruner.storage import write_json

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "reproduce"))
    return import_module("quality")


def test_the_page_is_made_of_the_results(script):
    results = sorted(script.RESULTS.glob(f"*/{script.SETTING}"))
    if not results:
        assert not script.PAGE.exists(), "a page without results"
        return
    assert script.PAGE.read_text() == script.make_page(), "python reproduce/quality.py --page"
    for setting in results:
        comparison = Comparison.load(setting.parent)
        assert comparison.to_markdown() + "\n" == (setting.parent / "table.md").read_text()
        assert len(comparison.seeds) >= 3
        assert all((setting.parent / f"{kind}.png").is_file() for kind in ("quality", "cost"))


def row(name, before, after, plans=("a", "b", "c")):
    return Row(name, "8", {"layer": 8}, plans, ({"layer": [0]},) * 3, False, before, after, (None,) * 3, (None,) * 3,
               1e6, 0.01, {"forward_passes": 1.0, "backward_passes": 0.0, "seconds": 1.0}, 9.0)  # fmt: skip


SETTING = {
    "model": "m", "data": "d", "about": "a model", "task": "text-classification", "train": 10, "test": 20, "fit": 30,
    "epochs": 3, "max_length": 64, "max_steps": -1, "recovery_epochs": 1, "batch_size": 8, "learning_rate": 1e-3,
    "calibration_samples": 16, "processes": 2,
}  # fmt: skip


def test_what_is_found_is_what_the_figures_say(script, tmp_path):
    rows = (
        row("cka", (0.5, 0.5, 0.5), (0.7, 0.8, 0.6)),
        row("loss", (0.6, 0.6, 0.6), (0.7, 0.8, 0.6)),  # equal means share a place, whoever was asked for first
        row(
            "taylor", (0.2, 0.3, 0.4), (0.69, 0.81, 0.57)
        ),  # differences +0.01, -0.01, +0.03: these seeds explain them
        row("tail", (0.1, 0.1, 0.1), (0.6, 0.701, 0.5), ("x",) * 3),  # 0.1 behind with every seed
    )
    uncut = Row("(uncut)", "", {"layer": 12}, ("w",) * 3, (), False, (0.9,) * 3, (0.9, 0.92, 0.91))
    settings = {"model": {"class": "Bert", "layers": {"layer": 12}, "dtype": "float32"}, "device": "CPU",
                "versions": {"torch": "2", "transformers": "5"}}  # fmt: skip
    Comparison("accuracy", True, (0, 1, 2), True, uncut, rows, settings, {}).save(tmp_path / "results" / "tiny")
    write_json(tmp_path / "results" / "tiny" / script.SETTING, SETTING)
    page = script.make_page(tmp_path / "results", tmp_path / "docs" / "quality.md")
    assert "8 layers: best after recovery is cka = loss (0.7000 ± 0.2484)." in page
    assert "Not told apart from it by these seeds: taylor. " in page
    assert "Before recovery it is loss (0.6000 ± 0.0000)." in page
    assert "Places after recovery, of 4: cka 1, tail 4." in page
    assert "](../results/tiny/quality.png)" in page
    assert json.loads((tmp_path / "results" / "tiny" / "comparison.json").read_text())["metric"] == "accuracy"
