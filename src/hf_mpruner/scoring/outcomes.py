"""`find_outcomes`: from a metric over a judging set to `Outcomes`, which two models are compared by, pair by pair."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..errors import MPrunerError
from ..guarantee import NUM_RESAMPLES, Outcomes, resample_indices
from .examples import Scored

logger = logging.getLogger(__name__)

# Examples that are asked for one by one before all are: enough to tell a mean from a metric of the whole set.
_PROBED, _PARTS = 48, 8
# Sums of 32-bit floats, and half of the last digit of a value that was rounded to four digits, or of percent to two.
_FLOAT, _ROUNDED, _ROUNDED_PERCENT = 1e-6, 5.1e-5, 5.1e-3
# A metric with a randomness of its own (rouge of evaluate is the median of resamples) may differ from call to call by
# this part of the standard error that the examples give it.
_OWN_NOISE, _REPEATS = 0.2, 4
# Seconds after which the wait is worth a line in the log.
_LONG = 60.0


def find_outcomes(
    scored: Scored, metric: str, value: float, *, like: Outcomes | None = None, show_progress: bool | None = None
) -> Outcomes:
    """Outcomes of one model on the judging set, whatever the metric is.

    The metric is asked about some examples one by one, with their own predictions and, so that not all are right, with
    those of other examples. If it is the mean of what it says of each, all are asked: 0/1 outcomes, or values. Else, and
    if it cannot be computed of one example, it is computed on bootstrap resamples of the examples (B. Efron, "Bootstrap
    methods", Annals of Statistics 7 (1979), 1-26), the same for every model.

    Args:
        scored (`Scored`): the metric over the examples.
        metric (`str`): its name, for errors.
        value (`float`): of the metric on all examples, as the evaluation reported it.
        like (`Outcomes`, *optional*): of another model on these examples: the same kind is made.
        show_progress (`bool`, *optional*): by default on a terminal.

    Returns:
        `Outcomes`: of kind `"binary"`, `"values"` or `"replicates"`.

    Raises:
        MPrunerError: if the metric cannot be computed again, is no number on a resample, or is not of the kind of `like`.

    Example:
        >>> said, right = np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0])
        >>> scored = Scored(4, lambda one, other: float((said[one] == right[other]).mean()))
        >>> find_outcomes(scored, "accuracy", 0.75).values
        (1.0, 1.0, 0.0, 1.0)
    """
    finder = _Finder(scored, metric, value, show_progress)
    with _quiet():
        finder.compute_again()
        if like is None or like.kind != "replicates":
            found = finder.one_by_one(sure=like is not None)
            if found is not None:
                return outcomes_of_values(found[0], value, graded=found[1], like=like, metric=metric)
            if like is not None:
                raise MPrunerError(
                    f"The {metric} of this model is not the mean of its examples' own values, as that of the uncut model is: "
                    f"{value:.6g} on all of them. Check compute_metrics, or pass confidence=None for the plain comparison."
                )
        return Outcomes("replicates", finder.resampled(), value, scored.num_examples)


def outcomes_of_values(
    values: Sequence[float] | np.ndarray,
    value: float | None = None,
    *,
    graded: bool = False,
    like: Outcomes | None = None,
    metric: str = "metric",
) -> Outcomes:
    """Outcomes of a metric that is the mean of a number for each example.

    Args:
        values (sequence of `float`): the examples' own.
        value (`float`, *optional*): the metric as it was reported; by default the mean.
        graded (`bool`): whether an example can have other values than 0 and 1, whatever these have.
        like (`Outcomes`, *optional*): of another model on these examples: the same kind is made.
        metric (`str`): its name, for errors.

    Raises:
        MPrunerError: for numbers that are not finite, or that are not 0 or 1 where those of `like` are.

    Example:
        >>> outcomes_of_values([1, 0, 1, 1]).kind, outcomes_of_values([0.5, 1.0]).kind
        ('binary', 'values')
    """
    numbers = np.asarray(values, dtype=float)
    if not numbers.size or not np.isfinite(numbers).all():
        raise MPrunerError(
            f"The {metric} of some examples is not a finite number: they cannot be compared pair by pair."
        )
    binary = not graded and bool(np.isin(numbers, (0.0, 1.0)).all())
    if like is not None and like.kind == "binary" and not binary:
        raise MPrunerError(
            f"The {metric} of an example is 0 or 1 for the uncut model and something else for this one. Return only 0 and 1, "
            "or choose a metric that is graded for both."
        )
    kind: Any = "binary" if binary and (like is None or like.kind == "binary") else "values"
    return Outcomes(kind, tuple(numbers.tolist()), float(numbers.mean()) if value is None else value, numbers.size)


def outcomes_of_batches(
    losses: Sequence[float],
    sizes: Sequence[float],
    value: float,
    num_examples: int,
    *,
    perplexity: bool = False,
    precision: float = 0.0,
    like: Outcomes | None = None,
) -> Outcomes:
    """Outcomes of an evaluation's loss, or of exp(loss), by its batches.

    A Trainer's loss is the mean of its batches' losses, each as often as the batch has examples. A batch whose loss is
    not finite is left out, as the Trainer does (`logging_nan_inf_filter`): it gets no weight.

    Args:
        losses (sequence of `float`): of the batches, in order.
        sizes (sequence of `float`): how many examples each counts for.
        value (`float`): the loss, or the perplexity, that was reported.
        num_examples (`int`): of the judging set.
        perplexity (`bool`): replicates of exp(loss), on resamples of the batches.
        precision (`float`): part by which the reported mean may be off, beyond 0.0001.
        like (`Outcomes`, *optional*): of another model on these batches.

    Raises:
        MPrunerError: if these batches do not have that loss, or are not those of `like`.

    Example:
        >>> outcomes_of_batches([1.0, 2.0], [3, 1], 1.25, 4).weights
        (3.0, 1.0)
    """
    loss, weight = np.asarray(losses, dtype=float), np.asarray(sizes, dtype=float)
    finite = np.isfinite(loss)
    loss, weight = np.where(finite, loss, 0.0), np.where(finite, weight, 0.0)
    mean = float((loss * weight).sum() / weight.sum()) if weight.any() else math.nan
    found = float(np.exp(mean)) if perplexity else mean
    if not abs(found - value) <= max(1e-4, precision) * max(abs(value), 1e-3):
        raise MPrunerError(
            f"The batches of the evaluation have a mean loss of {mean:.6g}, which does not give the reported {value:.6g}: this "
            "Trainer makes its loss some other way. Choose another metric, or pass confidence=None for the plain comparison."
        )
    weights = tuple(weight.tolist())
    if like is not None and like.weights != weights:
        lost = int((~finite).sum())
        raise MPrunerError(
            f"The losses are of other batches than those of the uncut model: {loss.size} batches, {lost} of them without a finite "
            f"loss, and {len(like.weights)}, {like.weights.count(0.0)} of them without. Judge both on the same examples in batches of "
            "the same size."
        )
    if not perplexity:
        return Outcomes("values", tuple(loss.tolist()), value, num_examples, "batches", weights)
    replicates = []
    for rows in _resamples(loss.size):
        replicates.append(float(np.exp((loss[rows] * weight[rows]).sum() / max(weight[rows].sum(), 1e-300))))
    if not np.isfinite(replicates).all():
        raise MPrunerError("The perplexity of some resamples of the batches is not finite.")
    return Outcomes("replicates", tuple(replicates), value, num_examples, "batches", weights)


class _Finder:
    """Asks a metric, and says how long that takes."""

    def __init__(self, scored: Scored, metric: str, value: float, show_progress: bool | None) -> None:
        self.scored, self.metric, self.value, self.show_progress = scored, metric, value, show_progress
        self.everyone = np.arange(scored.num_examples)
        self.again, self.seconds, self.noise = math.nan, 0.0, 0.0

    def compute_again(self) -> None:
        """The metric on all examples once more: it must be possible, and shows how random the metric is by itself."""
        started = time.perf_counter()
        try:
            self.again = float(self.scored.score(self.everyone, self.everyone))
            self.seconds = time.perf_counter() - started
            if abs(self.again - self.value) > _FLOAT * max(1.0, abs(self.value)) + _rounding(self.value):
                others = [float(self.scored.score(self.everyone, self.everyone)) for _ in range(_REPEATS)]
                self.noise = max(abs(other - self.value) for other in (self.again, *others))
        except Exception as error:
            raise MPrunerError(
                f"The {self.metric} cannot be computed again from the predictions of the evaluation "
                f"({type(error).__name__}: {' '.join(str(error).split()):.200}): without that two models cannot be compared "
                "example by example. Choose another metric, or pass confidence=None for the plain comparison."
            ) from error
        if not math.isfinite(self.again + self.noise):
            raise self._other_value()

    def _other_value(self) -> MPrunerError:
        return MPrunerError(
            f"The {self.metric} was {self.value:.6g} in the evaluation and is {self.again:.6g} when it is computed again from "
            "the same predictions: compute_metrics must depend on nothing else. Choose another metric, or pass "
            "confidence=None for the plain comparison."
        )

    def one_by_one(self, *, sure: bool) -> tuple[np.ndarray, bool] | None:
        """A value for each example, and whether they can be other than 0 and 1; `None` if the metric is not their mean.

        Args:
            sure (`bool`): whether that is known from another model, so that values which are all the same tell enough.
        """
        generator = np.random.default_rng(0)
        count = min(_PROBED, self.scored.num_examples)
        probed = np.sort(generator.choice(self.everyone, count, replace=False))
        others, rights = generator.choice(self.everyone, (2, _PROBED))
        own, mixed = self._probe(probed, probed, generator), self._probe(others, rights, generator)
        if own is None or mixed is None:
            return None
        seen = np.concatenate([own, mixed])
        # of values that are all alike every metric is the mean
        if not sure and np.ptp(seen) == 0.0:
            return None
        graded = not bool(np.isin(seen, (0.0, 1.0)).all())
        hits = self.scored.hits
        if (
            hits is not None
            and np.array_equal(hits(probed, probed), own)
            and np.array_equal(hits(others, rights), mixed)
        ):
            values = hits(self.everyone, self.everyone)
            if self._agree(values, self.value):
                return values, graded
        each = self._each(
            self._with_bar(self.everyone, "Scoring examples", self.scored.num_examples), self.everyone, len(own)
        )
        return None if each is None or not self._agree(each, self.value) else (each, graded)

    def _probe(self, said: np.ndarray, right: np.ndarray, generator: np.random.Generator) -> np.ndarray | None:
        """Values of some pairs one by one, if the metric of all of them, and of parts of them, is their mean."""
        values = self._each(said, right, 0)
        if values is None:
            return None
        # in one part an F1 may be the share by chance: where classes are as often said as they are right
        for part in (np.ones(len(said), bool), *(generator.random((_PARTS, len(said))) < 0.6)):
            try:
                if part.any() and not self._agree(values[part], float(self.scored.score(said[part], right[part]))):
                    return None
            except Exception:  # whatever a user's function raises: it cannot be asked about parts of the set
                return None
        return values

    def _each(self, said: Iterable[int], right: Sequence[int] | np.ndarray, probed: int) -> np.ndarray | None:
        values, started = [], time.perf_counter()
        for number, (one, other) in enumerate(zip(said, right, strict=True)):
            try:
                values.append(float(self.scored.score(np.array([one]), np.array([other]))))
            except Exception:  # as above
                return None
            if not math.isfinite(values[-1]):
                return None
            if probed and number + 1 == probed:
                self._warn_of_wait((time.perf_counter() - started) / probed * (len(right) - probed), "one by one")
        return np.array(values)

    def resampled(self) -> tuple[float, ...]:
        """The metric on each resample.

        Raises:
            MPrunerError: if it is no number on one of them, or not the one that was reported on all examples.
        """
        self._warn_of_wait(self.seconds * NUM_RESAMPLES, f"on {NUM_RESAMPLES:,} resamples")
        values: list[float] = []
        resamples = _resamples(self.scored.num_examples)
        for rows in self._with_bar(resamples, "Scoring resamples", NUM_RESAMPLES):
            try:
                found = float(self.scored.score(rows, rows))
            except Exception as error:
                raise self._not_on_resamples(f"{type(error).__name__}: {' '.join(str(error).split()):.200}") from error
            if not math.isfinite(found):
                raise self._not_on_resamples(f"it is {found}")
            values.append(found)
        if self.noise > _OWN_NOISE * float(np.std(values)):
            raise self._other_value()
        return tuple(values)

    def _not_on_resamples(self, why: str) -> MPrunerError:
        return MPrunerError(
            f"The {self.metric} is no mean over examples and cannot be computed on a resample of them ({why}). Judge on more "
            "examples, choose another metric, or pass confidence=None for the plain comparison."
        )

    def _agree(self, values: np.ndarray, together: float) -> bool:
        slack = _OWN_NOISE * float(np.std(values)) / math.sqrt(len(values)) if self.noise else 0.0
        floats = _FLOAT * max(abs(together), float(np.abs(values).mean()))
        return abs(float(values.mean()) - together) <= max(slack, floats, _rounding(together))

    def _warn_of_wait(self, seconds: float, how: str) -> None:
        if seconds > _LONG:
            logger.info(
                "The %s of %s examples is computed %s, which takes about %.0f minutes for each model that is judged.",
                self.metric, f"{self.scored.num_examples:,}", how, math.ceil(seconds / 60),
            )  # fmt: skip

    def _with_bar(self, what: Iterable[Any], title: str, total: int) -> Iterable[Any]:
        hidden = None if self.show_progress is None else not self.show_progress
        bar: Iterable[Any] = tqdm(what, desc=title, total=total, leave=False, delay=2, disable=hidden)
        return bar


def _rounding(value: float) -> float:
    if round(value, 4) != value:
        return 0.0
    return _ROUNDED_PERCENT if abs(value) > 1.0 and round(value, 2) == value else _ROUNDED


def _resamples(count: int) -> Iterator[np.ndarray]:
    for rows in resample_indices(count):
        yield rows.numpy()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of metrics that see one example, or one class only."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield
