"""How much each layer matters, a file a measure; and from scores to a plan."""

from hf_mpruner.criteria.base import Criterion, check_needs, score_layers
from hf_mpruner.criteria.inputs import CriterionInputs
from hf_mpruner.criteria.planning import plan_layers
from hf_mpruner.criteria.registry import (
    OF_SIMILARITY,
    criterion_of,
    find_criterion,
    known_criteria,
    register_criterion,
)
from hf_mpruner.criteria.rounds import Quota, as_recorded, from_original, hold_protected, to_original
from hf_mpruner.criteria.scores import LayerScores, ScoredLayers, ScoringCost
from hf_mpruner.criteria.select import check_number, free_layers, pick_lowest
from hf_mpruner.criteria.shares import possible_totals, share_by

__all__ = [
    "OF_SIMILARITY",
    "Criterion",
    "CriterionInputs",
    "LayerScores",
    "Quota",
    "ScoredLayers",
    "ScoringCost",
    "as_recorded",
    "check_needs",
    "check_number",
    "criterion_of",
    "find_criterion",
    "free_layers",
    "from_original",
    "hold_protected",
    "known_criteria",
    "pick_lowest",
    "plan_layers",
    "possible_totals",
    "register_criterion",
    "score_layers",
    "share_by",
    "to_original",
]
