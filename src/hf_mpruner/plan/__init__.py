"""Which layers of which stack stay, and which neurons and heads: plans by hand or measured, in a file or on the Hub."""

from .plan import PLAN_NAME, PLAN_VERSION, PruningPlan, check_removed
from .stack import PlanPreview, StackPlan
from .width import WIDTH_PLAN_NAME, UnitPlan, WidthPlan, WidthPreview

__all__ = [
    "PLAN_NAME",
    "PLAN_VERSION",
    "WIDTH_PLAN_NAME",
    "PlanPreview",
    "PruningPlan",
    "StackPlan",
    "UnitPlan",
    "WidthPlan",
    "WidthPreview",
    "check_removed",
]
