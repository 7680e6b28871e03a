"""How far a measured proportion, or the mean of several measurements, may be from the true one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from statistics import NormalDist

# Half of the fourth digit, and the last bit of a 32-bit float.
_ROUNDED = 5.1e-5


def wilson_interval(proportion: float, num_outcomes: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion of independent outcomes that are each 0 or 1.

    E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22 (1927), 209-212. It
    stays inside 0..1 and holds for few outcomes and for proportions near 1, where the usual `p +- 2 s` does not.

    It says how far the value of ONE model may be from that model's true value. It is not for comparing two models on the
    same examples: their outcomes go together, so whether one is better than the other takes a paired test (McNemar's, on
    the examples where they differ). Two intervals that overlap do not mean that there is no difference.

    Args:
        proportion (`float`): the share of ones, in 0..1.
        num_outcomes (`int`): how many there were.
        confidence (`float`): of the interval, between 0 and 1.

    Returns:
        `tuple` of two `float`: the lower and the upper end, in 0..1.

    Raises:
        ValueError: for a proportion outside 0..1, no outcomes, or a confidence that is none.

    Example:
        >>> low, high = wilson_interval(0.9, 100)
        >>> round(low, 4), round(high, 4)
        (0.8256, 0.9448)
    """
    if not 0.0 <= proportion <= 1.0:
        raise ValueError(f"proportion={proportion} is outside 0..1. It is a fraction: for 98 % pass 0.98.")
    if num_outcomes < 1:
        raise ValueError(f"num_outcomes={num_outcomes} is below 1. Pass how many outcomes the proportion is of.")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence={confidence} is not between 0 and 1. For 95 % pass 0.95.")
    z = NormalDist().inv_cdf((1.0 + confidence) / 2.0)
    n, p = num_outcomes, proportion
    middle = p + z * z / (2 * n)
    half = z * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5
    low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
    # at the ends the two halves cancel, but for their last bits
    return (0.0 if p == 0.0 else max(low, 0.0)), (1.0 if p == 1.0 else min(high, 1.0))


def interval_of_share(share: float, num_outcomes: int | None, confidence: float = 0.95) -> list[float] | None:
    """Wilson's interval of a metric, if it is a share of that many outcomes.

    Args:
        share (`float`): the metric's value.
        num_outcomes (`int`, *optional*): what it should be a share of; `None` if that is not known.
        confidence (`float`): of the interval.

    Returns:
        `list` of two `float`; or `None` without outcomes, or if no whole number of them gives this share (to four
        digits, since metrics are often rounded): then it counts something else, such as tokens.

    Example:
        >>> interval_of_share(0.5, 3) is None
        True
    """
    if not num_outcomes or not 0.0 <= share <= 1.0:
        return None
    if abs(round(share * num_outcomes) / num_outcomes - share) > _ROUNDED:
        return None
    return list(wilson_interval(share, num_outcomes, confidence))


def student_t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t distribution, by its closed form for whole degrees of freedom.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4: with `tan(angle) = t / sqrt(degrees)` the
    probability of `|T| <= t` is a finite sum of cosines, which is inverted by bisection.

    Args:
        probability (`float`): of a value below the quantile, in 0.5..1 without 1.
        degrees (`int`): of freedom, 1 or more.

    Raises:
        ValueError: for values outside these ranges.

    Example:
        >>> round(student_t_quantile(0.975, 2), 4)
        4.3027
    """
    if not 0.5 <= probability < 1.0 or degrees < 1:
        raise ValueError(
            f"probability={probability} must be in 0.5..1 without 1, degrees={degrees} must be 1 or more."
        )
    wanted, low, high = 2.0 * probability - 1.0, 0.0, math.pi / 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < wanted else (low, middle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _within(angle: float, degrees: int) -> float:
    """Probability of `|T| <= sqrt(degrees) * tan(angle)`."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2 == 1
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(2 if odd else 1, degrees, 2):
        total += term
        term *= cosine * cosine * k / (k + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval of a mean, of values that are measured independently, e.g. one a seed.

    It covers what differed between the measurements, nothing else: of runs that were judged on the same examples, not
    how far these examples stand for others.

    Args:
        values (sequence of `float`): two or more.
        confidence (`float`): of the interval, between 0 and 1.

    Returns:
        `tuple` of two `float`, or `None` of a single value.

    Example:
        >>> low, high = mean_interval([1.0, 2.0, 3.0])
        >>> round(low, 3), round(high, 3)
        (-0.484, 4.484)
    """
    if len(values) < 2:
        return None
    middle = statistics.fmean(values)
    half = student_t_quantile((1.0 + confidence) / 2.0, len(values) - 1)
    half *= statistics.stdev(values) / math.sqrt(len(values))
    return middle - half, middle + half
