"""Runs that are killed at any moment: resumed, each ends as the run that nobody killed, to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killed_runs.py")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="lives are forked")
@pytest.mark.parametrize(
    ("kills", "named", "model"),
    [
        (10, 8, ()),
        pytest.param(20, 8, (), marks=pytest.mark.slow),
        pytest.param(12, 9, ("adapters",), marks=pytest.mark.slow),
    ],
)
def test_killed_runs_end_as_the_run_that_nobody_killed(tmp_path, kills, named, model):
    """Kills in the middle of a write, a cut, a rollback or a deletion, and others after a random time."""
    if model:
        pytest.importorskip("peft")
    tests = Path(__file__).parents[1]
    paths = [str(tests), str(tests.parent / "src")]
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), str(kills), *model],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    first, *lives = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    whole = first["whole"]
    assert [verdict for verdict, _, _ in whole["rounds"]] == ["rejected", "accepted", "rejected"]
    assert whole["record"]["similarity_after"]
    assert len(lives) == kills
    for life in lives:
        assert life["weights"] == whole["weights"], life
        assert life["rounds"] == whole["rounds"], life
        assert life["record"] == whole["record"]
        assert life["left"] == [], life
    assert all(life["killed"][0] for life in lives[:named])  # the named moments are reached
    assert sum(any(life["killed"]) for life in lives) >= kills - 4  # a short life may be over before its kill
    # a random time may be before the first checkpoint, the named moments are after it (all but the first adapters')
    assert sum(life["resumed"] > 0 for life in lives[:named]) >= named - 1
