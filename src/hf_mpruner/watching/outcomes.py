"""`outcomes_of_evaluation`: what the metric of a Trainer's evaluation is made of."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, cast

from ..errors import MPrunerError
from ..facts import split_metric
from ..guarantee import Outcomes
from ..metric import Metric, strip_prefix
from ..runtime import keep_rng_state
from ..scoring import ComputeMetrics, Scored, find_outcomes, outcomes_of_batches, scored_prediction
from ..trainers import evaluator_name
from .capture import Evaluated, keep_evaluations, plain_names

if TYPE_CHECKING:
    from transformers import EvalPrediction, Trainer

    from ..record import PruningRecord

PLAIN = "or pass confidence=None for the plain comparison"


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
                f"metric='loss', {PLAIN}."
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
                f"of its own. Choose a metric of compute_metrics, {PLAIN}."
            )
        value = Metric(base, False).read(one.metrics)
        given: dict[str, Any] = {"perplexity": base != "loss", "precision": one.losses.precision, "like": like}
        return outcomes_of_batches(losses, sizes, value, one.num_examples, **given)
    name = evaluator_name(trainer)
    raise MPrunerError(
        f"The {metric} comes from {'the Trainer itself' if name is None else f'an evaluator ({name})'}, which gives one "
        f"number for the whole set: two models cannot be compared by it example by example. Choose metric='loss', {PLAIN}."
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
        return float(plain_names(values, "eval")[metric])

    try:
        return scored_prediction(
            one.compute_metrics, prediction, read, in_batches=not trainer.args.eval_do_concat_batches
        )
    except ValueError as error:
        raise MPrunerError(
            f"The {metric} cannot be taken apart into examples: {error} Or choose metric='loss', {PLAIN}."
        ) from error
