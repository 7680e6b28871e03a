"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping


def format_bytes(num_bytes: int) -> str:
    """Bytes in decimal units.

    Example:
        >>> format_bytes(437_947_416)
        '437.9 MB'
    """
    value, unit = float(num_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"


def format_count(count: float) -> str:
    """A large number with a letter.

    Example:
        >>> format_count(85_054_608), format_count(1_200)
        ('85.1M', '1.2K')
    """
    letter, size = _letter(count)
    return f"{count / size:.1f}{letter}" if letter else f"{count:g}"


def _letter(count: float) -> tuple[str, float]:
    for letter, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= 0.99995 * size:  # what would be rounded to 1000.0 of the smaller one
            return letter, size
    return "", 1.0


def format_rate(rate: float) -> str:
    """How many in a second.

    Example:
        >>> format_rate(12_345.6), format_rate(876.66)
        ('12,346', '876.7')
    """
    return f"{rate:,.0f}" if rate >= 1000 else f"{rate:.4g}"


def format_seconds(seconds: float) -> str:
    """A duration in the unit that suits it.

    Example:
        >>> format_seconds(0.0213), format_seconds(2.5), format_seconds(4000)
        ('21.3 ms', '2.50 s', '1 h 07 min')
    """
    if seconds < 1:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 120:
        return f"{seconds:.2f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_ranges(layers: Iterable[int]) -> str:
    """Layer numbers with runs drawn together.

    Example:
        >>> format_ranges((2, 3, 4, 7))
        '2-4, 7'
    """
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def cost_in_words(cost: Mapping[str, float], over: str = "the calibration data") -> str:
    """What scoring layers has cost.

    Args:
        cost (`Mapping[str, float]`): of `Round.scores["cost"]`.
        over (`str`): the data that the model ran on.

    Example:
        >>> cost_in_words({"forward_passes": 12.0, "backward_passes": 1.0, "seconds": 3.25})
        '12 forward passes and 1 backward pass over the calibration data, 3.25 s'
        >>> cost_in_words({"forward_passes": 0.0, "backward_passes": 0.0, "seconds": 0.002})
        'no pass over the calibration data, 2.0 ms'
    """
    found = [(kind, cost.get(f"{kind}_passes", 0.0)) for kind in ("forward", "backward")]
    passes = [
        f"{f'{number:.2f}'.rstrip('0').rstrip('.')} {kind} pass{'' if number == 1 else 'es'}"
        for kind, number in found
        if number
    ]
    count = " and ".join(passes) or "no pass"
    return f"{count} over {over}, {format_seconds(cost.get('seconds', 0.0))}"


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    Example:
        >>> counted(1, "layer"), counted(3, "layer")
        ('1 layer', '3 layers')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values that cover an axis, about `count` of them; the first and the last lie at or beyond its ends.

    Example:
        >>> nice_ticks(0.87, 0.943)
        [0.86, 0.88, 0.9, 0.92, 0.94, 0.96]
    """
    span = high - low
    rough = span / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def tick_labels(ticks: list[float]) -> list[str]:
    """Ticks with as many decimals as the step needs.

    Example:
        >>> tick_labels([0.0, 0.025, 0.05])
        ['0.000', '0.025', '0.050']
    """
    decimals = next(d for d in range(13) if all(abs(tick - round(tick, d)) < 1e-9 for tick in ticks))
    return [f"{tick:.{decimals}f}" for tick in ticks]


def count_labels(ticks: list[float]) -> list[str]:
    """Ticks of an axis of large numbers, with one letter for all.

    Example:
        >>> count_labels([0.0, 500_000.0, 1_000_000.0])
        ['0.0M', '0.5M', '1.0M']
    """
    letter, size = _letter(max(ticks, default=0.0))
    return [f"{label}{letter}" for label in tick_labels([tick / size for tick in ticks])]
