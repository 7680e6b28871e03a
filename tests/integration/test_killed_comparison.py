"""`compare_criteria` that is killed at any moment: called again, it ends with the table of a run that nobody killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killed_comparison.py")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="lives are forked")
def test_killed_comparisons_end_with_the_same_table(tmp_path):
    tests = Path(__file__).parents[1]
    paths = [str(tests), str(tests.parent / "src")]
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    whole, *lives = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    assert whole["trained"] >= 2 * 3
    assert len(lives) == 10
    for life in lives:
        assert all(life["killed"]), life["kills"]
        assert life["table"] == whole["table"], life["kills"]
        assert life["files"] == whole["files"], "half-written files, or the work of a dead process, are left"
    by_kill = {str(life["kills"]): life["trained"] for life in lives}
    assert by_kill[str([["comparison", 1, "half"]])] == 0, "what was finished is not trained again"
    assert by_kill[str([["judge", 5, "after"]])] < whole["trained"]
