"""`SequentialStop`: when enough was measured for the clusters to be those of unlimited data, at a stated error rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_mpruner.clusters import Linkage, check_rule, compared_pairs, find_clusters

if TYPE_CHECKING:
    from hf_mpruner.similarity import SimilarityMatrix

# Batches at which sums are compared for the first time, and the factor from each time to the next.
_FIRST_MARK = 4
_GROWTH = 1.5


@dataclass(frozen=True)
class SequentialStop:
    """Stop measuring once the clusters at a threshold no longer change, with a probability that is stated.

    After ever more batches (a look) each comparison that decided on the clusters is tested: is the similarity of unlimited
    data above the threshold, or below it? Once all of them are settled at one look, nothing more is measured.

    **What is promised.** The probability that the measurement stops early with clusters other than those of unlimited data
    from the same source is at most `error_rate`; asymptotically, for batches that are independent and of one
    distribution, such as those of a sample in random order. A pair whose similarity is the threshold itself hardly ever
    settles: then all examples are used, and the pair is named.

    **Why it holds.** The clusters of unlimited data come of one comparison a layer, P in all, over all stacks. If the measured
    clusters differ from them, the first comparison at which they part is one of these P, measured on the wrong side. Look k
    gives each of them a one-sided test at level `error_rate / (P k (k + 1))`, and 1 / (k (k + 1)) adds up to 1 over all
    looks, however many there are; so the union bound over comparisons and looks is `error_rate`. The tests are Student's
    t on the standard errors over batches (`SimilarityMatrix.interval`).

    Args:
        threshold (`float`): in 0..1, of the clusters (the paper's tau).
        linkage (`"anchor"` or `"chain"`): of the clusters.
        error_rate (`float`): largest probability of other clusters, between 0 and 1.

    Raises:
        ValueError: for a value outside its range.

    Example:
        >>> rule = SequentialStop(threshold=0.95, error_rate=0.01)
        >>> marks = rule.marks()
        >>> [next(marks) for _ in range(7)]
        [4, 6, 9, 14, 21, 32, 48]
    """

    threshold: float = 0.98
    linkage: Linkage = "anchor"
    error_rate: float = 0.05

    def __post_init__(self) -> None:
        """Check every value."""
        check_rule(self.threshold, self.linkage)
        if not 0 < self.error_rate < 1:
            raise ValueError(
                f"error_rate={self.error_rate!r} is not between 0 and 1. It is the probability of wrong clusters: pass 0.05, say."
            )

    def marks(self, multiple: int = 1) -> Iterator[int]:
        """Numbers of batches after which the sums are looked at or kept for a later look, without end.

        Args:
            multiple (`int`): every number is one of these, for that many processes.
        """
        mark, last = float(_FIRST_MARK), 0
        while True:
            number = math.ceil(mark / multiple) * multiple
            if number > last:
                yield number
                last = number
            mark = math.ceil(mark * _GROWTH)

    def tail(self, look: int, num_pairs: int) -> float:
        """Level of a one-sided test.

        Args:
            look (`int`): which look it is, from 1.
            num_pairs (`int`): comparisons over all stacks.
        """
        return self.error_rate / (num_pairs * look * (look + 1))

    def open_pairs(self, matrix: SimilarityMatrix, look: int, num_pairs: int) -> tuple[tuple[int, int], ...] | None:
        """Comparisons behind the clusters that may be on the other side of the threshold.

        Args:
            matrix (`SimilarityMatrix`): measured so far.
            look (`int`): which look it is, from 1.
            num_pairs (`int`): comparisons over all stacks: for each stack its layers - 1.

        Returns:
            `tuple` of pairs of positions; `None` with fewer batches than standard errors need.
        """
        ends = matrix.interval(1.0 - 2 * self.tail(look, num_pairs))
        if ends is None:
            return None
        lower, upper = ends
        pairs = compared_pairs(find_clusters(matrix, self.threshold, self.linkage), self.linkage)
        return tuple((i, j) for i, j in pairs if lower[i, j] < self.threshold <= upper[i, j])
