"""From scores to layers that can go together, and to a plan."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from hf_mpruner.architectures import BlockStack
from hf_mpruner.criteria.scores import LayerScores


def free_layers(stack: BlockStack, protected: Collection[int] = ()) -> tuple[int, ...]:
    """Layers of a stack that may go, ascending."""
    return tuple(layer for layer in stack.prunable if layer not in protected)


def check_number(stack: BlockStack, num_removed: int, protected: Collection[int] = ()) -> None:
    """Check that so many layers of a stack can go.

    Raises:
        ValueError: says how many can.
    """
    free = free_layers(stack, protected)
    most = min(len(free), stack.depth - 1)
    if 0 <= num_removed <= most:
        return
    held = stack.depth - len(free)
    why = f"{held} of its {stack.depth} layers are pinned or protected" if held else "one layer has to stay"
    raise ValueError(
        f"{num_removed} layers cannot be removed from '{stack.path}': {why}, so at most {most} can go. Ask for "
        f"{stack.depth - most} layers or more to stay."
    )


def pick_lowest(
    scores: LayerScores, stack: BlockStack, num_removed: int, protected: Collection[int] = ()
) -> tuple[int, ...]:
    """The layers of the lowest total score that can go together.

    Args:
        scores (`LayerScores`): of the stack; where they have an `order`, its first layers go if these can go together.
        stack (`BlockStack`): says which layers are pinned, and in which runs layers go.
        num_removed (`int`): how many.
        protected (collection of `int`): layers that stay, besides pinned ones.

    Returns:
        `tuple[int, ...]`: ascending; of equal scores the later layers.

    Raises:
        ValueError: if so many cannot go; says how many can.

    Example:
        >>> from hf_mpruner.architectures import ConfigField
        >>> stack = BlockStack("layer", "BertLayer", 4, ConfigField("num_hidden_layers"))
        >>> pick_lowest(LayerScores("layer", (0.9, 0.2, 0.5, 0.2)), stack, 2)
        (1, 3)
    """
    check_number(stack, num_removed, protected)
    free = set(free_layers(stack, protected))
    first = tuple(sorted([layer for layer in scores.order if layer in free][:num_removed]))
    if len(first) == num_removed and stack.removable(first) == first:
        return first
    costs = [value if layer in free else None for layer, value in enumerate(_ranks(scores))]
    found = _cheapest(costs, stack, num_removed)
    if found is None:
        possible = [n for n in range(1, stack.depth) if _cheapest(costs, stack, n) is not None]
        unscored = [layer for layer in sorted(free) if costs[layer] is None]
        reason = stack.period_reason or f"layers {unscored} have no score by this criterion, so they stay"
        raise ValueError(
            f"{num_removed} layers of '{stack.path}' cannot be removed together: {reason}. Numbers that can: "
            f"{', '.join(map(str, possible)) or 'none'}."
        )
    return found


def _ranks(scores: LayerScores) -> list[float | None]:
    """Scores, made so that what was removed first by a greedy criterion is cheapest."""
    if not scores.order:
        return list(scores.values)
    place = {layer: float(number) for number, layer in enumerate(scores.order)}
    last = len(scores.order)
    rest = {layer: float(last + number) for number, layer in enumerate(scores.ranking) if layer not in place}
    return [place.get(layer, rest.get(layer)) for layer in range(len(scores.values))]


def _cheapest(costs: Sequence[float | None], stack: BlockStack, number: int) -> tuple[int, ...] | None:
    """The cheapest `number` layers in runs that fit the stack's period, by dynamic programming from the last layer.

    A state is what is left to remove and how far into a run of the period one is; a run that reaches the end may have any
    length. Ties go to the later layers.
    """
    period, depth = stack.period, stack.depth
    infinite = (math.inf, ())
    # best[left][phase]: cheapest way to remove `left` layers from here on, if `phase` layers of an open run went before
    best: list[list[tuple[float, tuple[int, ...]]]] = [
        [(0.0, ()) if left == 0 else infinite for _ in range(period)] for left in range(number + 1)
    ]
    for layer in reversed(range(depth)):
        following = best
        best = [[infinite] * period for _ in range(number + 1)]
        cost = costs[layer]
        for left in range(number + 1):
            for phase in range(period):
                options = []
                if cost is not None and left:
                    total, layers = following[left - 1][(phase + 1) % period]
                    options.append((total + cost, (layer, *layers)))
                if phase == 0:
                    options.append(following[left][0])
                if options:  # of equal totals the later layers, so keeping this one comes first
                    best[left][phase] = min(reversed(options), key=lambda option: option[0])
    total, layers = best[number][0]
    return layers if total < math.inf else None
