"""What an evaluation says about a cut: the metric that decides, its drop, and the reason in words."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .config import PruningConfig
from .errors import MPrunerError
from .intervals import interval_of_share
from .metric import Metric, choose_metric, finite_values, is_finite
from .promises import Promise, TakeOutcomes, check_same_promise, verdict_in_words
from .record import Measurement, PruningRecord, Round
from .runtime import Runtime

# Metric values are sums of many floats; a drop of exactly the allowed size must not fail on the last bit.
ROUNDING = 1e-9

Evaluate = Callable[[], Mapping[str, float]]


class Judged(NamedTuple):
    """What the deciding metric of an evaluation was measured on.

    Args:
        data (`dict`): facts for `PruningRecord.data["judging"]`; `num_examples` only if it is known.
        is_share (`bool`): whether the metric is a share of these examples, each of which counts 0 or 1. False in doubt:
            what counts tokens, or parts of sentences, has no interval of its own.
    """

    data: dict[str, Any]
    is_share: bool = False


JudgedOn = Callable[[str], Judged]


class Judge:
    """Evaluates a model and compares it with the uncut one; the main process's values hold on every process.

    Args:
        config (`PruningConfig`): what the user asked for.
        evaluate (*optional*): returns an evaluation's values by name. Without it nothing is judged.
        runtime (`Runtime`): of the processes that evaluate.
        hint (callable): returns `(name, greater_is_better)` to fall back on, asked after the first evaluation.
        judged_on (callable): gets the deciding metric's name after an evaluation, returns what it was measured on.
        take_outcomes (callable, *optional*): gets the same, returns what the model did on each example; needed for a
            `confidence`.

    Raises:
        ValueError: for a `confidence` without anything to judge by.
    """

    def __init__(
        self,
        config: PruningConfig,
        evaluate: Evaluate | None,
        runtime: Runtime,
        hint: Callable[[], tuple[str | None, bool | None]] = lambda: (None, None),
        judged_on: JudgedOn = lambda metric: Judged({}),
        take_outcomes: TakeOutcomes | None = None,
    ) -> None:
        """Nothing is evaluated yet."""
        self.config, self.runtime = config, runtime
        self.promise: Promise | None = None
        if config.confidence is not None:
            if evaluate is None or take_outcomes is None:
                raise ValueError(
                    f"confidence={config.confidence:g} promises something about a metric, but nothing evaluates the model: pass "
                    "evaluate, or confidence=None. Nothing was changed."
                )
            self.promise = Promise(config, runtime, take_outcomes)
        self._evaluate, self._hint, self._judged_on = evaluate, hint, judged_on
        self._metric: Metric | None = None

    def adopt(self, record: PruningRecord) -> None:
        """Judge by the metric of a run that is gone on with.

        Raises:
            MPrunerError: if that run promises something else than the config asks for.
        """
        check_same_promise(self.config, record)
        if record.metric is not None and record.greater_is_better is not None:
            self._metric = Metric(record.metric, record.greater_is_better)

    def evaluate(self, measured: Measurement) -> Mapping[str, float] | None:
        """Evaluate the model as it is.

        Args:
            measured (`Measurement`): gets the values, and the seconds that it took.

        Raises:
            MPrunerError: if it fails on another process.
        """
        if self._evaluate is None:
            return None
        started = time.perf_counter()
        with self.runtime.together("evaluating the model"):
            metrics = dict(self._evaluate())
            seconds = float(metrics.get("runtime", time.perf_counter() - started))
        metrics, measured.evaluation_seconds = self.runtime.broadcast((metrics, seconds))
        measured.metrics = finite_values(metrics)
        return metrics

    def _note(self, measured: Measurement, metric: Metric, value: float, record: PruningRecord) -> None:
        """Write down the deciding value, what it was measured on, and how far it may be from the true one."""
        judged = self.runtime.broadcast(self._judged_on(metric.name))
        measured.metric, measured.num_examples = value, judged.data.get("num_examples")
        if judged.data:
            record.data["judging"] = judged.data
        if judged.is_share:
            measured.interval = interval_of_share(value, measured.num_examples, record.confidence)

    def set_baseline(self, record: PruningRecord, measured: Measurement) -> None:
        """Evaluate the uncut model and choose the metric by what it gives.

        Raises:
            MPrunerError: if that metric is not a number.
        """
        metrics = self.evaluate(measured)
        if metrics is not None:
            metric = self._choose(metrics)
            value = metric.read(metrics)
            if not is_finite(value):
                raise MPrunerError(
                    f"The uncut model's {metric.name} is {value}: no drop can be measured against that. Check the "
                    "evaluation before pruning (the labels, the loss, the data type)."
                )
            self._metric = metric
            self._note(measured, metric, value, record)
            record.metric, record.greater_is_better = metric.name, metric.greater_is_better
            if self.promise is not None:
                self.promise.begin(record, measured, metric)
        record.baseline = measured

    def _choose(self, metrics: Mapping[str, float]) -> Metric:
        name, greater = self._hint()
        return choose_metric(
            metrics,
            self.config.metric,
            self.config.greater_is_better,
            fallback_name=name,
            fallback_greater_is_better=greater,
        )

    def rehearse(self, record: PruningRecord) -> None:
        """Evaluate a model that trains before the first cut, for nothing but to know now that a promise can be kept at all.

        Args:
            record (`PruningRecord`): of the run; nothing is written into it.

        Raises:
            MPrunerError: if the metric has no outcomes, or there are too few of them.
        """
        if self.promise is None or record.baseline is not None or self.config.start_epoch == 0:
            return
        metrics = self.evaluate(Measurement(0, 0))
        if metrics is not None:
            metric = self._choose(metrics)
            if is_finite(value := metric.read(metrics)):  # of a model that knows nothing yet it may not be
                self.promise.rehearse(record, metric, value)

    def why_over(self, record: PruningRecord) -> str | None:
        """Why no further cut can be judged, in words; `None` if one can."""
        return None if self.promise is None else self.promise.why_over(record)

    def judge(
        self,
        round_: Round,
        record: PruningRecord,
        measured: Measurement,
        settle: Callable[[], None] = lambda: None,
    ) -> bool:
        """Evaluate a cut model; the round gets its verdict, drop and reason.

        Args:
            round_ (`Round`): pending.
            record (`PruningRecord`): of the run; the round is its last.
            measured (`Measurement`): gets what was measured.
            settle (callable): gives the model the weights that it would be kept with; a promise is about these.

        Returns:
            `bool`: whether the cut stays.
        """
        if self.promise is not None:
            with self.runtime.together("making the cut model the one that would be kept"):
                settle()
        metrics = self.evaluate(measured)
        value = self._metric.read(metrics) if self._metric is not None and metrics is not None else None
        if self._metric is None or value is None or record.baseline is None or record.baseline.metric is None:
            round_.verdict, round_.reason = "unjudged", "no metric was measured"
            return True
        name, allowed = self._metric.name, self.config.max_metric_drop
        level = None if self.promise is None else self.promise.level(record)
        if not is_finite(value):
            round_.verdict, round_.reason, round_.level = "rejected", f"{name} is {value}", level
            return False
        self._note(measured, self._metric, value, record)
        round_.drop = self._metric.drop(record.baseline.metric, value)
        if self.promise is not None and level is not None:
            bound = self.promise.test(record, self._metric, measured, level)
            round_.level, accepted = level, not isinstance(bound, str) and bound.holds
            round_.bound = None if isinstance(bound, str) else bound.to_dict()
            round_.reason = verdict_in_words(name, value, bound)
        else:
            accepted = round_.drop <= allowed + ROUNDING * max(1.0, abs(record.baseline.metric))
            relation = "within" if accepted else "more than"
            round_.reason = f"{name} {value:.6g}, drop {round_.drop:.6g} is {relation} the allowed {allowed:g}"
        round_.verdict = "accepted" if accepted else "rejected"
        return accepted
