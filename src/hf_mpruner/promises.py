"""A verdict with a promise: paired outcomes, an upper bound of the drop, at a level that was paid for before the first test."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import cast

from .config import PruningConfig
from .errors import MPrunerError
from .guarantee import DropBound, Outcomes, TestLevels, bound_drop, check_outcomes, spare_losses
from .metric import Metric
from .record import Measurement, PruningRecord
from .runtime import Runtime

logger = logging.getLogger(__name__)

TakeOutcomes = Callable[[str], Outcomes]

# What a metric and its outcomes may differ by: one of them may be a sum in float32, or rounded for people.
ROUNDING = 1e-3
# With room for fewer examples that get worse, a judging set is called small.
TIGHT = 3


def num_branches(config: PruningConfig, record: PruningRecord) -> int:
    """For how many branches the error rate must be shared out: one more than the rejections that a test can follow.

    Args:
        config (`PruningConfig`): what the user asked for, as the run begins.
        record (`PruningRecord`): of the run; nothing was tested yet.
    """
    if record.search:
        return int(record.search["num_branches"])
    return config.max_granularity - config.granularity + 1  # a rejected round is tried again with a coarser k


def fix_levels(config: PruningConfig, record: PruningRecord) -> dict[str, int]:
    """What the levels of all tests follow from, besides the confidence: arguments of `TestLevels`.

    In a search each number of layers is tested at one place in the tree of verdicts: what is tried after an acceptance is
    larger, after a rejection smaller. So each can open one branch by its rejection, and the smallest opens none.

    Args:
        config (`PruningConfig`): what the user asked for, as the run begins.
        record (`PruningRecord`): of the run; nothing was tested yet.
    """
    others = {"num_others": max(len(record.search["numbers"]) - 1, 0)} if record.search else {}
    return {"num_branches": num_branches(config, record), **others}


class Promise:
    """Tests each cut against the uncut model, so that the promise of `confidence` holds for the model that is kept.

    `TestLevels` says why it holds for many rounds. What the levels follow from is written into the record before the first
    test, so that a run that is gone on with tests as one that never stopped.

    Args:
        config (`PruningConfig`): with a `confidence`.
        runtime (`Runtime`): of the processes that evaluate.
        take_outcomes (callable): gets the deciding metric's name after an evaluation, on every process, and returns what
            the model did on each example.
    """

    def __init__(self, config: PruningConfig, runtime: Runtime, take_outcomes: TakeOutcomes) -> None:
        """Nothing is tested yet."""
        if config.confidence is None:
            raise ValueError("A promise needs PruningConfig(confidence=...), e.g. 0.95.")
        self.config, self.confidence, self.runtime = config, config.confidence, runtime
        self._take = take_outcomes

    def begin(self, record: PruningRecord, measured: Measurement, metric: Metric) -> None:
        """After the evaluation of the uncut model: keep its outcomes, and fix the levels of all tests to come.

        Raises:
            MPrunerError: if the metric has no outcomes that could be compared.
        """
        measured.outcomes = self.rehearse(record, metric, measured.metric).to_dict()
        record.promise = {
            "confidence": self.confidence,
            "max_metric_drop": self.config.max_metric_drop,
            **fix_levels(self.config, record),
        }

    def why_over(self, record: PruningRecord) -> str | None:
        """Why no further cut can be tested, in words; `None` if one can."""
        rejections, paid = record.verdicts.count(False), record.promise.get("num_branches")
        if paid is None or rejections < paid:
            return None
        return f"no error rate is left for another test after {rejections} rejected cuts: the promise paid for {paid}"

    def level(self, record: PruningRecord) -> float:
        """Error rate of the next test; it depends on earlier verdicts only."""
        promise = record.promise
        levels = TestLevels(1 - promise["confidence"], promise["num_branches"], promise.get("num_others"))
        return levels.next(record.verdicts)

    def test(self, record: PruningRecord, metric: Metric, measured: Measurement, level: float) -> DropBound | str:
        """After the evaluation of a cut model: bound its drop against the uncut model.

        Args:
            record (`PruningRecord`): the run so far; the model's round has no verdict yet.
            metric (`Metric`): that decides.
            measured (`Measurement`): of the cut model.
            level (`float`): error rate of this test.

        Returns:
            `DropBound`, or in words why this model has no outcomes (its metric is no number on a resample, say): a rejection.

        Raises:
            MPrunerError: if its outcomes cannot be paired with those of the uncut model.
        """
        after, bound = self._outcomes(metric, measured.metric, is_uncut=False), None
        if isinstance(after, str):
            return after
        with self.runtime.together("bounding the drop"):
            if self.runtime.is_main_process:
                if record.baseline is None or record.baseline.outcomes is None:
                    raise MPrunerError("No outcomes of the uncut model are there to compare with.")
                try:
                    bound = bound_drop(
                        Outcomes.from_dict(record.baseline.outcomes),
                        after,
                        greater_is_better=metric.greater_is_better,
                        max_drop=record.promise["max_metric_drop"],
                        level=level,
                    )
                except ValueError as error:
                    raise MPrunerError(f"The drop of the {metric.name} cannot be bounded: {error}") from error
        return cast(DropBound, self.runtime.broadcast(bound))

    def rehearse(self, record: PruningRecord, metric: Metric, value: float | None) -> Outcomes:
        """After an evaluation of the uncut model: refuse what no cut could pass, however good it were.

        Args:
            record (`PruningRecord`): of the run.
            metric (`Metric`): that decides.
            value (`float`, *optional*): that the evaluation gave.

        Returns:
            `Outcomes`: of that evaluation.

        Raises:
            MPrunerError: if the metric has no outcomes, or there are too few of them.
        """
        found = cast(Outcomes, self._outcomes(metric, value, is_uncut=True))
        first = TestLevels(1 - self.confidence, **fix_levels(self.config, record)).next([])
        try:
            check_outcomes(found, max_drop=self.config.max_metric_drop, level=first)
        except MPrunerError as error:
            raise MPrunerError(f"{error}{_how_all_judge(record)}") from error
        if self.runtime.is_main_process:
            _warn_if_tight(found, self.config.max_metric_drop, first, _how_all_judge(record))
        return found

    def _outcomes(self, metric: Metric, value: float | None, *, is_uncut: bool) -> Outcomes | str:
        """Of the last evaluation, as the main process has them; of a cut model, in words why it has none."""
        with self.runtime.together("reading the outcomes of an evaluation"):
            found: Outcomes | str
            try:
                found = self._take(metric.name)
            except MPrunerError as error:
                if is_uncut:
                    raise
                found = " ".join(str(error).split())
        found = self.runtime.broadcast(found)
        if isinstance(found, str):
            return found
        if value is None or not math.isclose(found.value, value, rel_tol=ROUNDING, abs_tol=ROUNDING / 10):
            raise MPrunerError(
                f"The evaluation gave {metric.name}={value}, but its outcomes on the examples give {found.value:.6g}, so they "
                "say nothing about it. Pass confidence=None, or a metric that is the mean of what the examples give."
            )
        return found


def _how_all_judge(record: PruningRecord) -> str:
    """What to give by hand so that nothing is taken from the examples that judge, as a sentence; empty if nothing is."""
    taken = [(role, data) for role, data in record.data.items() if role != "judging" and "drawn_from" in data]
    if not taken:
        return ""
    (role, data), *_ = taken
    return f" All {data['drawn_from']:,} judge if you pass {role}=..., a part of the training set for instance."


def _warn_if_tight(outcomes: Outcomes, max_drop: float, level: float, hint: str) -> None:
    """Say before any training that hardly a cut can pass; a set on which none can is refused."""
    if outcomes.kind != "binary":
        return
    spare = spare_losses(outcomes.num_examples, max_drop, level, most=TIGHT)
    if spare < TIGHT:
        logger.warning(
            "%s examples judge: a cut that makes none of them better may make %s worse, or it is rejected in the first round. "
            "Hardly any cut will pass. Judge on more examples, or allow a larger max_metric_drop, or a lower confidence.%s",
            f"{outcomes.num_examples:,}",
            f"{spare} of them" if spare else "none",
            hint,
        )


def check_same_promise(config: PruningConfig, record: PruningRecord) -> None:
    """Refuse to go on with a run under another promise than it began with.

    Args:
        config (`PruningConfig`): what the user asks for now.
        record (`PruningRecord`): of the run so far.

    Raises:
        MPrunerError: naming both; nothing was changed.
    """
    if record.baseline is None:
        return  # nothing was tested, so nothing is fixed
    began: dict[str, object] = {name: record.promise.get(name) for name in ("confidence", "max_metric_drop")}
    asked: dict[str, object] = {"confidence": config.confidence, "max_metric_drop": config.max_metric_drop}
    if config.confidence is None and not record.promise:
        return  # a plain comparison promises nothing
    if config.metric is not None:
        began["metric"], asked["metric"] = record.metric, config.metric.removeprefix("eval_")
    if not record.promise:
        began = {"confidence": None}
    differ = {name: value for name, value in began.items() if value != asked[name]}
    if not differ:
        return
    told = ", ".join(f"{name}={value!r} (now {asked[name]!r})" for name, value in differ.items())
    raise MPrunerError(
        f"This run began with {told}, and {len(record.verdicts)} verdicts are of that. A promise is about a whole run: pass what "
        "it began with, or begin a new run, with the uncut model and another output_dir. Nothing was changed."
    )


def verdict_in_words(name: str, value: float, bound: DropBound | str) -> str:
    """What a test has found, as the reason of a round.

    Args:
        name (`str`): of the metric.
        value (`float`): the cut model's.
        bound (`DropBound`, or `str`): of its drop, or why there is none.
    """
    if isinstance(bound, str):
        return f"{name} {value:.6g}, which cannot be compared example by example: {bound}"
    units = "" if bound.unit == "examples" else f" in {bound.num_units:,} {bound.unit}"
    on = f"{bound.method}, {bound.num_examples:,} examples{units}"
    found = f"{name} {value:.6g}, drop {bound.drop:.6g}, at most {bound.upper:.6g} with error rate {bound.level:.4g} ({on})"
    if bound.holds:
        return f"{found}: within the allowed {bound.max_drop:g}"
    if bound.drop > bound.max_drop:
        return f"{found}: more than the allowed {bound.max_drop:g}"
    enough = f"; about {bound.needed:,} would, if the rest of them were like these" if bound.needed else ""
    return (
        f"{found}: the measured drop is within the allowed {bound.max_drop:g}, but too few examples judged to promise that the "
        f"true one is{enough}"
    )
