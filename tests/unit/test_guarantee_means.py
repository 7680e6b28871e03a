from __future__ import annotations

import math

import pytest
import torch

from hf_mpruner.errors import MPrunerError
from hf_mpruner.guarantee import Outcomes, bound_drop
from hf_mpruner.guarantee.means import mean_at_most, skewed
from hf_mpruner.intervals import student_t_quantile


def drawn(num: int, seed: int = 0) -> list[float]:
    return torch.randn(num, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()


def test_symmetric_differences_get_students_bound() -> None:
    values = drawn(60)
    values += [-value for value in values]
    shifted = [0.3 + value for value in values]
    spread = math.sqrt(sum(value * value for value in values) / 119)
    expected = 0.3 + student_t_quantile(0.975, 59) * spread / math.sqrt(120)
    assert mean_at_most(shifted, (), 0.025, 9.0).upper == pytest.approx(expected, rel=1e-9)


def test_equal_weights_are_no_weights_and_a_unit_of_double_weight_counts_twice_in_the_mean() -> None:
    values = drawn(50)
    assert mean_at_most(values, [3.0] * 50, 0.05, 9.0).upper == pytest.approx(
        mean_at_most(values, (), 0.05, 9.0).upper
    )
    near = [1.0] * 49 + [2.0]
    upper = mean_at_most([1e-6 * v for v in values[:49]] + [1e-6], near, 0.05, 1.0).upper
    mean = (sum(1e-6 * v for v in values[:49]) + 2e-6) / 51
    assert mean < upper < mean + 1e-6


@pytest.mark.parametrize("skewness", [-0.4, -0.01, 0.01, 0.2, 0.9])
@pytest.mark.parametrize("quantile", [1.645, 2.5, 3.2])
def test_the_correction_inverts_halls_transformation(quantile: float, skewness: float) -> None:
    statistic = -skewed(quantile, skewness)  # (mean - bound) in standard errors
    # skewness is that of one unit divided by sqrt(n): g in the paper's cubic is sqrt(n) times it
    transformed = statistic + skewness * statistic**2 / 3 + skewness**2 * statistic**3 / 27 + skewness / 6
    assert transformed == pytest.approx(-quantile, abs=1e-9)


def test_a_few_units_that_get_much_worse_raise_the_bound_and_a_few_that_get_better_do_not_lower_it() -> None:
    values = [0.01 * value for value in drawn(188)] + [1.0] * 12
    error = torch.tensor(values).double().std().item() / math.sqrt(200)
    mean = sum(values) / 200
    assert mean_at_most(values, (), 0.05, 1.0).upper > mean + 1.2 * student_t_quantile(0.95, 99) * error
    better = mean_at_most([-value for value in values], (), 0.05, 1.0).upper
    assert better == pytest.approx(-mean + student_t_quantile(0.95, 99) * error, rel=1e-6)


def scores(*values: float, unit: str = "examples") -> Outcomes:
    return Outcomes("values", values, sum(values) / len(values), len(values), unit=unit)


def test_units_that_hardly_differ_are_bounded_by_how_many_may_be_worse() -> None:
    before, same = scores(*[0.5] * 300), scores(*[0.5] * 300)
    bound = bound_drop(before, same, greater_is_better=True, max_drop=0.01, level=0.05)
    assert bound.upper == pytest.approx(1 - 0.05 ** (1 / 300), rel=1e-6)  # scores in 0..1 can fall by 1
    assert bound.holds
    worse = bound_drop(before, scores(*[0.5] * 298, 0.1, 0.2), greater_is_better=True, max_drop=0.01, level=0.05)
    assert worse.upper > bound.upper
    better = bound_drop(before, scores(*[0.5] * 298, 0.8, 0.9), greater_is_better=True, max_drop=0.01, level=0.05)
    assert better.upper == bound.upper
    # of losses the range that was seen
    losses = scores(*[1.0, 3.0] * 150)
    bound = bound_drop(losses, losses, greater_is_better=False, max_drop=0.1, level=0.05)
    assert bound.upper == pytest.approx(2 * (1 - 0.05 ** (1 / 300)), rel=1e-6)
    # a shift that all have is no spread
    shifted = bound_drop(losses, scores(*[1.5, 3.5] * 150), greater_is_better=False, max_drop=0.1, level=0.05)
    assert shifted.upper == pytest.approx(0.5 + 2 * (1 - 0.05 ** (1 / 300)), rel=1e-6)


def test_batches_need_fewer_units_than_examples() -> None:
    values = drawn(20)
    bound = bound_drop(
        scores(*values, unit="batches"),
        scores(*values[::-1], unit="batches"),
        greater_is_better=True,
        max_drop=1,
        level=0.05,
    )
    assert (bound.num_units, bound.unit) == (20, "batches")
    with pytest.raises(MPrunerError, match="at least 100 are needed"):
        bound_drop(scores(*values), scores(*values), greater_is_better=True, max_drop=1, level=0.05)
