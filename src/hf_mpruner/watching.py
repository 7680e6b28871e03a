"""What a Trainer's evaluation compared, kept until the metric that decides is taken apart into outcomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch

from .errors import MPrunerError
from .facts import split_metric
from .guarantee import Outcomes
from .metric import Metric, strip_prefix
from .runtime import keep_rng_state
from .scoring import ComputeMetrics, Scored, find_outcomes, outcomes_of_batches, outcomes_of_values, scored_prediction
from .trainers import evaluator_name

if TYPE_CHECKING:
    from transformers import EvalPrediction, Trainer

    from .record import PruningRecord

_PLAIN = "or pass confidence=None for the plain comparison"


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

    Args:
        trainer (`Trainer`): about to evaluate.
        kept (`dict`): gets an entry for each evaluation set, by its `metric_key_prefix`.
    """
    original = trainer.evaluation_loop

    def loop(*args: Any, **kwargs: Any) -> Any:
        prefix, losses, seen = str(kwargs.get("metric_key_prefix", "eval")), Losses(), _Seen(trainer.compute_metrics)
        with _watch_losses(trainer, losses), _replaced(trainer, compute_metrics=seen.function):
            output = original(*args, **kwargs)
        metrics = _plain_names(output.metrics or {}, prefix)
        names = frozenset(_plain_names(seen.returned, prefix))
        kept[prefix] = Evaluated(
            metrics, int(output.num_samples or 0), losses, trainer.compute_metrics, seen.prediction, names
        )
        return output

    with _replaced(trainer, evaluation_loop=loop):
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


class TrainerEvaluation:
    """A Trainer's evaluation as the `evaluate` of `prune_`, with outcomes to compare two models by.

    Args:
        trainer (`Trainer`): whose model is pruned.
        keeps (`bool`): whether outcomes will be asked for.
    """

    def __init__(self, trainer: Trainer, *, keeps: bool) -> None:
        """Nothing is evaluated yet."""
        self._trainer, self._keeps = trainer, keeps
        self._kept: dict[str, Evaluated] = {}

    def __call__(self, model: Any) -> dict[str, float]:
        """Metrics by name, keys without prefix."""
        self._kept.clear()
        with keep_evaluations(self._trainer, self._kept) if self._keeps else nullcontext():
            return strip_prefix(self._trainer.evaluate(), "eval")

    def outcomes(self, metric: str, like: Outcomes | None = None) -> Outcomes:
        """See `outcomes_of_evaluation`; asked for once after a call."""
        try:
            return outcomes_of_evaluation(self._trainer, metric, self._kept, "eval", like)
        finally:
            self._kept.clear()


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
                f"{{'{metric}': [1, 0, 1, 1]}}, whose mean is then the {metric}, {_PLAIN}."
            )
        return outcomes_of_values(self._examples[metric], like=like, metric=metric)


def _of_examples(value: Any) -> np.ndarray | None:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().double().numpy()
    if not isinstance(value, list | tuple | np.ndarray):
        return None
    numbers = np.asarray(value)
    return numbers.astype(float) if numbers.ndim == 1 and numbers.size and numbers.dtype.kind in "iufb" else None


def outcomes_of_evaluation(
    trainer: Trainer, metric: str, kept: Mapping[str, Evaluated], prefix: str, like: Outcomes | None = None
) -> Outcomes:
    """Outcomes of a metric of the last evaluation.

    Args:
        trainer (`Trainer`): that evaluated.
        metric (`str`): its name, without the prefix of the evaluation, with that of one of several sets.
        kept (`dict[str, Evaluated]`): see `keep_evaluations`.
        prefix (`str`): of the evaluation.
        like (`Outcomes`, *optional*): of another model on the same examples: the same kind is made.

    Returns:
        `Outcomes`: the same on every process, and without any communication between them.

    Raises:
        MPrunerError: if the metric has no outcomes of examples or batches, and cannot be computed on resamples.
    """
    part, base = split_metric(trainer, metric)
    base = base.removeprefix("eval_")
    one = kept.get(f"{prefix}_{part}" if part else prefix)
    if one is None:
        raise MPrunerError(f"No evaluation was kept whose {metric} could be taken apart into examples.")
    if base in one.names:
        if one.prediction is None:
            raise MPrunerError(
                f"compute_metrics is given one batch after the other (batch_eval_metrics=True), so the {metric} of one model "
                "cannot be compared with that of another example by example. Set batch_eval_metrics=False, choose "
                f"metric='loss', {_PLAIN}."
            )
        with keep_rng_state():
            show = False if trainer.args.disable_tqdm or not trainer.is_world_process_zero() else None
            return find_outcomes(
                _scored(trainer, one, base), metric, float(one.metrics[base]), like=like, show_progress=show
            )
    if base in ("loss", "perplexity", "ppl"):
        losses, sizes = one.losses.batches()
        if "loss" not in one.metrics or not losses:
            raise MPrunerError(
                f"The losses of the batches behind the {metric} could not be seen: {type(trainer).__name__} has an evaluation "
                f"of its own. Choose a metric of compute_metrics, {_PLAIN}."
            )
        value = Metric(base, False).read(one.metrics)
        return outcomes_of_batches(losses, sizes, value, one.num_examples, perplexity=base != "loss")
    name = evaluator_name(trainer)
    raise MPrunerError(
        f"The {metric} comes from {'the Trainer itself' if name is None else f'an evaluator ({name})'}, which gives one "
        f"number for the whole set: two models cannot be compared by it example by example. Choose metric='loss', {_PLAIN}."
    )


def uncut_outcomes(record: PruningRecord) -> Outcomes | None:
    """Outcomes that a run's uncut model had, if they were taken."""
    baseline = record.baseline
    return None if baseline is None or baseline.outcomes is None else Outcomes.from_dict(baseline.outcomes)


def _scored(trainer: Trainer, one: Evaluated, metric: str) -> Scored:
    prediction = cast("EvalPrediction", one.prediction)
    own = one.compute_metrics.scored(prediction, metric) if isinstance(one.compute_metrics, ComputeMetrics) else None
    if own is not None:
        return own

    def read(values: Mapping[str, Any]) -> float:
        return float(_plain_names(values, "eval")[metric])

    try:
        return scored_prediction(
            one.compute_metrics, prediction, read, in_batches=not trainer.args.eval_do_concat_batches
        )
    except ValueError as error:
        raise MPrunerError(
            f"The {metric} cannot be taken apart into examples: {error} Or choose metric='loss', {_PLAIN}."
        ) from error


def _plain_names(metrics: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Names as `Workbench.evaluate` has them."""
    return strip_prefix(strip_prefix(metrics, prefix), "eval")
