"""Resuming a pruning run with the script unchanged: from any checkpoint, to the same verdicts and the same bits."""

from __future__ import annotations

import shutil

import pytest

from hf_mpruner.record import PruningRecord
from trainer_kit import STACK, Scripted, add, assert_same, build_trainer, everything

VERDICTS = (0.9, 0.5, 0.89, 0.5)  # baseline, then rejected, accepted, rejected


def run(make_bert, folder, *values, resume=None, callbacks=None, optimizers=None, config=None, **arguments):
    """One process's life: build the uncut model, train (and resume), return what is left."""
    model = make_bert(hidden_dropout_prob=0.1, num_labels=2)
    settings = {"num_train_epochs": 5, "save_strategy": "steps", "save_steps": 2, **arguments}
    made = (None, None) if optimizers is None else optimizers(model)
    trainer = build_trainer(
        model, folder, compute_metrics=Scripted(*values), callbacks=callbacks, optimizers=made, **settings
    )
    callback = add(trainer, **{"start_epoch": 1, "recovery_epochs": 2, "granularity": 1, **(config or {})})
    trainer.train(resume_from_checkpoint=resume)
    return trainer, callback


def verdicts(callback):
    return [(r.verdict, r.kept[STACK], r.granularity, r.reason) for r in callback.record.rounds]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """An uninterrupted run with every second step saved: 4 -> 1 rejected, 4 -> 2 accepted."""
    from conftest import make_bert

    folder = tmp_path_factory.mktemp("run") / "out"
    maker = make_bert.__wrapped__() if hasattr(make_bert, "__wrapped__") else None
    trainer, callback = run(maker, folder, 0.9, 0.5, 0.89, 0.5)
    return folder, everything(trainer), verdicts(callback), maker


@pytest.mark.parametrize("step", [2, 4, 6, 8, 10, 12, 14])
def test_from_any_checkpoint_to_the_same_bits(whole_run, tmp_path, step):
    folder, weights, decided, maker = whole_run
    out = tmp_path / "out"
    shutil.copytree(folder / f"checkpoint-{step}", out / f"checkpoint-{step}")
    record = PruningRecord.load(out / f"checkpoint-{step}")
    done = len([r for r in record.rounds if r.verdict != "pending"])
    values = [0.9, 0.5, 0.89, 0.5][(1 + done) if record.baseline else 0 :]
    trainer, callback = run(maker, out, *values, resume=True)
    assert verdicts(callback) == decided
    assert_same(weights, everything(trainer))
