"""What limits a run was given, and whether the model that was kept is within them."""

from __future__ import annotations

from hf_mpruner.record import PruningRecord

from .words import format_bytes

# For each limit the field of `Measurement` that it is about.
_MEASURED = {"target_parameters": "parameters", "target_size": "saved_bytes", "target_latency": "latency_seconds"}


def amount(name: str, value: float) -> str:
    """A value of a limit in words.

    Args:
        name (`str`): of the limit.
        value (`float`): parameters, bytes or seconds.

    Example:
        >>> amount("target_parameters", 1234567), amount("target_size", 2.5e6), amount("target_latency", 0.0123)
        ('1,234,567 parameters', '2.5 MB', '12.30 ms')
    """
    if name == "target_latency":
        return f"{1000 * value:.2f} ms"
    return format_bytes(int(value)) if name == "target_size" else f"{value:,.0f} parameters"


def limits_in_words(record: PruningRecord) -> dict[str, str]:
    """Each limit with what the model that was kept has of it, as it was measured.

    Returns:
        `dict[str, str]`: by the limit as it was given; empty of a run without limits.

    Example:
        >>> from hf_mpruner.record import Measurement
        >>> target = {"asked": {"target_parameters": "60%"}, "limits": {"target_parameters": 600.0}}
        >>> limits_in_words(PruningRecord({"layers": 2}, baseline=Measurement(1000, 4000), target=target))
        {'target_parameters=60%': 'not reached: 1,000 parameters, 600 parameters were asked for'}
    """
    kept = [round_.after for round_ in record.rounds if round_.verdict in ("accepted", "unjudged")]
    after = kept[-1] if kept else record.baseline
    found = {}
    for name, limit in (record.target.get("limits") or {}).items():
        value = None if after is None else getattr(after, _MEASURED[name])
        if value is None:
            words = f"not measured; {amount(name, limit)} were asked for"
        elif value <= limit:
            words = f"reached: {amount(name, value)}, at most {amount(name, limit)}"
        else:
            words = f"not reached: {amount(name, value)}, {amount(name, limit)} were asked for"
        found[f"{name}={record.target['asked'][name]}"] = words
    return found
