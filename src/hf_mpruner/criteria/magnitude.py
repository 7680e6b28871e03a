"""`magnitude`: how large a block's weights are (Shortened LLaMA, arXiv 2402.02834)."""

from __future__ import annotations

from torch import Tensor, nn

from hf_mpruner.architectures.adapters import without_adapters
from hf_mpruner.criteria.base import Criterion, Scores, any_quantised
from hf_mpruner.criteria.inputs import CriterionInputs
from hf_mpruner.errors import CalibrationError


class Magnitude(Criterion):
    """The sum of |W| over a block's weight matrices (Shortened LLaMA, section 3.1: Mag, with the L1 norm).

    Matrices are all parameters of two or more dimensions: of linear maps, convolutions and experts. Biases, scales of
    normalisations and embeddings (T5's relative positions) do not count. It is a sum and no mean, so in a stack of
    blocks of different size the larger ones stay. Of a model with adapters the base weights count.
    """

    name = "magnitude"
    title = "sum of the absolute weights"
    source = "Shortened LLaMA, arXiv 2402.02834 (Mag)"
    cost = "0"
    needs = frozenset({"weights"})

    def score(self, inputs: CriterionInputs) -> Scores:
        """Sum of |W| in 64 bits.

        Raises:
            CalibrationError: for quantised weights.
        """
        if any_quantised(inputs.model):
            raise _quantised("quantised")
        with without_adapters(inputs.model):
            return {stack.path: [_sum(block) for block in inputs.blocks(stack)] for stack in inputs.stacks}


def _sum(block: nn.Module) -> float:
    tables = {id(module.weight) for module in block.modules() if isinstance(module, nn.Embedding)}
    total = 0.0
    for weight in block.parameters():
        if not weight.is_floating_point():
            raise _quantised(str(weight.dtype))
        if weight.dim() >= 2 and id(weight) not in tables:
            total += _absolute(weight)
    return total


def _absolute(weight: Tensor) -> float:
    """A row at a time, so that no copy of a large matrix is made in 64 bits."""
    return sum(float(row.detach().cpu().double().abs().sum()) for row in weight.flatten(1).split(1024))


def _quantised(kind: str) -> CalibrationError:
    return CalibrationError(
        f"The criterion 'magnitude' adds up weights, but the model's are {kind}: their numbers are codes. Load it without "
        "quantisation, or take a criterion that runs the model, e.g. block_influence or loss."
    )
