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
from .examples import count_shared, fingerprint
from .labels import find_label_names, label_ids
from .loading import load_data, quiet_bars
from .origin import describe_data, describe_sample, has_one_label_each
from .parts import Parts, check_disjoint, size_parts, split_parts, warn_of_trained
from .rows import drop_blank, open_images, read_answers, split_words, take_columns

__all__ = [
    "Columns",
    "FirstBatch",
    "ModelKind",
    "Parts",
    "calibration_loader",
    "check_disjoint",
    "column_types",
    "count_shared",
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
    "fingerprint",
    "has_one_label_each",
    "label_ids",
    "load_data",
    "open_images",
    "preprocess",
    "quiet_bars",
    "read_answers",
    "refuse_empty",
    "size_parts",
    "split_parts",
    "split_words",
    "take_columns",
    "warn_of_trained",
]
