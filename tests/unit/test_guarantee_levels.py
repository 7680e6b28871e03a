from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from hf_mpruner.guarantee import TestLevels

Level = Callable[[tuple[bool, ...]], float]


def worst(level: Level, num_branches: int, depth: int, verdicts: tuple[bool, ...] = ()) -> float:
    """Largest probability that a bad candidate is accepted within so many more tests, whatever is tested.

    An adversary lays the candidates out in the tree of verdicts, before the judging set is drawn, and how their p-values go
    together. A bad one is accepted with the probability of its level, and events that can exclude each other do; the
    rest of the judging sets goes on to the rejection's branch. A good one may be accepted on any judging sets, so it may
    send as many as there are room for to either side.
    """
    if not depth or verdicts.count(False) >= num_branches:
        return 0.0
    rejected = worst(level, num_branches, depth - 1, (*verdicts, False))
    accepted = worst(level, num_branches, depth - 1, (*verdicts, True))
    return rejected + max(level(verdicts), accepted)


@pytest.mark.parametrize("num_branches", [1, 2, 3, 5])
def test_the_worst_tree_of_candidates_stays_within_the_error_rate(num_branches: int) -> None:
    levels = TestLevels(0.05, num_branches)
    found = [worst(levels.next, num_branches, depth) for depth in (1, 4, 14)]
    assert found == sorted(found)
    assert found[-1] <= 0.05 + 1e-15
    assert found[-1] > 0.05 * 0.8, "hardly more is paid than is needed"


@pytest.mark.parametrize(
    "unpaid",
    [
        lambda verdicts: 0.05,  # every round at the full error rate
        lambda verdicts: 0.05 / 3,  # shared among branches, but not among the places of the rejections
        lambda verdicts: 0.05 / (1 + len(verdicts)),
    ],
)
def test_levels_that_are_not_paid_for_break_the_promise(unpaid: Level) -> None:
    assert worst(unpaid, 3, 6) > 0.05


def test_the_error_rate_is_shared_out_among_all_branches() -> None:
    levels = TestLevels(0.1, 3)
    branches = [(), *[(True,) * i + (False,) for i in range(40)]]
    branches += [first + (True,) * j + (False,) for first in branches[1:] for j in range(40)]
    total = sum(levels.next(branch) for branch in branches)
    assert 0.1 * 0.95 < total <= 0.1
    for verdicts in itertools.product([True, False], repeat=5):
        if verdicts.count(False) < 3:
            assert levels.next((*verdicts, True)) == levels.next(verdicts), "acceptances cost nothing"


def test_a_test_that_was_not_paid_for_is_refused() -> None:
    with pytest.raises(ValueError, match="2 branches were paid for"):
        TestLevels(0.05, 2).next([True, False, False])
    for wrong in ((0.0, 1), (1.0, 1), (0.05, 0)):
        with pytest.raises(ValueError, match="error_rate"):
            TestLevels(*wrong)
