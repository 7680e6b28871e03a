"""Model cards: README.md written from what a run measured, beside whatever a person wrote."""

from .check import check_card
from .facts import ModelFacts
from .front import BEGIN, END
from .merge import merge_card
from .render import render_card

__all__ = ["BEGIN", "END", "ModelFacts", "check_card", "merge_card", "render_card"]
