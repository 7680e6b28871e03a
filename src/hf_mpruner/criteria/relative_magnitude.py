"""`relative_magnitude`: how much a block adds, against what leaves it (weight subcloning, arXiv 2312.09299)."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_mpruner.criteria.base import Criterion, Scores
from hf_mpruner.criteria.inputs import CriterionInputs
from hf_mpruner.criteria.streams import mean_over_positions


class RelativeMagnitude(Criterion):
    """Mean of ||f(h)|| / ||h + f(h)||, where h goes into a block and h + f(h) comes out.

    The mean is over all real positions of all calibration data, each one term. Positions whose output is zero in every
    feature are left out. Blocks that change the shape have no score. What a block adds is its output minus its input,
    also where the block ends with a normalisation (BERT).
    """

    name = "relative_magnitude"
    title = "length of what a block adds, relative to its output"
    source = "weight subcloning, arXiv 2312.09299"
    cost = "1"
    needs = frozenset({"data"})

    def score(self, inputs: CriterionInputs) -> Scores:
        """The mean ratio, 0 for a block that adds nothing."""
        return mean_over_positions(inputs, _ratio, "Measuring relative magnitude")


def _ratio(before: Tensor, after: Tensor) -> Tensor:
    """Of rows (positions, features); NaN where nothing comes out."""
    lengths = after.norm(dim=1)
    return torch.where(lengths > 0, (after - before).norm(dim=1) / lengths, torch.nan)
