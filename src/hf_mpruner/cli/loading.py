"""The data that the flags name, and its columns."""

from __future__ import annotations

import argparse
from typing import Any

from hf_mpruner.data import Columns, ModelKind, find_columns, load_data

from .parser import UsageError


def load_split(args: argparse.Namespace, flag: str) -> Any:
    """Load the split that a flag names.

    Raises:
        UsageError: if the data set does not have it; the text says what it has.
        FileNotFoundError: if there is no such data set.
    """
    split = getattr(args, flag)
    try:
        return load_data(args.dataset, config_name=args.dataset_config, split=split)
    except ValueError as error:
        raise UsageError(f"--{flag} {split}: {error}") from error


def choose_columns(args: argparse.Namespace, data: Any, kind: ModelKind, *, need_label: bool) -> Columns:
    """The columns that the flags name, or that can be found.

    Raises:
        UsageError: if a named one does not exist, or none or several could be meant.
    """
    label = getattr(args, "label_column", None)
    try:
        return find_columns(data, kind, args.text_column, label, args.image_column, need_label=need_label)
    except ValueError as error:
        raise UsageError(f"{args.dataset}: {error}") from error
