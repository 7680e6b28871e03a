"""What a Trainer's evaluation keeps with a confidence: the outcomes of the metric that decides."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import Trainer

from hf_mpruner import PruningConfig, prune_
from hf_mpruner.errors import MPrunerError
from hf_mpruner.sets import Sets
from hf_mpruner.watching import TrainerEvaluation
from hf_mpruner.workbench import Workbench
from trainer_kit import Rows, build_trainer, everything

NUM = 21  # with batches of 8 the last one has 5


def f1(prediction):
    said, right = prediction.predictions.argmax(-1), prediction.label_ids
    both = ((said == 1) & (right == 1)).sum()
    return {"f1": 2 * both / max((said == 1).sum() + (right == 1).sum(), 1), "accuracy": (said == right).mean()}


def bench_of(trainer, confidence=0.95):
    """What judges is all of the evaluation set."""
    bench = Workbench(trainer, PruningConfig(confidence=confidence, max_metric_drop=0.1))
    bench.sets = Sets()
    return bench


@pytest.fixture
def trainer(make_bert, tmp_path):
    trainer = build_trainer(make_bert(num_labels=2), tmp_path, f1)
    trainer.eval_dataset = Rows(NUM, 1)
    return trainer


def logits_and_labels(trainer):
    """A forward pass over the evaluation set, one example at a time."""
    with torch.no_grad():
        rows = [{name: torch.as_tensor(value)[None] for name, value in row.items()} for row in trainer.eval_dataset]
        logits = torch.cat([trainer.model.eval()(**row).logits for row in rows])
    return logits, torch.tensor([row["labels"] for row in trainer.eval_dataset])


def test_an_accuracy_is_made_of_the_examples(trainer):
    bench = bench_of(trainer)
    metrics = bench.evaluate()
    outcomes = bench.outcomes("accuracy")
    logits, labels = logits_and_labels(trainer)
    assert outcomes.kind == "binary"
    assert outcomes.values == tuple((logits.argmax(-1) == labels).double().tolist())
    assert outcomes.value == metrics["accuracy"]
    assert outcomes.num_examples == NUM


def test_a_loss_is_made_of_the_batches_the_ragged_one_too(trainer):
    bench = bench_of(trainer)
    metrics = bench.evaluate()
    outcomes = bench.outcomes("loss")
    logits, labels = logits_and_labels(trainer)
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert outcomes.values == pytest.approx([float(part.mean()) for part in losses.split(8)], rel=1e-4)
    assert (outcomes.unit, outcomes.weights, outcomes.num_examples) == ("batches", (8.0, 8.0, 5.0), NUM)
    assert outcomes.value == metrics["loss"] == pytest.approx(float(losses.mean()), rel=1e-4)


def test_a_perplexity_and_an_f1_are_replicates(trainer):
    bench = bench_of(trainer)
    metrics = bench.evaluate()
    outcomes = bench.outcomes("perplexity")
    assert (outcomes.kind, outcomes.unit) == ("replicates", "batches")
    assert outcomes.value == pytest.approx(math.exp(metrics["loss"]))
    assert min(outcomes.values) < outcomes.value < max(outcomes.values)
    bench.evaluate()
    outcomes = bench.outcomes("f1")
    assert (outcomes.kind, outcomes.unit, outcomes.value) == ("replicates", "examples", metrics["f1"])


def test_the_trainer_is_left_as_it_was_and_nothing_is_kept_without_a_confidence(trainer):
    trainer.create_optimizer()
    before, attributes = everything(trainer), dict(vars(trainer))
    with_it, without = bench_of(trainer), bench_of(trainer, None)
    assert {
        name: value for name, value in with_it.evaluate().items() if "second" not in name and "time" not in name
    } == {name: value for name, value in without.evaluate().items() if "second" not in name and "time" not in name}
    random = torch.get_rng_state()
    with_it.outcomes("f1")
    assert set(vars(trainer)) >= set(attributes)
    for name in ("evaluation_loop", "prediction_step"):
        assert name not in vars(trainer)
    assert trainer.compute_metrics is f1
    assert trainer.gather_function == trainer.accelerator.gather_for_metrics
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[0][name]) for name, value in trainer.model.state_dict().items())
    for bench in (with_it, without):  # asked for once
        with pytest.raises(MPrunerError, match="No evaluation was kept"):
            bench.outcomes("f1")


def test_what_a_collator_draws_is_the_same_for_every_model(trainer):
    """Masks of a language model, say: else two models would be judged on other tokens."""
    collate = trainer.data_collator

    def masking(rows):
        batch = collate(rows)
        hidden = torch.rand(batch["input_ids"].shape) < 0.5
        return {**batch, "input_ids": batch["input_ids"].masked_fill(hidden, int(torch.randint(2, 99, ())))}

    trainer.data_collator = masking
    bench = bench_of(trainer)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        bench.evaluate()
        assert torch.equal(torch.get_rng_state(), before)
        found.append(bench.outcomes("loss"))
    assert found[0] == found[1]


def test_an_evaluation_that_fails_leaves_the_trainer_as_it_was(trainer):
    def broken(prediction):
        raise RuntimeError("broken")

    trainer.compute_metrics = broken
    with pytest.raises(RuntimeError, match="broken"):
        bench_of(trainer).evaluate()
    assert trainer.compute_metrics is broken
    assert not {"evaluation_loop", "prediction_step"} & set(vars(trainer))


def test_each_of_several_evaluation_sets_has_outcomes_of_its_own(trainer):
    trainer.eval_dataset = {"one": Rows(8, 1), "two": Rows(13, 2)}
    bench = bench_of(trainer)
    metrics = bench.evaluate()
    outcomes = bench.outcomes("two_accuracy")
    assert (outcomes.num_examples, len(outcomes.values), outcomes.value) == (13, 13, metrics["two_accuracy"])
    bench.evaluate()
    assert bench.outcomes("one_loss").weights == (8.0,)


def test_metrics_that_see_batches_have_losses_only(make_bert, tmp_path):
    class Summed:
        hits = 0

        def __call__(self, prediction, compute_result=False):
            self.hits += int((prediction.predictions.argmax(-1) == prediction.label_ids).sum())
            return {"accuracy": self.hits / 16} if compute_result else {}

    trainer = build_trainer(make_bert(num_labels=2), tmp_path, Summed(), batch_eval_metrics=True)
    bench = bench_of(trainer)
    bench.evaluate()
    with pytest.raises(MPrunerError, match="batch_eval_metrics=False"):
        bench.outcomes("accuracy")
    bench.evaluate()
    assert bench.outcomes("loss").weights == (8.0, 8.0)


def test_what_the_trainer_itself_adds_has_none(trainer):
    bench = bench_of(trainer)
    bench.evaluate()
    with pytest.raises(
        MPrunerError, match=r"entropy comes from the Trainer itself, .* metric='loss', or pass confidence"
    ):
        bench.outcomes("entropy")


def test_a_trainer_with_an_evaluation_of_its_own_is_refused(make_bert, tmp_path):
    class Other(Trainer):
        def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
            return SimpleNamespace(metrics={f"{metric_key_prefix}_loss": 1.0}, num_samples=4)

    settings = build_trainer(make_bert(num_labels=2), tmp_path).args
    bench = bench_of(Other(make_bert(num_labels=2), settings, eval_dataset=Rows(4, 0)))
    bench.evaluate()
    with pytest.raises(MPrunerError, match="Other has an evaluation of its own"):
        bench.outcomes("loss")


def test_a_loss_of_half_precision_is_a_loss_to_three_digits(make_bert, tmp_path):
    class Half(Trainer):
        def compute_loss(self, *args, **kwargs):
            loss, outputs = super().compute_loss(*args, **kwargs)
            return loss.half(), outputs

    settings = build_trainer(make_bert(num_labels=2), tmp_path, per_device_eval_batch_size=2).args
    trainer = Half(make_bert(num_labels=2), settings, eval_dataset=Rows(NUM, 0))
    bench = bench_of(trainer)
    value = bench.evaluate()["loss"]
    outcomes = bench.outcomes("loss")
    assert outcomes.value == value == pytest.approx(np.average(outcomes.values, weights=outcomes.weights), rel=1e-3)


def test_inputs_and_losses_that_metrics_ask_for_are_sliced_too(make_bert, tmp_path):
    def compute(prediction):
        assert len(prediction.inputs) == len(prediction.losses) == len(prediction.label_ids)
        return {"length": float((prediction.inputs != 0).sum(-1).mean())}

    settings = {"include_for_metrics": ["inputs", "loss"], "eval_do_concat_batches": True}
    trainer = build_trainer(make_bert(num_labels=2), tmp_path, compute, **settings)
    bench = bench_of(trainer)
    bench.evaluate()
    lengths = [float((row["input_ids"] != 0).sum()) for row in trainer.eval_dataset]
    assert bench.outcomes("length").values == tuple(lengths)


def test_batches_that_the_trainer_leaves_apart(make_bert, tmp_path):
    def compute(prediction):
        pairs = zip(prediction.predictions, prediction.label_ids, strict=True)
        return {"accuracy": np.concatenate([logits.argmax(-1) == labels for logits, labels in pairs]).mean()}

    trainer = build_trainer(make_bert(num_labels=2), tmp_path, compute, eval_do_concat_batches=False)
    bench = bench_of(trainer)
    bench.evaluate()
    logits, labels = logits_and_labels(trainer)
    assert bench.outcomes("accuracy").values == tuple((logits.argmax(-1) == labels).double().tolist())


def test_prune_takes_numbers_of_examples_as_a_metric(make_bert, trainer):
    seen = []

    def evaluate(model):
        logits, labels = logits_and_labels(trainer)
        seen.append((logits.argmax(-1) == labels).float())
        return {"accuracy": seen[-1]}

    report = prune_(
        trainer.model,
        PruningConfig(threshold=0.0, max_metric_drop=1.0, calibration_samples=8, metric="accuracy"),
        calibration=Rows(8, 2),
        evaluate=evaluate,
    )
    assert report.record.baseline.metric == pytest.approx(float(seen[0].mean()))
    assert report.record.rounds[0].after.metric == pytest.approx(float(seen[1].mean()))


def test_a_trainers_evaluation_is_an_evaluate_with_outcomes(trainer):
    evaluate = TrainerEvaluation(trainer, keeps=True)
    metrics = evaluate(trainer.model)
    outcomes = evaluate.outcomes("accuracy")
    assert (outcomes.kind, outcomes.value) == ("binary", metrics["accuracy"])
    assert TrainerEvaluation(trainer, keeps=False)(trainer.model)["accuracy"] == metrics["accuracy"]
