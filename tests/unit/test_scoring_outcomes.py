"""From a metric to outcomes: each road against the formula written out, and metrics that have none."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from hf_mpruner import make_compute_metrics
from hf_mpruner.errors import MPrunerError
from hf_mpruner.guarantee import Outcomes, check_outcomes, resample_indices
from hf_mpruner.scoring import find_outcomes, outcomes_of_batches, outcomes_of_values, scored_prediction
from hf_mpruner.scoring import outcomes as roads
from hf_mpruner.watching import UserEvaluation


def predicted(num=300, classes=3, seed=0, right=0.8):
    """Logits that are right for a part of the examples."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, num)
    logits = generator.normal(size=(num, classes))
    logits[np.arange(num), labels] += np.where(generator.random(num) < right, 6.0, -6.0)
    return EvalPrediction(logits, labels)


def found(compute, prediction, metric="accuracy", like=None, **kwargs):
    scored = scored_prediction(compute, prediction, lambda values: values[metric], **kwargs)
    return find_outcomes(scored, metric, float(compute(prediction)[metric]), like=like)


def hits(prediction):
    return prediction.predictions.argmax(-1) == prediction.label_ids


def top2(prediction):
    return (prediction.predictions.argsort(-1)[:, -2:] == prediction.label_ids[:, None]).any(-1)


def accuracy(prediction):
    return {"accuracy": hits(prediction).mean()}


def f1_macro(prediction):
    said, right = prediction.predictions.argmax(-1), prediction.label_ids
    scores = []
    for label in np.union1d(said, right):
        both = ((said == label) & (right == label)).sum()
        scores.append(2 * both / ((said == label).sum() + (right == label).sum()))
    return {"f1": np.mean(scores)}


class Counted:
    """Counts its calls."""

    def __init__(self, compute):
        self.compute, self.calls = compute, 0

    def __call__(self, prediction):
        self.calls += 1
        return self.compute(prediction)


# -- means of examples ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_an_accuracy_is_a_share_of_examples_and_takes_few_calls(seed):
    prediction, counted = predicted(5000, seed=seed), Counted(accuracy)
    outcomes = found(counted, prediction)
    assert outcomes.kind == "binary"
    assert outcomes.values == tuple(hits(prediction).astype(float))
    assert outcomes.value == hits(prediction).mean()
    assert counted.calls < 200


@pytest.mark.parametrize(
    ("compute", "expected", "kind"),
    [
        (lambda p: {"accuracy": 1 - hits(p).mean()}, lambda p: 1.0 - hits(p), "binary"),
        (lambda p: {"accuracy": round(float(hits(p).mean()), 4)}, hits, "binary"),
        (lambda p: {"accuracy": round(100 * float(hits(p).mean()), 2)}, lambda p: 100.0 * hits(p), "values"),
        (
            lambda p: {"accuracy": float(np.abs(p.predictions[:, 0] - p.label_ids).mean())},
            lambda p: np.abs(p.predictions[:, 0] - p.label_ids),
            "values",
        ),
        (lambda p: {"accuracy": top2(p).mean()}, top2, "binary"),
    ],
    ids=["error rate", "rounded", "rounded percent", "mean absolute error", "top 2"],
)
def test_any_mean_over_examples_is_taken_apart(compute, expected, kind):
    prediction = predicted(271)
    outcomes = found(compute, prediction)
    assert outcomes.kind == kind
    assert np.allclose(outcomes.values, expected(prediction))


def test_nested_predictions_inputs_and_losses_go_with_their_examples():
    whole = predicted(120)
    marks = np.arange(120)
    prediction = EvalPrediction(
        (whole.predictions, (marks, {"again": marks})),
        (whole.label_ids, marks),
        inputs=marks,
        losses=marks.astype(float),
    )

    def compute(part):
        logits, (first, more) = part.predictions
        labels, right = part.label_ids
        assert (first == more["again"]).all()
        assert (first == part.losses).all()
        assert (right == part.inputs).all()
        return {"accuracy": (logits.argmax(-1) == labels).mean()}

    assert found(compute, prediction).values == tuple(hits(whole).astype(float))


def test_batches_that_were_left_apart_are_taken_apart():
    whole, edges = predicted(50), [0, 16, 32, 48, 50]
    parts = [slice(*pair) for pair in itertools.pairwise(edges)]
    apart = EvalPrediction([whole.predictions[part] for part in parts], [whole.label_ids[part] for part in parts])

    def compute(prediction):
        assert isinstance(prediction.predictions, list)
        batches = zip(prediction.predictions, prediction.label_ids, strict=True)
        return {"accuracy": np.concatenate([logits.argmax(-1) == labels for logits, labels in batches]).mean()}

    assert found(compute, apart, in_batches=True).values == tuple(hits(whole).astype(float))


def test_a_function_that_writes_to_what_it_is_given_spoils_nothing():
    prediction = predicted(100)
    kept = prediction.label_ids.copy()

    def compute(part):
        values = accuracy(part)
        if len(part.label_ids) < 100:
            part.label_ids[:] = 0
            part.predictions[:] = 0
        return values

    assert found(compute, prediction).values == tuple(hits(prediction).astype(float))
    assert (prediction.label_ids == kept).all()


def test_a_metric_with_a_small_randomness_of_its_own_is_still_the_mean_of_its_examples():
    """rouge of evaluate is the median of 1,000 resamples of its examples."""
    prediction = predicted(400)
    generator = np.random.default_rng(1)

    def compute(part):
        values = np.abs(part.predictions[:, 0] - part.label_ids)
        return {"rouge": np.median([generator.choice(values, len(values)).mean() for _ in range(100)])}

    outcomes = found(compute, prediction, "rouge")
    assert outcomes.kind == "values"
    assert np.allclose(outcomes.values, np.abs(prediction.predictions[:, 0] - prediction.label_ids))


# -- metrics of the whole set --------------------------------------------------------------------------------------


def replicates(compute, prediction, metric):
    rows = (one.numpy() for one in resample_indices(len(prediction.label_ids)))
    return tuple(
        float(compute(EvalPrediction(prediction.predictions[one], prediction.label_ids[one]))[metric]) for one in rows
    )


def test_an_f1_is_computed_on_resamples():
    prediction = predicted(60)
    outcomes = found(f1_macro, prediction, "f1")
    assert outcomes.kind == "replicates"
    assert outcomes.values == replicates(f1_macro, prediction, "f1")
    assert outcomes.num_examples == 60


@pytest.mark.parametrize("right", [0.0, 0.5, 0.97, 1.0])
def test_a_weighted_f1_is_no_share_however_few_examples_there_are(right, monkeypatch):
    """It is one wherever each class is said as often as it is right."""
    monkeypatch.setattr(roads, "resample_indices", lambda num: itertools.islice(resample_indices(num), 3))

    def f1_weighted(part):
        said, labels = part.predictions.argmax(-1), part.label_ids
        parts = [(labels == one).sum() * f1_of(said == one, labels == one) for one in np.unique(labels)]
        return {"f1": sum(parts) / len(labels)}

    def f1_of(said, labels):
        return 2 * (said & labels).sum() / (said.sum() + labels.sum())

    for seed in range(8):
        prediction = predicted(8, classes=2, seed=seed, right=right)
        if len(set(prediction.label_ids)) == 2:
            assert found(f1_weighted, prediction, "f1").kind == "replicates"
            assert found(accuracy, prediction).kind == "binary"


def test_all_right_is_no_reason_to_take_an_f1_for_a_share():
    """Each example's F1 is 1 then, and so is the whole set's."""
    perfect = predicted(60, right=1.0)
    assert f1_macro(perfect)["f1"] == 1.0
    assert found(f1_macro, perfect, "f1").kind == "replicates"
    assert found(accuracy, perfect).kind == "binary"


def test_a_collapsed_model_gets_outcomes_of_the_kind_of_the_uncut_one():
    """An F1 of one class everywhere, where only that class is right or wrong, is that of any example."""
    before = found(f1_macro, predicted(60), "f1")
    constant = EvalPrediction(np.tile([9.0, 0.0, 0.0], (60, 1)), predicted(60).label_ids)
    assert found(f1_macro, constant, "f1", like=before).kind == "replicates"
    graded = outcomes_of_values([0.5] * 60)
    assert found(accuracy, constant, like=graded).kind == "values"
    assert found(accuracy, constant, like=found(accuracy, predicted(60))).kind == "binary"


@pytest.mark.parametrize("how", ["raises", "nan"])
def test_a_metric_that_fails_on_one_example_is_computed_on_resamples(how):
    prediction = predicted(40)

    def compute(part):
        if len(part.label_ids) == 1:
            if how == "raises":
                raise ValueError("one sample")
            return {"corr": float("nan")}
        return {"corr": float(np.corrcoef(part.predictions.argmax(-1), part.label_ids)[0, 1])}

    outcomes = found(compute, prediction, "corr")
    assert outcomes.values == replicates(compute, prediction, "corr")


def test_labels_that_are_left_out_make_a_share_a_metric_of_the_set():
    prediction = predicted(200)
    prediction.label_ids[::10] = -100

    def compute(part):
        return {"accuracy": hits(part)[part.label_ids != -100].mean()}

    outcomes = found(compute, prediction)
    assert outcomes.kind == "replicates"
    assert outcomes.values == replicates(compute, prediction, "accuracy")


def test_an_accuracy_of_tokens_is_computed_on_resamples_of_texts():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, (50, 7))
    labels[generator.random((50, 7)) < 0.4] = -100
    said = np.where(generator.random((50, 7)) < 0.7, labels, 1)

    def compute(part):
        kept = part.label_ids != -100
        return {"accuracy": (part.predictions == part.label_ids)[kept].mean()}

    outcomes = found(compute, EvalPrediction(said, labels))
    assert (outcomes.kind, outcomes.num_examples, outcomes.unit) == ("replicates", 50, "examples")


# -- refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("compute", "words"),
    [
        (lambda part: {"f1": np.random.default_rng().random()}, "depend on nothing else"),
        (
            lambda part: {"f1": 1.0} if len(part.label_ids) == 40 and len(set(part.losses)) == 40 else {},
            "on a resample",
        ),
        (lambda part: {"f1": 1.0 if len(set(part.losses)) == 40 else math.nan}, "it is nan"),
    ],
    ids=["is drawn", "raises on resamples", "no number on resamples"],
)
def test_what_cannot_be_computed_again_is_refused(compute, words):
    prediction = predicted(40)
    prediction.losses = np.arange(40)
    with pytest.raises(MPrunerError, match=words):
        found(compute, prediction, "f1")


def test_an_array_without_a_row_for_each_example_is_refused():
    prediction = predicted(40)
    with pytest.raises(ValueError, match=r"predictions .* shape \(3, 2\), .* preprocess_logits_for_metrics"):
        found(accuracy, EvalPrediction((prediction.predictions, np.zeros((3, 2))), prediction.label_ids))


def test_other_numbers_than_the_uncut_models_are_refused():
    with pytest.raises(MPrunerError, match="0 or 1 for the uncut model"):
        outcomes_of_values([0.5, 1.0], like=outcomes_of_values([0, 1]), metric="f1")
    with pytest.raises(MPrunerError, match="not the mean of its examples"):
        found(f1_macro, predicted(60), "f1", like=outcomes_of_values([0, 1]))


# -- losses --------------------------------------------------------------------------------------------------------


def test_a_loss_is_the_weighted_mean_of_its_batches():
    losses, sizes = [1.0, 2.0, 4.0], [8, 8, 3]
    value = (8 + 16 + 12) / 19
    assert outcomes_of_batches(losses, sizes, value, 19) == Outcomes(
        "values", (1.0, 2.0, 4.0), value, 19, "batches", (8.0, 8.0, 3.0)
    )
    with pytest.raises(MPrunerError, match="some other way"):
        outcomes_of_batches(losses, sizes, 7 / 3, 19)


def test_a_batch_without_a_finite_loss_keeps_its_place():
    outcomes = outcomes_of_batches([1.0, math.nan, 4.0], [8, 8, 3], 20 / 11, 19)
    assert (outcomes.values, outcomes.weights) == ((1.0, 0.0, 4.0), (8.0, 0.0, 3.0))
    again = outcomes_of_batches([2.0, math.nan, 4.0], [8, 8, 3], 28 / 11, 19, like=outcomes)
    assert again.weights == outcomes.weights
    with pytest.raises(MPrunerError, match="3 batches, 2 of them without a finite loss, and 3, 1 of them without"):
        outcomes_of_batches([2.0, math.nan, math.nan], [8, 8, 3], 2.0, 19, like=outcomes)


def test_a_perplexity_is_that_of_resampled_batches():
    generator = np.random.default_rng(0)
    losses, sizes = generator.random(13), np.array([4.0] * 12 + [1.0])
    value = math.exp((losses * sizes).sum() / sizes.sum())
    outcomes = outcomes_of_batches(losses, sizes, value, 49, perplexity=True)
    assert (outcomes.kind, outcomes.unit, outcomes.num_units, outcomes.num_examples) == (
        "replicates",
        "batches",
        13,
        49,
    )
    with pytest.raises(MPrunerError, match="13 evaluation batches are too few"):
        check_outcomes(outcomes, max_drop=0.1, level=0.05)
    for got, rows in zip(outcomes.values, resample_indices(13), strict=True):
        total = sum(sizes[row] * losses[row] for row in rows.tolist())
        assert got == pytest.approx(math.exp(total / sum(sizes[row] for row in rows.tolist())))


# -- the metrics that are computed here ----------------------------------------------------------------------------


def test_decoded_predictions_give_the_same_outcomes_as_slices_of_them():
    prediction = predicted(60)
    compute = make_compute_metrics()
    whole = compute(prediction)
    for metric in ("accuracy", "f1_macro"):
        decoded = find_outcomes(compute.scored(prediction, metric), metric, whole[metric])
        assert decoded == found(compute, prediction, metric)


def test_entities_are_computed_on_resamples_of_sentences():
    generator = np.random.default_rng(0)
    labels = generator.integers(-1, 3, (30, 6))
    labels[labels == -1] = -100
    logits = generator.normal(size=(30, 6, 3))
    compute = make_compute_metrics(task="token-classification", label_names=["O", "B-PER", "I-PER"])
    prediction = EvalPrediction(logits, labels)
    whole = compute(prediction)
    outcomes = find_outcomes(compute.scored(prediction, "f1"), "f1", whole["f1"])
    assert outcomes.kind == "replicates"
    assert outcomes.values == replicates(compute, prediction, "f1")


# -- prune_'s evaluate ---------------------------------------------------------------------------------------------


def test_numbers_of_examples_are_a_metric_and_its_outcomes():
    given = {
        "eval_accuracy": [1, 0, 1, 1],
        "f1": np.array([0.5, 1.0]),
        "right": torch.tensor([True, False]),
        "loss": torch.tensor([1.0, 3.0], dtype=torch.bfloat16),
        "seen": [[1, 2], [3, 4]],
        "bleu": 0.5,
    }
    evaluate = UserEvaluation(lambda model: given, None)
    values = evaluate()
    assert {name: values[name] for name in ("accuracy", "f1", "right", "loss", "bleu")} == {
        "accuracy": 0.75, "f1": 0.75, "right": 0.5, "loss": 2.0, "bleu": 0.5,
    }  # fmt: skip
    assert evaluate.outcomes("accuracy") == Outcomes("binary", (1, 0, 1, 1), 0.75, 4)
    assert evaluate.outcomes("f1") == Outcomes("values", (0.5, 1.0), 0.75, 2)
    assert evaluate.outcomes("right").kind == "binary"
    assert evaluate.outcomes("loss").values == (1.0, 3.0)
    with pytest.raises(MPrunerError, match=r"one bleu for the whole set.*'bleu': \[1, 0, 1, 1\]"):
        evaluate.outcomes("bleu")


def test_an_evaluation_with_outcomes_of_its_own_is_asked_for_them():
    class Mine:
        def __call__(self, model):
            return {"bleu": 0.5}

        def outcomes(self, metric, like):
            return Outcomes("replicates", (0.4, 0.6), 0.5, 9)

    evaluate = UserEvaluation(Mine(), None)
    evaluate()
    assert evaluate.outcomes("bleu").num_examples == 9
