"""One process fails alone: the run ends on all, and each says why; nobody waits for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from distributed_kit import fork


@pytest.mark.parametrize(
    ("where", "doing"),
    [
        pytest.param("calibration", "measuring similarity", marks=pytest.mark.slow),
        ("evaluation", "evaluating the model"),
    ],
)
def test_a_process_that_fails_ends_all(where: str, doing: str, tmp_path: Path) -> None:
    done = fork("fail.py", tmp_path, where, timeout=120)  # the Trainer's own communication would wait half an hour
    assert done.returncode != 0
    said = [(tmp_path / f"rank{rank}.txt").read_text() for rank in range(2)]
    assert said[0] == f"PeerError: rank 1 failed while {doing}: OSError: the disk of rank 1 is gone"
    assert said[1] == "OSError: the disk of rank 1 is gone"
