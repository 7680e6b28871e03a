"""Resuming with optimizers and schedules that the script makes, to the bits of the run that was not interrupted."""

from __future__ import annotations

import pytest
import torch
from transformers import Trainer

from hf_mpruner import errors
from resume_kit import assert_resumes, begin, lived
from trainer_kit import STACK, add, build_trainer


def two_groups(model):
    """As many scripts have it: no decay for biases and norms; neither is in the model's order as a whole."""
    plain = [p for p in model.parameters() if p.dim() < 2]
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": plain, "lr": 5e-4}], lr=1e-3)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 7, 11], gamma=0.7)
    return optimizer, schedule


def test_with_an_optimizer_and_a_schedule_of_ones_own(make_bert, tmp_path):
    whole = lived(make_bert, tmp_path / "whole", optimizers=two_groups)
    for step in (4, 6, 10):
        assert_resumes(make_bert, whole, tmp_path / str(step), step, optimizers=two_groups)


def by_layer(model):
    """A group for the rest, then one for each layer with its own rate."""
    layers = [list(layer.parameters()) for layer in model.get_submodule(STACK)]
    inside = {id(p) for params in layers for p in params}
    groups = [{"params": [p for p in model.parameters() if id(p) not in inside], "lr": 1e-3}]
    return groups + [{"params": params, "lr": 1e-3 * 0.5**depth} for depth, params in enumerate(layers)]


def lambda_each(optimizer):
    fall = [lambda step, half=10 * (n + 1): 1 / (1 + step / half) for n, _ in enumerate(optimizer.param_groups)]
    return torch.optim.lr_scheduler.LambdaLR(optimizer, fall)


def steps_then_cosine(optimizer):
    first = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5], gamma=0.7)
    second = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [first, second], [7])


def one_cycle(optimizer):
    rates = [group["lr"] for group in optimizer.param_groups]
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=20)  # moves the betas, too


@pytest.mark.parametrize("schedule", [lambda_each, steps_then_cosine, pytest.param(one_cycle, marks=pytest.mark.slow)])
def test_with_a_group_a_layer_of_which_a_pending_cut_has_emptied_some(make_bert, tmp_path, schedule):
    def optimizers(model):
        optimizer = torch.optim.AdamW(by_layer(model))
        return optimizer, schedule(optimizer)

    whole = lived(make_bert, tmp_path / "whole", optimizers=optimizers)
    assert len(whole.rates) == 3
    for step in (4, 6, 10):
        assert_resumes(make_bert, whole, tmp_path / str(step), step, optimizers=optimizers)


@pytest.mark.parametrize("schedule", ["linear", pytest.param("cosine_with_min_lr", marks=pytest.mark.slow)])
def test_with_a_group_a_layer_that_the_trainer_is_taught_to_make(make_bert, tmp_path, monkeypatch, schedule):
    """The resumed run makes the optimizer of the cut model: the groups that the cut had emptied were never there."""

    def create_optimizer(trainer, model=None):
        if trainer.optimizer is None:
            trainer.optimizer = torch.optim.AdamW(by_layer(trainer.model))
        return trainer.optimizer

    monkeypatch.setattr(Trainer, "create_optimizer", create_optimizer)
    setting = {"lr_scheduler_type": schedule}
    if schedule == "cosine_with_min_lr":
        setting["lr_scheduler_kwargs"] = {"min_lr": 1e-4}
    whole = lived(make_bert, tmp_path / "whole", **setting)
    for step in (4, 6, 10):
        assert_resumes(make_bert, whole, tmp_path / str(step), step, **setting)


def test_groups_that_cannot_come_back_are_refused(make_bert, tmp_path, monkeypatch):
    def create_optimizer(trainer, model=None):
        trainer.optimizer = trainer.optimizer or torch.optim.AdamW(by_layer(trainer.model))
        return trainer.optimizer

    def create_scheduler(trainer, num_training_steps, optimizer=None):
        trainer.lr_scheduler = trainer.lr_scheduler or lambda_each(trainer.optimizer)
        return trainer.lr_scheduler

    monkeypatch.setattr(Trainer, "create_optimizer", create_optimizer)
    monkeypatch.setattr(Trainer, "create_scheduler", create_scheduler)
    whole = lived(make_bert, tmp_path / "whole")
    trainer, callback = begin(make_bert, tmp_path / "out")
    text = (
        "AdamW had 5 parameter groups before the pending cut, which cannot be put back: the functions in 'lr_lambdas' of "
        r"LambdaLR differ from group to group\. .*pass them as Trainer\(optimizers=\(optimizer, scheduler\)\)"
    )
    with pytest.raises(errors.UnsupportedBackendError, match=text):
        trainer.train(resume_from_checkpoint=str(whole.folder / "checkpoint-4"))
    assert len(trainer.model.get_submodule(STACK)) == trainer.model.config.num_hidden_layers == 4
    assert callback.engine is None


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
