"""Wilson's interval, against published values; and only for what is a share of that many outcomes. Student's, of a mean."""

from __future__ import annotations

import random

import pytest

from hf_mpruner.intervals import interval_of_share, mean_interval, student_t_quantile, wilson_interval


# Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17 (1998), table I, method 3.
@pytest.mark.parametrize(
    ("ones", "outcomes", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_it_is_the_published_interval(ones, outcomes, low, high):
    assert wilson_interval(ones / outcomes, outcomes) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson_interval(1 - ones / outcomes, outcomes)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_it_narrows_with_more_outcomes_and_widens_with_more_confidence():
    few, many = wilson_interval(0.9, 100), wilson_interval(0.9, 10_000)
    assert few[0] < many[0] < 0.9 < many[1] < few[1]
    sure = wilson_interval(0.9, 100, 0.99)
    assert sure[0] < few[0]
    assert few[1] < sure[1]


@pytest.mark.parametrize("proportion", [0.0, 1.0])
def test_at_the_ends_it_is_exact_there_and_open_on_the_other_side(proportion):
    low, high = wilson_interval(proportion, 7)
    assert proportion in (low, high)
    assert low < high


@pytest.mark.parametrize(
    ("arguments", "text"),
    [((1.5, 3), r"proportion=1.5 is outside 0..1"), ((float("nan"), 3), r"proportion=nan is outside"),
     ((0.5, 0), r"num_outcomes=0 is below 1"), ((0.5, 3, 95.0), r"confidence=95.0 is not between 0 and 1.*pass 0.95")],
)  # fmt: skip
def test_what_is_no_proportion(arguments, text):
    with pytest.raises(ValueError, match=text):
        wilson_interval(*arguments)


def test_a_metric_that_is_no_share_of_the_examples_has_none():
    assert interval_of_share(15 / 16, 16) == list(wilson_interval(15 / 16, 16))
    assert interval_of_share(round(1871 / 2001, 4), 2001) is not None  # metrics are often rounded
    assert interval_of_share(0.9, 16) is None  # 14.4 of 16 examples are none
    assert interval_of_share(92.5, 16) is None
    assert interval_of_share(0.5, None) is None


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 10, 29, 30])
def test_students_quantile_is_scipys(degrees):
    stats = pytest.importorskip("scipy.stats")
    for probability in (0.5, 0.75, 0.9, 0.975, 0.995, 0.9999):
        expected = stats.t.ppf(probability, degrees)
        assert student_t_quantile(probability, degrees) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_interval_of_a_mean_covers_the_true_one_as_often_as_it_says():
    generator = random.Random(0)
    hits = 0
    for _ in range(4000):
        low, high = mean_interval([generator.gauss(3.0, 2.0) for _ in range(3)], 0.9)
        hits += low <= 3.0 <= high
    assert hits / 4000 == pytest.approx(0.9, abs=0.015)


def test_a_single_value_has_no_interval_and_wrong_arguments_are_refused():
    assert mean_interval([1.0]) is None
    for probability, degrees in ((0.4, 2), (1.0, 2), (0.9, 0)):
        with pytest.raises(ValueError, match="must be"):
            student_t_quantile(probability, degrees)
