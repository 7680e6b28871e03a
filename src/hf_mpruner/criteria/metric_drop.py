"""`metric_drop`: the user's own metric without each layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

from hf_mpruner.criteria.base import Criterion, Scores
from hf_mpruner.criteria.inputs import CriterionInputs
from hf_mpruner.criteria.without import check_run
from hf_mpruner.errors import CalibrationError
from hf_mpruner.skipping import skip_blocks


class MetricDrop(Criterion):
    """How much the metric falls without each layer alone; below 0 where the model is better without it.

    The data is that of the evaluation, not the calibration sample, so what is judged afterwards should be other data.
    """

    name = "metric_drop"
    title = "fall of your metric without the layer, measured once"
    source = "arXiv 2605.14075 (accuracy drop)"
    cost = "L + 1 evaluations"
    needs = frozenset({"metric"})
    compares_stacks = True

    def score(self, inputs: CriterionInputs) -> Scores:
        """The metric of the whole model less that without the layer, in the metric's unit, higher is better."""
        evaluate = cast("Callable[[], float]", inputs.evaluate)  # it is needed, so it was checked
        whole = float(evaluate())
        if not math.isfinite(whole):
            raise CalibrationError(f"The metric of the uncut model is {whole}: nothing can be compared with it.")
        scores: dict[str, list[float | None]] = {}
        for stack in inputs.stacks:
            values: list[float | None] = [None] * stack.depth
            for layer in stack.prunable:
                with skip_blocks(inputs.model, {stack.path: [layer]}, stacks=inputs.stacks) as skipped:
                    value = float(evaluate())
                check_run(skipped, "the evaluation's data")
                values[layer] = whole - value if math.isfinite(value) else None
            scores[stack.path] = values
        return scores
