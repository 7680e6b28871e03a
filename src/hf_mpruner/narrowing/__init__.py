"""Neurons and heads go: in one call, or round by round with a training of its own after each."""

from .once import check_width, prune_width_
from .report import NarrowingReport, NarrowingRound
from .rounds import prune_width_in_rounds

__all__ = ["NarrowingReport", "NarrowingRound", "check_width", "prune_width_", "prune_width_in_rounds"]
