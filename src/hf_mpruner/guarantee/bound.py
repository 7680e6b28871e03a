"""`bound_drop`: the measured drop of a metric, and the upper confidence bound of the true one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any

from ..errors import MPrunerError
from .means import MIN_UNITS, mean_at_most
from .outcomes import Outcomes
from .proportions import PairedTest
from .replicates import metric_at_most

# The exact test is not asked about more examples than these: it takes seconds there, and the answer is "about" anyway.
_MOST_TESTED = 100_000


@dataclass(frozen=True)
class DropBound:
    """How much worse than the uncut model the cut one may be, from their outcomes on the same examples.

    Args:
        drop (`float`): as measured, in the metric's unit; positive means worse, whichever direction is better.
        upper (`float`): the true drop is above this with probability `level` at most.
        level (`float`): 1 - confidence of this bound.
        max_drop (`float`): the drop that was allowed.
        holds (`bool`): `upper <= max_drop`.
        p_value (`float`, *optional*): of "the true drop is `max_drop` or more", where the method has one.
        method (`str`): in words.
        num_examples (`int`): of the judging set.
        num_units (`int`): of paired numbers; the examples for a metric of the whole set.
        unit (`str`): `"examples"` or `"batches"`.
        counts (`dict`): for 0/1 outcomes how many examples got `"worse"`, `"better"`, stayed `"same"`; else empty.
        needed (`int`, *optional*): about how many examples in all, at these rates, would make the bound hold; if it holds: would
            halve its distance from the drop. `None` if no number would, or there is no distance.
    """

    drop: float
    upper: float
    level: float
    max_drop: float
    holds: bool
    p_value: float | None
    method: str
    num_examples: int
    num_units: int
    unit: str
    counts: dict[str, int]
    needed: int | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DropBound:
        """Build from `to_dict()`'s result."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})


def bound_drop(
    before: Outcomes, after: Outcomes, *, greater_is_better: bool, max_drop: float, level: float
) -> DropBound:
    """Bound the true drop of a metric by the paired outcomes of two models.

    0/1 outcomes: an exact test, which holds for any number of examples (`PairedTest`). Numbers per unit: Student's t,
    corrected for skewness (`mean_at_most`). Metrics of the whole set: paired bootstrap (`metric_at_most`). The last two
    hold for many units, about; a unit that weighs much and is so rare that the judging set has none is not seen.

    If no outcome differs at all, the models are still not taken for equal: the bound is that of the share of examples on
    which they may differ nevertheless, times as much as one can weigh.

    Args:
        before (`Outcomes`): of the uncut model.
        after (`Outcomes`): of the cut one, on the same examples in one order.
        greater_is_better (`bool`): the metric's direction.
        max_drop (`float`): the largest allowed drop, in the metric's unit.
        level (`float`): 1 - confidence, between 0 and 1.

    Raises:
        ValueError: if the outcomes cannot be paired, or `level` or `max_drop` is no such number.
        MPrunerError: if there are too few units for any bound (`check_outcomes` says so beforehand).

    Example:
        >>> ones = Outcomes("binary", (1,) * 500, 1.0, 500)
        >>> bound = bound_drop(ones, ones, greater_is_better=True, max_drop=0.02, level=0.05)
        >>> bound.drop, bound.holds
        (0.0, True)
    """
    before.check_paired(after)
    if not 0 < level < 1 or not math.isfinite(max_drop):
        raise ValueError(f"level={level!r} must be between 0 and 1, max_drop={max_drop!r} a finite number.")
    sign = 1.0 if greater_is_better else -1.0
    differences = [sign * (b - a) for b, a in zip(before.values, after.values, strict=True)]
    drop, p_value, counts, test = sign * (before.value - after.value), None, {}, None
    if before.kind == "binary":
        worse, better = differences.count(1), differences.count(-1)
        counts = {"worse": worse, "better": better, "same": len(differences) - worse - better}
        test = PairedTest(len(differences), worse, better, level)
        (p_value, upper), method = test.bound(max_drop), "exact paired test"
    elif before.kind == "values":
        check_outcomes(before, max_drop=max_drop, level=level)
        upper, method = mean_at_most(differences, before.weights, level, _span(before, after, greater_is_better))
    else:
        batches = before.num_units if before.unit == "batches" else None
        upper, method = metric_at_most(drop, before.values, differences, before.num_examples, level, batches)
    return DropBound(
        drop=drop,
        upper=upper,
        level=level,
        max_drop=max_drop,
        holds=upper <= max_drop,
        p_value=p_value,
        method=method,
        num_examples=before.num_examples,
        num_units=before.num_units,
        unit=before.unit,
        counts=counts,
        needed=_needed(drop, upper, max_drop, before.num_examples, test),
    )


def _span(before: Outcomes, after: Outcomes, greater_is_better: bool) -> float:
    """The largest difference a unit can have: 1 for scores within 0..1, else the range that was seen."""
    low, high = min(*before.values, *after.values), max(*before.values, *after.values)
    return 1.0 if greater_is_better and low >= 0 and high <= 1 else high - low


def _needed(drop: float, upper: float, max_drop: float, num: int, test: PairedTest | None) -> int | None:
    """Examples for `DropBound.needed`, to two digits.

    A distance shrinks with the square root of their number, about; with 0/1 outcomes the test itself is asked, at the
    same rates.
    """
    wanted = drop + (upper - drop) / 2 if upper <= max_drop else max_drop
    if not drop < wanted < upper:
        return None
    found = math.ceil(num * ((upper - drop) / (wanted - drop)) ** 2)
    if test is not None and found < _MOST_TESTED:
        low, high = num, max(found, 2 * num)
        while not test.with_examples(high).rejects(wanted) and high < _MOST_TESTED:
            low, high = high, 2 * high
        while high > 1.03 * low + 1:
            middle = (low + high) // 2
            low, high = (low, middle) if test.with_examples(middle).rejects(wanted) else (middle, high)
        found = high
    digits = int(10 ** max(len(str(found)) - 2, 0))
    return math.ceil(found / digits) * digits


@lru_cache(maxsize=64)
def smallest_sample(max_drop: float, level: float) -> int:
    """Fewest examples with 0/1 outcomes on which a cut that changes no outcome is shown to lose at most `max_drop`.

    Args:
        max_drop (`float`): above 0.
        level (`float`): of the test, between 0 and 1.

    Raises:
        ValueError: for values outside their ranges.

    Example:
        >>> smallest_sample(0.01, 0.05)
        300
    """
    if not max_drop > 0 or not 0 < level < 1:
        raise ValueError(f"max_drop={max_drop!r} must be above 0, level={level!r} between 0 and 1.")
    # fewer would leave the share of changed outcomes alone above the level
    low = max(math.floor(math.log(level) / math.log1p(-max_drop)) - 1, 0) if max_drop < 1 else 0
    high = low + low // 16 + 2
    while not PairedTest(high, 0, 0, level).rejects(max_drop):
        low, high = high, 2 * high - low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if PairedTest(middle, 0, 0, level).rejects(max_drop) else (middle, high)
    return high


def check_outcomes(outcomes: Outcomes, *, max_drop: float, level: float) -> None:
    """Refuse a judging set on which no cut could pass, by the outcomes of the uncut model.

    Args:
        outcomes (`Outcomes`): of the uncut model.
        max_drop (`float`): the largest allowed drop, above 0.
        level (`float`): of the first test.

    Raises:
        MPrunerError: says how many examples are needed.
    """
    num = outcomes.num_examples
    if outcomes.kind == "binary" and num < (smallest := smallest_sample(max_drop, level)):
        raise MPrunerError(
            f"{num:,} examples are too few to show that the metric falls by at most {max_drop:g}: at least "
            f"{smallest:,} are needed at this confidence, even for a cut that changes no outcome. Judge on more examples, "
            "or allow a larger max_metric_drop, or a lower confidence."
        )
    batches = outcomes.unit == "batches"
    # resamples of examples say themselves how little few of them tell
    if (outcomes.kind == "values" or batches) and outcomes.num_units < MIN_UNITS[outcomes.unit]:
        raise MPrunerError(
            f"{outcomes.num_units} evaluation {outcomes.unit} are too few to bound a mean: at least "
            f"{MIN_UNITS[outcomes.unit]} are needed. {'Lower per_device_eval_batch_size, or judge' if batches else 'Judge'} on more examples."
        )
