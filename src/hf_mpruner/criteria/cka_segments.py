"""`cka_segments`: the stack cut into as many segments as layers are to stay (SGLP, arXiv 2410.14720)."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from hf_mpruner.architectures import BlockStack
from hf_mpruner.criteria.base import Criterion, Scores
from hf_mpruner.criteria.cka import score_similarity
from hf_mpruner.criteria.inputs import CriterionInputs
from hf_mpruner.criteria.scores import LayerScores
from hf_mpruner.criteria.select import check_number


class CkaSegments(Criterion):
    """Fisher's optimal segmentation of the similarity matrix; the first layer of each segment stays.

    A layer is described by its row of the CKA matrix, as in SGLP. The segmentation of `depth - n` segments has the
    smallest sum over all segments of the squared distances of its rows from their mean. SGLP then chooses inside each
    segment by the norm of gradients; here the first layer stays, as in MPruner. Layers that are pinned or protected
    begin segments of their own or of those behind them, and segments are such that what goes fits the stack's period.
    """

    name = "cka_segments"
    title = "optimal segmentation of the similarity matrix"
    source = "SGLP, arXiv 2410.14720 (without its GradNorm)"
    cost = "1"
    needs = frozenset({"data"})

    def score(self, inputs: CriterionInputs) -> Scores:
        """1 - similarity with the layer before; what decides is the matrix."""
        return score_similarity(inputs)

    def select(
        self, scores: LayerScores, stack: BlockStack, num_removed: int, protected: Collection[int] = ()
    ) -> tuple[int, ...]:
        """All layers but the first of each segment, ascending.

        Raises:
            ValueError: if so many cannot go; says how many can.
        """
        check_number(stack, num_removed, protected)
        starts = best_segments(
            segment_costs(torch.tensor(scores.pairs, dtype=torch.float64)),
            stack.depth - num_removed,
            must_start={0, *stack.pinned, *protected},
            period=stack.period,
        )
        if starts is None:
            raise ValueError(
                f"{num_removed} layers of '{stack.path}' cannot be removed with a segment's first layer staying: "
                f"{stack.period_reason or 'its first layer, pinned and protected ones stay'}. Ask for another number of "
                "layers, or take the criterion cka."
            )
        return tuple(layer for layer in range(stack.depth) if layer not in starts)


def segment_costs(rows: Tensor) -> Tensor:
    """Fisher's diameter of every run of rows: the sum of squared distances from the run's mean.

    Args:
        rows (`torch.Tensor` of shape `(layers, features)`): float64.

    Returns:
        `torch.Tensor` of shape `(layers, layers)`: at `[first, last]` that of rows first..last; 0 below the diagonal.
    """
    depth = len(rows)
    costs = torch.zeros(depth, depth, dtype=rows.dtype)
    for first in range(depth):
        for last in range(first + 1, depth):
            run = rows[first : last + 1]
            costs[first, last] = (run - run.mean(0)).square().sum()
    return costs


def best_segments(
    costs: Tensor, number: int, must_start: Collection[int] = (0,), period: int = 1
) -> tuple[int, ...] | None:
    """The first places of the contiguous segments of the smallest total cost, by dynamic programming.

    Args:
        costs (`torch.Tensor` of shape `(layers, layers)`): of every run, at `[first, last]`.
        number (`int`): of segments.
        must_start (collection of `int`): places that begin a segment.
        period (`int`): all segments but the last have a multiple of this many places behind their first.

    Returns:
        `tuple[int, ...]`, *optional*: ascending, the first is 0; `None` if no segmentation is allowed.

    Example:
        >>> rows = torch.tensor([[0.0], [0.1], [5.0], [5.2], [5.1]], dtype=torch.float64)
        >>> best_segments(segment_costs(rows), 2)
        (0, 2)
    """
    depth, fixed = len(costs), set(must_start)
    table = costs.tolist()
    # best[end]: cheapest segmentation of what lies before `end`, into as many segments as were added so far
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for _ in range(number):
        following: dict[int, tuple[float, tuple[int, ...]]] = {}
        for first, (total, starts) in best.items():
            for last in range(first, depth):
                if last > first and last in fixed:
                    break
                if last < depth - 1 and (last - first) % period:
                    continue
                option = (total + table[first][last], (*starts, first))
                if option[0] < following.get(last + 1, (math.inf, ()))[0]:
                    following[last + 1] = option
        best = following
    return best[depth][1] if depth in best else None
