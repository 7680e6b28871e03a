"""Neurons and heads go: in one call, or round by round with a training of its own after each."""

from .card import render_narrowing_card
from .once import check_width, prune_width_
from .report import NARROWING_REPORT_NAME, NarrowingReport, NarrowingRound
from .rounds import prune_width_in_rounds

__all__ = [
    "NARROWING_REPORT_NAME",
    "NarrowingReport",
    "NarrowingRound",
    "check_width",
    "prune_width_",
    "prune_width_in_rounds",
    "render_narrowing_card",
]
