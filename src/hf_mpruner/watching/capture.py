"""`keep_evaluations`: the predictions and the losses of an evaluation, while the Trainer makes its own use of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ..metric import strip_prefix
from ..runtime import keep_rng_state

if TYPE_CHECKING:
    from transformers import EvalPrediction, Trainer


class Losses:
    """The losses of an evaluation's batches, as the Trainer gathers them: each repeated, and cut off at the end."""

    def __init__(self) -> None:
        """Nothing was gathered."""
        self._parts: list[tuple[torch.Tensor, int, int]] = []

    def add(self, gathered: torch.Tensor, repeated: int) -> None:
        """Note one step.

        Args:
            gathered (`torch.Tensor` of shape `(examples,)`): of all processes.
            repeated (`int`): how often each process repeated the loss of its batch.
        """
        self._parts.append((gathered[::repeated].detach().clone(), len(gathered), repeated))

    @property
    def precision(self) -> float:
        """What the mean that the Trainer takes of them may be off by, as a part of it: it is of their own data type."""
        halves = any(values.dtype == torch.float16 for values, _, _ in self._parts)
        return torch.finfo(torch.float16).eps if halves else 0.0

    def batches(self) -> tuple[list[float], list[float]]:
        """Loss and number of examples of each batch."""
        losses, sizes = [], []
        for values, count, repeated in self._parts:
            losses += values.float().tolist()
            sizes += [float(min(repeated, count - start)) for start in range(0, count, repeated)]
        return losses, sizes


class Evaluated(NamedTuple):
    """One pass over an evaluation set.

    Args:
        metrics (`dict`): what the Trainer returned, keys without prefix.
        num_examples (`int`): of the set.
        losses (`Losses`): of its batches.
        compute_metrics (callable, *optional*): of the Trainer.
        prediction (`EvalPrediction`, *optional*): what `compute_metrics` was given; `None` if that was batch after batch.
        names (`frozenset[str]`): of what `compute_metrics` returned.
    """

    metrics: dict[str, float]
    num_examples: int
    losses: Losses
    compute_metrics: Any
    prediction: EvalPrediction | None
    names: frozenset[str]


@contextmanager
def keep_evaluations(trainer: Trainer, kept: dict[str, Evaluated]) -> Iterator[None]:
    """Keep what a Trainer's evaluations compare, on this object only: a reference to the predictions, and the losses.

    Each evaluation draws the same random numbers, so that a collator that masks tokens masks the same ones for every model.
    The random state of the run is left as it was.

    Args:
        trainer (`Trainer`): about to evaluate.
        kept (`dict`): gets an entry for each evaluation set, by its `metric_key_prefix`.
    """
    original = trainer.evaluation_loop

    def loop(*args: Any, **kwargs: Any) -> Any:
        prefix, losses, seen = str(kwargs.get("metric_key_prefix", "eval")), Losses(), _Seen(trainer.compute_metrics)
        with _watch_losses(trainer, losses), _replaced(trainer, compute_metrics=seen.function):
            output = original(*args, **kwargs)
        metrics = plain_names(output.metrics or {}, prefix)
        names = frozenset(plain_names(seen.returned, prefix))
        kept[prefix] = Evaluated(
            metrics, int(output.num_samples or 0), losses, trainer.compute_metrics, seen.prediction, names
        )
        return output

    with keep_rng_state(), _replaced(trainer, evaluation_loop=loop):
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(trainer.args.seed)
        yield


class _Seen:
    """Stands before `compute_metrics` and keeps what it is given."""

    def __init__(self, compute_metrics: Any) -> None:
        self.prediction: EvalPrediction | None = None
        self.returned: Mapping[str, Any] = {}
        self._compute_metrics = compute_metrics

    @property
    def function(self) -> Callable[..., Any] | None:
        """What the Trainer is to call; nothing if it has nothing to call."""
        return None if self._compute_metrics is None else self._call

    def _call(self, prediction: EvalPrediction, *args: Any, **kwargs: Any) -> Any:
        found = self._compute_metrics(prediction, *args, **kwargs)
        # with `compute_result` (batch_eval_metrics) it is given one batch after the other
        self.prediction = None if args or kwargs else prediction
        self.returned = found if isinstance(found, Mapping) else {}
        return found


@contextmanager
def _watch_losses(trainer: Trainer, losses: Losses) -> Iterator[None]:
    """The first thing that is gathered after a prediction with a loss is the loss."""
    step, gather = trainer.prediction_step, trainer.gather_function
    expected = False

    def prediction_step(*args: Any, **kwargs: Any) -> Any:
        nonlocal expected
        found = step(*args, **kwargs)
        expected = found[0] is not None
        return found

    def gather_function(values: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal expected
        gathered = gather(values, *args, **kwargs)
        if expected and isinstance(gathered, torch.Tensor) and isinstance(values, torch.Tensor) and values.ndim == 1:
            losses.add(gathered, len(values))
        expected = False
        return gathered

    trainer.gather_function = gather_function
    try:
        with _replaced(trainer, prediction_step=prediction_step):
            yield
    finally:
        # the loop itself sets it anew at its end
        if trainer.gather_function is gather_function:
            trainer.gather_function = gather


@contextmanager
def _replaced(trainer: Trainer, **values: Any) -> Iterator[None]:
    """Other attributes of this object for a while."""
    own = {name: vars(trainer)[name] for name in values if name in vars(trainer)}
    vars(trainer).update(values)
    try:
        yield
    finally:
        for name in values:
            vars(trainer).pop(name, None)
        vars(trainer).update(own)


def plain_names(metrics: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Names as `Workbench.evaluate` has them."""
    return strip_prefix(strip_prefix(metrics, prefix), "eval")
