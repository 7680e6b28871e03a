"""How much worse the true value of a metric of the whole set may be: paired bootstrap."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist

import torch
from torch import Tensor

from .means import Bound, few_units_quantile, skewed

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


def metric_at_most(
    drop: float,
    before: Sequence[float],
    differences: Sequence[float],
    num_examples: int,
    level: float,
    num_batches: int | None = None,
) -> Bound:
    """Upper bound of the true drop of a metric of the whole set, by a paired bootstrap.

    The largest of three: the percentile bound, the normal one with the bootstrap's standard error corrected for the skewness
    of the replicates (P. Hall, JRSS B 54, 1992), and the drop plus as many weights of one example as could have gone
    unseen, by the kurtosis of the replicates: it is 1 / k if k examples of equal weight made all of the difference.

    A bootstrap knows only what the examples show: if the models differ on few of them, or on none, it is sure of too much.
    So the distance from the drop is squared and added to that of changes that no example shows: their share is at most
    `1 - level^(1 / num_examples)`, and one weighs up to four times what an example weighs in the uncut model's metric, by
    the standard deviation over its replicates, or the whole metric if that is more. `reproduce/guarantee/coverage.py`
    measures what that gives, and what the percentile bound alone would.

    Args:
        drop (`float`): as measured.
        before (sequence of `float`): the uncut model's metric on each resample.
        differences (sequence of `float`): the drop on each resample.
        num_examples (`int`): of the judging set.
        level (`float`): probability that the bound is too low, about.
        num_batches (`int`, *optional*): how many batches there are, if these were resampled; few take a quantile of Student's
            t, as means over batches do.
    """
    ordered = torch.tensor(differences, dtype=torch.float64).sort().values
    # of all resamples and one more, this many may be above; with fewer resamples than that takes, it is the largest
    percentile = float(ordered[len(ordered) - 1 - max(int(level * (len(ordered) + 1)) - 1, 0)])
    unseen = (1 - level ** (1 / num_examples)) * _weight(before, num_examples)
    margin, spread = max(percentile - drop, 0.0), float(ordered.std(correction=0))
    if spread > 1e-12 * (1 + abs(drop)):
        standard = (ordered - ordered.mean()) / spread
        skewness, excess = float((standard**3).mean()), float((standard**4).mean()) - 3
        quantile = NormalDist().inv_cdf(1 - level)
        if num_batches is not None:
            quantile = few_units_quantile(level, num_batches) * math.sqrt(num_batches / max(num_batches - 1, 1))
        one = spread * math.sqrt(max(excess, 0.0))
        margin = max(margin, spread * max(quantile, skewed(quantile, skewness)), -math.log(level) * one)
    return Bound(drop + math.hypot(margin, unseen), "paired bootstrap, asymptotic")


def _weight(replicates: Sequence[float], num_examples: int) -> float:
    """How much of a metric a single example may weigh, times the number of examples.

    A right answer of a model that is nearly always right weighs more than the standard deviation says: as much as all of
    a share of right ones.
    """
    values = torch.tensor(replicates, dtype=torch.float64)
    return max(4 * math.sqrt(num_examples) * float(values.std(correction=0)), float(values.abs().max()))
