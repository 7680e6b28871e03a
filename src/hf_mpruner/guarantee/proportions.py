"""How much lower the true share of ones may be: an exact test of paired 0/1 outcomes, and its upper bound."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import torch
from torch import Tensor

# The share of the level that goes to the discordance's bound.
_NUISANCE_SHARE = 1 / 100
# Added to every probability: more than the rounding of its sum in 64-bit floats, which is 1e-12 or less.
_ROUNDING = 1e-11
# Of every probability: more than the rounding of its factorials, which are above 1e7 in logarithm for a million examples.
_RELATIVE = 1e-7
# The supremum of a p-value is bounded this closely (relative; absolute); more loosely where it is above the level anyway.
_CLOSE, _LOOSE, _NOTHING = 0.005, 0.05, 1e-9
# An upper bound is computed this closely: a share of its distance from the measured drop; absolute.
_FINE, _FINEST = 0.002, 1e-7
# Discordances that are looked at together, and intervals of them to begin with.
_ROWS, _PIECES = 128, 64
# Statistics this close count as equal, which is the careful side.
_TIE = 1e-9


@lru_cache(maxsize=4)
def _log_factorials(num: int) -> Tensor:
    """Logarithms of 0!, 1!, ... num!."""
    return torch.lgamma(torch.arange(1, num + 2, dtype=torch.float64))


def _binomial(counts: Tensor, nums: Tensor, shares: Tensor, factorials: Tensor) -> Tensor:
    """Probabilities of these counts; 0 where a count is outside 0..num."""
    inside = (counts >= 0) & (counts <= nums)
    counts, nums = torch.where(inside, counts, 0), nums.clamp(min=0)
    ways = factorials[nums] - factorials[counts] - factorials[nums - counts]
    ones, zeros = shares.clamp(min=1e-300).log(), (-shares).log1p().clamp(min=-690.0)
    return torch.where(inside, (ways + counts * ones + (nums - counts) * zeros).exp(), 0.0)


def _window(nums: int | Tensor, shares: Tensor) -> tuple[Tensor, int]:
    """Where a binomial count is, but for 1e-15: first counts `(rows,)`, which may be negative, and one width for all."""
    half = 26 + (625 + 73 * nums * shares * (1 - shares)).sqrt()  # Bernstein's inequality
    return (nums * shares - half).floor().long(), int((2 * half).max()) + 2


def _at_most(most: Tensor, nums: Tensor, shares: Tensor, num: int) -> Tensor:
    """`(rows,)`: probability of at most this count among `nums` of `num` trials."""
    first, width = _window(nums, shares)
    counts = torch.minimum(most, first + width)[:, None] - torch.arange(min(width + 1, num + 1))
    return _binomial(counts, nums[:, None].expand_as(counts), shares[:, None], _log_factorials(num)).sum(1)


def share_at_most(count: int, num: int, level: float) -> float:
    """Upper bound of a proportion (C. J. Clopper, E. S. Pearson, Biometrika 26, 1934): too low with `level` at most.

    Args:
        count (`int`): of ones.
        num (`int`): of outcomes.
        level (`float`): between 0 and 1.

    Example:
        >>> round(share_at_most(0, 100, 0.05), 4)  # 1 - 0.05^(1 / 100)
        0.0295
    """
    if count >= num:
        return 1.0
    low, high = count / num, 1.0
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        below = _at_most(torch.tensor([count]), torch.tensor([num]), torch.tensor([middle], dtype=torch.float64), num)
        low, high = (low, middle) if float(below) * (1 + _RELATIVE) <= level else (middle, high)
    return high


class PairedTest:
    """Exact unconditional test that the true share of ones has fallen by a number or more, from paired 0/1 outcomes.

    An example is worse where only the first model has a one, and better where only the second has; the drop is the
    difference of their probabilities. The statistic is the score statistic of that difference (T. Tango, Statistics in
    Medicine 17, 1998, 891-908; J.-M. Nam, Biometrics 53, 1997, 1422-1430). Its distribution depends on the discordance,
    the probability that an example is either: the p-value is the largest probability of a statistic as small as seen,
    over the discordances within Clopper-Pearson bounds, plus the level of these bounds (R. L. Berger, D. D. Boos, JASA
    89, 1994, 1012-1016; for this statistic H.-M. Hsueh, J.-P. Liu, J. J. Chen, Biometrics 57, 2001, 478-483). With an
    outcome, the set of such small statistics holds each that has fewer worse or more better examples, so for a given
    discordance its probability falls with the drop (Barnard's condition; K. Sidik, Statistics in Medicine 22, 2003), and
    the largest is at the drop that is tested.

    The largest probability is bounded, not searched on a grid: with a discordance in [a, b], as many better examples as b
    allows and as few worse ones as a allows bound the probability on [a, b] from above, by the same condition. Intervals
    are halved until bound and value agree.

    Args:
        num (`int`): of examples.
        worse (`int`): of examples where only the first model has a one.
        better (`int`): where only the second has.
        level (`float`): of the test.

    Raises:
        ValueError: if these do not fit together.

    Example:
        >>> PairedTest(1000, worse=4, better=2, level=0.05).rejects(0.01)  # 4 - 2 of 1000, and 0.01 would be 10
        True
    """

    __test__ = False  # no test, whatever its name says to pytest

    def __init__(self, num: int, worse: int, better: int, level: float) -> None:
        if num < 1 or min(worse, better) < 0 or worse + better > num or not 0 < level < 1:
            raise ValueError(f"num={num}, worse={worse}, better={better}, level={level} do not fit together.")
        self.num, self.worse, self.better, self.level = num, worse, better, level
        self.paid: float = level * _NUISANCE_SHARE
        changed = worse + better
        self.widest = share_at_most(changed, num, self.paid / 2)
        self.narrowest = 1 - share_at_most(num - changed, num, self.paid / 2)

    def with_examples(self, num: int) -> PairedTest:
        """The same test of so many examples, at the same rates."""
        worse, better = (round(count * num / self.num) for count in (self.worse, self.better))
        return PairedTest(num, worse, min(better, num - worse), self.level)

    def p_value(self, drop: float, decide: bool = False) -> float:
        """Bound of the p-value of "the true drop is at least this", never below the true supremum.

        Args:
            drop (`float`): in -1..1.
            decide (`bool`): stop as soon as it is known on which side of the level it is.
        """
        narrowest = max(drop, self.narrowest)
        if narrowest > self.widest:
            return self.paid  # no discordance within its bounds allows such a drop
        better = (self.widest - max(drop, -self.widest)) / 2
        most = self._most_worse(drop, torch.tensor([better], dtype=torch.float64))
        edges = torch.linspace(narrowest, self.widest, _PIECES + 1, dtype=torch.float64)
        starts, ends, room = edges[:-1], edges[1:], self.level - self.paid
        best, bound = float(self._chance(drop, most, edges, edges).max()), 0.0
        while len(starts):
            above = self._chance(drop, most, starts, ends)
            close = best * (1 + (_LOOSE if best > room else _CLOSE)) + _NOTHING
            wide = (above > (max(close, room) if decide else close)) & (ends - starts > 1e-12)
            bound = max(bound, float(torch.where(wide, 0.0, above).max()))
            if decide and max(best, bound) > room:
                return self.paid + max(best, bound)
            starts, ends, middles = starts[wide], ends[wide], (starts[wide] + ends[wide]) / 2
            if len(starts):
                best = max(best, float(self._chance(drop, most, middles, middles).max()))
            starts, ends = torch.cat([starts, middles]), torch.cat([middles, ends])
        return min(self.paid + bound, 1.0)

    def _score(self, worse: Tensor, better: Tensor, drop: float) -> Tensor:
        """Tango's statistic: the measured drop less this one, over its standard error if this one were true."""
        num = self.num
        slope = drop * (2 * num - worse + better) - worse - better
        share = ((slope * slope + 8 * num * drop * (1 - drop) * better).clamp(min=0).sqrt() - slope) / (4 * num)
        variance = num * (2 * share + drop - drop * drop)
        return (worse - better - num * drop) / variance.clamp(min=1e-12).sqrt()

    def _most_worse(self, drop: float, better_share: Tensor) -> Tensor:
        """With how many worse examples at most the statistic is as small as seen, for 0, 1, ... better ones.

        As far as this probability of a better example allows; -1 where no number is small enough.
        """
        worse, better = torch.tensor([[self.worse], [self.better]], dtype=torch.float64)
        seen = float(self._score(worse, better, drop))
        limit = seen + _TIE * (1 + abs(seen))
        first, width = _window(self.num, better_share)
        counts = torch.arange(min(max(int(first) + width + 1, self.better), self.num) + 1)
        low, high = torch.full_like(counts, -1), self.num - counts + 1  # as small; not, or impossible
        while bool((high - low > 1).any()):
            middle = (low + high).div(2, rounding_mode="floor")
            small = self._score(middle.double(), counts.double(), drop) <= limit
            wide = high - low > 1
            low, high = torch.where(wide & small, middle, low), torch.where(wide & ~small, middle, high)
        low[self.better] = max(int(low[self.better]), self.worse)
        return torch.minimum(low.cummax(0).values, self.num - counts)

    def _chance(self, drop: float, most: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
        """Bound of the probability of such an outcome for discordances from starts to ends; itself where these agree."""
        # a drop below 0 with a smaller discordance than that: the nearest drop there is
        better = ((ends - (-ends).clamp(min=drop)) / 2).clamp(0, 1)
        worse = ((starts + (-starts).clamp(min=drop)) / 2).clamp(0, 1)
        pairs = zip(worse.split(_ROWS), better.split(_ROWS), strict=True)
        return torch.cat([self._outcomes(most, w, b) for w, b in pairs]) * (1 + _RELATIVE) + _ROUNDING

    def _outcomes(self, most: Tensor, worse: Tensor, better: Tensor) -> Tensor:
        """`(rows,)`: probability of at most `most[i]` worse examples with i better ones, by probabilities of both.

        The number of better examples is binomial, that of worse ones is so given that. The latter's probability to be at
        most `most[i]` is summed once, for the first i, and from i to i + 1 grows by single terms: one trial less adds
        `share * P(exactly most[i])`, each more that is allowed adds its own.
        """
        num, factorials = self.num, _log_factorials(self.num)
        share = (worse / (1 - better).clamp(min=1e-300)).clamp(max=1.0)
        first, width = _window(num, better)
        first = first.clamp(0, num)
        counts = first[:, None] + torch.arange(min(width, num + 1))
        masses = _binomial(counts, torch.full_like(counts, num), better[:, None], factorials)
        counts = counts.clamp(max=len(most) - 1)
        allowed, trials = most[counts], num - counts
        start = _at_most(allowed[:, 0], trials[:, 0], share, num)[:, None]
        now, then, after = allowed[:, :-1], allowed[:, 1:], trials[:, 1:]
        steps = share[:, None] * _binomial(now, after, share[:, None], factorials)
        for more in range(1, int((then - now).max()) + 1 if now.numel() else 1):
            steps = steps + torch.where(
                now + more <= then, _binomial(now + more, after, share[:, None], factorials), 0.0
            )
        return (masses * torch.cat([start, steps], 1).cumsum(1)).sum(1)

    def rejects(self, drop: float) -> bool:
        """Whether "the true drop is at least this" is refuted at the level."""
        return self.p_value(drop, decide=True) <= self.level

    def bound(self, max_drop: float) -> tuple[float, float]:
        """p-value of "the true drop is at least `max_drop`", and the upper bound of the drop at confidence `1 - level`.

        The bound is at most `max_drop` exactly if the p-value is at most the level.
        """
        p_value, top = self.p_value(max_drop), max(1.0, math.nextafter(max_drop, 2.0))
        low, high = (-1.0, max_drop) if p_value <= self.level else (max_drop, top)
        # a bound is at or above the measured drop: no test is needed below it
        drop = (self.worse - self.better) / self.num
        low = max(low, min(drop, high))
        # what a normal distribution says, and half of it more
        far = drop + (1.5 * NormalDist().inv_cdf(1 - self.level / 2) * (self.widest / self.num) ** 0.5) + 3 / self.num
        if low < far < high:
            low, high = (low, far) if self.rejects(far) else (far, high)
        while high - low > max(_FINE * (high - drop), _FINEST):
            middle = (low + high) / 2
            low, high = (low, middle) if self.rejects(middle) else (middle, high)
        return p_value, high
