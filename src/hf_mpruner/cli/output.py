"""What a command prints: data to stdout as a table, JSON or a bare line; talk to stderr."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from .processes import rank


def add_format(parser: argparse.ArgumentParser) -> None:
    """The flag that every command has."""
    parser.add_argument(
        "--format", choices=("table", "json", "quiet"), default="table", help="what goes to stdout (default: table)"
    )


def show(args: argparse.Namespace, *, table: str, values: Mapping[str, Any], quiet: str) -> None:
    """Print the result of a command in the form that was asked for; of several processes the main one does."""
    if rank() != 0:
        return
    print({"table": table, "json": json.dumps(values, indent=2, allow_nan=False), "quiet": quiet}[args.format])


def say(args: argparse.Namespace, text: str) -> None:
    """A line to stderr, beside any progress bar; nothing with `--format quiet`, or from other processes than the main one."""
    if args.format != "quiet" and rank() == 0:
        from tqdm.auto import tqdm

        tqdm.write(text, file=sys.stderr)


def command_line(*words: object) -> str:
    """A command to copy, quoted for the shell.

    Example:
        >>> command_line("inspect", "my model")
        "hf-mpruner inspect 'my model'"
    """
    return shlex.join(["hf-mpruner", *map(str, words)])


def align(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Columns of text, left-aligned but for those named in `right`.

    Example:
        >>> print(align(["stack", "depth"], [["encoder.layer", "12"]], right=[1]))
        stack          depth
        encoder.layer     12
    """
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, *rows]
    ]
    return "\n".join(lines)
