"""The sentences of a card, each from facts of the report; what is not known makes no sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_mpruner.config import PruningConfig
from hf_mpruner.record import Measurement, PruningRecord, Round
from hf_mpruner.report import PruningReport, format_bytes

from .check import is_hub_id
from .facts import ModelFacts
from .words import code, count, number, numbers, plain, settings

# Settings that a sentence of their own tells.
_TOLD = ("threshold", "max_metric_drop", "metric", "greater_is_better")


def kept_round(report: PruningReport) -> Round | None:
    """The round that the weights are of; `None` if they are those of the uncut model."""
    decided = [round_ for round_ in report.rounds if round_.verdict in ("accepted", "unjudged")]
    return decided[-1] if decided else None


def state(report: PruningReport) -> list[str]:
    """What must be said before anything else: this is not a finished, judged model."""
    record, kept = report.record, kept_round(report)
    if record.pending:
        return [
            f"Training goes on. Round {record.pending.number} has been cut and is not judged yet: what is measured below "
            "ends with the round before, and the weights here are not those of a result."
        ]
    said = []
    if record.stopped is None:
        said.append("Training goes on, and further rounds may follow.")
    if kept is not None and kept.verdict == "unjudged":
        said.append("No evaluation judged this cut: how well the smaller model does its task is not known.")
    return said


def opening(report: PruningReport, model: ModelFacts, base_model: str | None) -> str:
    """The first sentence: what this is."""
    plan, revision = report.plan, report.record.source_revision
    depth = sum(stack.depth for stack in plan.stacks.values())
    what = code(model.class_name)
    if base_model:
        at = f" at revision {code(revision)}" if revision and base_model == report.record.source_model else ""
        what += f", pruned from [{base_model}](https://huggingface.co/{base_model}){at}"
    end = "" if base_model else " The model it was pruned from is not on the Hub, or its name there is not known."
    if report.record.pending:
        return f"{what}.{end}"
    if not plan.num_removed:
        return f"{what}: none of its {depth} layers was removed.{end}"
    return f"{what}: {plan.num_removed} of {count(depth, 'layer')} removed, chosen by how alike they are (CKA).{end}"


def headlines(report: PruningReport) -> list[str]:
    """Before and after in a few lines: size, metric, latency."""
    before, after, record = report.before, report.after, report.record
    if before is None or after is None or record.pending:
        return []
    fewer = 1 - after.parameters / before.parameters if before.parameters else 0.0
    lines = [
        f"**Size**: {before.parameters:,} -> {after.parameters:,} parameters ({fewer:.1%} fewer), "
        f"{format_bytes(before.num_bytes)} -> {format_bytes(after.num_bytes)}"
    ]
    if record.metric and before.metric is not None and after.metric is not None:
        lines.append(_metric_line(report, before.metric, after))
    if before.latency_seconds is not None and after.latency_seconds is not None:
        lines.append(
            f"**Latency**: {before.latency_seconds * 1000:.2f} ms -> {after.latency_seconds * 1000:.2f} ms, the median of a "
            f"forward pass{_latency_of(record)}"
        )
    return lines


def _metric_line(report: PruningReport, before: float, after: Measurement) -> str:
    record, kept = report.record, kept_round(report)
    line = f"**{plain(record.metric)}**: {number(before)} -> {number(after.metric or 0.0)}"
    if kept is not None and kept.drop is not None:
        line += f" ({'better' if kept.drop <= 0 else 'worse'} by {number(abs(kept.drop))})"
    judging = record.data.get("judging", {})
    examples = after.num_examples or judging.get("num_examples")
    source = _source(judging)
    if examples or source:
        line += " on" + (f" {count(examples, 'example')}" if examples else "")
        line += (f" of {source}" if examples else f" {source}") if source else ""
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
    parts += [f"on {plain(record.device)}"] if record.device else []
    return f" ({', '.join(parts)})" if parts else ""


def _shape(shape: Any) -> str:
    return " x ".join(map(str, shape)) if isinstance(shape, list | tuple) else plain(shape)


def stack_rows(report: PruningReport) -> list[str]:
    """A row for each stack: depth before and after, what went, what stays, in the original numbering."""
    return [
        f"| {code(path)} | {stack.depth} | {len(stack.kept)} | {numbers(stack.removed)} | {numbers(stack.kept)} |"
        for path, stack in report.plan.stacks.items()
    ]


def data_lines(report: PruningReport) -> list[str]:
    """Which data chose, judged and trained."""
    roles = {
        "calibration": "**Chose the layers** (similarity was measured on it)",
        "judging": "**Judged** every round",
        "training": "**Trained** the model",
    }
    lines = []
    for role, words in roles.items():
        part = report.record.data.get(role, {})
        source, examples = _source(part), part.get("num_examples")
        facts = [*([source] if source else []), *([count(examples, "example")] if examples else [])]
        if facts:
            lines.append(f"{words}: {', '.join(facts)}")
    return lines


def _source(part: Mapping[str, Any]) -> str:
    """Data in words: the Hub id with its configuration and split, or what else is known of it."""
    if is_hub_id(part.get("dataset")):
        name = f"[{part['dataset']}](https://huggingface.co/datasets/{part['dataset']})"
    elif part.get("source"):
        name = plain(part["source"])
    else:
        return ""
    facts = [f"{key} {code(part[key])}" for key in ("config", "split", "revision") if part.get(key)]
    return f"{name} ({', '.join(facts)})" if facts else name


def recovery_lines(report: PruningReport, config: PruningConfig) -> list[str]:
    """How the rounds were decided, and what trained between a cut and its verdict."""
    record = report.record
    lines = [
        f"Neighbouring layers with a similarity (CKA) of {config.threshold:g} or more form a cluster; of each cluster the "
        "first layer stays, or every k-th."
    ]
    if record.metric and any(round_.drop is not None for round_ in report.rounds):
        better = {True: " (greater is better)", False: " (smaller is better)"}.get(
            record.greater_is_better or False, ""
        )
        lines.append(
            f"A round was kept if {code(record.metric)}{better} was worse than the uncut model's by {config.max_metric_drop:g} "
            "at most."
        )
    default = PruningConfig().to_dict()
    changed = {key: value for key, value in config.to_dict().items() if value != default[key] and key not in _TOLD}
    if changed:
        lines.append(f"Settings that are not hf\\_mpruner's own defaults: {settings(changed)}.")
    if not report.rounds:
        return lines
    if all(round_.recovery_seconds == 0 and round_.decided_at_step == 0 for round_ in report.rounds):
        lines.append("Nothing trained between a cut and its verdict.")
    elif record.training:
        lines.append(f"Between a cut and its verdict the model trained with {settings(record.training)}.")
    return lines


def limits(report: PruningReport, config: PruningConfig, base_model: str | None) -> list[str]:
    """What these numbers do not say."""
    record, kept, after = report.record, kept_round(report), report.after
    chose, judged = record.data.get("calibration", {}), record.data.get("judging", {})
    said = []
    measured = after is not None and after.metric is not None
    if measured:
        said.append("All numbers are from the data and the device named here; nothing else was tried.")
    else:
        said.append("No metric was measured.")
    if _same(chose, judged):
        said.append("The layers were chosen on the same data that judged the rounds, which flatters the result.")
    tries = sum(round_.drop is not None for round_ in report.rounds)
    if tries > 1:
        said.append(
            f"The judging data decided {tries} rounds, so its numbers are a little too good: data that decided nothing "
            "would say how much."
        )
    said += _noise(kept, after, record)
    if kept is not None and kept.decided_at_step and not config.stop_when_done:
        said.append(
            f"It was measured at training step {kept.decided_at_step:,}. If training went on after that, the weights are "
            "newer than the numbers."
        )
    inherited = (
        f"[{base_model}](https://huggingface.co/{base_model})" if base_model else "the model it was pruned from"
    )
    said.append(f"Biases and limits of {inherited} were not examined, and are to be expected here as well.")
    return said


def _noise(kept: Round | None, after: Measurement | None, record: PruningRecord) -> list[str]:
    if kept is None or kept.drop is None or after is None or not record.metric:
        return []
    if not after.interval:
        return [
            f"How much of the difference in {code(record.metric)} is chance is not known: no interval was computed."
        ]
    half = (after.interval[1] - after.interval[0]) / 2
    if abs(kept.drop) >= half:
        return []
    return [
        f"The difference in {code(record.metric)} ({number(abs(kept.drop))}) is smaller than half the width of its "
        f"{record.confidence:.0%} interval ({number(half)}): it may be chance."
    ]


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    keys = ("dataset", "source", "config", "split", "revision")
    described = [key for key in ("dataset", "source") if one.get(key)]
    return bool(described) and all(one.get(key) == other.get(key) for key in keys)


def all_settings(config: PruningConfig, record: PruningRecord) -> dict[str, Any]:
    """Every setting that has a value, for whoever wants to repeat the run."""
    given = {key: value for key, value in config.to_dict().items() if value is not None}
    found: dict[str, Any] = {"pruning": given}
    return {**found, "training": record.training} if record.training else found
