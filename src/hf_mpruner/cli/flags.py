"""Flags made of `PruningConfig`'s fields, and the flags that name data."""

from __future__ import annotations

import argparse
import dataclasses
import types
from collections.abc import Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hf_mpruner.config import CONFIG_NAME, PruningConfig

from .parser import UsageError, add_model_flags, same_words

# Role -> what the column holds, for `--help`. By default a column is found by its type and its name.
COLUMNS = {
    "text_column": "the text, the two texts of a pair, or the source text",
    "label_column": "the class, or the tags of the words",
    "image_column": "the image, or the path of its file",
    "tokens_column": "the words",
    "target_column": "the text that is to come out",
    "question_column": "the question",
    "context_column": "the text that holds the answer",
    "answers_column": "the answers, in SQuAD's form",
}
# Written out, so that --help needs no transformers; a test compares.
TASK_NAMES = (
    "text-classification", "token-classification", "image-classification", "question-answering", "text-generation",
    "text2text-generation", "fill-mask", "summarization", "translation",
)  # fmt: skip


def add_config_flags(parser: argparse.ArgumentParser, *, only: Sequence[str] | None = None, **defaults: Any) -> None:
    """One flag for each field of `PruningConfig`, and `--config` for a file with the same keys.

    Args:
        parser: gets the flags.
        only (sequence of `str`, *optional*): fields that mean something to this command; all of them by default.
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
        if only is not None and field.name not in only:
            continue
        default = defaults.get(field.name, _default(field))
        shown = "" if default in (None, [], "") else f" (default: {default})"
        _add_flag(group, field.name, hints[field.name], field.metadata["help"] + shown)


def read_config(args: argparse.Namespace, **defaults: Any) -> PruningConfig:
    """The config that was asked for: defaults, then what `--config` or the flags say.

    Raises:
        UsageError: for a value that `PruningConfig` refuses, or a criterion that there is not.
    """
    names = [field.name for field in dataclasses.fields(PruningConfig)]
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    try:
        config = PruningConfig(**{**defaults, **given})
        if not config.plans_by_threshold:
            from hf_mpruner.criteria import find_criterion

            find_criterion(config.criterion)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    return config


def add_data_flags(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """The model, and which columns of which data."""
    add_model_flags(parser)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset", required=required, help="Hub id, folder (files or save_to_disk), or one CSV/JSON/Parquet file"
    )
    data.add_argument("--dataset_config", help="configuration of a data set that has several")
    for flag, text in COLUMNS.items():
        many: dict[str, Any] = {"nargs": "+"} if flag == "text_column" else {}
        data.add_argument(f"--{flag}", metavar="COLUMN", help=text, **many)
    data.add_argument("--task", help=f"what the model is for (default: what its head is for): {', '.join(TASK_NAMES)}")
    data.add_argument(
        "--max_length", type=int, help="cut texts to so many tokens (default: as many as the model takes)"
    )
    data.add_argument("--max_target_length", type=int, help="the same for target texts")
    data.add_argument("--source_prefix", default="", help="goes before each source text, e.g. 'summarize: ' for T5")


def config_words(args: argparse.Namespace, besides: Sequence[str] = ()) -> list[str]:
    """The flags of `PruningConfig` as they were given, for a command to try next."""
    words: list[str] = []
    for field in dataclasses.fields(PruningConfig):
        value = getattr(args, field.name, None)
        if field.name in besides or value is None:
            continue
        words += [f"--no_{field.name}"] if value is False else same_words(args, [field.name])
    return words


def _add_flag(group: Any, name: str, hint: Any, text: str) -> None:
    # without a default, so that what neither was typed nor stands in the file is not in the namespace
    options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
    if get_origin(hint) in (Union, types.UnionType):
        words = [word for part in get_args(hint) if get_origin(part) is Literal for word in get_args(part)]
        if words:
            group.add_argument(f"--{name}", type=_NumberOr(words), metavar=f"FLOAT|{'|'.join(words)}", **options)
            return
        hint = next(part for part in get_args(hint) if part is not type(None))
    if hint is bool:
        group.add_argument(f"--{name}", f"--no_{name}", action=_Switch, **options)
    elif get_origin(hint) is Literal:
        group.add_argument(f"--{name}", choices=get_args(hint), **options)
    elif get_origin(hint) is list:
        group.add_argument(f"--{name}", nargs="+", metavar=name.removesuffix("s").upper(), **options)
    else:
        group.add_argument(f"--{name}", type=hint, metavar=hint.__name__.upper(), **options)


class _NumberOr:
    """Reads a number, or one of some words."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.__name__ = f"number or {' or '.join(words)}"  # argparse names it in its errors

    def __call__(self, text: str) -> float | str:
        return text if text in self.words else float(text)


class _Switch(argparse.Action):
    """`--name` for true, `--no_name` for false."""

    def __init__(self, option_strings: list[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **options)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, not str(option_string).startswith("--no_"))


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default is not dataclasses.MISSING else None
