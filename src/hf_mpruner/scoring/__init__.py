"""Metrics: what a model said beside what was right, by formulas of our own, of evaluate, or of the user."""

from __future__ import annotations

from .compute import ComputeMetrics, LoadedMetric, load_metrics, make_compute_metrics
from .exact import find_entities, has_entities
from .library import load_metric
from .outcome import Answers, Classes, Outcome, Tags, Texts, Tokens, logits_of

__all__ = [
    "Answers",
    "Classes",
    "ComputeMetrics",
    "LoadedMetric",
    "Outcome",
    "Tags",
    "Texts",
    "Tokens",
    "find_entities",
    "has_entities",
    "load_metric",
    "load_metrics",
    "logits_of",
    "make_compute_metrics",
]
