"""`loss`: how good the model is without each layer, measured once."""

from __future__ import annotations

from functools import partial

from hf_mpruner.criteria.base import Criterion, Scores
from hf_mpruner.criteria.inputs import CriterionInputs
from hf_mpruner.criteria.without import loss_of, measure_without, score_each


class Loss(Criterion):
    """Loss on the calibration data without each layer alone; low where the layer is missed least.

    A layer without which the loss is not finite has no score, and stays.
    """

    name = "loss"
    title = "loss without the layer, measured once"
    source = "Shortened LLaMA: Kim et al. 2024, arXiv 2402.02834 (there as perplexity, which orders layers alike)"
    cost = "L"
    needs = frozenset({"data", "loss"})
    compares_stacks = True

    def score(self, inputs: CriterionInputs) -> Scores:
        """Mean loss over the data, in the loss's unit."""
        begin = loss_of(inputs)
        return {
            stack.path: score_each(inputs, stack, partial(measure_without, inputs, stack, begin))
            for stack in inputs.stacks
        }
