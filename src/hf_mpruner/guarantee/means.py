"""How much worse the true mean of a number per unit may be: the upper bound of a mean of paired differences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from ..intervals import student_t_quantile
from .proportions import share_at_most

# Fewer units than these say too little about the spread of the others.
MIN_UNITS = 8
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

    Student's t of the weighted mean, as a ratio estimator, whose variance is that of the weighted residuals (W. G.
    Cochran, "Sampling Techniques", 3rd ed. 1977, 6.3). Where more than half of the differences are equal and fewer than
    10 are not, the spread of these says nothing: then the bound is the equal value plus the Clopper-Pearson bound of the
    share of units above it, times as much as a unit can be above it.

    Args:
        differences (sequence of `float`): one a unit.
        weights (sequence of `float`): of the units; empty if all count alike.
        level (`float`): probability that the bound is too low.
        span (`float`): the largest difference that one unit can have.

    Raises:
        ValueError: for fewer than `MIN_UNITS` differences.
    """
    num = len(differences)
    if num < MIN_UNITS:
        raise ValueError(f"{num} units are too few for a bound of their mean: {MIN_UNITS} are needed.")
    weights = weights or [1.0] * num
    total = math.fsum(weights)
    ((usual, count),) = Counter(differences).most_common(1)
    if num - count < _MIN_DIFFERENT and 2 * count > num:
        above = sum(value > usual for value in differences)
        share = share_at_most(above, num, level) * min(max(weights) * num / total, num)
        return Bound(
            usual + min(share, 1.0) * max(span - usual, 0.0), "Clopper-Pearson bound of the share that is worse"
        )
    mean = math.fsum(w * d for w, d in zip(weights, differences, strict=True)) / total
    squares = math.fsum((w * (d - mean)) ** 2 for w, d in zip(weights, differences, strict=True))
    error = math.sqrt(squares * num / (num - 1)) / total
    effective = total * total / math.fsum(w * w for w in weights)
    degrees = min(max(int(effective) - 1, 1), _MAX_DEGREES)
    return Bound(mean + student_t_quantile(1 - level, degrees) * error, "paired t bound, asymptotic")
