"""Datasets to batches: where they lie, which columns matter, what the model is fed, the calibration sample."""

from __future__ import annotations

from .calibration import FirstBatch, calibration_loader, draw_sample
from .columns import (
    Columns,
    ModelKind,
    column_types,
    find_answer_columns,
    find_columns,
    find_target_columns,
    find_token_columns,
)
from .encoding import find_max_length, preprocess, refuse_empty
from .labels import find_label_names, label_ids
from .loading import load_data, quiet_bars
from .origin import describe_data, describe_sample, has_one_label_each
from .rows import drop_blank, open_images, read_answers, split_words, take_columns

__all__ = [
    "Columns",
    "FirstBatch",
    "ModelKind",
    "calibration_loader",
    "column_types",
    "describe_data",
    "describe_sample",
    "draw_sample",
    "drop_blank",
    "find_answer_columns",
    "find_columns",
    "find_label_names",
    "find_max_length",
    "find_target_columns",
    "find_token_columns",
    "has_one_label_each",
    "label_ids",
    "load_data",
    "open_images",
    "preprocess",
    "quiet_bars",
    "read_answers",
    "refuse_empty",
    "split_words",
    "take_columns",
]
