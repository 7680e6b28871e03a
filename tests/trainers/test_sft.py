"""trl's `SFTTrainer` takes the callback unchanged, with its own defaults: bf16, gradient checkpointing, fused head."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import criteria_kit  # noqa: F401 - registers criteria
from hf_mpruner import LayerPruningCallback, PruningConfig, errors
from hf_mpruner.distil import DistilledLoss
from hf_mpruner.sets import Sets
from hf_mpruner.trainers import unflatten
from hf_mpruner.workbench import Workbench
from resume_kit import copy_checkpoints
from text_kit import lines, make_tokenizer
from trainer_kit import Spy, assert_same, everything

pytest.importorskip("trl")

from sft_kit import STACK, add, build, completions

# trl 1.16 and peft 0.21 still say gradient_checkpointing, which transformers 5.23 calls activation_checkpointing
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def assert_loads_the_same(trainer, folder):
    trainer.save_model(str(folder))
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert loaded.config.num_hidden_layers == len(trainer.model.model.layers)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    # the Trainer's forward is that of bf16: accelerate wraps it in autocast, and returns float32
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=trainer.args.bf16):
        assert torch.equal(loaded(ids).logits.float(), trainer.model.eval()(ids).logits)


@pytest.mark.parametrize("metric", ["loss", "perplexity", "mean_token_accuracy"])
def test_a_pruned_model_is_kept_saved_and_loaded(tokenizer, tmp_path, metric):
    data = completions() if metric == "mean_token_accuracy" else None
    trainer = build(tokenizer, tmp_path / "run", data)
    assert (trainer.args.bf16, trainer.args.gradient_checkpointing) == (True, True)
    callback = add(trainer, metric=metric, max_metric_drop=1.0 if metric == "mean_token_accuracy" else 100.0)
    trainer.train()
    (round_,) = callback.record.rounds
    assert (round_.verdict, round_.kept) == ("accepted", {STACK: [0]})
    assert callback.record.greater_is_better == (metric == "mean_token_accuracy")
    assert trainer.model.config.num_hidden_layers == 1
    values = trainer.evaluate()
    assert values["eval_mean_token_accuracy"] > 0.4  # it went on learning: of a word in 170, four in ten are right
    if metric == "perplexity":
        assert round_.after.metric > math.exp(values["eval_loss"])
    assert_loads_the_same(trainer, tmp_path / "saved")


def test_a_model_that_got_worse_is_taken_back(tokenizer, tmp_path):
    # a rate of 2 ruins the weights at once
    trainer = build(tokenizer, tmp_path, learning_rate=2.0, num_train_epochs=1, bf16=False)
    before, after = Spy(on_epoch_begin=lambda: everything(trainer)), Spy(on_epoch_end=lambda: everything(trainer))
    trainer.add_callback(before)
    callback = add(trainer, metric="loss", max_metric_drop=0.1)
    trainer.add_callback(after)
    trainer.train()
    (round_,) = callback.record.rounds
    assert round_.verdict == "rejected"
    assert_same(before.seen["on_epoch_begin"][0], after.seen["on_epoch_end"][0])
    assert_loads_the_same(trainer, tmp_path / "saved")


@pytest.mark.parametrize("config", [{"verify": "full"}, {"recovery": "lora"}, {"freeze_untouched": True}], ids=str)
def test_other_ways_to_prune(tokenizer, tmp_path, config):
    trainer = build(tokenizer, tmp_path / "run", num_train_epochs=2)
    callback = add(trainer, metric="loss", **config)
    trainer.train()
    (round_,) = callback.record.rounds
    assert (round_.verdict, round_.kept) == ("accepted", {STACK: [0]})
    assert round_.drop < 0.05
    assert_loads_the_same(trainer, tmp_path / "saved")


@pytest.mark.parametrize(("loss", "verdict"), [(1.0, "accepted"), (9.0, "rejected")])
def test_adapters_that_trl_puts_in(tokenizer, tmp_path, loss, verdict):
    peft = pytest.importorskip("peft")
    trainer = build(
        tokenizer, tmp_path / "run", peft_config=peft.LoraConfig(r=4, task_type="CAUSAL_LM"), num_train_epochs=1,
        bf16=False,
    )  # fmt: skip
    evaluate, losses = trainer.evaluate, iter([1.0, loss])
    trainer.evaluate = lambda **kwargs: {**evaluate(**kwargs), "mpruner_loss": next(losses)}
    before, after = Spy(on_epoch_begin=lambda: everything(trainer)), Spy(on_epoch_end=lambda: everything(trainer))
    trainer.add_callback(before)
    callback = add(trainer, metric="loss")
    trainer.add_callback(after)
    trainer.train()
    (round_,) = callback.record.rounds
    assert round_.verdict == verdict
    if verdict == "rejected":
        assert_same(before.seen["on_epoch_begin"][0], after.seen["on_epoch_end"][0])
        return
    trainer.save_model(str(tmp_path / "saved"))
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    assert loaded.config.num_hidden_layers == 1
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, trainer.model.eval()(ids).logits)


@pytest.mark.parametrize("packing", [False, True])
def test_a_teacher_teaches_though_trl_computes_its_loss_without_logits(tokenizer, tmp_path, packing):
    trainer = build(tokenizer, tmp_path, packing=packing, max_length=32, bf16=False)
    model, trainer.current_gradient_accumulation_steps = trainer.model.train(), 1
    teacher = LlamaForCausalLM(
        model.config
    ).eval()  # no deepcopy: trl's forward is bound to the model that it was put on
    teacher.load_state_dict(model.state_dict())
    with torch.no_grad():
        teacher.lm_head.weight.mul_(3.0)
    config = PruningConfig(distillation_weight=1.0, distillation_temperature=1.0, distillation_hidden_weight=0.5)
    rows = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    counts = rows["labels"][:, 1:] != -100
    distilled = DistilledLoss(trainer, config, teacher, {STACK: [0, 1, 2, 3]})
    loss = distilled(trainer.compute_loss, model, dict(rows), num_items_in_batch=counts.sum())

    inputs = {name: value for name, value in rows.items() if name in ("input_ids", "attention_mask", "position_ids")}
    mine, its = (one(**inputs, use_cache=False).logits[:, :-1].log_softmax(-1) for one in (model, teacher))
    expected = (its.exp() * (its - mine)).sum(-1)[counts].mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)  # equal hidden states add nothing
    loss.backward()
    assert all(param.grad is not None and param.grad.any() for param in model.parameters())


def test_a_cut_recovers_with_its_teacher(tokenizer, tmp_path):
    trainer = build(tokenizer, tmp_path / "run", num_train_epochs=2)
    callback = add(trainer, metric="loss", distillation_weight=0.5, distillation_hidden_weight=0.1)
    trainer.train()
    assert callback.record.rounds[0].verdict == "accepted"
    assert_loads_the_same(trainer, tmp_path / "saved")


def test_what_trl_gathers_between_two_logs_is_its_own(tokenizer, tmp_path):
    def log_of(trainer):
        timed = ("runtime", "per_second")
        return [{k: v for k, v in entry.items() if not k.endswith(timed)} for entry in trainer.state.log_history]

    plain = build(tokenizer, tmp_path / "plain", eval_strategy="epoch")
    plain.train()
    # nothing is cut, since no layers are alike that much, but the uncut model is evaluated in the middle of the run
    measured = build(tokenizer, tmp_path / "measured", eval_strategy="epoch")
    callback = add(measured, metric="loss", threshold=1.0, start_epoch=1)
    measured.train()
    assert callback.record.baseline is not None
    assert not callback.record.rounds
    assert log_of(plain) == log_of(measured)

    cut = build(tokenizer, tmp_path / "cut")
    callback = add(cut, metric="loss")
    cut.train()
    facts = [entry for entry in cut.state.log_history if "mpruner_round" in entry]
    assert len(facts) == 2
    assert all(key.startswith("mpruner") or key in ("epoch", "step") for entry in facts for key in entry)
    # trl's `log` takes the mode from the model's, adds what it has gathered in that mode, and forgets it
    cut.model.train()
    cut._metrics["train"]["entropy"].append(5.0)
    callback._bench.log_round(callback.record.rounds[0], "loss")
    assert cut._metrics["train"]["entropy"] == [5.0]
    assert "entropy" not in cut.state.log_history[-1]


@pytest.mark.parametrize("strategy", ["bfd", "wrapped"])
def test_packed_sequences_are_measured_one_by_one(tokenizer, tmp_path, strategy):
    trainer = build(tokenizer, tmp_path / "run", packing=True, packing_strategy=strategy, max_length=32)
    callback = add(trainer, metric="loss", max_metric_drop=100.0)
    trainer.train()
    (round_,) = callback.record.rounds
    assert (round_.verdict, round_.kept) == ("accepted", {STACK: [0]})
    assert_loads_the_same(trainer, tmp_path / "saved")
    batches = list(callback._bench._first.batches)
    if (
        strategy == "wrapped"
    ):  # pieces of 32 words without borders: trl lets them see each other, so they are one example
        assert all(batch["input_ids"].shape[1] <= 32 for batch in batches)
        return
    whole = {tuple(tokenizer(line + tokenizer.eos_token)["input_ids"]) for line in lines()}
    found = [
        tuple(ids[mask.bool()].tolist())
        for batch in batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert len(found) == len(lines())
    assert set(found) == whole


def test_a_flattened_batch_taken_apart_gives_the_same_hidden_states(tokenizer, tmp_path):
    trainer = build(tokenizer, tmp_path, packing=True, max_length=32, bf16=False)
    model = trainer.model.eval()
    flat = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])
    assert flat["input_ids"].shape[0] == 1
    apart = unflatten(flat)
    with torch.no_grad():
        inputs = {name: flat[name] for name in ("input_ids", "position_ids")}
        together = model.model(**inputs, use_cache=False).last_hidden_state[0]
        alone = model.model(**apart).last_hidden_state[apart["attention_mask"].bool()]
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)
    assert len(apart["input_ids"]) > 2


@pytest.mark.parametrize("step", [4, 8, 14])
def test_a_resumed_run_ends_with_the_same_weights(tokenizer, tmp_path, step):
    """From checkpoints before any cut (4), with one that waits for its verdict (8), and after it (14)."""

    def live(folder, resume=None):
        trainer = build(tokenizer, folder, save_strategy="steps", save_steps=2, logging_strategy="no")
        callback = add(trainer, metric="loss", start_epoch=1, recovery_epochs=1, max_metric_drop=100.0)
        trainer.train(resume_from_checkpoint=resume)
        return trainer, callback

    whole, first = live(tmp_path / "whole")
    assert [round_.verdict for round_ in first.record.rounds] == ["accepted"]
    again, second = live(copy_checkpoints(tmp_path / "whole", tmp_path / "again", step), resume=True)
    assert [(r.verdict, r.reason) for r in second.record.rounds] == [
        (r.verdict, r.reason) for r in first.record.rounds
    ]
    assert_same(everything(whole), everything(again))


@pytest.mark.parametrize("packing", [False, True])
def test_a_criterion_measures_the_loss_that_the_trainer_computes(tokenizer, tmp_path, packing):
    trainer = build(tokenizer, tmp_path, packing=packing, max_length=32, per_device_eval_batch_size=4)
    rows = trainer.eval_dataset.select(range(4))
    wanted = trainer.evaluate(rows)["eval_loss"]
    trainer = build(tokenizer, tmp_path, packing=packing, max_length=32)
    config = PruningConfig(criterion="from_the_end", target_num_layers=2, metric="loss", max_metric_drop=9.0)
    callback = LayerPruningCallback(trainer, config, calibration=rows)
    trainer.add_callback(callback)
    trainer.train()
    scores = callback.record.rounds[0].scores
    assert scores["scores"][STACK]["details"]["loss"] == pytest.approx(wanted, rel=1e-3)  # bf16
    assert scores["cost"]["forward_passes"] == 1.0
    assert len(trainer.model.model.layers) == 2


@pytest.mark.parametrize("packed", [False, True])
def test_its_loss_has_outcomes_and_what_it_adds_itself_has_none(tokenizer, tmp_path, packed):
    trainer = build(tokenizer, tmp_path, packing=packed, max_length=24, per_device_eval_batch_size=3)
    bench = Workbench(trainer, PruningConfig(metric="loss", max_metric_drop=0.1, confidence=0.95))
    bench.sets = Sets()  # what judges is all of the evaluation set
    metrics = bench.evaluate()
    outcomes = bench.outcomes("loss")
    assert outcomes.value == metrics["loss"] == pytest.approx(np.average(outcomes.values, weights=outcomes.weights))
    assert sum(outcomes.weights) == len(trainer.eval_dataset) == outcomes.num_examples
    bench.evaluate()
    with pytest.raises(errors.MPrunerError, match="mean_token_accuracy comes from the Trainer itself"):
        bench.outcomes("mean_token_accuracy")


def test_the_part_that_judges_is_evaluated_as_trl_prepared_it(tokenizer, tmp_path):
    trainer = build(tokenizer, tmp_path, packing=True, eval_packing=True, max_length=16)
    prepared = trainer.eval_dataset
    bench = Workbench(trainer, PruningConfig(threshold="auto", criterion="cka", metric="loss", calibration_samples=4))
    with bench.aside():
        bench.make_engine(None)
        loss = bench.evaluate()["loss"]
    judging = bench.sets.judging
    assert len(judging) == len(prepared) - 4 > 8
    assert bench.judged_on("loss").data["num_examples"] == len(judging)
    assert trainer.eval_dataset is prepared
    trainer.eval_dataset = judging
    assert trainer.evaluate()["eval_loss"] == loss
