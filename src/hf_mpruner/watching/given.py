"""`UserEvaluation`: what `prune_` was given to evaluate with, which may return a number for each example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch

from ..errors import MPrunerError
from ..guarantee import Outcomes
from ..scoring import outcomes_of_values
from .outcomes import PLAIN


class UserEvaluation:
    """The `evaluate` that was given to `prune_`: a metric may be a number, or a number for each example.

    Args:
        evaluate (callable): of the user.
        model: that it is called with.
    """

    def __init__(self, evaluate: Callable[[Any], Mapping[str, Any]], model: Any) -> None:
        """Nothing is evaluated yet."""
        self._evaluate, self._model = evaluate, model
        self._examples: dict[str, np.ndarray] = {}

    def __call__(self) -> dict[str, Any]:
        """Metrics by name: of numbers for each example the mean.

        Raises:
            MPrunerError: if something else than metrics by name is returned.
        """
        metrics = self._evaluate(self._model)
        if not isinstance(metrics, Mapping):
            raise MPrunerError(
                f"evaluate returned {type(metrics).__name__}, not metrics by name: return a dict such as "
                "{'accuracy': 0.93}."
            )
        plain = {name.removeprefix("eval_"): value for name, value in metrics.items()}
        self._examples = {name: found for name, value in plain.items() if (found := _of_examples(value)) is not None}
        return plain | {name: float(values.mean()) for name, values in self._examples.items()}

    def outcomes(self, metric: str, like: Outcomes | None = None) -> Outcomes:
        """Outcomes of a metric of the last call, to be paired with those of another model.

        Args:
            metric (`str`): its name.
            like (`Outcomes`, *optional*): of the uncut model: the same kind is made.

        Raises:
            MPrunerError: if `evaluate` returned one number for the whole set.
        """
        asked = getattr(self._evaluate, "outcomes", None)
        if callable(asked):
            return cast(Outcomes, asked(metric, like))
        if metric not in self._examples:
            raise MPrunerError(
                f"evaluate returned one {metric} for the whole set: with a confidence two models are compared example by "
                f"example. Return a list or an array with the {metric} of each example, in one order, such as "
                f"{{'{metric}': [1, 0, 1, 1]}}, whose mean is then the {metric}, {PLAIN}."
            )
        return outcomes_of_values(self._examples[metric], like=like, metric=metric)


def _of_examples(value: Any) -> np.ndarray | None:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().double().numpy()
    if not isinstance(value, list | tuple | np.ndarray):
        return None
    numbers = np.asarray(value)
    return numbers.astype(float) if numbers.ndim == 1 and numbers.size and numbers.dtype.kind in "iufb" else None
