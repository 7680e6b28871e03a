"""Which number of layers is tried next, and how many are tried at most."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from hf_mpruner.architectures import BlockStack, ConfigField
from hf_mpruner.criteria import LayerScores, ScoredLayers, find_criterion, possible_totals, share_by
from hf_mpruner.criteria.shares import proportional, share_out
from hf_mpruner.guarantee import TestLevels
from hf_mpruner.record import Measurement, PruningRecord, Round
from hf_mpruner.search import (
    SearchBounds,
    Standing,
    most_recoveries,
    next_number,
    num_branches,
    stand,
    why_over,
)


def write_round(record, removed, verdict, refused=False, evaluated=True):
    """A round of a record that removes so many of the last layers."""
    (path,) = record.depths
    kept = {path: list(range(record.depths[path] - removed))}
    after = Measurement(1, 1, metric=0.5, evaluation_seconds=1.0 if evaluated and not refused else None)
    number = len(record.rounds) + 1
    record.rounds.append(Round(number, 1, kept, {}, {}, after, verdict=verdict, refused=refused))


def run(depth, passes, possible=None):
    """Search to the end through a record, as the planner does; returns the numbers tried and the record."""
    record = PruningRecord({"layer": depth})
    tried = []
    while (number := next_number(possible or range(1, depth), stand(record))) is not None:
        tried.append(number)
        write_round(record, number, "accepted" if passes(number, len(tried)) else "rejected")
    return tried, record


@pytest.mark.parametrize(
    ("most", "tried"),
    [
        (11, [1, 3, 7, 11]),
        (0, [1]),
        (1, [1, 3, 2]),
        (4, [1, 3, 7, 5, 4]),
        (6, [1, 3, 7, 5, 6]),
        (9, [1, 3, 7, 11, 9, 10]),
    ],
)
def test_it_gallops_until_a_rejection_and_bisects_then(most, tried):
    assert run(12, lambda number, _: number <= most)[0] == tried


@pytest.mark.parametrize("depth", [2, 3, 4, 7, 12, 24, 33])
def test_it_finds_the_largest_number_that_passes_where_more_layers_lose_more(depth):
    for most in range(depth):
        tried, record = run(depth, lambda number, _, most=most: number <= most)
        assert stand(record).removed == most
        assert len(tried) <= most_recoveries(depth - 1)
        assert len(tried) == len(set(tried))


def test_what_it_costs_at_most_is_reached_and_never_exceeded_whatever_the_verdicts():
    for depth in range(2, 14):
        costs, follow_ups, bound = set(), set(), most_recoveries(depth - 1)
        for script in itertools.product([True, False], repeat=bound):
            tried, record = run(
                depth, lambda _, place, script=script: script[place - 1]
            )  # an IndexError is one too many
            verdicts = [round_.verdict for round_ in record.rounds]
            costs.add(len(tried))
            follow_ups.add(verdicts[:-1].count("rejected"))  # after which a test followed
        assert max(costs) == bound
        assert max(follow_ups) + 1 == num_branches(depth - 1)


def test_it_costs_about_two_logarithms():
    for number in range(1, 200):
        assert most_recoveries(number) <= 2 * math.log2(number + 1) + 1
        assert most_recoveries(number) <= most_recoveries(number + 1) <= most_recoveries(number) + 1


def test_there_is_a_level_for_every_test_and_none_costs_more_than_the_error_rate():
    for depth in (5, 12):
        levels = TestLevels(0.05, num_branches(depth - 1), num_others=depth - 2)
        for script in itertools.product([True, False], repeat=most_recoveries(depth - 1)):
            _, record = run(depth, lambda _, place, script=script: script[place - 1])
            verdicts = [round_.verdict == "accepted" for round_ in record.rounds]
            for number in range(len(verdicts)):
                assert 0 < levels.next(verdicts[:number]) <= 0.05


@pytest.mark.parametrize("seed", range(6))
def test_all_branches_of_a_search_are_paid_for_whatever_is_refused(seed):
    """Each rejection that a test follows opens a branch; here each model refuses some numbers of its own."""

    def branches(verdicts, standing):
        seen = random.Random(f"{seed} {verdicts}")
        fits = [number for number in range(1, 13) if not seed or seen.random() < 0.8]
        number = next_number(fits, standing)
        if number is None:
            return [], set()
        tested, begun = {number}, set()
        for accepted in (True, False):
            removed, rejected = (number, standing.rejected) if accepted else (standing.removed, number)
            after = (*verdicts, accepted)
            counts = standing.num_accepted + accepted, standing.num_rejected + (not accepted)
            below, more = branches(after, Standing(removed, rejected, *counts))
            assert not tested & set(below), "a number is tested at two places"
            tested |= set(below)
            begun |= more | ({after} if below and not accepted else set())
        return tested, begun

    _, begun = branches((), Standing())
    assert 0 < len(begun) <= 11
    levels = TestLevels(0.05, max(verdicts.count(False) for verdicts in begun) + 1, num_others=11)
    assert levels.next([]) + sum(levels.next(verdicts) for verdicts in begun) <= 0.05 + 1e-12


def test_nothing_that_was_rejected_is_tried_again_and_nothing_larger():
    for script in itertools.product([True, False], repeat=6):
        tried, record = run(12, lambda _, place, script=script: script[place - 1])
        rejected = [n for n, r in zip(tried, record.rounds, strict=True) if r.verdict == "rejected"]
        for number in rejected:
            assert all(later < number for later in tried[tried.index(number) + 1 :])


def test_numbers_that_cannot_go_are_never_tried():
    tried, record = run(9, lambda number, _: number <= 5, possible=[2, 4, 6, 8])
    assert tried == [2, 6, 4]
    assert stand(record).removed == 4


def test_a_cut_that_was_taken_back_without_an_evaluation_was_not_tested():
    record = PruningRecord({"layer": 12})
    write_round(record, 1, "accepted")
    write_round(record, 3, "rejected", evaluated=False)
    assert not record.rounds[-1].was_tested
    assert (stand(record).num_recoveries, next_number(range(1, 12), stand(record))) == (1, 3)
    write_round(record, 3, "rejected", refused=True)
    write_round(record, 3, "pending", evaluated=False)
    assert (stand(record).num_recoveries, stand(record).rejected) == (1, None)
    assert stand(record).refused == ({"layer": list(range(9))},)


def test_the_words_at_the_end_name_what_was_found():
    _, record = run(12, lambda number, _: number <= 4)
    assert why_over(record, stand(record)) == "the search is over: 4 of 12 layers go, a cut of 5 was rejected"
    assert why_over(*(lambda r: (r, stand(r)))(run(12, lambda *_: False)[1])).endswith(
        "0 of 12 layers go, a cut of 1 was rejected"
    )
    assert why_over(*(lambda r: (r, stand(r)))(run(12, lambda *_: True)[1])) == "no further layer can go"


def test_bounds_survive_a_record_and_know_of_max_rounds():
    bounds = SearchBounds.of(range(1, 12), max_rounds=4)
    assert (bounds.most_recoveries, bounds.num_branches) == (4, 3)
    assert SearchBounds.of(range(5, 8), spent=3).most_recoveries == 3 + most_recoveries(3)
    record = PruningRecord({"layer": 12}, search=bounds.to_dict())
    assert SearchBounds.from_dict(PruningRecord.from_dict(record.to_dict()).search) == bounds


# -- over several stacks ----------------------------------------------------------------------------------------------


def test_totals_are_all_sums_of_what_the_stacks_can_lose():
    possible = {"a": [2, 4], "b": [3], "c": [2]}
    sums = {sum(one) for one in itertools.product([0, 2, 4], [0, 3], [0, 2])} - {0}
    assert possible_totals(possible) == sorted(sums)
    assert possible_totals({}) == []


def test_shares_are_the_cheapest_of_all_that_add_up():
    costs = {
        "a": {0: 0.0, 1: 0.3, 2: 0.35, 3: 1.5},
        "b": {0: 0.0, 2: 0.1, 4: 2.0},
        "c": {0: 0.0, 1: 0.2, 2: 0.9},
    }
    for total in possible_totals({path: [n for n in of if n] for path, of in costs.items()}):
        found = share_out(total, costs)
        cheapest = min(
            sum(of[n] for of, n in zip(costs.values(), one, strict=True))
            for one in itertools.product(*costs.values())
            if sum(one) == total
        )
        assert sum(found.values()) == total
        assert sum(costs[path].get(number, 0) for path, number in found.items()) == pytest.approx(cheapest)
    assert share_out(10, costs) is None


def test_without_a_common_scale_stacks_lose_the_same_share():
    possible = {"encoder": list(range(1, 12)), "decoder": list(range(1, 6))}
    assert share_out(3, proportional(possible, {}, 3)) == {"encoder": 2, "decoder": 1}
    assert share_out(16, proportional(possible, {}, 16)) == {"encoder": 11, "decoder": 5}
    # the encoder lost its share before
    rest = {"encoder": list(range(1, 8)), "decoder": list(range(1, 6))}
    assert share_out(2, proportional(rest, {"encoder": 4}, 2)) == {"decoder": 2}


def test_where_a_criterion_compares_stacks_its_scores_share_a_number_out():
    stacks = [BlockStack(path, "Layer", 3, ConfigField("layers")) for path in ("a", "b")]
    scores = {"a": LayerScores("a", (0.5, 0.1, 0.6)), "b": LayerScores("b", (0.4, 0.2, 0.3))}
    possible = {"a": [1, 2], "b": [1, 2]}

    def share(name, total):
        return share_by(
            find_criterion(name), ScoredLayers(name, scores), stacks, {"a": (), "b": ()}, possible, {}, total
        )

    assert [share("loss", total) for total in (1, 2, 3, 4)] == [
        {"a": 1},  # 0.1
        {"a": 1, "b": 1},  # 0.1 + 0.2
        {"a": 1, "b": 2},  # 0.1 + 0.2 + 0.3
        {"a": 2, "b": 2},
    ]
    assert share("magnitude", 2) == {
        "a": 1,
        "b": 1,
    }  # sums of weights of an encoder and of a decoder are on no one scale
    with pytest.raises(ValueError, match="5 layers of a, b cannot go together"):
        share("loss", 5)
