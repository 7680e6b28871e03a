"""`block_influence`: how far a block turns the hidden states (ShortGPT, arXiv 2403.03853)."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_mpruner.criteria.base import Criterion, Scores
from hf_mpruner.criteria.inputs import CriterionInputs
from hf_mpruner.criteria.streams import mean_over_positions


class BlockInfluence(Criterion):
    """1 minus the mean cosine of a block's input and output (ShortGPT, equation 1: BI).

    The mean is over all real positions of all calibration data, each one term: long examples weigh more than short ones,
    padding weighs nothing, and how the data is batched changes nothing. Positions whose input or output is zero in
    every feature have no direction and are left out. Blocks that change the shape, or have no position with a
    direction, have no score.
    """

    name = "block_influence"
    title = "1 - cosine of a block's input and output"
    source = "ShortGPT, arXiv 2403.03853, equation 1"
    cost = "1"
    needs = frozenset({"data"})

    def score(self, inputs: CriterionInputs) -> Scores:
        """1 - mean cosine, 0..2."""
        means = mean_over_positions(inputs, _cosine, "Measuring block influence")
        return {path: [None if mean is None else 1 - mean for mean in row] for path, row in means.items()}


def _cosine(before: Tensor, after: Tensor) -> Tensor:
    """Of rows (positions, features); NaN where one of both has no direction."""
    lengths = before.norm(dim=1) * after.norm(dim=1)
    return torch.where(lengths > 0, (before * after).sum(1) / lengths, torch.nan)
