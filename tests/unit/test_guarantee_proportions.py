from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from hf_mpruner.guarantee.proportions import PairedTest, share_at_most


def outcomes(num: int) -> torch.Tensor:
    """`(outcomes, 2)`: every pair of how many examples are worse and how many better."""
    pairs = [(worse, better) for worse in range(num + 1) for better in range(num + 1 - worse)]
    return torch.tensor(pairs, dtype=torch.float64)


def chances(num: int, plus: torch.Tensor, minus: torch.Tensor) -> torch.Tensor:
    """`(outcomes, probabilities)`: of every outcome, by the trinomial's formula."""
    worse, better = outcomes(num).T[:, :, None]
    same = num - worse - better
    ways = math.lgamma(num + 1) - sum(torch.lgamma(count + 1) for count in (worse, better, same))
    rest = 1 - plus - minus
    return (ways + torch.xlogy(worse, plus) + torch.xlogy(better, minus) + torch.xlogy(same, rest.clamp(min=0))).exp()


def score(num: int, worse: float, better: float, drop: float) -> float:
    """Tango's statistic, with the likelihood's largest value found by search."""
    low, high = max(0.0, -drop), (1 - drop) / 2

    def likelihood(share: float) -> float:
        parts = ((worse, share + drop), (better, share), (num - worse - better, 1 - 2 * share - drop))
        return sum(count * math.log(max(p, 1e-300)) for count, p in parts if count)

    for _ in range(70):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (left, high) if likelihood(left) < likelihood(right) else (low, right)
    share = (low + high) / 2
    variance = num * (2 * share + drop - drop * drop)
    return (worse - better - num * drop) / math.sqrt(variance)


def _log_binomial(num: int, count: int, share: float) -> float:
    ways = math.lgamma(num + 1) - math.lgamma(count + 1) - math.lgamma(num - count + 1)
    return ways + count * math.log(share) + (num - count) * math.log1p(-share)


@pytest.mark.parametrize(
    ("count", "num", "level"), [(0, 100, 0.05), (3, 50, 0.01), (49, 50, 0.05), (40, 2000, 0.0025)]
)
def test_the_bound_of_a_share_is_where_as_few_have_that_probability(count: int, num: int, level: float) -> None:
    share = share_at_most(count, num, level)
    tail = sum(math.exp(_log_binomial(num, k, share)) for k in range(count + 1))
    assert tail <= level
    assert tail == pytest.approx(level, rel=1e-6)


def test_the_bound_of_a_share_that_is_all_is_one() -> None:
    assert share_at_most(5, 5, 0.05) == 1.0


@pytest.mark.parametrize(
    ("num", "worse", "better", "drop"),
    [
        (40, 0, 0, 0.1),
        (40, 2, 3, 0.15),
        (40, 2, 3, -0.01),
        (30, 1, 9, -0.1),
        (25, 0, 25, 0.2),
        (40, 3, 1, 0.3),
        (9, 4, 5, 0.2),
    ],
)
def test_the_p_value_is_never_below_the_largest_on_a_fine_grid_and_close_to_it(
    num: int, worse: int, better: int, drop: float
) -> None:
    level = 0.05
    test = PairedTest(num, worse, better, level)
    seen = score(num, worse, better, drop)
    as_small = torch.tensor([score(num, *pair, drop) <= seen + 1e-5 for pair in outcomes(num).tolist()])
    grid = torch.linspace(test.narrowest, test.widest, 1001, dtype=torch.float64)
    grid = grid[grid >= drop]
    true_drop = (-grid).clamp(min=drop)  # the nearest to `drop` that the discordance allows
    largest = 0.0
    if len(grid):
        largest = float(chances(num, (grid + true_drop) / 2, (grid - true_drop) / 2)[as_small].sum(0).max())
    found = test.p_value(drop) - test.paid
    assert largest <= found <= largest * 1.06 + 1e-8
    if found + test.paid <= level:
        assert found <= largest * 1.006 + 1e-8
    assert test.rejects(drop) == (found + test.paid <= level)


@pytest.mark.parametrize(("discordance", "drop"), [(0.05, 0.02), (0.7, 0.1), (0.9, -0.3), (1.0, 0.0), (0.4, 0.4)])
def test_windows_of_many_examples_leave_nothing_out(discordance: float, drop: float) -> None:
    num, plus, minus = 1500, (discordance + drop) / 2, (discordance - drop) / 2
    test = PairedTest(num, round(num * plus), round(num * minus), 0.05)
    share = torch.tensor([discordance], dtype=torch.float64)
    most = test._most_worse(drop, share)
    worse, better = torch.arange(num + 1).double()[:, None], torch.arange(len(most)).double()
    same = num - worse - better
    ways = math.lgamma(num + 1) - sum(torch.lgamma(k.clamp(min=0) + 1) for k in (worse, better, same))
    logs = ways + worse * math.log(plus) + better * math.log(max(minus, 1e-300))
    logs = logs + same * math.log(max(1 - discordance, 1e-300))
    given = logs.exp()[(same >= 0) & (worse <= most)].sum()
    assert 0.3 < float(given) < 0.7
    assert float(test._chance(drop, most, share, share)) == pytest.approx(float(given), rel=1e-6)


def test_discordances_with_a_larger_drop_have_no_larger_p_value() -> None:
    test = PairedTest(40, 2, 3, 0.05)
    seen = score(40, 2, 3, 0.15)
    as_small = torch.tensor([score(40, *pair, 0.15) <= seen + 1e-5 for pair in outcomes(40).tolist()])
    discordance = torch.linspace(max(test.narrowest, 0.15), test.widest, 40, dtype=torch.float64)[:, None]
    drops = 0.15 + (discordance - 0.15) * torch.linspace(0, 1, 40, dtype=torch.float64)
    plus, minus = ((discordance + sign * drops).flatten() / 2 for sign in (1, -1))
    assert float(chances(40, plus, minus.clamp(min=0))[as_small].sum(0).max()) + test.paid <= test.p_value(0.15)


@pytest.mark.parametrize("max_drop", [0.04, 0.1])
def test_the_bound_is_within_the_budget_exactly_if_the_test_refutes_the_budget(max_drop: float) -> None:
    seen = set()
    for worse in (0, 2, 6):
        for better in (0, 2):
            test = PairedTest(80, worse, better, 0.05)
            upper = test.bound(max_drop)[1]
            assert (upper <= max_drop) == test.rejects(max_drop)
            assert test.rejects(upper)
            near = 0.003 * (upper - (worse - better) / 80)
            assert not test.rejects(upper - near)
            assert upper == pytest.approx(test.bound(0.5)[1], abs=near)
            seen.add(upper <= max_drop)
    assert seen == {True, False}


def test_more_losses_and_fewer_gains_raise_the_bound() -> None:
    bounds = [PairedTest(120, worse, 2, 0.05).bound(0.1)[1] for worse in range(6)]
    assert all(a < b for a, b in pairwise(bounds))
    bounds = [PairedTest(120, 3, better, 0.05).bound(0.1)[1] for better in range(4)]
    assert all(a > b for a, b in pairwise(bounds))
    bounds = [PairedTest(120, 3, 2, level).bound(0.1)[1] for level in (0.2, 0.05, 0.01, 0.001)]
    assert all(a < b for a, b in pairwise(bounds))


@pytest.mark.parametrize(
    ("num", "level"), [(6, 0.1), (10, 0.05), *(pytest.param(30, x, marks=pytest.mark.slow) for x in (0.05, 0.01))]
)
def test_the_true_drop_is_covered_for_every_discordance(num: int, level: float) -> None:
    uppers = torch.tensor([PairedTest(num, int(w), int(b), level).bound(0.0)[1] for w, b in outcomes(num)])
    discordance = torch.linspace(0.01, 1.0, 60, dtype=torch.float64)[:, None]
    share = torch.linspace(0.0, 1.0, 41, dtype=torch.float64)
    plus, minus = (discordance * share).flatten(), (discordance * (1 - share)).flatten()
    missed = (chances(num, plus, minus) * (uppers[:, None] < plus - minus - 1e-12)).sum(0)
    assert float(missed.max()) <= level
    assert float(missed.max()) > level / 3, "a bound that never misses says nothing"


def test_extremes() -> None:
    assert PairedTest(10, 10, 0, 0.05).bound(0.1)[1] == 1.0
    assert PairedTest(1, 0, 0, 0.05).bound(0.1)[1] <= 1.0
    assert -1.0 < PairedTest(1000, 0, 1000, 0.05).bound(0.1)[1] < -0.98
    with pytest.raises(ValueError, match="do not fit together"):
        PairedTest(10, 8, 3, 0.05)
