"""Resuming under settings of the Trainer that make a part of it anew, choose among checkpoints or delete them."""

from __future__ import annotations

import pytest
import torch
from transformers import trainer as transformers_trainer

from hf_mpruner import LayerPruningCallback, errors
from resume_kit import copy_checkpoints, ended, live, pending_at, verdicts
from trainer_kit import add, assert_same, build_trainer, everything

# A cut is pending at 4 and 6 (to be rejected; its epoch is over at 6), 8 (to be accepted) and 10 (of two layers).
STEPS = [4, 6, 8, 10, 14]


def lived(make_bert, folder, **settings):
    return ended(*live(make_bert, folder, **settings), folder)


def assert_resumes(make_bert, whole, out, step, **settings):
    """From one checkpoint of a run to its very end."""
    copy_checkpoints(whole.folder, out, step)
    trainer, callback = live(make_bert, out, resume=True, **settings)
    resumed = ended(trainer, callback, out)
    assert trainer._initial_global_step == step
    assert resumed.verdicts == whole.verdicts
    assert_same(whole.everything, resumed.everything)
    assert (resumed.step, resumed.rates) == (whole.step, whole.rates)
    return trainer, callback


def test_with_a_function_that_makes_the_model(make_bert, tmp_path, monkeypatch):
    whole = lived(make_bert, tmp_path / "whole", from_init=True)
    assert [verdict for verdict, *_ in whole.verdicts] == ["rejected", "accepted", "rejected"]
    assert [pending_at(whole.folder, step) for step in STEPS] == [True, True, True, True, False]
    for step in STEPS:
        trainer, callback = assert_resumes(make_bert, whole, tmp_path / str(step), step, from_init=True)

    def interrupt(seed):
        raise KeyboardInterrupt

    checkpoint = str(whole.folder / "checkpoint-8")
    with monkeypatch.context() as patch:
        patch.setattr(transformers_trainer, "set_seed", interrupt)  # what train() does before it makes the model
        with pytest.raises(KeyboardInterrupt):
            trainer.train(resume_from_checkpoint=checkpoint)
    trainer.train()  # anew, so nothing of that resume may be left
    assert verdicts(callback) == whole.verdicts
    assert_same(whole.everything, everything(trainer))


def test_with_callbacks_that_the_trainer_makes_anew(make_bert, tmp_path):
    setting = {"restore_callback_states_from_checkpoint": True}
    whole = lived(make_bert, tmp_path / "whole", **setting)
    for step in STEPS:
        trainer, callback = assert_resumes(make_bert, whole, tmp_path / str(step), step, **setting)
        (ours,) = [one for one in trainer.callback_handler.callbacks if isinstance(one, LayerPruningCallback)]
        assert ours is not callback
        assert ours.report.to_dict() == callback.report.to_dict()  # the script's own object knows all that happened


def two_groups(model):
    """As many scripts have it: no decay for biases and norms; neither is in the model's order as a whole."""
    plain = [p for p in model.parameters() if p.dim() < 2]
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": plain, "lr": 5e-4}], lr=1e-3)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 7, 11], gamma=0.7)
    return optimizer, schedule


def test_with_an_optimizer_and_a_schedule_of_ones_own(make_bert, tmp_path):
    whole = lived(make_bert, tmp_path / "whole", optimizers=two_groups)
    for step in STEPS:
        assert_resumes(make_bert, whole, tmp_path / str(step), step, optimizers=two_groups)


def test_a_resume_that_fails_gives_the_optimizer_back(make_bert, tmp_path):
    whole = lived(make_bert, tmp_path / "whole", optimizers=two_groups)
    model = make_bert(hidden_dropout_prob=0.1, num_labels=2)
    optimizer = torch.optim.AdamW([{"params": [p]} for p in model.parameters()], lr=1e-3)  # another one than before
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 7, 11], gamma=0.7)

    def state():
        groups = [(group["lr"], list(map(id, group["params"]))) for group in optimizer.param_groups]
        return (
            groups,
            list(schedule.base_lrs),
            schedule.get_last_lr(),
            model.config.to_dict(),
            list(model.state_dict()),
        )

    trainer = build_trainer(model, tmp_path / "out", optimizers=(optimizer, schedule), num_train_epochs=6)
    callback = add(trainer, start_epoch=1)
    before = state()
    for step in (8, 14):
        with pytest.raises(ValueError, match="different number of parameter groups"):
            trainer.train(resume_from_checkpoint=str(whole.folder / f"checkpoint-{step}"))
        assert state() == before
        assert callback.engine is None
    torn = whole.folder / "checkpoint-8" / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    with pytest.raises(errors.MPrunerError, match="cannot be resumed from"):
        trainer.train(resume_from_checkpoint=str(torn.parent))
    assert state() == before
    trainer.train()
    assert trainer.state.global_step == 18
    assert callback.record.rounds
