"""`greedy_loss`: the layer that is missed least goes, and the others are measured again without it."""

from __future__ import annotations

from functools import partial

from hf_mpruner.criteria.base import Criterion, Scores
from hf_mpruner.criteria.inputs import CriterionInputs
from hf_mpruner.criteria.without import loss_of, measure_without, remove_greedily


class GreedyLoss(Criterion):
    """Loss on the calibration data, greedily: each stack on its own, with the others whole.

    Layers go one after the other, each time the one without which the loss is lowest; it stops at the number of layers
    that may be asked for.
    """

    name = "greedy_loss"
    title = "loss without the layer, measured again after each removal"
    source = "SLEB: Song et al. 2024, arXiv 2402.09025"
    cost = "R x L"
    needs = frozenset({"data", "loss"})

    def score(self, inputs: CriterionInputs) -> Scores:
        """Mean loss without a layer and those removed before it, in the loss's unit; and the order of removal."""
        begin = loss_of(inputs)
        return {
            stack.path: remove_greedily(inputs, stack, partial(measure_without, inputs, stack, begin))
            for stack in inputs.stacks
        }
