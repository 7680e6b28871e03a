"""`output_change`: how much of what the model puts out is another without a layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hf_mpruner.criteria.base import Criterion, Scores
from hf_mpruner.criteria.inputs import CriterionInputs
from hf_mpruner.criteria.without import Measure, measure_without, remove_greedily
from hf_mpruner.errors import CalibrationError
from hf_mpruner.features.rows import fit_mask, padding_mask


def angular(whole: Tensor, without: Tensor) -> Tensor:
    """Angle between two outputs over pi, (rows, features) -> (rows,): 0 alike, 1 opposite.

    By the half angle's tangent: the arc cosine cannot tell angles below 3e-4 apart in 32 bits.

    Example:
        >>> angular(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
        tensor([0.5000])
    """
    one, other = (torch.nn.functional.normalize(rows, dim=-1) for rows in (whole, without))
    return 2 / math.pi * torch.atan2((one - other).norm(dim=-1), (one + other).norm(dim=-1))


def kullback_leibler(whole: Tensor, without: Tensor) -> Tensor:
    """Sum p log(p / q) in nats, of the probabilities of logits, (rows, classes) -> (rows,).

    Example:
        >>> kullback_leibler(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]]))
        tensor([0.])
    """
    p, q = whole.log_softmax(-1), without.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"angular": angular, "kl": kullback_leibler}


class OutputChange(Criterion):
    """How far the model's output is from the whole model's, greedily: each stack on its own, with the others whole.

    As in FinerCut, but whole layers go, not halves. The output is the logits, or of a model without them its last hidden
    states; the distance is averaged over all real positions, or over the examples where there is one output each.
    Needs data, no labels.

    Args:
        distance (`"angular"` or `"kl"`): the angle between the outputs over pi, or the Kullback-Leibler divergence of the
            probabilities after a cut from those before it.
    """

    name = "output_change"
    title = "change of the model's output without the layer, measured again after each removal"
    source = "FinerCut: Zhang et al. 2024, arXiv 2405.18218"
    cost = "R x (L + 1)"
    needs = frozenset({"data"})

    def __init__(self, distance: str = "angular") -> None:
        """Choose the distance."""
        if distance not in DISTANCES:
            raise ValueError(f"distance='{distance}' is not known: pass one of {', '.join(map(repr, DISTANCES))}.")
        self.distance = distance

    def score(self, inputs: CriterionInputs) -> Scores:
        """Mean distance without a layer and those removed before it; and the order of removal."""
        begin = change_of(inputs, DISTANCES[self.distance])
        return {
            stack.path: remove_greedily(inputs, stack, partial(measure_without, inputs, stack, begin))
            for stack in inputs.stacks
        }


def change_of(
    inputs: CriterionInputs, distance: Callable[[Tensor, Tensor], Tensor] = angular
) -> Callable[[Mapping[str, Any]], Measure]:
    """For `measure_without`: how far the outputs are from the whole model's, by position or example."""

    def begin(batch: Mapping[str, Any]) -> Measure:
        whole = outputs_of(inputs, batch)

        def measure() -> tuple[float, float]:
            rows = [distance(one, other) for one, other in zip(whole, outputs_of(inputs, batch), strict=True)]
            return float(sum(row.cpu().double().sum() for row in rows)), sum(map(len, rows))

        return measure

    return begin


def outputs_of(inputs: CriterionInputs, batch: Mapping[str, Any]) -> list[Tensor]:
    """What the model puts out on a batch: all logits, or its last hidden states.

    Returns:
        `list[Tensor]`: each as rows of 32 bits or more, (real positions or examples, features).

    Raises:
        CalibrationError: if it puts out neither, or single numbers; or a padding mask does not fit.
    """
    output = inputs.forward(batch)
    named = dict(output) if isinstance(output, Mapping) else {}
    chosen = [value for name, value in named.items() if name.endswith("logits") and isinstance(value, Tensor)]
    if not chosen and isinstance(named.get("last_hidden_state"), Tensor):
        chosen = [named["last_hidden_state"]]
    if not chosen:
        raise CalibrationError(
            f"{type(inputs.model).__name__} puts out neither logits nor hidden states on {', '.join(batch)}. Take a "
            "criterion that compares something else, e.g. loss or cka."
        )
    if any(value.dim() < 2 or value.shape[-1] < 2 for value in chosen):
        raise CalibrationError(
            f"{type(inputs.model).__name__} puts out one number where output_change compares directions. Take loss, which "
            "measures such a model, too."
        )
    return [_rows(inputs, batch, value) for value in chosen]


def _rows(inputs: CriterionInputs, batch: Mapping[str, Any], value: Tensor) -> Tensor:
    value = value.to(torch.promote_types(value.dtype, torch.float32))
    if value.dim() == 2:
        return value
    if value.dim() > 3:  # maps of classes or features
        return value.movedim(1, -1).flatten(0, -2)
    mask = padding_mask(inputs.model, "decoder", batch)
    if mask is None:
        return value.flatten(0, 1)
    return value[fit_mask(mask, (value.shape[0], value.shape[1]), "The model").to(value.device)]
