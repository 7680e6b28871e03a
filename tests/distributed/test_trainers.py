"""Two processes under DDP with Trainers of other libraries: one launch of scripts/trainers.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from distributed_kit import launch, results

# A launch of many runs; the default suite has two processes in test_ddp.py, test_fsdp.py, test_cli.py and others.
pytestmark = pytest.mark.slow


def test_both_processes_cut_and_go_back_alike(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    pytest.importorskip("sentence_transformers")
    done = launch("trainers.py", tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = results(tmp_path)
    assert first == second
    assert {first[name]["wrapper"] for name in ("packed", "rejected", "sentence")} == {"DistributedDataParallel"}
    assert first["packed"]["rounds"] == [["accepted", [0]]]
    assert first["rejected"]["rounds"] == [["rejected", [0]]]
    assert [verdict for verdict, _ in first["sentence"]["rounds"]] == ["rejected", "accepted"]
    assert first["loss"].startswith("UnsupportedBackendError: The loss has weights of its own, which DDP does not")
