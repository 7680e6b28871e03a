"""How much lower the true share of ones may be: an exact test of paired 0/1 outcomes, and its upper bound."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The share of the level that goes to the discordance's bound.
_NUISANCE_SHARE = 1 / 20
# Added to every probability: more than the rounding of its Fourier sum in 64-bit floats, which is 1e-12 or less.
_ROUNDING = 1e-11
# The supremum of a p-value is bounded this closely (relative; absolute), or as loosely where it is above the level anyway.
_CLOSE, _LOOSE, _NOTHING = 1e-4, 1e-2, 1e-9
# Rows of one Fourier transform.
_ROWS = 128


def sum_at_most(most: int, num: int, plus: Tensor, minus: Tensor) -> Tensor:
    """Probability that a sum of independent steps, each +1, -1 or 0, is at most a number.

    By the characteristic function `(1 - plus - minus + plus e^it + minus e^-it)^num` and a discrete Fourier transform over
    a window outside of which Bernstein's inequality leaves less than 1e-15.

    Args:
        most (`int`): the number.
        num (`int`): of steps, 1 or more.
        plus (`Tensor`): `(rows,)`, 64-bit: probabilities of +1.
        minus (`Tensor`): `(rows,)`: probabilities of -1.

    Returns:
        `Tensor` `(rows,)`, with an absolute error below 1e-11.

    Example:
        >>> sum_at_most(0, 2, torch.tensor([0.5]).double(), torch.tensor([0.25]).double())  # 1 - 2 (0.5 * 0.25) - 0.5^2
        tensor([0.5000], dtype=torch.float64)
    """
    changed, shift = plus + minus, plus - minus
    spread = (num * (changed - shift * shift)).clamp(min=0)
    half = float((25 + (625 + 73 * spread).sqrt()).max()) + 1
    size = 1 << math.ceil(math.log2(2 * half + 2))
    low = (num * shift - half).floor()
    if size > 2 * num:
        size, low = 2 * num + 1, torch.full_like(shift, -num)
    angle = torch.arange(size // 2 + 1, dtype=torch.float64) * (2 * math.pi / size)
    away = 2 * (angle / 2).sin() ** 2  # 1 - cos, without cancellation
    lost, turn = changed[:, None] * away, shift[:, None] * angle.sin()
    size_log = torch.log1p((-2 * lost + lost * lost + turn * turn).clamp(min=-1.0))
    phase = num * torch.atan2(turn, 1 - lost) - low[:, None] * angle
    masses = torch.fft.hfft(torch.polar((size_log * (num / 2)).exp(), phase), n=size, norm="forward")
    inside = torch.arange(size) <= most - low[:, None]
    found = (masses * inside).sum(1)
    return torch.where(low > most, torch.zeros_like(found), found).clamp(0.0, 1.0)


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
    for _ in range(60):
        middle = torch.tensor([(low + high) / 2], dtype=torch.float64)
        below = float(sum_at_most(count, num, middle, torch.zeros_like(middle))) + _ROUNDING
        low, high = (low, float(middle)) if below <= level else (float(middle), high)
        if high - low < 1e-9 * high:
            break
    return high


class PairedTest:
    """Exact unconditional test that the true share of ones has fallen by a number or more, from paired 0/1 outcomes.

    An example steps +1 where only the first model has a one, -1 where only the second has; the drop is the mean step. The
    statistic is the sum S of steps. The probability of a step, the discordance, is not known: the p-value is the largest
    probability of an S as small as seen, over the discordances within a Clopper-Pearson bound, plus the level of this
    bound (R. L. Berger, D. D. Boos, JASA 89, 1994, 1012-1016; for paired non-inferiority H.-M. Hsueh, J.-P. Liu,
    J. J. Chen, Biometrics 57, 2001, 478-483). For a given discordance the probability falls with the drop, so the
    largest is at the drop that is tested.

    The largest probability is bounded, not searched on a grid: with a discordance in [a, b] each step is at least as large
    as one that is -1 where b allows it and +1 only as often as a says, so that the sum of those bounds the probability
    on [a, b] from above. Intervals are halved until bound and value agree.

    Args:
        num (`int`): of examples.
        worse (`int`): of examples where only the first model has a one.
        better (`int`): where only the second has.
        level (`float`): of the test.
    """

    __test__ = False  # no test, whatever its name says to pytest

    def __init__(self, num: int, worse: int, better: int, level: float) -> None:
        if num < 1 or min(worse, better) < 0 or worse + better > num or not 0 < level < 1:
            raise ValueError(f"num={num}, worse={worse}, better={better}, level={level} do not fit together.")
        self.num, self.sum, self.level = num, worse - better, level
        self.paid = level * _NUISANCE_SHARE
        self.widest = share_at_most(worse + better, num, self.paid)

    def p_value(self, drop: float, decide: bool = False) -> float:
        """Bound of the p-value of "the true drop is at least this", never below the true supremum.

        Args:
            drop (`float`): in -1..1.
            decide (`bool`): stop as soon as it is known on which side of the level it is.
        """
        narrowest = max(drop, 0.0)
        if narrowest > self.widest:
            return self.paid  # no discordance within its bound allows such a drop
        edges = torch.linspace(narrowest, self.widest, 17, dtype=torch.float64)
        starts, ends = edges[:-1], edges[1:]
        best, bound, room = 0.0, 0.0, self.level - self.paid
        while len(starts):
            best = max(best, float(self._below(drop, ends, ends).max()))
            if decide and best > room:
                return self.paid + best
            above = self._below(drop, starts, ends)
            if decide and max(bound, float(above.max())) <= room:
                return self.paid + max(bound, float(above.max()))
            close = best * (1 + (_LOOSE if best > room else _CLOSE)) + _NOTHING
            wide = (above > close) & (ends - starts > 1e-12)
            bound = max([bound, *above[~wide].tolist()])
            starts, ends, middles = starts[wide], ends[wide], (starts[wide] + ends[wide]) / 2
            starts, ends = torch.cat([starts, middles]), torch.cat([middles, ends])
        return min(self.paid + bound, 1.0)

    def _below(self, drop: float, starts: Tensor, ends: Tensor) -> Tensor:
        """Bound of the probability of such a sum, for discordances between starts and ends; itself where these agree."""
        # a drop below 0 with a smaller discordance than that: the nearest drop there is
        minus = ((ends - (-ends).clamp(min=drop)) / 2).clamp(min=0)
        plus = ((starts + (-starts).clamp(min=drop)) / 2).clamp(min=0)
        found = [
            sum_at_most(self.sum, self.num, p, m) for p, m in zip(plus.split(_ROWS), minus.split(_ROWS), strict=True)
        ]
        return torch.cat(found) + _ROUNDING

    def rejects(self, drop: float) -> bool:
        """Whether "the true drop is at least this" is refuted at the level."""
        return self.p_value(drop, decide=True) <= self.level

    def upper(self, max_drop: float) -> float:
        """Upper bound of the drop at confidence `1 - level`: at most `max_drop` exactly if the test refutes that drop."""
        low, high = (-1.0, max_drop) if self.rejects(max_drop) else (max_drop, max(1.0, math.nextafter(max_drop, 2.0)))
        # a bound is at or above the measured drop: no test is needed below it
        low = max(low, min(self.sum / self.num, high))
        while high - low > max(1e-6, 1e-5 * abs(high)):
            middle = (low + high) / 2
            low, high = (low, middle) if self.rejects(middle) else (middle, high)
        return high
