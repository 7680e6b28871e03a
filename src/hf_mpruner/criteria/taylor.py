"""`taylor`: what the loss would change by, to first order, if the weights of a layer were 0."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_mpruner.criteria.base import Criterion, Scores
from hf_mpruner.criteria.inputs import CriterionInputs
from hf_mpruner.errors import CalibrationError


class Taylor(Criterion):
    """Sum over the weights w of a layer of |w * dL/dw|, with L the mean loss over all calibration data.

    One forward and one backward pass in eval mode, so without dropout. The gradients of the layers are summed in 32 bits
    until the data is through, which needs as much memory as the layers' weights, and once more that of a batch; the
    `.grad` of the parameters is neither read nor written.
    """

    name = "taylor"
    title = "|weight x gradient of the loss|, summed over the layer"
    source = "Shortened LLaMA: Kim et al. 2024, arXiv 2402.02834"
    cost = "1 + 1 backward"
    needs = frozenset({"data", "loss", "gradients"})

    def score(self, inputs: CriterionInputs) -> Scores:
        """In the loss's unit."""
        blocks = {stack.path: inputs.blocks(stack) for stack in inputs.stacks}
        weights = list(
            dict.fromkeys(
                weight
                for stack in blocks.values()
                for block in stack
                for weight in block.parameters()
                if weight.is_floating_point()
            )
        )
        with _differentiable(weights):
            gradients = _mean_gradients(inputs, weights)
        scores = {}
        for path, stack in blocks.items():
            scores[path] = [_sum_of_products(block, gradients) for block in stack]
            reached = [any(weight in gradients for weight in block.parameters()) for block in stack]
            if not all(reached):
                raise CalibrationError(
                    f"The loss does not depend on {path}.{reached.index(False)}, so it has no gradient. Give every input that "
                    "the stack needs (an encoder-decoder model: labels), or take a criterion without gradients, e.g. cka."
                )
        return scores


def _mean_gradients(inputs: CriterionInputs, weights: list[nn.Parameter]) -> dict[nn.Parameter, Tensor]:
    """Gradient of the mean loss over all data, of the weights that it depends on."""
    sums: dict[nn.Parameter, Tensor] = {}
    examples = 0
    for batch in inputs.each_batch("Gradients of the loss"):
        size = inputs.size(batch)
        with torch.enable_grad():
            found: Any = torch.autograd.grad(inputs.loss(batch), weights, allow_unused=True)
        for weight, gradient in zip(weights, found, strict=True):
            if gradient is None:
                continue
            if weight not in sums:
                sums[weight] = torch.zeros_like(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32))
            sums[weight].add_(gradient, alpha=size)
        examples += size
    return {weight: total.div_(examples) for weight, total in sums.items()}


def _sum_of_products(block: nn.Module, gradients: dict[nn.Parameter, Tensor]) -> float:
    parts = [
        (weight.detach() * gradients[weight]).abs().sum().cpu().double()
        for weight in block.parameters()
        if weight in gradients
    ]
    return float(sum(parts))


@contextmanager
def _differentiable(weights: list[nn.Parameter]) -> Iterator[None]:
    """Frozen weights have gradients, too, until the context ends."""
    frozen = [weight for weight in weights if not weight.requires_grad]
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
