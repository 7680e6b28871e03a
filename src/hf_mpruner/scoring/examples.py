"""A metric that can be asked about any of the examples that a model was judged on, alone or together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import EvalPrediction

#: Which predictions are held against which labels: numbers of examples, of one length.
Score = Callable[[np.ndarray, np.ndarray], float]
Hits = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Scored:
    """A metric over the examples of one evaluation.

    Args:
        num_examples (`int`): that were judged.
        score (callable): takes two arrays of one length, the numbers of the examples whose predictions are taken and
            of those whose labels are; returns the metric of these predictions and labels.
        hits (callable, *optional*): takes the same, returns 1 where a prediction is the label and else 0, at once; not
            known to be what the metric counts.
    """

    num_examples: int
    score: Score
    hits: Hits | None = None


def scored_prediction(
    compute_metrics: Callable[[Any], Mapping[str, Any]],
    prediction: EvalPrediction,
    read: Callable[[Mapping[str, Any]], float],
    *,
    in_batches: bool = False,
) -> Scored:
    """A Trainer's `compute_metrics` over parts of what it was given; it sees nothing but `EvalPrediction`s of examples.

    Args:
        compute_metrics (callable): of the user.
        prediction (`EvalPrediction`): what it was given for the whole set. Nothing of it is written to.
        read (callable): takes what it returns, returns the metric that is wanted.
        in_batches (`bool`): whether the Trainer left its batches apart (`eval_do_concat_batches=False`).

    Raises:
        ValueError: if an array in it is not of one row for each example.

    Example:
        >>> from transformers import EvalPrediction
        >>> whole = EvalPrediction(np.array([[2.0, 1.0], [2.0, 1.0]]), np.array([0, 1]))
        >>> half = lambda part: {"accuracy": (part.predictions.argmax(-1) == part.label_ids).mean()}
        >>> scored = scored_prediction(half, whole, lambda values: values["accuracy"])
        >>> float(scored.score(np.array([0, 0, 1]), np.array([0, 0, 1]))).__round__(4)
        0.6667
    """
    from transformers import EvalPrediction

    parts: dict[str, Any] = {
        name: getattr(prediction, name, None) for name in ("predictions", "label_ids", "inputs", "losses")
    }
    if in_batches:
        sizes = [_num_rows(batch) for batch in parts["label_ids"]]
        places = [(batch, row) for batch, size in enumerate(sizes) for row in range(size)]
        num_examples = len(places)
    else:
        num_examples = _num_rows(parts["label_ids"])
        for name, values in parts.items():
            _check_rows(name, values, num_examples)

    def take(name: str, rows: np.ndarray) -> Any:
        if in_batches and parts[name] is not None:
            # batches were padded each for itself, so that their rows fit together only one by one
            return [_take(parts[name][batch], np.array([row])) for batch, row in (places[i] for i in rows)]
        return _take(parts[name], rows)

    def score(said: np.ndarray, right: np.ndarray) -> float:
        # what the model said, and its losses, belong together; what was right, and the inputs, too
        return read(
            compute_metrics(
                EvalPrediction(
                    take("predictions", said), take("label_ids", right), take("inputs", right), take("losses", said)
                )
            )
        )

    return Scored(num_examples, score, None if in_batches else _find_hits(prediction))


def _find_hits(prediction: EvalPrediction) -> Hits | None:
    said, labels = prediction.predictions, prediction.label_ids
    said = said[0] if isinstance(said, tuple) else said
    if not isinstance(said, np.ndarray) or not isinstance(labels, np.ndarray) or labels.ndim != 1:
        return None
    if said.ndim == 2 and labels.dtype.kind in "iu":
        classes = said.argmax(-1)
        return lambda one, other: (classes[one] == labels[other]).astype(float)
    if said.ndim == 1 and said.dtype.kind in "iub" and labels.dtype.kind in "iub":
        return lambda one, other: (said[one] == labels[other]).astype(float)
    return None


def _leaves(values: Any) -> list[Any]:
    if isinstance(values, Mapping):
        values = list(values.values())
    if isinstance(values, list | tuple):
        return [leaf for value in values for leaf in _leaves(value)]
    return [] if values is None else [values]


def _num_rows(values: Any) -> int:
    return len(_leaves(values)[0])


def _check_rows(name: str, values: Any, num_examples: int) -> None:
    for leaf in _leaves(values):
        shape = tuple(getattr(leaf, "shape", ()))
        if not shape or shape[0] != num_examples:
            raise ValueError(
                f"the {name} of the evaluation have an array of shape {shape}, which has no row for each of the "
                f"{num_examples:,} examples. Leave it out with preprocess_logits_for_metrics, which a Trainer takes."
            )


def _take(values: Any, rows: np.ndarray) -> Any:
    """Rows of every array, as new arrays: some functions write to what they are given."""
    if isinstance(values, Mapping):
        return {name: _take(value, rows) for name, value in values.items()}
    if isinstance(values, list):
        return [_take(value, rows) for value in values]
    if isinstance(values, tuple):
        return tuple(_take(value, rows) for value in values)
    return None if values is None else values[rows]
