"""How much worse the true mean of a number per unit may be: the upper bound of a mean of paired differences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from ..intervals import student_t_quantile
from .proportions import share_at_most

# Fewer units than these say too little about the spread, and about how much a rare one weighs. Numbers of examples have
# longer tails than their means over batches.
MIN_UNITS = {"examples": 100, "batches": 20}
# Fewer units than these that stand out from equal ones say too little about how far units stand out.
_MIN_DIFFERENT = 10
# Student's quantile hardly falls beyond, and its closed form takes time; fewer degrees are the careful side.
_MAX_DEGREES = 1000


class Bound(NamedTuple):
    """An upper bound and how it was come by."""

    upper: float
    method: str


def mean_at_most(differences: Sequence[float], weights: Sequence[float], level: float, span: float) -> Bound:
    """Upper bound of the mean of the population that differences are drawn from, independently.

    The weighted mean is a ratio, its variance that of the weighted residuals (W. G. Cochran, "Sampling Techniques", 3rd
    ed. 1977, 6.3). The bound is the larger of Student's and of the same with P. Hall's transformation for skewness (JRSS B
    54, 1992, 221-228): a few units that get much worse make Student's too low more often than stated. Both with half of
    the degrees of freedom, which a simulation (`reproduce/guarantee/coverage.py`) found to be needed for few units.

    Where more than half of the differences are equal and fewer than 10 are not, the spread of these says nothing: then
    the bound is the equal value plus the Clopper-Pearson bound of the share of units above it, times as much as a unit can
    be above it.

    Args:
        differences (sequence of `float`): one a unit, two or more.
        weights (sequence of `float`): of the units; empty if all count alike.
        level (`float`): probability that the bound is too low.
        span (`float`): the largest difference that one unit can have.

    Example:
        >>> round(mean_at_most([0.0] * 300, (), 0.05, 1.0).upper, 4)  # nothing changed on any of 300 units
        0.0099
    """
    num = len(differences)
    weights = weights or [1.0] * num
    total = math.fsum(weights)
    ((usual, count),) = Counter(differences).most_common(1)
    if num - count < _MIN_DIFFERENT and 2 * count > num:
        above = sum(value > usual for value in differences)
        share = share_at_most(above, num, level) * max(weights) * num / total
        method = "exact bound of the share that got worse, times the largest change that is possible or was seen"
        return Bound(usual + min(share, 1.0) * max(span - usual, 0.0), method)
    mean = math.fsum(w * d for w, d in zip(weights, differences, strict=True)) / total
    parts = [w * (d - mean) for w, d in zip(weights, differences, strict=True)]
    squares, cubes = math.fsum(r * r for r in parts), math.fsum(r**3 for r in parts)
    error = math.sqrt(squares * num / (num - 1)) / total
    effective = total * total / math.fsum(w * w for w in weights)
    quantile = few_units_quantile(level, effective)
    skewness = cubes / squares**1.5 * num / max(num - 2, 1)  # of the mean: that of a unit divided by sqrt(num)
    return Bound(
        mean + error * max(quantile, skewed(quantile, skewness)), "skewness-corrected paired t bound, asymptotic"
    )


@lru_cache
def few_units_quantile(level: float, num_units: float) -> float:
    """Student's, with half of the degrees of freedom that so many units have."""
    return student_t_quantile(1 - level, min(max(int(num_units - 1) // 2, 1), _MAX_DEGREES))


def skewed(quantile: float, skewness: float) -> float:
    """How many standard errors a bound is above a mean of this skewness, for a symmetric one's quantile.

    The inverse of P. Hall's cubic transformation (1992, equation 2.3).

    Example:
        >>> skewed(1.645, 0.0), round(skewed(1.645, 0.3), 3)
        (1.645, 2.108)
    """
    if abs(skewness) < 1e-9:
        return quantile
    cubed = 1 - skewness * (quantile + skewness / 6)
    return 3 / skewness * (1 - math.copysign(abs(cubed) ** (1 / 3), cubed))
