"""`TestLevels`: at which level each candidate is tested, so that the promise holds for whatever model is kept in the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TestLevels:
    """Levels of tests that follow each other on one judging set, where each verdict decides what is tested next.

    **What is promised.** The probability that any candidate is accepted whose true drop is larger than allowed is at most
    `error_rate`, however many rounds there are; so it holds for the last accepted model.

    **Why it holds.** What is tested next depends on the judging set through earlier verdicts only. Candidates that are
    reached by acceptances alone are therefore fixed in advance, one after another, and a fixed sequence may be tested at
    full level each until the first one fails (W. Maurer, L. A. Hothorn, W. Lehmacher, 1995; as "fixed sequence testing" in
    A. N. Angelopoulos et al., "Learn then Test", arXiv 2110.01052, section 2): for one of them to be accepted wrongly, the
    first bad one must be, which has probability `error_rate`. A rejection opens a branch with a fixed sequence of its
    own. Branches are paid for beforehand (a union bound): that after r rejections gets 1/2, 1/4, 1/8, ... of the error
    rate (the last one what is left), shared among the places at which those rejections can happen: the j-th test since
    the last rejection has 1 / (j (j + 1)), and these add up to 1. Where it is known how many branches can begin with a rejection,
    in all orders of verdicts together, they share half of the error rate alike instead.

    Args:
        error_rate (`float`): 1 - confidence, between 0 and 1.
        num_branches (`int`): one more than the number of rejections after which a further test can follow.
        num_others (`int`, *optional*): how many branches can begin with a rejection, over all orders of verdicts: at most.

    Raises:
        ValueError: for a value outside its range.

    Example:
        >>> levels = TestLevels(0.05, num_branches=3)
        >>> [levels.next(verdicts) for verdicts in ([], [True], [True, True], [False], [True, False])]
        [0.025, 0.025, 0.025, 0.00625, 0.0020833333333333333]
        >>> levels = TestLevels(0.05, num_branches=3, num_others=10)
        >>> [levels.next(verdicts) for verdicts in ([], [True], [True, False], [True, False, False])]
        [0.025, 0.025, 0.0025, 0.0025]
    """

    __test__ = False  # no test, whatever its name says to pytest

    error_rate: float
    num_branches: int = 1
    num_others: int | None = None

    def __post_init__(self) -> None:
        """Check all of them."""
        if not 0 < self.error_rate < 1 or self.num_branches < 1:
            raise ValueError(
                f"error_rate={self.error_rate!r} must be between 0 and 1, num_branches={self.num_branches!r} 1 or more."
            )
        if self.num_others is not None and self.num_others < self.num_branches - 1:
            raise ValueError(
                f"num_others={self.num_others!r} is fewer than {self.num_branches} branches have on one path."
            )

    def next(self, verdicts: Sequence[bool]) -> float:
        """Level of the next test.

        Args:
            verdicts (sequence of `bool`): of the tests so far, in order: whether each accepted.

        Raises:
            ValueError: after more rejections than were paid for.
        """
        rejections = len(verdicts) - sum(verdicts)
        if rejections >= self.num_branches:
            raise ValueError(
                f"{rejections} rejections leave no level for a further test: {self.num_branches} branches were paid for."
            )
        if self.num_others is not None and self.num_branches > 1:
            return self.error_rate / 2 / (self.num_others if rejections else 1)
        last = rejections == self.num_branches - 1
        level, place = self.error_rate * 0.5 ** (rejections if last else rejections + 1), 0
        for accepted in verdicts:
            place += 1
            if not accepted:
                level, place = level / (place * (place + 1)), 0
        return level
