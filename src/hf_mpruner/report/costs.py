"""What a model takes, as the report says it: times, what they make in a second, size as saved, cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_mpruner.record import Measurement, PruningRecord

from .words import format_bytes, format_seconds

_COUNTED = {"forward_passes": ("forward pass", "forward passes"), "steps": ("step", "steps")}


def throughput(record: PruningRecord, measured: Measurement) -> dict[str, float]:
    """What a model gets done in a second, in passes as they were timed.

    Args:
        record (`PruningRecord`): says what was timed.
        measured (`Measurement`): of one model.

    Returns:
        `dict[str, float]`: `examples` a second, and of text `tokens` a second, padding left out; empty if it was not timed.
    """
    seconds, timed = measured.latency_seconds, record.latency
    if not seconds:
        return {}
    counts = {"examples": timed.get("batch_size"), "tokens": timed.get("num_tokens")}
    return {name: count / seconds for name, count in counts.items() if count}


def saved_apart(measured: Measurement) -> int | None:
    """Bytes of a model as it is saved, where they are not those of its parameters, but for a hundredth."""
    saved = measured.saved_bytes
    return None if saved is None or abs(saved - measured.num_bytes) * 100 <= measured.num_bytes else saved


def cache_per_token(measured: Measurement) -> str:
    """Bytes that a token adds to the cache, as a cell of a table; empty of a model without one."""
    return format_bytes(measured.cache["bytes_per_token"]) if measured.cache else ""


def cache_in_words(cache: Mapping[str, Any]) -> str:
    """What the cache of one sequence takes.

    Args:
        cache (`Mapping`): `Measurement.cache`.

    Example:
        >>> cache_in_words({"bytes_per_token": 36_864, "constant_bytes": 0})
        '36.9 kB per token'
        >>> windowed = {"bytes_per_token": 512, "bytes_per_late_token": 256, "num_tokens": 8192, "num_bytes": 2_100_992}
        >>> cache_in_words({**windowed, "constant_bytes": 0})
        '512 B per token, 256 B from the end of a window of 15 tokens on'
        >>> cache_in_words({"bytes_per_token": 0, "constant_bytes": 8192})
        '8.2 kB whatever the length'
    """
    each, constant, late = cache["bytes_per_token"], cache["constant_bytes"], cache.get("bytes_per_late_token")
    parts = [f"{format_bytes(each)} per token"] if each else []
    if late is not None and late < each:
        window = round((cache["num_bytes"] - constant - late * cache["num_tokens"]) / (each - late))
        parts.append(f"{format_bytes(late)} from the end of a window of {window:,} tokens on")
    if cache.get("bytes_per_source_token"):
        parts.append(f"{format_bytes(cache['bytes_per_source_token'])} per token of the source")
    if constant:
        parts.append(f"{format_bytes(constant)} whatever the length")
    return ", ".join(parts)


def cost_values(record: PruningRecord, before: Measurement | None, after: Measurement | None) -> dict[str, Any]:
    """What a model took before and takes now, with what was derived from it, ready for JSON."""
    values: dict[str, Any] = {}
    for when, measured in (("before", before), ("after", after)):
        each = {} if measured is None else throughput(record, measured)
        values |= {
            f"latency_seconds_{when}": measured.latency_seconds if measured else None,
            f"single_latency_seconds_{when}": measured.single_latency_seconds if measured else None,
            f"examples_per_second_{when}": each.get("examples"),
            f"tokens_per_second_{when}": each.get("tokens"),
            f"saved_bytes_{when}": measured.saved_bytes if measured else None,
            f"cache_bytes_per_token_{when}": measured.cache.get("bytes_per_token") if measured else None,
        }
    spent = {"spent": spent_by_stage(record), "peak_memory": dict(record.peak_memory)}
    return {**values, "disk_bytes": record.disk_bytes, **spent}


def spent_by_stage(record: PruningRecord) -> dict[str, dict[str, float]]:
    """What the run has cost, for each stage: `seconds`, and `forward_passes` or `steps` where they are known."""
    found = {stage: dict(spent) for stage, spent in record.spent.items()}
    trained = [round_ for round_ in record.rounds if round_.decided_at_step > round_.started_at_step]
    if trained:
        seconds = sum(round_.recovery_seconds for round_ in trained)
        steps = sum(round_.decided_at_step - round_.started_at_step for round_ in trained)
        found["recovering"] = {"seconds": seconds, "steps": steps}
    return found


def run_cost_in_words(record: PruningRecord) -> str:
    """What the run has cost, in one line; empty of a record that does not know.

    Example:
        >>> record = PruningRecord({"layers": 2}, spent={"measuring": {"seconds": 3.0, "forward_passes": 8}})
        >>> record.peak_memory["process"] = 812_000_000
        >>> run_cost_in_words(record)
        'measuring 3.00 s (8 forward passes); at most 812.0 MB of memory in the process'
    """
    parts: list[str] = []
    if not record.spent:
        return ""
    for stage, spent in spent_by_stage(record).items():
        known = [
            f"{spent[key]:,.0f} {one if spent[key] == 1 else many}"
            for key, (one, many) in _COUNTED.items()
            if spent.get(key)
        ]
        parts.append(f"{stage} {format_seconds(spent['seconds'])}" + (f" ({', '.join(known)})" if known else ""))
    held = [f"{format_bytes(held)} of memory in the {where}" for where, held in record.peak_memory.items()]
    words = ", ".join(parts)
    return f"{words}; at most {' and '.join(held)}" if held and words else words
