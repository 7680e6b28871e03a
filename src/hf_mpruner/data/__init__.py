"""Datasets to batches: where they lie, which columns matter, what the model is fed, the calibration sample."""

from __future__ import annotations

from .calibration import calibration_loader, draw_sample
from .columns import Columns, ModelKind, find_columns, find_label_names, label_ids
from .encoding import find_max_length, preprocess
from .loading import load_data

__all__ = [
    "Columns",
    "ModelKind",
    "calibration_loader",
    "draw_sample",
    "find_columns",
    "find_label_names",
    "find_max_length",
    "label_ids",
    "load_data",
    "preprocess",
]
