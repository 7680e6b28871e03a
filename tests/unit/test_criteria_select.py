"""Which layers go by their scores: against every selection there is; and what is refused."""

from __future__ import annotations

import itertools
import random

import pytest

from hf_mpruner.architectures import BlockStack, ConfigField
from hf_mpruner.config import PruningConfig, resolve_targets
from hf_mpruner.criteria import LayerScores, ScoredLayers, find_criterion, pick_lowest, plan_layers
from hf_mpruner.errors import CalibrationError
from hf_mpruner.plan import PruningPlan, StackPlan


def make_stack(depth: int, period: int = 1, pinned: tuple[int, ...] = ()) -> BlockStack:
    return BlockStack(
        "layer",
        "Layer",
        depth,
        ConfigField("n"),
        period=period,
        period_reason="shifted",
        pinned=dict.fromkeys(pinned, ""),
    )


def cheapest(values: list[float | None], stack: BlockStack, number: int, protected: set[int]) -> float | None:
    """The lowest total by trying every selection."""
    totals = [
        sum(values[layer] for layer in layers)
        for layers in itertools.combinations(range(stack.depth), number)
        if all(values[layer] is not None and layer not in protected for layer in layers)
        and stack.removable(layers) == layers
    ]
    return min(totals, default=None)


@pytest.mark.parametrize("seed", range(40))
def test_no_selection_is_cheaper(seed: int) -> None:
    draw = random.Random(seed)
    depth, period = draw.randint(2, 9), draw.choice([1, 1, 2, 3])
    stack = make_stack(depth, period, tuple(draw.sample(range(depth), draw.randint(0, 1))))
    values = [None if draw.random() < 0.1 else round(draw.uniform(-1, 1), 3) for _ in range(depth)]
    protected = set(draw.sample(range(depth), draw.randint(0, 1)))
    for number in range(1, depth):
        best = cheapest(values, stack, number, protected)
        if best is None:
            with pytest.raises(ValueError, match="cannot be removed"):
                pick_lowest(LayerScores("layer", tuple(values)), stack, number, protected)
            continue
        chosen = pick_lowest(LayerScores("layer", tuple(values)), stack, number, protected)
        assert len(chosen) == number
        assert stack.removable(chosen) == chosen
        assert not protected & set(chosen)
        assert sum(values[layer] for layer in chosen) == pytest.approx(best)


def test_of_equal_scores_the_later_layers_go() -> None:
    assert pick_lowest(LayerScores("layer", (1.0,) * 5), make_stack(5), 2) == (3, 4)


def test_an_order_of_removal_goes_before_the_values() -> None:
    scores = LayerScores("layer", (0.0, 1.0, 2.0, 3.0), order=(3, 1))
    assert pick_lowest(scores, make_stack(4), 1) == (3,)
    assert pick_lowest(scores, make_stack(4), 2) == (1, 3)
    assert pick_lowest(scores, make_stack(4), 3) == (0, 1, 3)  # beyond the order, by value
    assert pick_lowest(scores, make_stack(4), 2, protected={1}) == (0, 3)


@pytest.mark.parametrize(
    ("number", "protected", "text"), [(4, (), "at most 3"), (3, (0, 1), "at most 2"), (-1, (), "-1")]
)
def test_more_layers_than_can_go_are_refused_with_how_many_can(
    number: int, protected: tuple[int, ...], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        pick_lowest(LayerScores("layer", (1.0, 2.0, 3.0, 4.0)), make_stack(4), number, protected)


def test_a_number_that_does_not_fit_the_period_names_those_that_do() -> None:
    stack = make_stack(6, period=2, pinned=(5,))
    with pytest.raises(ValueError, match=r"shifted.*2, 4"):
        pick_lowest(LayerScores("layer", (1.0,) * 6), stack, 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_names_its_layer(value: float) -> None:
    with pytest.raises(CalibrationError, match="layer 1 of 'layer'"):
        LayerScores("layer", (0.0, value))


def test_scores_survive_json() -> None:
    scored = ScoredLayers("x", {"layer": LayerScores("layer", (0.5, None), (0,), ((1.0, 0.0), (0.0, 1.0)), {"a": 1})})
    assert ScoredLayers.from_dict(scored.to_dict()) == scored


def test_a_plan_has_the_number_that_was_asked_for_and_its_evidence() -> None:
    stacks = [make_stack(5)]
    scored = ScoredLayers("tail", {"layer": LayerScores("layer", (5.0, 4.0, 3.0, 2.0, 1.0))})
    plan = plan_layers(find_criterion("tail"), scored, stacks, {"layer": 2}, protect=[-1])
    assert plan.kept == {"layer": (0, 1, 4)}
    assert plan.evidence["criterion"] == "tail"
    assert plan.evidence["num_removed"] == {"layer": 2}


def test_an_unknown_criterion_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ValueError, match=r"Did you mean 'tail'.*Known criteria: .*tail"):
        find_criterion("tails")
    with pytest.raises(ValueError, match="cannot be imported"):
        find_criterion("no_such_module:Mine")


@pytest.mark.parametrize("terms", [{3: {0: 1.0}}, {0: {9: 1.0}}, {0: {1: float("nan")}}, {0: {}}])
def test_a_merge_that_cannot_be_is_refused(terms: dict[int, dict[int, float]]) -> None:
    with pytest.raises(ValueError, match="Layer"):
        StackPlan(4, (0, 1), terms)


def test_merges_survive_a_file(tmp_path) -> None:
    plan = PruningPlan.from_kept({"layer": [0, 2]}, [make_stack(3)], merged={"layer": {0: {0: 0.5, 1: 0.5}}})
    plan.save_pretrained(tmp_path)
    assert PruningPlan.from_pretrained(tmp_path) == plan
    assert plan.stacks["layer"].merged == {0: {0: 0.5, 1: 0.5}}


@pytest.mark.parametrize(
    ("given", "entries"),
    [(6, ["6"]), ("a:3", ["a:3"]), ({"a": 3, "b": 4}, ["a:3", "b:4"]), ([6, "a:3"], ["6", "a:3"])],
)
def test_a_target_is_a_number_or_one_for_each_stack(given: object, entries: list[str]) -> None:
    assert PruningConfig(target_num_layers=given).target_num_layers == entries


@pytest.mark.parametrize("wrong", [0, "x", "a:", [], "a:-1"])
def test_a_target_that_is_no_number_of_layers_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="target_num_layers"):
        PruningConfig(target_num_layers=wrong)


def test_targets_name_stacks_and_numbers_that_there_are() -> None:
    with pytest.raises(ValueError, match="no block stack"):
        resolve_targets(["c:3"], {"a": 4})
    with pytest.raises(ValueError, match="only 4 layers"):
        resolve_targets(["5"], {"a": 4})


def test_a_criterion_that_only_ranks_asks_for_a_number() -> None:
    with pytest.raises(ValueError, match=r"target_num_layers=6"):
        PruningConfig(criterion="tail")
    assert not PruningConfig(criterion="tail", layers_per_round=1).plans_by_threshold
    assert PruningConfig().plans_by_threshold
