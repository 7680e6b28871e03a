"""Settings of the Trainer under which a cut must be exact: optimizers, schedules, precision, accumulation."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from trainer_kit import CHECKPOINTING, STACK, Scripted, Spy, add, build_trainer, realigned

# Accumulation of 2 over three batches an epoch: the last step of each epoch is a short one.
SETTINGS = {
    "adamw_foreach": {"optim": "adamw_torch"},
    "adamw_fused": {"optim": "adamw_torch_fused"},
    "adafactor": {"optim": "adafactor"},
    "sgd": {"optim": "sgd"},
    "adagrad": {"optim": "adagrad"},
    "rmsprop": {"optim": "rmsprop"},
    "cosine_accumulation": {
        "optim": "adamw_torch",
        "lr_scheduler_type": "cosine",
        "warmup_steps": 3,
        "gradient_accumulation_steps": 2,
    },
    "plateau": {
        "optim": "adamw_torch",
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": {"patience": 0},
        "eval_strategy": "epoch",
        "metric_for_best_model": "loss",
    },
    "bf16": {"optim": "adamw_torch", "bf16": True},
    "checkpointing": {CHECKPOINTING: True},
    "checkpointing_every_second": {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"every_n_layers": 2}},
    "compile_eager": {"torch_compile": True, "torch_compile_backend": "eager"},
    "compile_aot_eager": {"torch_compile": True, "torch_compile_backend": "aot_eager"},
}
RESUMED = [name for name in SETTINGS if not name.startswith(("compile", "checkpointing"))]


def accuracy(prediction):
    return {"accuracy": 1.0}


def invariants(trainer):
    """Model, optimizer, wrapper and config agree; the order of each group is the model's."""
    model = trainer.model
    place = {id(p): i for i, p in enumerate(model.parameters())}
    groups = [[place[id(p)] for p in group["params"]] for group in trainer.optimizer.param_groups]
    held = {i for group in groups for i in group}
    return (
        held == set(range(len(place)))
        and all(group == sorted(group) for group in groups)
        and {id(p) for p in trainer.optimizer.state} <= set(place)
        and {id(p) for p in trainer.model_wrapped.parameters()} == set(place)
        and model.config.num_hidden_layers == len(model.get_submodule(STACK))
    )


@pytest.mark.parametrize("name", RESUMED)
def test_a_cut_in_the_loop_is_save_and_resume_with_a_fresh_small_model(name, make_bert, tmp_path):
    settings = {"num_train_epochs": 4, "save_strategy": "epoch", "disable_tqdm": True, **SETTINGS[name]}
    looped = build_trainer(make_bert(num_labels=2), tmp_path / "a", accuracy, **settings)
    callback = add(looped, start_epoch=1, max_rounds=1)
    looped.train()
    (round_,) = callback.record.rounds
    assert round_.verdict == "accepted"
    checkpoint = tmp_path / "a" / f"checkpoint-{round_.decided_at_step}"

    small = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    assert small.config.num_hidden_layers == 1
    resumed = build_trainer(small, tmp_path / "b", accuracy, **settings)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == looped.state.global_step > round_.decided_at_step
    live, other = looped.model.state_dict(), resumed.model.state_dict()
    assert live.keys() == other.keys()
    assert all(torch.equal(live[key], other[key]) for key in live)
    start = AutoModelForSequenceClassification.from_pretrained(checkpoint).state_dict()
    assert any(not torch.equal(live[key].cpu(), start[key]) for key in start)  # they did train on after the cut


@pytest.mark.parametrize("name", SETTINGS)
def test_a_rejected_and_an_accepted_round(name, make_bert, tmp_path):
    settings = {"num_train_epochs": 5, **SETTINGS[name]}
    # baseline, rejected, then good; the plateau scheduler's own evaluations ask for values too
    metrics = accuracy if "eval_strategy" in settings else Scripted(0.9, 0.1, 0.9)
    trainer = build_trainer(make_bert(num_labels=2), tmp_path, metrics, **settings)
    callback = add(trainer, start_epoch=1, max_rounds=2)
    spy = Spy(on_step_end=lambda: invariants(trainer))
    trainer.add_callback(spy)
    trainer.train()
    verdicts = [round_.verdict for round_ in callback.record.rounds]
    assert verdicts == (["accepted"] if "eval_strategy" in settings else ["rejected", "accepted"])
    assert spy.seen["on_step_end"]
    assert all(spy.seen["on_step_end"])
    kept = callback.record.rounds[-1].kept[STACK]
    assert trainer.model.config.num_hidden_layers == len(kept) < 4
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    live, other = trainer.model.state_dict(), loaded.state_dict()
    assert live.keys() == other.keys()
    assert all(torch.equal(live[key], other[key]) for key in live)
    batch = {"input_ids": torch.arange(2, 10)[None], "attention_mask": torch.ones(1, 8, dtype=torch.long)}
    if not settings.get("bf16"):  # accelerate leaves its autocast on the live model's forward
        with torch.no_grad():
            assert torch.equal(trainer.model.eval()(**batch).logits, realigned(loaded)(**batch).logits)


def test_groups_of_the_users_own_with_a_rate_a_layer(make_bert, tmp_path):
    model = make_bert(num_labels=2)
    layers = [list(layer.parameters()) for layer in model.get_submodule(STACK)]
    inside = {id(p) for params in layers for p in params}
    groups = [{"params": [p for p in model.parameters() if id(p) not in inside], "lr": 1e-3}]
    groups += [{"params": params, "lr": 1e-3 * 0.5**depth} for depth, params in enumerate(layers)]
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    trainer = build_trainer(
        model, tmp_path, Scripted(0.9, 0.1, 0.9), optimizers=(optimizer, schedule), num_train_epochs=5
    )
    callback = add(trainer, start_epoch=1, max_rounds=2)
    spy = Spy(on_step_end=lambda: (len(optimizer.param_groups), len(schedule.base_lrs), invariants(trainer)))
    trainer.add_callback(spy)
    trainer.train()
    assert [round_.verdict for round_ in callback.record.rounds] == ["rejected", "accepted"]
    kept = callback.record.rounds[-1].kept[STACK]
    assert {(groups, rates) for groups, rates, _ in spy.seen["on_step_end"]} == {(5, 5), (2, 2), (1 + len(kept),) * 2}
    assert all(fits for *_, fits in spy.seen["on_step_end"])
    rates = [group["lr"] for group in optimizer.param_groups]
    clock = trainer.state.global_step
    assert rates == pytest.approx([1e-3 / (1 + clock)] + [1e-3 * 0.5**layer / (1 + clock) for layer in kept])


@pytest.mark.parametrize("recovery", ["full", "lora"])
def test_a_gradient_scaler_goes_back_and_on_with_the_weights(make_bert, tmp_path, recovery):
    """fp16 needs a GPU, its scaler does not: here it scales the loss of a training in full precision."""
    if recovery == "lora":
        pytest.importorskip("peft")
    metrics = Scripted(0.9, 0.1, 0.9)
    trainer = build_trainer(make_bert(num_labels=2), tmp_path, metrics, optim="sgd", max_grad_norm=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)  # doubles after each step
    trainer.accelerator.scaler = scaler
    callback = add(trainer, max_rounds=2, recovery=recovery)
    begun = Spy(on_epoch_begin=scaler.get_scale)
    ended = Spy(on_epoch_end=scaler.get_scale)
    trainer.add_callback(begun)
    trainer.add_callback(ended)
    trainer.train()
    assert [round_.verdict for round_ in callback.record.rounds] == ["rejected", "accepted"]
    assert begun.seen["on_epoch_begin"] == [4.0, 4.0, 32.0]  # back after the rejected round, on after the accepted one
    assert ended.seen["on_epoch_end"] == [4.0, 32.0, 256.0]
