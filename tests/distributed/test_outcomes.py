"""Outcomes of an evaluation by two processes are those of one: one launch of scripts/outcomes.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from distributed_kit import fork, results, taken_outcomes
from hf_mpruner.guarantee import Outcomes


def test_two_processes_have_the_outcomes_of_one(tmp_path: Path) -> None:
    done = fork("outcomes.py", tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = results(tmp_path)
    assert first == second
    whole, ragged = taken_outcomes(tmp_path / "one", 24), taken_outcomes(tmp_path / "other", 21)
    for metric, outcomes in whole.items():
        both, alone = Outcomes.from_dict(first["24"][metric]), Outcomes.from_dict(outcomes)
        both.check_paired(alone)
        assert (*both.values, both.value) == pytest.approx((*alone.values, alone.value), rel=1e-5), metric
    for metric in ("accuracy", "f1"):
        assert first["21"][metric] == ragged[metric]
    # of the last step the Trainer counts what the first process has, filled up with rows that were there before
    assert (first["21"]["loss"]["weights"], ragged["loss"]["weights"]) == ([8.0, 8.0, 5.0], [8.0, 8.0, 5.0])
    assert first["21"]["loss"]["values"][:2] == pytest.approx(ragged["loss"]["values"][:2], rel=1e-5)
