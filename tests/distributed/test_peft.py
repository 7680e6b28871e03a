"""Two processes under DDP with a model that carries adapters: one launch of scripts/peft_ddp.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from distributed_kit import launch, results


@pytest.mark.slow
def test_both_processes_cut_go_back_save_and_resume_alike(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    done = launch("peft_ddp.py", tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = results(tmp_path)
    assert first == second
    whole = first["whole"]
    assert whole["verdicts"] == ["rejected", "accepted"]
    assert whole["wrapper"] == "DistributedDataParallel"
    assert (whole["wrapped"], whole["trained"], first["equal"]) == (True, True, True)
    assert len(whole["kept"]) == 4
    assert whole["layers"] == [place for place, layer in enumerate(whole["kept"]) if layer in (0, 2, 3, 5)]
    assert first["resumed 2"] == whole
    assert first["resumed 5"] == whole
    assert len(list(tmp_path.glob("out/*/pruned_base/model.safetensors"))) == 9
    files = {file.stat().st_ino for file in tmp_path.glob("**/pruned_base/model.safetensors")}
    assert len(files) == 2  # a base for each cut
