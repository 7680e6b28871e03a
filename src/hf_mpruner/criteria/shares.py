"""How many layers of each stack go, where only their number over all stacks is known."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from hf_mpruner.architectures import BlockStack
from hf_mpruner.criteria.base import Criterion
from hf_mpruner.criteria.scores import ScoredLayers

Costs = Mapping[str, Mapping[int, float]]


def possible_totals(possible: Mapping[str, Sequence[int]]) -> list[int]:
    """The numbers of layers that some stacks can lose together, ascending, without 0.

    Args:
        possible (`Mapping[str, Sequence[int]]`): for each stack the numbers of layers that can go; none always can.

    Example:
        >>> possible_totals({"encoder": [2, 4], "decoder": [1]})
        [1, 2, 3, 4, 5]
    """
    totals = {0}
    for numbers in possible.values():
        totals |= {total + number for total in totals for number in numbers}
    return sorted(totals - {0})


def proportional(possible: Mapping[str, Sequence[int]], removed: Mapping[str, int], total: int) -> Costs:
    """Costs by which all stacks lose the same share of what they can lose, as nearly as whole layers allow.

    Args:
        possible (`Mapping[str, Sequence[int]]`): for each stack the numbers of layers that can go now.
        removed (`Mapping[str, int]`): for each stack the layers that are gone already.
        total (`int`): how many go now, over all stacks.
    """
    most = {path: removed.get(path, 0) + max(numbers) for path, numbers in possible.items()}
    gone = sum(removed.get(path, 0) for path in possible) + total
    share = gone / max(1, sum(most.values()))
    return {
        path: {
            number: (removed.get(path, 0) + number - share * most[path]) ** 2 / most[path] for number in (0, *numbers)
        }
        for path, numbers in possible.items()
    }


def share_out(total: int, costs: Costs) -> dict[str, int] | None:
    """The numbers of layers of each stack that add up to a total at the lowest cost, by dynamic programming.

    Args:
        total (`int`): how many layers go, over all stacks.
        costs (`Mapping`): for each stack the cost of each number of layers that can go, 0 among them.

    Returns:
        `dict[str, int]`: without stacks of which none goes; `None` if no numbers add up. Of equal costs the earlier stacks
        lose fewer.

    Example:
        >>> share_out(3, {"encoder": {0: 0.0, 1: 0.1, 2: 0.2, 3: 0.9}, "decoder": {0: 0.0, 1: 0.3, 2: 0.8}})
        {'encoder': 2, 'decoder': 1}
    """
    best: dict[int, tuple[float, dict[str, int]]] = {0: (0.0, {})}
    for path, of in costs.items():
        found: dict[int, tuple[float, dict[str, int]]] = {}
        for gone, (cost, numbers) in best.items():
            for number, more in sorted(of.items()):
                if gone + number <= total and cost + more < found.get(gone + number, (math.inf,))[0]:
                    found[gone + number] = (cost + more, {**numbers, **({path: number} if number else {})})
        best = found
    return best[total][1] if total in best else None


def share_by(
    criterion: Criterion,
    scored: ScoredLayers,
    stacks: Sequence[BlockStack],
    protected: Mapping[str, Collection[int]],
    possible: Mapping[str, Sequence[int]],
    removed: Mapping[str, int],
    total: int,
    *,
    by_scores: bool = True,
) -> dict[str, int]:
    """How many layers of each stack go, by a criterion's scores where it compares stacks, else the same share of each.

    Args:
        criterion (`Criterion`): that scored.
        scored (`ScoredLayers`): of these stacks.
        stacks (`Sequence[BlockStack]`): as they were scored.
        protected (`Mapping[str, Collection[int]]`): for each stack layers that stay, besides pinned ones.
        possible (`Mapping[str, Sequence[int]]`): for each stack the numbers of layers that can go; from `Quota.possible`.
        removed (`Mapping[str, int]`): for each stack the layers that are gone already.
        total (`int`): how many go now, over all stacks.
        by_scores (`bool`): if not, the same share of each, whatever the criterion says.

    Raises:
        ValueError: if no numbers that can go add up to it.
    """
    costs = proportional(possible, removed, total)
    if by_scores and len(possible) > 1 and criterion.compares_stacks:
        costs = _harms(criterion, scored, stacks, protected, possible, total)
    found = share_out(total, costs)
    if found is None:
        raise ValueError(f"{total} layers of {', '.join(possible)} cannot go together.")
    return found


def _harms(
    criterion: Criterion,
    scored: ScoredLayers,
    stacks: Sequence[BlockStack],
    protected: Mapping[str, Collection[int]],
    possible: Mapping[str, Sequence[int]],
    total: int,
) -> Costs:
    """For each stack the harm of every number of layers that can go, of which the criterion finds layers."""
    costs: dict[str, dict[int, float]] = {}
    for stack in stacks:
        of = costs[stack.path] = {0: 0.0}
        for number in possible.get(stack.path, ()):
            if number <= total:
                scores = scored.scores[stack.path]
                try:
                    of[number] = criterion.harm(scores, criterion.select(scores, stack, number, protected[stack.path]))
                except ValueError:  # so many cannot go together by this criterion
                    continue
    return costs
