"""Which metric decides: by name, by the Trainer's choice, or because it is the only one."""

from __future__ import annotations

import math

import pytest

from hf_mpruner.metric import Metric, choose_metric, is_finite, strip_prefix

ONE = {"accuracy": 0.9, "loss": 0.4, "runtime": 1.0, "samples_per_second": 9.0, "epoch": 1.0}
TWO = {"accuracy": 0.9, "f1": 0.8, "loss": 0.4}


def test_the_only_metric_decides():
    assert choose_metric(ONE) == Metric("accuracy", True)


def test_the_trainers_choice_decides_between_several():
    assert choose_metric(TWO, fallback_name="f1", fallback_greater_is_better=True) == Metric("f1", True)
    # load_best_model_at_end sets metric_for_best_model to the loss without being asked
    assert choose_metric(ONE, fallback_name="loss", fallback_greater_is_better=False) == Metric("accuracy", True)


def test_what_the_user_names_wins():
    assert choose_metric(TWO, "eval_loss", fallback_name="f1") == Metric("loss", False)
    assert choose_metric({"data1_accuracy": 0.5, "loss": 1.0}) == Metric("data1_accuracy", True)


def test_several_metrics_need_a_name():
    with pytest.raises(
        ValueError, match=r"several metrics of its own \('accuracy', 'f1', 'loss'\).*metric='accuracy'"
    ):
        choose_metric(TWO)
    with pytest.raises(ValueError, match=r"no metrics of its own \('runtime'\)"):
        choose_metric({"runtime": 1.0})
    assert choose_metric({"loss": 1.0, "runtime": 1.0}) == Metric("loss", False)


def test_a_metric_that_was_not_produced_is_named_with_those_that_were():
    with pytest.raises(ValueError, match=r"metric='bleu' is not among .*'accuracy', 'f1', 'loss'"):
        choose_metric(TWO, "bleu")


def test_an_unknown_direction_must_be_given():
    with pytest.raises(ValueError, match=r"greater or a smaller 'sparkle'.*greater_is_better=True"):
        choose_metric({"sparkle": 1.0})
    assert choose_metric({"sparkle": 1.0}, greater_is_better=False) == Metric("sparkle", False)


@pytest.mark.parametrize(
    ("name", "greater"),
    [
        ("dev_spearman_cosine", True), ("pearson_manhattan", True), ("cosine_ndcg@10", True), ("dev_cosine_ap", True),
        ("negative_mse", True), ("dev_negative_mse", True), ("neg_mean_squared_error", True), ("mse", False),
        ("loss_max", False), ("wer@2", False),
    ],
)  # fmt: skip
def test_directions_of_the_names_that_sentence_transformers_and_sklearn_use(name, greater):
    assert choose_metric({name: 0.5}) == Metric(name, greater)


def test_the_direction_of_a_name_that_the_trainer_knows_too():
    metrics = {"sparkle": 0.5, "accuracy": 0.5}
    assert choose_metric(metrics, "sparkle", fallback_name="sparkle", fallback_greater_is_better=False) == Metric(
        "sparkle", False
    )


@pytest.mark.parametrize(("greater", "drop"), [(True, 0.25), (False, -0.25)])
def test_the_drop_is_in_the_metrics_own_unit(greater, drop):
    assert Metric("m", greater).drop(1.0, 0.75) == pytest.approx(drop)


def test_prefixes_go_and_other_keys_stay():
    assert strip_prefix({"mpruner_loss": 1.0, "epoch": 2.0}, "mpruner") == {"loss": 1.0, "epoch": 2.0}


def test_a_perplexity_that_nobody_returned_is_that_of_the_loss():
    metric = choose_metric({"loss": 2.0, "data1_loss": 1.0}, "perplexity")
    assert metric == Metric("perplexity", False)
    assert metric.read({"loss": 2.0}) == math.exp(2.0)
    assert Metric("data1_ppl", False).read({"loss": 2.0, "data1_loss": 1.0}) == math.exp(1.0)
    assert metric.read({"loss": 2.0, "perplexity": 7.0}) == 7.0  # what compute_metrics says wins
    assert metric.read({"loss": 1e4}) == math.inf
    assert math.isnan(metric.read({"loss": math.nan}))
    with pytest.raises(ValueError, match=r"metric='perplexity' is not among .*'accuracy'"):
        choose_metric({"accuracy": 0.5}, "eval_perplexity")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite(value):
    assert not is_finite(value)
    assert is_finite(0.0)
