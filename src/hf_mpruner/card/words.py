"""Small parts of Markdown: names that may hold anything, numbers, lists of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_SPECIAL = str.maketrans({char: f"\\{char}" for char in "\\`*_[]<>|#"})


def plain(text: object) -> str:
    """Text on one line that Markdown shows as it is, and that cannot end a comment or begin one of ours."""
    return " ".join(str(text).split()).translate(_SPECIAL)


def code(text: object) -> str:
    """A name as a code span, whatever is in it.

    Example:
        >>> code("bert.encoder.layer"), code("a`b")
        ('`bert.encoder.layer`', '`` a`b ``')
    """
    shown = " ".join(str(text).split()).replace("|", "¦")
    if "`" not in shown:
        return f"`{shown}`"
    fence = "`" * (max(len(run) for run in _runs(shown)) + 1)
    return f"{fence} {shown} {fence}"


def number(value: float) -> str:
    """A metric as the tables have it."""
    return f"{value:.4f}"


def numbers(layers: Sequence[int]) -> str:
    """Layer numbers, runs of three or more as a span.

    Example:
        >>> numbers((0, 2, 3, 4, 7, 8))
        '0, 2-4, 7, 8'
    """
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    parts = [[f"{run[0]}-{run[-1]}"] if len(run) > 2 else [str(layer) for layer in run] for run in runs]
    return ", ".join(part for run in parts for part in run) or "none"


def settings(values: Mapping[str, Any]) -> str:
    """Settings in a row: `` `learning_rate` 5e-05, `seed` 0 ``."""
    return ", ".join(f"{code(key)} {_value(value)}" for key, value in values.items())


def count(number_of: int, noun: str) -> str:
    """A number of things: `1 layer`, `2,000 examples`."""
    return f"{number_of:,} {noun}{'' if number_of == 1 else 's'}"


def _value(value: Any) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else code(value)


def _runs(text: str) -> list[str]:
    return [run for run in "".join(char if char == "`" else " " for char in text).split() if run]
