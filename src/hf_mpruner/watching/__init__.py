"""What an evaluation compared, kept until the metric that decides is taken apart into outcomes."""

from __future__ import annotations

from .capture import Evaluated, keep_evaluations
from .given import UserEvaluation
from .outcomes import TrainerEvaluation, outcomes_of_evaluation, uncut_outcomes

__all__ = [
    "Evaluated",
    "TrainerEvaluation",
    "UserEvaluation",
    "keep_evaluations",
    "outcomes_of_evaluation",
    "uncut_outcomes",
]
