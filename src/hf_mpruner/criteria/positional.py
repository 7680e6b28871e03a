"""Baselines that look at no data: which layers go is decided by their place."""

from __future__ import annotations

from hf_mpruner.criteria.base import Criterion, Scores
from hf_mpruner.criteria.inputs import CriterionInputs


class Tail(Criterion):
    """The last layers go first (Sajjad et al. 2020, arXiv 2004.03844: top-layer dropping)."""

    name = "tail"
    title = "the last layers go first"
    source = "baseline; Sajjad et al. 2020, arXiv 2004.03844"

    def score(self, inputs: CriterionInputs) -> Scores:
        """The later a layer, the lower."""
        return {stack.path: [float(stack.depth - layer) for layer in range(stack.depth)] for stack in inputs.stacks}
