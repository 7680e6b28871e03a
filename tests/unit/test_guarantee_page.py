"""docs/guarantee.md gives no number that the code does not give."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hf_mpruner import PruningConfig
from hf_mpruner.guarantee import Outcomes, TestLevels, bound_drop, smallest_sample
from hf_mpruner.promises import num_branches
from hf_mpruner.record import PruningRecord

PAGE = (Path(__file__).parents[2] / "docs" / "guarantee.md").read_text()
ROWS = re.findall(r"^\| (0\.\d+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", PAGE, re.MULTILINE)


def test_the_table_is_there():
    assert [float(row[0]) for row in ROWS] == [0.05, 0.02, 0.01, 0.005]
    assert "| `confidence=0.9` | `0.95` | `0.99` |" in PAGE


@pytest.mark.parametrize(("drop", "numbers"), [(float(row[0]), row[1:]) for row in ROWS])
def test_the_smallest_sets_are_those_of_the_first_test(drop, numbers):
    for confidence, told in zip((0.9, 0.95, 0.99), numbers, strict=True):
        assert smallest_sample(drop, first_level(confidence, drop)) == int(told.replace(",", ""))


@pytest.mark.parametrize(("more", "passes"), [(-1, False), (0, True)])
def test_a_cut_that_changes_nothing_passes_from_there_on(more, passes):
    examples = int(ROWS[2][2].replace(",", "")) + more
    ones = Outcomes("binary", (1.0,) * examples, 1.0, examples)
    level = first_level(0.95, 0.01)
    assert bound_drop(ones, ones, greater_is_better=True, max_drop=0.01, level=level).holds == passes


def first_level(confidence, drop):
    config = PruningConfig(confidence=confidence, max_metric_drop=drop)
    return TestLevels(1 - confidence, num_branches(config, PruningRecord({"layers": 12}))).next([])
