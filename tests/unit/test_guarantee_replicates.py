from __future__ import annotations

import math
from itertools import pairwise
from statistics import NormalDist, fmean, pstdev

import pytest
import torch

from hf_mpruner.guarantee import Outcomes, bound_drop, resample_indices
from hf_mpruner.guarantee.replicates import metric_at_most
from hf_mpruner.intervals import student_t_quantile


def bound(before: torch.Tensor, after: torch.Tensor, level: float = 0.05) -> tuple[float, float, list[float]]:
    """Drop and bound of a mean of numbers, as if it were a metric of the whole set; and the drops on the resamples."""
    pairs = [(float(before[rows].mean()), float(after[rows].mean())) for rows in resample_indices(len(before))]
    outcomes = [
        Outcomes("replicates", tuple(values), float(given.mean()), len(before))
        for values, given in zip(zip(*pairs, strict=True), (before, after), strict=True)
    ]
    found = bound_drop(*outcomes, greater_is_better=True, max_drop=0.01, level=level)
    assert found.num_units == len(before)
    return found.drop, found.upper, [a - b for a, b in pairs]


def test_differences_on_many_examples_get_about_the_normal_bound() -> None:
    generator = torch.Generator().manual_seed(0)
    before = 0.1 * torch.randn(2000, generator=generator, dtype=torch.float64)
    after = before - 0.1 - 0.2 * torch.randn(2000, generator=generator, dtype=torch.float64)
    drop, upper, replicates = bound(before, after)
    normal = NormalDist().inv_cdf(0.95) * pstdev(replicates)
    assert normal <= upper - drop <= 1.25 * normal
    assert drop == pytest.approx(fmean(replicates), abs=1e-3)


def test_models_that_differ_on_no_example_are_not_taken_for_equal() -> None:
    right = torch.tensor([1.0] * 360 + [0.0] * 40, dtype=torch.float64)
    drop, upper, _ = bound(right, right)
    share = 1 - 0.05 ** (1 / 400)
    assert drop == 0
    assert share <= upper <= 1.5 * share  # 4 * 0.3, the standard deviation of an outcome
    assert bound(torch.ones(400).double(), torch.ones(400).double())[1] == pytest.approx(share)
    assert bound(40 * torch.ones(400).double(), 40 * torch.ones(400).double())[1] == pytest.approx(40 * share)


def test_a_few_examples_that_got_worse_count_for_more_than_the_bootstrap_says() -> None:
    right = torch.tensor([1.0] * 360 + [0.0] * 40, dtype=torch.float64)
    worse = right.clone()
    worse[:2] = 0
    _, upper, replicates = bound(right, worse)
    percentile = sorted(replicates)[int(0.95 * len(replicates))]
    exact = 6.296 / 400  # the Poisson bound of two events at 0.05
    assert percentile < exact <= upper < 2 * exact
    worse[:3], worse[-3:] = 0, 1  # as many better as worse
    assert bound(right, worse)[1] > 3 / 400


def test_a_smaller_level_has_a_larger_bound_below_what_resamples_can_show() -> None:
    generator = torch.Generator().manual_seed(1)
    before = torch.randn(300, generator=generator, dtype=torch.float64)
    after = before + torch.randn(300, generator=generator, dtype=torch.float64)
    uppers = [bound(before, after, level)[1] for level in (0.1, 0.05, 0.01, 0.001, 1e-4, 1e-5)]
    assert uppers == sorted(uppers)
    assert all(b - a > 0.01 for a, b in pairwise(uppers))
    assert math.isfinite(uppers[-1])


def test_few_batches_take_students_quantile() -> None:
    normal = torch.randn(2000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    uppers = [metric_at_most(0.0, (1.0,) * 2000, normal.tolist(), 10**6, 0.025, count) for count in (None, 20, 2000)]
    spread = float(normal.std(correction=0))
    assert uppers[1].upper == pytest.approx(student_t_quantile(0.975, 9) * math.sqrt(20 / 19) * spread, rel=0.05)
    assert uppers[0].upper <= uppers[2].upper < 1.05 * uppers[0].upper
