"""Resuming a pruning run with the script unchanged: from any checkpoint, to the same verdicts and the same bits."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch

from hf_mpruner import errors
from hf_mpruner.checkpoint import RECORD_NAME, ROLLBACK_NAME, inspect_checkpoint
from hf_mpruner.record import PruningRecord
from trainer_kit import STACK, Scripted, add, assert_same, build_trainer, everything


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


def test_a_torn_checkpoint_is_passed_over_and_refused_by_name(whole_run, tmp_path, caplog):
    folder, weights, decided, maker = whole_run
    out = tmp_path / "out"
    for step in (6, 10):
        shutil.copytree(folder / f"checkpoint-{step}", out / f"checkpoint-{step}")
    torn = out / "checkpoint-10" / "optimizer.pt"
    torn.write_bytes(torn.read_bytes()[:-100])
    with pytest.raises(errors.MPrunerError, match=r"checkpoint-10' cannot be resumed from: optimizer\.pt has"):
        run(maker, out, resume=str(out / "checkpoint-10"))
    with caplog.at_level(logging.WARNING, logger="hf_mpruner"):
        trainer, callback = run(maker, out, 0.5, 0.89, 0.5, resume=True)
    assert "checkpoint-10' is passed over" in caplog.text
    assert verdicts(callback) == decided
    assert_same(weights, everything(trainer))


@pytest.mark.parametrize("damage", ["record", "rollback"])
def test_damage_is_named(whole_run, tmp_path, damage):
    checkpoint = tmp_path / "checkpoint-6"
    shutil.copytree(whole_run[0] / "checkpoint-6", checkpoint)
    assert inspect_checkpoint(checkpoint).fault == ""
    if damage == "record":
        values = json.loads((checkpoint / RECORD_NAME).read_text())
        (checkpoint / RECORD_NAME).write_text(json.dumps({**values, "granularity": 3}))
    else:
        (checkpoint / ROLLBACK_NAME).unlink()
    fault = inspect_checkpoint(checkpoint).fault
    assert fault.startswith(RECORD_NAME if damage == "record" else ROLLBACK_NAME)


def test_weights_of_another_depth_are_not_loaded(make_bert, tmp_path):
    trainer, _ = run(make_bert, tmp_path / "out", 0.9, 0.9, num_train_epochs=3)
    assert len(trainer.model.bert.encoder.layer) == 1
    before = trainer.model.state_dict()["classifier.weight"].clone()
    with pytest.raises(errors.MPrunerError, match=r"have 4 blocks in 'bert\.encoder\.layer', but the model has 1"):
        trainer.model.load_state_dict(make_bert(num_labels=2).state_dict(), strict=False)
    assert torch.equal(before, trainer.model.state_dict()["classifier.weight"])


def test_a_checkpoint_of_another_model(whole_run, make_bert, tmp_path):
    model = make_bert(num_hidden_layers=3, num_labels=2)
    trainer = build_trainer(model, tmp_path / "other")
    add(trainer)
    with pytest.raises(errors.MPrunerError, match=r"a run that began with .*: 4\}, but the model has .*: 3\}"):
        trainer.train(resume_from_checkpoint=str(whole_run[0] / "checkpoint-6"))
    assert len(model.bert.encoder.layer) == 3
