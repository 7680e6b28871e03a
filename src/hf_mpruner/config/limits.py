"""Limits on what a cut model may have: `60M` parameters, `250MB`, `12ms`, or `60%` of the uncut model's."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

# For each field of `PruningConfig` that is a limit: what a unit stands for, and an example for errors.
UNITS: dict[str, tuple[dict[str, float], str]] = {
    "target_parameters": ({"": 1, "K": 1e3, "M": 1e6, "B": 1e9}, "60M"),
    "target_size": ({"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}, "250MB"),
    "target_latency": ({"MS": 1e-3, "S": 1.0}, "12ms"),
}
_TEXT = re.compile(r"\s*([0-9_]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([a-zA-Z%]*)\s*")


@dataclass(frozen=True)
class Limit:
    """The most that a cut model may have.

    Args:
        value (`float`): parameters, bytes or seconds; or a fraction in 0..1 of what the uncut model has.
        relative (`bool`): whether it is a fraction.
    """

    value: float
    relative: bool = False

    def of(self, uncut: float) -> float:
        """The limit itself, in parameters, bytes or seconds.

        Args:
            uncut (`float`): what the uncut model has.
        """
        return self.value * uncut if self.relative else self.value


def limit_text(name: str, given: Any) -> str | None:
    """A limit as a string.

    Args:
        name (`str`): of the field.
        given (`str`, `int` or `float`, *optional*): a number without a unit is one of parameters or bytes.

    Raises:
        ValueError: for what is no limit.
    """
    if given is None:
        return None
    text = repr(given) if isinstance(given, float) else str(given)
    read_limit(name, text)
    return text.strip()


def read_limit(name: str, text: str) -> Limit:
    """Read a limit.

    Args:
        name (`str`): of the field, for the units and for errors.
        text (`str`): a number and a unit, or a percentage.

    Raises:
        ValueError: says what to type instead.

    Example:
        >>> read_limit("target_parameters", "1.2B").value
        1200000000.0
        >>> read_limit("target_latency", "60%")
        Limit(value=0.6, relative=True)
    """
    units, example = UNITS[name]
    found = _TEXT.fullmatch(text)
    unit = found[2].upper() if found else ""
    value = float(found[1]) if found else math.nan
    if found and unit == "%" and 0 < value <= 100:
        return Limit(value / 100, relative=True)
    if found and unit in units and value * units[unit] >= (1 if "" in units else 1e-9):
        return Limit(value * units[unit])
    fraction = f" For {value:.0%} of the uncut model's write '{value:.0%}'." if unit == "" and 0 < value < 1 else ""
    raise ValueError(
        f"{name}={text!r} is no limit: write a number with a unit ({', '.join(filter(None, units))}), e.g. {example!r}, or "
        f"'60%' of what the uncut model has.{fraction}"
    )
