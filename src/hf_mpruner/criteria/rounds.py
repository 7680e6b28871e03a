"""How many layers go in a round, and scores in the numbering of the model that a run began with."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hf_mpruner.architectures import BlockStack
from hf_mpruner.config import PruningConfig, resolve_targets
from hf_mpruner.criteria.scores import LayerScores, ScoredLayers
from hf_mpruner.criteria.select import check_number, pick_lowest

Protected = Mapping[str, Collection[int]]


class Quota:
    """How many layers of each stack go in a round of a run that was asked for a number of layers.

    Args:
        config (`PruningConfig`): its targets and `layers_per_round`.
        depths (`Mapping[str, int]`): layers of each stack before the first cut.

    Attributes:
        targets (`dict[str, int]`): layers that are to be left in each stack that shrinks; empty without a target.
        settled (`bool`): whether these are all: not before the limits of the config were turned into numbers (`settle`).

    Raises:
        ValueError: for a target that names no stack, or more layers than there are.
    """

    def __init__(self, config: PruningConfig, depths: Mapping[str, int]) -> None:
        """Resolve the targets."""
        self._per_round = config.layers_per_round
        self._has_target, self.settled = config.has_target, not config.limits
        self.targets = resolve_targets(config.target_num_layers or [], depths)

    def settle(self, targets: Mapping[str, int]) -> None:
        """Take the numbers of layers that limits have come to."""
        self.targets, self.settled = dict(targets), True

    def check(self, stacks: Sequence[BlockStack], protected: Protected) -> None:
        """Refuse a target that no order of removal reaches.

        Raises:
            ValueError: says how many layers can go.
        """
        for stack in stacks:
            if stack.path not in self.targets:
                continue
            number, held = stack.depth - self.targets[stack.path], protected.get(stack.path, ())
            try:
                pick_lowest(_equal_scores(stack), stack, number, held)
            except ValueError as error:
                raise ValueError(f"target_num_layers={self.targets[stack.path]}: {error}") from None

    def is_reached(self, kept: Mapping[str, Sequence[int]]) -> bool:
        """Whether every stack has as many layers as were asked for."""
        return (
            self._has_target
            and self.settled
            and all(len(kept[path]) <= number for path, number in self.targets.items())
        )

    def numbers(self, stacks: Sequence[BlockStack], protected: Protected, granularity: int) -> dict[str, int]:
        """How many layers of each stack go next.

        Args:
            stacks (`Sequence[BlockStack]`): as they are now.
            protected (`Mapping[str, Collection[int]]`): for each stack layers that stay, in the numbering of now.
            granularity (`int`): the paper's k: one k-th of a round's layers go, rounded up.

        Returns:
            `dict[str, int]`: without stacks of which none goes. A stack whose layers go in runs gets the nearest number
            that its runs can give.
        """
        found = {}
        for path, (fitting, most) in self._limits(stacks, protected).items():
            asked = -(-min(most, self._per_round or most) // granularity)
            found[path] = max((n for n in fitting if n <= asked), default=min(fitting))
        return found

    def possible(self, stacks: Sequence[BlockStack], protected: Protected) -> dict[str, list[int]]:
        """Every number of layers that can go next and leaves what was asked for.

        Args:
            stacks (`Sequence[BlockStack]`): as they are now.
            protected (`Mapping[str, Collection[int]]`): for each stack layers that stay, in the numbering of now.

        Returns:
            `dict[str, list[int]]`: ascending, without 0; without stacks of which none can go.
        """
        return {path: fitting for path, (fitting, _) in self._limits(stacks, protected).items()}

    def _limits(self, stacks: Sequence[BlockStack], protected: Protected) -> dict[str, tuple[list[int], int]]:
        """For each stack that can lose any the numbers of layers that can go, and the most that may."""
        found = {}
        for stack in stacks:
            possible = _possible(stack, protected.get(stack.path, ()))
            most = max(possible, default=0)
            if self._has_target and self.settled:
                most = min(most, stack.depth - self.targets.get(stack.path, stack.depth))
            if fitting := [number for number in possible if number <= most]:
                found[stack.path] = (fitting, most)
        return found


def _possible(stack: BlockStack, protected: Collection[int]) -> list[int]:
    """Numbers of layers that can go together, ascending."""
    most = min(len(set(stack.prunable) - set(protected)), stack.depth - 1)
    if stack.period == 1:
        return list(range(1, most + 1))
    return [number for number in range(1, most + 1) if _can_go(stack, number, protected)]


def _can_go(stack: BlockStack, number: int, protected: Collection[int]) -> bool:
    check_number(stack, number, protected)
    try:
        return bool(pick_lowest(_equal_scores(stack), stack, number, protected))
    except ValueError:
        return False


def _equal_scores(stack: BlockStack) -> LayerScores:
    return LayerScores(stack.path, (0.0,) * stack.depth)


def hold_protected(stacks: Sequence[BlockStack], protected: Protected) -> list[BlockStack]:
    """The stacks with protected layers among the pinned ones, so that a greedy criterion does not remove them."""
    held = []
    for stack in stacks:
        named = dict.fromkeys(protected.get(stack.path, ()), "protect names it")
        held.append(replace(stack, pinned={**named, **stack.pinned}))
    return held


def to_original(scored: ScoredLayers, kept: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Scores as a record holds them.

    Args:
        scored (`ScoredLayers`): in the numbering of the model as it was scored.
        kept (`Mapping[str, Sequence[int]]`): for each stack the original number of each layer of that model.

    Returns:
        `dict`: of `ScoredLayers.to_dict()`; each stack has `layers`, the original numbers of its values, and an `order`
        in these numbers. `pairs` and `details` are as the criterion gave them.

    Example:
        >>> scored = ScoredLayers("greedy_loss", {"layer": LayerScores("layer", (0.2, 0.1), order=(1,))})
        >>> values = to_original(scored, {"layer": [0, 5]})["scores"]["layer"]
        >>> values["layers"], values["order"]
        ([0, 5], [5])
    """
    values = scored.to_dict()
    for path, one in values["scores"].items():
        numbers = list(kept[path])
        one["layers"] = numbers
        one["order"] = [numbers[layer] for layer in one["order"]]
    return _as_json(values)


def as_recorded(scored: ScoredLayers) -> ScoredLayers:
    """Scores as they come back from a record, so that a run that is gone on with selects by the very same values.

    Raises:
        TypeError: if a criterion's details are no plain values.
    """
    return ScoredLayers.from_dict(_as_json(scored.to_dict()))


def _as_json(values: dict[str, Any]) -> Any:
    try:
        return json.loads(json.dumps(values, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"What the criterion '{values['criterion']}' says in LayerScores.details cannot be written to a record "
            f"({error}): use numbers, texts, lists and dicts of these."
        ) from None


def from_original(values: Mapping[str, Any]) -> ScoredLayers:
    """Scores of a record, in the numbering of the model that was scored: what `to_original` was given."""
    scores = {}
    for path, one in values["scores"].items():
        place = {layer: number for number, layer in enumerate(one["layers"])}
        scores[path] = {**one, "order": [place[layer] for layer in one["order"]]}
    return ScoredLayers.from_dict({**values, "scores": scores})
