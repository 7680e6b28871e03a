"""Measure a model without some of its layers, and remove them one after the other."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from hf_mpruner.architectures import BlockStack
from hf_mpruner.criteria.inputs import CriterionInputs
from hf_mpruner.criteria.scores import LayerScores
from hf_mpruner.errors import CalibrationError
from hf_mpruner.skipping import SkippedBlocks, skip_blocks

logger = logging.getLogger(__name__)

Layers = tuple[int, ...]
Measure = Callable[[], tuple[float, float]]
"""Runs the model on one batch; a sum over it, and how many examples or positions it is of."""


def loss_of(inputs: CriterionInputs) -> Callable[[Mapping[str, Any]], Measure]:
    """For `measure_without`: the loss, each batch weighted by its examples."""

    def begin(batch: Mapping[str, Any]) -> Measure:
        size = inputs.size(batch)
        return lambda: (float(inputs.raw_loss(batch)) * size, size)

    return begin


def measure_without(
    inputs: CriterionInputs,
    stack: BlockStack,
    begin: Callable[[Mapping[str, Any]], Measure],
    removals: Sequence[Layers],
) -> list[float]:
    """The mean of something over the calibration data, without each of several selections of layers.

    A batch is loaded once for all of them.

    Args:
        inputs (`CriterionInputs`): the model, in eval mode.
        stack (`BlockStack`): whose layers are left out.
        begin (callable): gets a batch, with the model whole; returns what is called once for each selection.
        removals (sequence of `tuple[int, ...]`): the layers to leave out, one pass each.

    Returns:
        `list[float]`: one value a selection; may be NaN or infinite.

    Raises:
        CalibrationError: if a layer is never reached on this data.
        UnsupportedArchitectureError: if the model does not run without a layer.
    """
    sums, weights = [0.0] * len(removals), [0.0] * len(removals)
    known: dict[str, set[Any]] = {}
    number = len(removals[0]) if removals else 0
    with torch.no_grad():
        for batch in inputs.each_batch(f"{stack.path} without {number} layer{'s' if number > 1 else ''}"):
            measure = begin(batch)
            for place, layers in enumerate(removals):
                with skip_blocks(inputs.model, {stack.path: layers}, stacks=inputs.stacks, known=known) as skipped:
                    value, weight = measure()
                check_run(skipped, "the calibration data")
                sums[place] += value
                weights[place] += weight
    return [value / weight if weight else math.nan for value, weight in zip(sums, weights, strict=True)]


def check_run(skipped: SkippedBlocks, on: str) -> None:
    """What was measured without a block says nothing if the block never runs.

    Raises:
        CalibrationError: names it.
    """
    if skipped.not_run:
        raise CalibrationError(
            f"{skipped.not_run[0]} is never run on {on}, so nothing can be measured without it. Give every input that its "
            "stack needs (an encoder-decoder model: labels or decoder_input_ids), and evaluate this model object itself."
        )


def score_each(
    inputs: CriterionInputs, stack: BlockStack, measure: Callable[[Sequence[Layers]], Sequence[float]]
) -> LayerScores:
    """One value for each layer that may go, measured without that layer alone.

    Raises:
        CalibrationError: if no layer has a finite value.
    """
    values: list[float | None] = [None] * stack.depth
    for layer, value in zip(stack.prunable, measure([(layer,) for layer in stack.prunable]), strict=True):
        values[layer] = _finite(value)
    _check_some(stack, values)
    return LayerScores(stack.path, tuple(values))


def remove_greedily(
    inputs: CriterionInputs, stack: BlockStack, measure: Callable[[Sequence[Layers]], Sequence[float]]
) -> LayerScores:
    """Remove the layer without which a value is lowest; measure again without it; and so on.

    In a stack whose layers go in runs of a period, so many neighbours go at a time.

    Args:
        inputs (`CriterionInputs`): says how many layers may go.
        stack (`BlockStack`): to remove from.
        measure (callable): gets selections of layers, returns a value for each; lower is better.

    Returns:
        `LayerScores`: the order of removal. A removed layer's value is that without it and those before it, another
            layer's that of the last measurement; `details["steps"]` has the values of each step by layers.

    Raises:
        CalibrationError: if no layer can be removed first.
    """
    values: list[float | None] = [None] * stack.depth
    order: list[int] = []
    steps: list[dict[str, float]] = []
    wanted = most_removed(inputs, stack)
    while len(order) < max(wanted, 1):
        groups = _next_groups(stack, order, (wanted - len(order)) or stack.period)
        if not groups:
            break
        measured = dict(zip(groups, map(_finite, measure([(*order, *group) for group in groups])), strict=True))
        finite = {group: value for group, value in measured.items() if value is not None}
        for layer in {layer for group in groups for layer in group}:  # a layer may go in several runs
            values[layer] = min((value for group, value in finite.items() if layer in group), default=None)
        _check_some(stack, values)
        steps.append({"+".join(map(str, group)): value for group, value in finite.items()})
        if not finite or not wanted:
            break
        best = min(finite, key=lambda group: (finite[group], [-layer for layer in group]))
        order += best
        for layer in best:
            values[layer] = finite[best]
    return LayerScores(stack.path, tuple(values), tuple(order), details={"steps": steps})


def most_removed(inputs: CriterionInputs, stack: BlockStack) -> int:
    """How many layers of a stack may be asked for."""
    possible = min(len(stack.prunable), stack.depth - 1)
    return min(possible, inputs.num_removed.get(stack.path, 0)) if inputs.num_removed else possible


def _next_groups(stack: BlockStack, gone: Sequence[int], left: int) -> list[Layers]:
    """What may go next: single layers, or as many neighbours as the period says."""
    staying = [layer for layer in range(stack.depth) if layer not in gone]
    size = min(stack.period, left)
    windows = [tuple(staying[start : start + size]) for start in range(len(staying) - size + 1)]
    return [window for window in windows if stack.removable((*gone, *window)) == tuple(sorted((*gone, *window)))]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _check_some(stack: BlockStack, values: Sequence[float | None]) -> None:
    """Say which layers the model gives no finite value without; at least one must be left."""
    if all(value is None for value in values):
        raise CalibrationError(
            f"Without any one layer of '{stack.path}' what is measured on the calibration data is not finite. Look at the "
            "data, or load the model in 32 bits: in 16 bits its values may overflow."
        )
