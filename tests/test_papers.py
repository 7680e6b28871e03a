"""`reproduce/papers.py`: finished cells are not computed again, and a page says what the figures say."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def papers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "reproduce"))
    return importlib.import_module("papers")


def test_a_finished_cell_is_read_and_an_unfinished_one_leaves_nothing(papers: ModuleType, tmp_path: Path) -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        papers.Cells(tmp_path, {"epochs": 2}).get("seed0", fail)
    assert list((tmp_path / "cells").iterdir()) == []
    assert papers.Cells(tmp_path, {"epochs": 2}).get("seed0", lambda: {"accuracy": 0.5}) == {"accuracy": 0.5}
    assert papers.Cells(tmp_path, {"epochs": 2}).get("seed0", fail) == {"accuracy": 0.5}
    with pytest.raises(SystemExit, match=r"other settings \(epochs\)"):
        papers.Cells(tmp_path, {"epochs": 3}).get("seed0", fail)


def test_a_page_has_its_figures_its_verdicts_and_its_settings(papers: ModuleType, tmp_path: Path) -> None:
    claims = [papers.Claim("it is better", "0.5 against 0.6", False), papers.Claim("it is fast", "-", None)]
    papers.write_page(tmp_path, "A paper", {"epochs": 2}, {"rows": [1]}, [("Table", "| a |")], claims)
    page, results = (tmp_path / "table.md").read_text(), json.loads((tmp_path / "results.json").read_text())
    for line in ("# A paper", "## Table", "| it is better | 0.5 against 0.6 | does not agree |", "- epochs: 2"):
        assert line in page
    assert [claim["agrees"] for claim in results["claims"]] == [False, None]
    assert papers.in_words([0.9, 0.92]) == "91.0 (90.0-92.0)"
    assert papers.spread([1.0, 3.0]) == {"mean": 2.0, "min": 1.0, "max": 3.0, "n": 2}
