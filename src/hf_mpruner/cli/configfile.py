"""`--config FILE`: YAML or JSON whose keys are the names of flags, as if they had been typed before all others."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from hf_mpruner.config import CONFIG_NAME

from .parser import Parser, UsageError, closest

# Written by PruningConfig.save_pretrained beside the fields.
_NOT_FLAGS = ("hf_mpruner_version",)


def use_config_file(parser: Parser, words: Sequence[str]) -> None:
    """Make what the file of `--config` says the parser's defaults; what is typed goes before it.

    Args:
        parser (`Parser`): of the command; one without `--config` is left alone.
        words (sequence of `str`): what was typed. `--config` names a file, or a folder with `pruning_config.json`.

    Raises:
        UsageError: if there is no such file, it cannot be read, or a key or a value does not fit the command's flags.
    """
    path = _named(words)
    if path is None or all(action.dest != "config" for action in parser._actions):
        return
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    for key, value in read_config_file(path).items():
        if key in _NOT_FLAGS:
            continue
        if key not in actions:
            raise UsageError(
                f"--config {path}: unknown key '{key}'{closest(key, actions)}. Keys are the flags of {parser.prog}."
            )
        if value is None:  # a field that was left open
            continue
        action = actions[key]
        action.default, action.required = _fitted(action, value, f"--config {path}: {key}"), False
        if not action.option_strings:
            action.nargs = "?"


def _named(words: Sequence[str]) -> str | None:
    """The file: `--config FILE` or `--config=FILE`; the last one counts, as with any flag."""
    found = None
    for word, following in zip_longest(words, words[1:]):
        flag, equals, value = word.partition("=")
        if flag == "--config":
            found = value if equals else following
    return found


def read_config_file(path: str) -> dict[str, Any]:
    """Keys and values of a YAML or JSON file.

    Raises:
        UsageError: if there is no such file, or it holds something else.
    """
    file = Path(path) / CONFIG_NAME if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise UsageError(f"--config {path}: there is no such file, and no {CONFIG_NAME} in a folder of that name.")
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".json":
        try:
            values = json.loads(text)
        except ValueError as error:
            raise UsageError(f"--config {path} is no JSON: {error}.") from error
    else:
        import yaml

        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"--config {path} is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UsageError(f"--config {path} holds a {type(values).__name__}, not the names of flags and their values.")
    return values


def _fitted(action: argparse.Action, value: Any, where: str) -> Any:
    """A value of the file as the flag would have given it."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise UsageError(f"{where}: {value!r} is not allowed: write true or false.")
        return value
    if action.nargs in ("+", "*"):
        if isinstance(value, Mapping):  # KEY=VALUE flags
            return [f"{key}={_plain(item)}" for key, item in value.items()]
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise UsageError(f"{where}: {value!r} is one value, the flag takes several: write [{value}].")
        return [_single(action, item, where) for item in value]
    return _single(action, value, where)


def _single(action: argparse.Action, value: Any, where: str) -> Any:
    make: Any = action.type or str
    wanted = {int: "a whole number", float: "a number"}.get(make, "text")
    if isinstance(value, bool | list | dict):
        raise UsageError(f"{where}: {value!r} is not allowed: write {wanted}.")
    try:
        fitted = make(str(value))  # YAML reads 1e-4 as text, and the flag would read it as a number
    except ValueError as error:
        raise UsageError(f"{where}: {value!r} is not allowed: write {wanted}.") from error
    if action.choices is not None and fitted not in action.choices:
        allowed = ", ".join(map(str, action.choices))
        raise UsageError(f"{where}: {value!r} is not allowed: write one of {allowed}.")
    return fitted


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
