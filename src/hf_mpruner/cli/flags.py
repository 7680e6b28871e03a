"""Flags made of `PruningConfig`'s fields, and the flags that name data."""

from __future__ import annotations

import argparse
import dataclasses
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hf_mpruner.config import CONFIG_NAME, PruningConfig

from .parser import UsageError, add_model_flags


def add_config_flags(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """One flag for each field of `PruningConfig`, and `--config` for a file with the same keys.

    Args:
        parser: gets the flags.
        defaults: what this command takes instead of the dataclass's own default; named in the help.
    """
    group = parser.add_argument_group("pruning", "the fields of PruningConfig")
    group.add_argument(
        "--config",
        metavar="FILE",
        help=f"YAML or JSON whose keys are names of flags, or a folder with {CONFIG_NAME}; what is typed goes before it",
    )
    hints = get_type_hints(PruningConfig)
    for field in dataclasses.fields(PruningConfig):
        default = defaults.get(field.name, _default(field))
        shown = "" if default is None or default == [] else f" (default: {default})"
        _add_flag(group, field.name, hints[field.name], field.metadata["help"] + shown)


def read_config(args: argparse.Namespace, **defaults: Any) -> PruningConfig:
    """The config that was asked for: defaults, then what `--config` or the flags say.

    Raises:
        UsageError: for a value that `PruningConfig` refuses.
    """
    names = [field.name for field in dataclasses.fields(PruningConfig)]
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    try:
        return PruningConfig(**{**defaults, **given})
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


def _add_flag(group: Any, name: str, hint: Any, text: str) -> None:
    # without a default, so that what neither was typed nor stands in the file is not in the namespace
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
