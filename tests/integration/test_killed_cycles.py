"""`prune_in_cycles` that is killed at any moment: called again, it ends as the run that nobody killed, to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killed_cycles.py")


# One of each kind: in a write, in a training, before and after a rename, in a deletion, at the end, and several in one run.
SOME = ("3", "5", "9", "10", "12", "14", "17", "18")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="lives are forked")
@pytest.mark.parametrize("chosen", [SOME, pytest.param((), marks=pytest.mark.slow)], ids=["some", "all"])
def test_killed_cycles_end_as_the_run_that_nobody_killed(chosen, tmp_path):
    """Runs of one to three kills: in trainings, in writes, beside each rename, in deletions; all twenty are slow."""
    tests = Path(__file__).parents[1]
    paths = [str(tests), str(tests.parent / "src")]
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), *chosen],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    whole, *lives = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    assert whole["rounds"] == [["rejected", [0], 1], ["accepted", [0, 2], 2], ["rejected", [0], 2]]
    assert whole["trainings"] == 3
    assert whole["record"]["similarity_after"]
    assert len(lives) == (len(chosen) or 20)
    for life in lives:
        assert all(life["killed"]), life
        for fact in ("weights", "rounds", "files", "record"):
            assert life[fact] == whole[fact], life
    # what had a verdict is not trained again
    trained = {" + ".join(life["kills"]): life["trainings"] for life in lives}
    expected = {"training of round 2": 2, "model after its rename": 2, "deletion of the older model": 1, "report": 0}
    if not chosen:
        expected |= {"training of round 3": 1, "last name after": 0}
    assert {name: trained[name] for name in expected} == expected
