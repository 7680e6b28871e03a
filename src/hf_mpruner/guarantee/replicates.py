"""How much worse the true value of a metric of the whole set may be: paired bootstrap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import NormalDist, stdev

import torch
from torch import Tensor

from .means import Bound

NUM_RESAMPLES = 2000


def resample_indices(num_examples: int, seed: int = 0) -> Iterator[Tensor]:
    """The bootstrap resamples of a judging set: `NUM_RESAMPLES` of them, the same for every model.

    Args:
        num_examples (`int`): of the set, 1 or more.
        seed (`int`): of the draws.

    Yields:
        `Tensor` `(num_examples,)` of 64-bit integers: which examples, with repetition.

    Example:
        >>> [len(rows) for rows in resample_indices(3)][:2]
        [3, 3]
    """
    if num_examples < 1:
        raise ValueError(f"num_examples={num_examples} is below 1: there is nothing to resample.")
    generator = torch.Generator().manual_seed(seed)
    for _ in range(NUM_RESAMPLES):
        yield torch.randint(num_examples, (num_examples,), generator=generator)


def metric_at_most(drop: float, differences: Sequence[float], level: float) -> Bound:
    """Upper bound of a metric's true drop: the largest of three bootstrap bounds.

    Percentile, basic, and normal with the bootstrap's standard error (A. C. Davison, D. V. Hinkley, "Bootstrap Methods
    and their Application", 1997, 5.2 and 5.3).

    Args:
        drop (`float`): as measured.
        differences (sequence of `float`): the drop on each resample.
        level (`float`): probability that the bound is too low, about.
    """
    ordered = sorted(differences)
    last = len(ordered) - 1
    rank = min(int(level * (last + 2)), last)  # of the (level)-quantile, on the careful side
    percentile, basic = ordered[last - max(rank - 1, 0)], 2 * drop - ordered[max(rank - 1, 0)]
    normal = drop + NormalDist().inv_cdf(1 - level) * stdev(ordered)
    return Bound(max(percentile, basic, normal), "paired bootstrap, asymptotic")
