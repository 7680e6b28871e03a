"""Metrics: what a model said beside what was right, by formulas of our own, of evaluate, or of the user."""

from __future__ import annotations

from .compute import ComputeMetrics, LoadedMetric, load_metrics, make_compute_metrics
from .exact import find_entities, has_entities
from .examples import Scored, scored_prediction
from .library import load_metric
from .outcome import Answers, Classes, Outcome, Tags, Texts, Tokens, logits_of
from .outcomes import find_outcomes, outcomes_of_batches, outcomes_of_values

__all__ = [
    "Answers",
    "Classes",
    "ComputeMetrics",
    "LoadedMetric",
    "Outcome",
    "Scored",
    "Tags",
    "Texts",
    "Tokens",
    "find_entities",
    "find_outcomes",
    "has_entities",
    "load_metric",
    "load_metrics",
    "logits_of",
    "make_compute_metrics",
    "outcomes_of_batches",
    "outcomes_of_values",
    "scored_prediction",
]
