"""The data that the flags name, and its columns."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from hf_mpruner.data import Columns, load_data
from hf_mpruner.errors import UnsupportedArchitectureError
from hf_mpruner.tasks import Settings, Task, find_task

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


def choose_task(args: argparse.Namespace, config: PreTrainedConfig) -> Task:
    """The task that `--task` names, or that of the checkpoint.

    Raises:
        UsageError: if several are possible, or the named one is not.
    """
    try:
        return find_task(config, args.task)
    except ValueError as error:
        if isinstance(error, UnsupportedArchitectureError):
            raise
        raise UsageError(str(error)) from error


def choose_columns(args: argparse.Namespace, data: Any, task: Task, *, need_label: bool) -> Columns:
    """The columns that the flags name, or that can be found.

    Raises:
        UsageError: if a named one does not exist, or none or several could be meant.
    """
    named = {role: value for role, value in vars(args).items() if role.endswith("_column")}
    try:
        return task.find_columns(data, named, need_label=need_label)
    except ValueError as error:
        raise UsageError(f"{args.dataset}: {error}") from error


def take(args: argparse.Namespace, data: Any, columns: Columns, task: Task) -> Any:
    """The columns that matter, in one form whatever the file could hold.

    Raises:
        UsageError: if this part of the data lacks a column, or a cell cannot be read.
    """
    path = Path(args.dataset)
    folder = path if path.is_dir() else path.parent if path.is_file() else None
    try:
        return task.take(data, columns, folder)
    except ValueError as error:
        raise UsageError(f"{args.dataset}: {error}") from error


def read_settings(args: argparse.Namespace, seed: int) -> Settings:
    """What the flags say about the way from rows to inputs."""
    return Settings(args.max_length, args.max_target_length, args.source_prefix, seed)
