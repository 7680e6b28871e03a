"""Baselines that look at no data: which layers go is decided by their place, or by lot."""

from __future__ import annotations

import math
import random
from collections.abc import Collection

from hf_mpruner.architectures import BlockStack
from hf_mpruner.criteria.base import Criterion, Scores
from hf_mpruner.criteria.inputs import CriterionInputs
from hf_mpruner.criteria.scores import LayerScores
from hf_mpruner.criteria.select import check_number, free_layers


class Tail(Criterion):
    """The last layers go first (Sajjad et al. 2020, arXiv 2004.03844: top-layer dropping)."""

    name = "tail"
    title = "the last layers go first"
    source = "baseline; Sajjad et al. 2020, arXiv 2004.03844"

    def score(self, inputs: CriterionInputs) -> Scores:
        """The later a layer, the lower."""
        return {stack.path: [float(stack.depth - layer) for layer in range(stack.depth)] for stack in inputs.stacks}


class Alternate(Criterion):
    """The layers that stay are evenly spaced, from the first to the last (Sajjad et al. 2020: alternate dropping).

    Of `depth` layers `m` stay, as near as can be to the places 0, (depth - 1) / (m - 1), 2 (depth - 1) / (m - 1), ...,
    depth - 1 (for m = 1 to the place 0): of all selections that are allowed (pinned, protected, period) the one with
    the smallest sum of squared distances to these places, taken in order; of equal ones the one that keeps earlier
    layers. So the first and the last layer stay wherever two or more do and nothing else is pinned.
    """

    name = "alternate"
    title = "evenly spaced layers stay"
    source = "baseline; Sajjad et al. 2020, arXiv 2004.03844"

    def score(self, inputs: CriterionInputs) -> Scores:
        """The fewer layers have to stay for a layer to be among them, the higher; what decides is the number asked for."""
        return {stack.path: _spread(stack.depth) for stack in inputs.stacks}

    def select(
        self, scores: LayerScores, stack: BlockStack, num_removed: int, protected: Collection[int] = ()
    ) -> tuple[int, ...]:
        """All but evenly spaced layers, ascending.

        Raises:
            ValueError: if so many cannot go; says how many can.
        """
        check_number(stack, num_removed, protected)
        removed = _evenly(stack, num_removed, set(free_layers(stack, protected)))
        if removed is None:
            raise ValueError(
                f"{num_removed} layers of '{stack.path}' cannot be removed together: {stack.period_reason}. Ask for another "
                "number of layers."
            )
        return removed


class Random(Criterion):
    """Layers go in an order drawn once for each stack, so that what goes of n is among what goes of n + 1.

    The order follows from `inputs.seed` and the stack's path alone: the same on every machine, and no random state of
    the program is touched.
    """

    name = "random"
    title = "drawn at random, with a seed"
    source = "baseline"

    def score(self, inputs: CriterionInputs) -> Scores:
        """The place of each layer in the order in which they go."""
        scores = {}
        for stack in inputs.stacks:
            order = list(range(stack.depth))
            random.Random(f"{inputs.seed} {stack.path}").shuffle(order)
            scores[stack.path] = [float(order.index(layer)) for layer in range(stack.depth)]
        return scores


def _places(depth: int, number: int) -> list[float]:
    return [0.0] if number == 1 else [index * (depth - 1) / (number - 1) for index in range(number)]


def _spread(depth: int) -> list[float]:
    """For each layer how many can go before it does, if nothing is pinned."""
    scores = [0.0] * depth
    for number in reversed(range(1, depth + 1)):
        for place in _places(depth, number):
            scores[math.ceil(place - 0.5)] = float(depth - number)
    return scores


def _evenly(stack: BlockStack, num_removed: int, free: set[int]) -> tuple[int, ...] | None:
    """The layers that go, by dynamic programming over the layers that stay."""
    depth = stack.depth
    places = _places(depth, depth - num_removed)
    # best[layer]: the cheapest way to keep `layer` as the last of so many
    best: dict[int, tuple[float, tuple[int, ...]]] = {-1: (0.0, ())}
    for place in places:
        following: dict[int, tuple[float, tuple[int, ...]]] = {}
        for last, (total, removed) in best.items():
            for layer in range(last + 1, depth):
                run = tuple(range(last + 1, layer))
                if run and (not free.issuperset(run) or len(run) % stack.period):
                    continue
                option = (total + (layer - place) ** 2, removed + run)
                if option[0] < following.get(layer, (math.inf, ()))[0]:
                    following[layer] = option
        best = following
    found: tuple[float, tuple[int, ...]] = (math.inf, ())
    for last, (total, removed) in best.items():
        tail = tuple(range(last + 1, depth))
        if free.issuperset(tail) and total < found[0]:
            found = (total, removed + tail)
    return found[1] if found[0] < math.inf else None
