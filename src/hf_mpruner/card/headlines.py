"""Before and after in a few lines, at the top of a card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_mpruner.record import Measurement, PruningRecord
from hf_mpruner.report import (
    PruningReport,
    cache_in_words,
    format_bytes,
    format_rate,
    promise_in_words,
    saved_apart,
    throughput,
)

from .prose import described, kept_round
from .words import code, count, number, plain


def headlines(report: PruningReport) -> list[str]:
    """Before and after in a few lines: size, metric, what is promised of it, latency, cache."""
    before, after, record = report.before, report.after, report.record
    if before is None or after is None or record.pending:
        return []
    fewer = 1 - after.parameters / before.parameters if before.parameters else 0.0
    lines = [
        f"**Size**: {before.parameters:,} -> {after.parameters:,} parameters ({fewer:.1%} fewer), "
        f"{format_bytes(before.num_bytes)} -> {format_bytes(after.num_bytes)}{_as_saved(record, after)}"
    ]
    if record.metric and before.metric is not None and after.metric is not None:
        lines.append(_metric_line(report, before.metric, after))
    if words := promise_in_words(record):
        lines.append(f"**Promise**: {plain(words)}")
    if before.latency_seconds is not None and after.latency_seconds is not None:
        lines.append(
            f"**Latency**: {before.latency_seconds * 1000:.2f} ms -> {after.latency_seconds * 1000:.2f} ms, the median of a "
            f"forward pass{_latency_of(record)}"
        )
        done = [throughput(record, one) for one in (before, after)]
        lines[-1] += "".join(
            f"; {format_rate(done[0][name])} -> {format_rate(done[1][name])} {name} per second"
            for name in done[1]
            if name in done[0]
        )
    if before.single_latency_seconds is not None and after.single_latency_seconds is not None:
        one, other = before.single_latency_seconds, after.single_latency_seconds
        lines.append(
            f"**Latency of one example** (the first of that batch, with its padding): {one * 1000:.2f} ms -> "
            f"{other * 1000:.2f} ms"
        )
    if before.cache and after.cache:
        kept = plain(after.cache.get("dtype"))
        lines.append(
            f"**Cache of a sequence** ({kept}): {cache_in_words(before.cache)} -> {cache_in_words(after.cache)}"
        )
    return lines


def _as_saved(record: PruningRecord, after: Measurement) -> str:
    """What the files take, where that is known and not what the parameters take."""
    saved = saved_apart(after)
    if record.disk_bytes is not None:
        return f"; {format_bytes(record.disk_bytes)} on disk"
    return "" if saved is None else f"; {format_bytes(saved)} as saved"


def _metric_line(report: PruningReport, before: float, after: Measurement) -> str:
    record, kept = report.record, kept_round(report)
    line = f"**{plain(record.metric)}**: {number(before)} -> {number(after.metric or 0.0)}"
    if kept is not None and kept.drop is not None:
        line += f" ({'better' if kept.drop <= 0 else 'worse'} by {number(abs(kept.drop))})"
    data = described(record.data.get("judging", {}), after.num_examples)
    line += f" on {data}" if data else ""
    if after.interval:
        low, high = after.interval
        line += f"; {record.confidence:.0%} interval after pruning {number(low)} to {number(high)}"
    return line


def _latency_of(record: PruningRecord) -> str:
    latency = record.latency
    parts = [f"batch of {latency['batch_size']}"] if latency.get("batch_size") else []
    shapes = latency.get("shape")
    if isinstance(shapes, Mapping):
        parts += [f"{code(name)} {_shape(shape)}" for name, shape in shapes.items()]
    elif shapes:
        parts.append(_shape(shapes))
    parts += [code(latency["dtype"])] if latency.get("dtype") else []
    parts += [f"{latency['repeats']} repeats"] if latency.get("repeats") else []
    device = latency.get("device") or record.device
    parts += [f"on {plain(device)}"] if device else []
    parts += [count(latency["threads"], "thread")] if latency.get("threads") else []
    return f" ({', '.join(parts)})" if parts else ""


def _shape(shape: Any) -> str:
    return " x ".join(map(str, shape)) if isinstance(shape, list | tuple) else plain(shape)
