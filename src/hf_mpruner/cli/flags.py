"""Flags made of `PruningConfig`'s fields, and the flags that name data."""

from __future__ import annotations

import argparse
import dataclasses
import json
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hf_mpruner.config import CONFIG_NAME, PruningConfig

from .parser import UsageError, add_model_flags, closest


def add_config_flags(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """One flag for each field of `PruningConfig`, and `--config` for a file with the same keys.

    Args:
        parser: gets the flags.
        defaults: what this command takes instead of the dataclass's own default; named in the help.
    """
    group = parser.add_argument_group("pruning", "the fields of PruningConfig")
    group.add_argument(
        "--config", metavar="FILE", help=f"JSON with the same keys, or a folder with {CONFIG_NAME}; flags go before it"
    )
    hints = get_type_hints(PruningConfig)
    for field in dataclasses.fields(PruningConfig):
        default = defaults.get(field.name, _default(field))
        shown = "" if default is None or default == [] else f" (default: {default})"
        _add_flag(group, field.name, hints[field.name], field.metadata["help"] + shown)


def read_config(args: argparse.Namespace, **defaults: Any) -> PruningConfig:
    """The config that was asked for: defaults, then the file, then the flags.

    Raises:
        UsageError: for a value that `PruningConfig` refuses, or a file that is no such config.
    """
    names = [field.name for field in dataclasses.fields(PruningConfig)]
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    try:
        return PruningConfig(**{**defaults, **_read_file(args.config, names), **given})
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """The model, and which columns of which data."""
    add_model_flags(parser)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset", required=True, help="Hub id, folder (files or save_to_disk), or one CSV/JSON/Parquet file"
    )
    data.add_argument("--dataset_config", help="configuration of a data set that has several")
    data.add_argument("--text_column", nargs="+", metavar="COLUMN", help="the text, or the two texts of a pair")
    data.add_argument("--image_column", metavar="COLUMN", help="the image")
    data.add_argument(
        "--max_length", type=int, help="cut texts to so many tokens (default: as many as the model takes)"
    )


def _read_file(path: str | None, names: list[str]) -> dict[str, Any]:
    if path is None:
        return {}
    file = Path(path) / CONFIG_NAME if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise UsageError(f"--config {path}: there is no such file, and no {CONFIG_NAME} in a folder of that name.")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"--config {path} is no JSON: {error}.") from error
    if not isinstance(values, dict):
        raise UsageError(f"--config {path} holds a {type(values).__name__}, not keys and values.")
    values.pop("hf_mpruner_version", None)
    for key in values:
        if key not in names:
            raise UsageError(f"--config {path}: unknown key '{key}'{closest(key, names)}.")
    return values


def _add_flag(group: Any, name: str, hint: Any, text: str) -> None:
    # without a default, so that what was not typed is not in the namespace and the file may speak
    options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(part for part in get_args(hint) if part is not type(None))
    if hint is bool:
        group.add_argument(f"--{name}", f"--no_{name}", action=_Switch, **options)
    elif get_origin(hint) is Literal:
        group.add_argument(f"--{name}", choices=get_args(hint), **options)
    elif get_origin(hint) is list:
        group.add_argument(f"--{name}", nargs="+", metavar=name.removesuffix("s").upper(), **options)
    else:
        group.add_argument(f"--{name}", type=hint, metavar=hint.__name__.upper(), **options)


class _Switch(argparse.Action):
    """`--name` for true, `--no_name` for false."""

    def __init__(self, option_strings: list[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **options)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, not str(option_string).startswith("--no_"))


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default is not dataclasses.MISSING else None
