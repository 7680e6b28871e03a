"""Saved by two processes and resumed by one, and the other way round: one launch of world_size.py."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed_kit import launch, life, results
from hf_mpruner import errors
from trainer_kit import STACK, begun_at

# A launch of many runs; the default suite has two processes in test_ddp.py, test_fsdp.py, test_cli.py and others.
pytestmark = pytest.mark.slow

Found = list[dict[str, Any]]
VERDICTS = ["rejected", "accepted", "rejected"]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    for name, metric in (("one", "accuracy"), ("one loss", "loss")):
        _, callback = life(folder / name, metric)
        assert (metric == "loss") or [round_.verdict for round_ in callback.record.rounds] == VERDICTS
    done = launch("world_size.py", folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def found(output: Path) -> Found:
    return results(output)


@pytest.mark.parametrize("step", [2, 5, 8])  # of the first cut, to be rejected; the second, to be accepted; the third
def test_saved_by_two_and_resumed_by_one(
    step: int, output: Path, found: Found, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="hf_mpruner"):
        trainer, callback = life(tmp_path, "accuracy", checkpoint=output / f"two accuracy/checkpoint-{step}")
    assert "was saved by 2 processes, this run has 1: it goes on with the same verdicts so far, but not" in caplog.text
    assert begun_at(trainer) == step
    assert [round_.verdict for round_ in callback.record.rounds] == found[0]["two accuracy"]["verdicts"] == VERDICTS
    assert [round_.kept[STACK] for round_ in callback.record.rounds] == found[0]["two accuracy"]["kept"]
    assert callback.record.world_size == 1
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in trainer.model.parameters()}
    assert len(trainer.model.get_submodule(STACK)) == trainer.model.config.num_hidden_layers == 3


@pytest.mark.parametrize("step", [2, 5, 8])
def test_saved_by_one_and_resumed_by_two(step: int, found: Found) -> None:
    first, second = (one[f"one {step}"] for one in found)
    assert {**first, "seconds": None} == {**second, "seconds": None}
    assert (first["begun"], first["verdicts"], first["layers"]) == (step, VERDICTS, 3)
    assert first["consistent"]


def test_a_loss_decides_which_another_number_of_processes_scales_otherwise(
    output: Path, found: Found, tmp_path: Path
) -> None:
    trainer, callback = life(tmp_path, "loss", train=False)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    with pytest.raises(
        errors.UnsupportedBackendError, match="saved by 2 processes, this run has 1, and the loss decides"
    ):
        trainer.train(resume_from_checkpoint=str(output / "two loss/checkpoint-5"))
    now = trainer.model.state_dict()
    assert now.keys() == before.keys()
    assert all(torch.equal(tensor, now[name]) for name, tensor in before.items())
    assert callback.engine is None
    for one in found:
        assert "saved by 1 processes, this run has 2, and the loss decides" in one["refused"]["error"]
        assert one["refused"]["unchanged"]
