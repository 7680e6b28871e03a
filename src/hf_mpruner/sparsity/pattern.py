"""Which entries of a matrix of scores are set to zero: the lowest of each row, or of each group of m in a row."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pattern:
    """How zeros lie in a row of weights.

    Args:
        kept (`int`, *optional*): of `size` weights in a row, so many stay (the n of n:m); `None`: anywhere in the row.
        size (`int`, *optional*): the m of n:m.
    """

    kept: int | None = None
    size: int | None = None

    @classmethod
    def named(cls, name: str) -> Pattern:
        """The pattern of a name: `"unstructured"`, or `"n:m"`, where n of every m weights in a row stay.

        Raises:
            ValueError: for another name, or n not below m.

        Example:
            >>> Pattern.named("2:4")
            Pattern(kept=2, size=4)
        """
        if name == "unstructured":
            return cls()
        found = re.fullmatch(r"(\d+):(\d+)", name) if isinstance(name, str) else None
        if found is None or not 0 < int(found[1]) < int(found[2]):
            raise ValueError(
                f"pattern={name!r} is not known. Pass 'unstructured', '2:4', or another 'n:m' of which n of every m weights "
                "stay (0 < n < m)."
            )
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        """The name."""
        return "unstructured" if self.size is None else f"{self.kept}:{self.size}"

    def check_sparsity(self, sparsity: float) -> None:
        """Refuse a fraction that is none, or that the pattern does not have.

        Raises:
            TypeError: if it is no number.
            ValueError: if it is outside 0..1, or an n:m pattern leaves another share.
        """
        if isinstance(sparsity, bool) or not isinstance(sparsity, int | float):
            raise TypeError(f"sparsity={sparsity!r} is a {type(sparsity).__name__}. Pass a fraction, e.g. 0.5.")
        if not 0.0 <= sparsity <= 1.0:
            raise ValueError(
                f"sparsity={sparsity} is outside 0..1. It is the fraction of weights to set to zero: for half of them pass 0.5."
            )
        if self.size is None or self.kept is None:
            return
        own = Fraction(self.size - self.kept, self.size)
        if abs(Fraction(sparsity) - own) > Fraction(1, 10**6):
            raise ValueError(
                f"pattern='{self}' sets {self.size - self.kept} of every {self.size} weights to zero, which is "
                f"sparsity={float(own):g}, but sparsity={sparsity} was given. Pass sparsity={float(own):g}, or "
                "pattern='unstructured'."
            )


def number_of_zeros(length: int, sparsity: float) -> int:
    """How many of a row's weights go: the fraction as it was written, rounded down.

    Example:
        >>> int(100 * 0.29), number_of_zeros(100, 0.29)
        (28, 29)
    """
    return int(Fraction(str(sparsity)) * length)


def choose_zeros(scores: Tensor, sparsity: float, pattern: Pattern | str = "unstructured") -> Tensor:
    """The weights to set to zero: those of the lowest score, each row for itself; of equal ones the first.

    Args:
        scores (`torch.Tensor`): (outputs, inputs), one score a weight.
        sparsity (`float`): fraction in 0..1; of a row of n, the whole part of `sparsity` x n goes.
        pattern (`Pattern` or `str`): `"unstructured"` or `"n:m"`.

    Returns:
        `torch.Tensor`: bool, of the same shape, true where a weight goes.

    Raises:
        ValueError: if m does not divide the row, or the sparsity is not that of the pattern.

    Example:
        >>> choose_zeros(torch.tensor([[3.0, 1.0, 2.0, 4.0]]), 0.5)
        tensor([[False,  True,  True, False]])
    """
    pattern = Pattern.named(pattern) if isinstance(pattern, str) else pattern
    pattern.check_sparsity(sparsity)
    rows = scores
    if pattern.size is not None and pattern.kept is not None:
        if scores.shape[1] % pattern.size:
            raise ValueError(f"a row of {scores.shape[1]} weights has no groups of {pattern.size}.")
        rows = scores.reshape(-1, pattern.size)
        number = pattern.size - pattern.kept
    else:
        number = number_of_zeros(scores.shape[1], sparsity)
    going = torch.zeros(rows.shape, dtype=torch.bool, device=scores.device)
    if number:
        going.scatter_(1, rows.sort(dim=1, stable=True).indices[:, :number], True)
    return going.view(scores.shape)
