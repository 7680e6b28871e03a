"""Which layers of which stack stay: made by hand or from clusters, kept in a file or on the Hub."""

from .plan import PLAN_NAME, PLAN_VERSION, PruningPlan, check_removed
from .stack import PlanPreview, StackPlan

__all__ = ["PLAN_NAME", "PLAN_VERSION", "PlanPreview", "PruningPlan", "StackPlan", "check_removed"]
