"""What an evaluation says about a cut: the metric that decides, its drop, and the reason in words."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from .config import PruningConfig
from .errors import MPrunerError
from .metric import Metric, choose_metric, is_finite
from .record import Measurement, PruningRecord, Round
from .runtime import Runtime

# Metric values are sums of many floats; a drop of exactly the allowed size must not fail on the last bit.
ROUNDING = 1e-9

Evaluate = Callable[[], Mapping[str, float]]


class Judge:
    """Evaluates a model and compares it with the uncut one; the main process's values hold on every process.

    Args:
        config (`PruningConfig`): what the user asked for.
        evaluate (*optional*): returns an evaluation's values by name. Without it nothing is judged.
        runtime (`Runtime`): of the processes that evaluate.
        hint (callable): returns `(name, greater_is_better)` to fall back on, asked after the first evaluation.
    """

    def __init__(
        self,
        config: PruningConfig,
        evaluate: Evaluate | None,
        runtime: Runtime,
        hint: Callable[[], tuple[str | None, bool | None]] = lambda: (None, None),
    ) -> None:
        """Nothing is evaluated yet."""
        self.config, self.runtime = config, runtime
        self._evaluate, self._hint = evaluate, hint
        self._metric: Metric | None = None

    def adopt(self, record: PruningRecord) -> None:
        """Judge by the metric of a run that is gone on with."""
        if record.metric is not None and record.greater_is_better is not None:
            self._metric = Metric(record.metric, record.greater_is_better)

    def evaluate(self, measured: Measurement) -> Mapping[str, float] | None:
        """Evaluate the model as it is.

        Args:
            measured (`Measurement`): gets the seconds that it took.

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
        return metrics

    def set_baseline(self, record: PruningRecord, measured: Measurement) -> None:
        """Evaluate the uncut model and choose the metric by what it gives.

        Raises:
            MPrunerError: if that metric is not a number.
        """
        metrics = self.evaluate(measured)
        if metrics is not None:
            name, greater = self._hint()
            metric = choose_metric(
                metrics,
                self.config.metric,
                self.config.greater_is_better,
                fallback_name=name,
                fallback_greater_is_better=greater,
            )
            value = metric.read(metrics)
            if not is_finite(value):
                raise MPrunerError(
                    f"The uncut model's {metric.name} is {value}: no drop can be measured against that. Check the "
                    "evaluation before pruning (the labels, the loss, the data type)."
                )
            measured.metric, self._metric = value, metric
            record.metric, record.greater_is_better = metric.name, metric.greater_is_better
        record.baseline = measured

    def judge(self, round_: Round, record: PruningRecord, measured: Measurement) -> bool:
        """Evaluate a cut model; the round gets its verdict, drop and reason.

        Returns:
            `bool`: whether the cut stays.
        """
        metrics = self.evaluate(measured)
        value = self._metric.read(metrics) if self._metric is not None and metrics is not None else None
        if self._metric is None or value is None or record.baseline is None or record.baseline.metric is None:
            round_.verdict, round_.reason = "unjudged", "no metric was measured"
            return True
        name, allowed = self._metric.name, self.config.max_metric_drop
        if not is_finite(value):
            round_.verdict, round_.reason = "rejected", f"{name} is {value}"
            return False
        measured.metric = value
        round_.drop = self._metric.drop(record.baseline.metric, value)
        accepted = round_.drop <= allowed + ROUNDING * max(1.0, abs(record.baseline.metric))
        round_.verdict = "accepted" if accepted else "rejected"
        relation = "within" if accepted else "more than"
        round_.reason = f"{name} {value:.6g}, drop {round_.drop:.6g} is {relation} the allowed {allowed:g}"
        return accepted
