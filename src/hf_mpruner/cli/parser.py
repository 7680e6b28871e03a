"""The argument parser: errors in one line, both spellings of a flag, suggestions for a slip of the pen."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn


class UsageError(ValueError):
    """What was typed cannot be meant; exit code 2."""


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors. `--max-metric-drop` is read as `--max_metric_drop`."""

    def __init__(
        self, *, prog: str, usage: str | None = None, description: str | None = None, epilog: str | None = None
    ) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> argparse.Namespace:  # type: ignore[override]
        """Parse, and name the nearest flag for one that does not exist."""
        words = [_underscored(word) for word in (sys.argv[1:] if args is None else args)]
        parsed, unknown = self.parse_known_args(words)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            self.error(f"unknown argument {unknown[0]}{closest(unknown[0].partition('=')[0], flags)}")
        return parsed

    def error(self, message: str) -> NoReturn:
        """One line and exit code 2, without the usage of forty flags."""
        self.exit(2, f"hf-mpruner: error: {message}. See {self.prog} --help.\n")


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """The model, which of its revisions, and whether code of its own may run."""
    parser.add_argument("model", metavar="MODEL", help="Hub id or folder")
    parser.add_argument("--revision", help="branch, tag or commit of the model")
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="run the Python code that comes with the model (default: a model that needs it is refused)",
    )


def same_trust(args: argparse.Namespace) -> list[str]:
    """The flag again, for a command to try next."""
    return ["--trust_remote_code"] if args.trust_remote_code else []


def same_words(args: argparse.Namespace, names: Iterable[str]) -> list[str]:
    """Flags as they were given, for a command to try next.

    Example:
        >>> same_words(argparse.Namespace(task=None, text_column=["a", "b"]), ["task", "text_column"])
        ['--text_column', 'a', 'b']
    """
    words: list[str] = []
    for name in names:
        value = getattr(args, name, None)
        if value is not None and value != "" and value is not False:
            values = value if isinstance(value, list) else [] if value is True else [value]
            words += [f"--{name}", *map(str, values)]
    return words


def closest(word: str, known: Iterable[str]) -> str:
    """A question about the nearest known word, or nothing.

    Example:
        >>> closest("analyse", ["inspect", "analyze"])
        " (did you mean 'analyze'?)"
    """
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return f"--{flag[2:].replace('-', '_')}{equals}{value}"
