"""Datasets to batches: where they lie, which columns matter, what the model is fed, the calibration sample."""

from __future__ import annotations

from .calibration import calibration_loader, draw_sample
from .columns import Columns, ModelKind, find_columns, find_label_names, label_ids
from .encoding import find_max_length, preprocess
from .loading import load_data
from .origin import describe_data, describe_sample, has_one_label_each

__all__ = [
    "Columns",
    "ModelKind",
    "calibration_loader",
    "describe_data",
    "describe_sample",
    "draw_sample",
    "find_columns",
    "find_label_names",
    "find_max_length",
    "has_one_label_each",
    "label_ids",
    "load_data",
    "preprocess",
]
