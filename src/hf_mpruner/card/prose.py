"""The sentences of a card, each from facts of the report; what is not known makes no sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_mpruner.config import PruningConfig
from hf_mpruner.criteria import OF_SIMILARITY, find_criterion
from hf_mpruner.record import CHOSEN_BY_JUDGE, Measurement, PruningRecord, Round
from hf_mpruner.report import (
    PruningReport,
    chose_on_data,
    chosen_by,
    chosen_over,
    cost_in_words,
    total_cost,
)

from .check import is_hub_id
from .facts import ModelFacts
from .words import code, count, number, numbers, plain, settings

# Settings that a sentence of their own tells.
_TOLD = ("threshold", "max_metric_drop", "confidence", "metric", "greater_is_better", "criterion")
_FEWER = " (in a round with k=2 or k=3 a half or a third of that number)."

# Of the Trainer's settings, what a sentence tells unless it has this value; all of them are below it.
_WORTH_TELLING: dict[str, Any] = {
    "optimizer": None, "learning_rate": None, "lr_scheduler_type": None, "scheduler": None,
    "per_device_train_batch_size": None, "gradient_accumulation_steps": 1, "weight_decay": 0.0, "warmup_steps": 0,
    "label_smoothing_factor": 0.0, "bf16": False, "fp16": False, "world_size": 1,
}  # fmt: skip


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
    record = report.record
    removed = sum(depth - len(kept_now(record)[path]) for path, depth in record.depths.items())
    depth = sum(record.depths.values())
    what = code(model.class_name)
    if base_model:
        at = f" at revision {code(record.source_revision)}" if _is_dated(record, base_model) else ""
        what += f", pruned from [{base_model}](https://huggingface.co/{base_model}){at}"
    end = "" if base_model else " The model it was pruned from is not on the Hub, or its name there is not known."
    if not removed:
        return f"{what}: none of its {depth} layers was removed.{end}"
    return f"{what}: {removed} of {count(depth, 'layer')} removed{_chosen(record)}.{end}"


def _chosen(record: PruningRecord) -> str:
    """By what the layers were chosen, as the end of a sentence; empty if that is not known."""
    names = chosen_by(record)
    if names == ["cka"]:
        return ", chosen by how alike they are (CKA)"
    return f", chosen by {_named(record, names)}" if names else ""


def _named(record: PruningRecord, names: list[str]) -> str:
    """Criteria with what they measure: `` `greedy_loss` (loss without the layer) ``."""
    titles = {round_.criterion: round_.scores.get("title", "") for round_ in record.rounds if round_.scores}
    told = [code(name) + (f" ({plain(titles[name])})" if titles.get(name) else "") for name in names]
    return " and ".join(told)


def kept_now(record: PruningRecord) -> dict[str, list[int]]:
    """Layers that the weights have, in the original numbering: those of a round that is being recovered, too."""
    return record.pending.kept if record.pending else record.kept


def has_trained(report: PruningReport) -> bool:
    """Whether anything trained: a verdict that waits for no training takes a moment, but no step."""
    return any(round_.decided_at_step > 0 for round_ in report.rounds)


def _is_dated(record: PruningRecord, base_model: str) -> bool:
    return bool(record.source_revision) and base_model == record.source_model


def stack_rows(record: PruningRecord) -> list[str]:
    """A row for each stack: depth before and after, what went, what stays, in the original numbering."""
    rows = []
    for path, depth in record.depths.items():
        kept = kept_now(record)[path]
        removed = sorted(set(range(depth)) - set(kept))
        rows.append(f"| {code(path)} | {depth} | {len(kept)} | {numbers(removed)} | {numbers(kept)} |")
    return rows


def data_lines(report: PruningReport) -> list[str]:
    """Which data chose, judged and trained."""
    record = report.record
    similar = set(chosen_by(record)) <= OF_SIMILARITY
    what = "similarity was" if similar else "their scores were"
    chose = f"**Chose the layers** ({what} measured on it)"
    roles = {
        **({"calibration": chose, "choosing": chose} if chose_on_data(record) else {}),
        "judging": "**Judged** every round",
        "training": "**Trained** the model",
    }
    parts = {role: described(record.data.get(role, {})) for role in roles}
    return [f"{words}: {parts[role]}" for role, words in roles.items() if parts[role]]


def described(part: Mapping[str, Any], examples: int | None = None) -> str:
    """Data in words: how many examples, and the Hub id with its configuration and split, or what else is known of it."""
    examples = examples or part.get("num_examples")
    how_many = count(examples, "example") if examples else ""
    facts = [f"{key} {code(part[key])}" for key in ("config", "split", "revision") if part.get(key)]
    if is_hub_id(part.get("dataset")):
        name = f"[{part['dataset']}](https://huggingface.co/datasets/{part['dataset']})"
        return (f"{how_many} of {name}" if how_many else name) + (f" ({', '.join(facts)})" if facts else "")
    facts = [*([plain(part["source"])] if part.get("source") else []), *facts]
    if how_many:
        return f"{how_many} ({', '.join(facts)})" if facts else how_many
    return ", ".join(facts)


def recovery_lines(report: PruningReport, config: PruningConfig | None) -> list[str]:
    """How the rounds were decided, and what trained between a cut and its verdict."""
    record = report.record
    if config is None:  # a plan was applied, and each round says so
        reasons = [f"{round_.reason[0].upper()}{round_.reason[1:]}." for round_ in report.rounds if round_.reason]
        return [plain(reason) for reason in reasons]
    lines = _how_chosen(report, config)
    if record.metric and any(round_.drop is not None for round_ in report.rounds):
        better = {True: " (greater is better)", False: " (smaller is better)"}.get(
            record.greater_is_better or False, ""
        )
        lines.append(_how_judged(record, f"{code(record.metric)}{better}", config.max_metric_drop))
    default = PruningConfig().to_dict()
    changed = {key: value for key, value in config.to_dict().items() if value != default[key] and key not in _TOLD}
    if changed:
        lines.append(f"Settings that are not hf\\_mpruner's own defaults: {settings(changed)}.")
    if not report.rounds:
        return lines
    if not has_trained(report):
        lines.append("Nothing trained between a cut and its verdict.")
    elif told := {
        key: value for key, value in record.training.items() if key in _WORTH_TELLING and value != _WORTH_TELLING[key]
    }:
        lines.append(f"Between a cut and its verdict the model trained with {settings(told)}.")
    return lines


def _how_judged(record: PruningRecord, metric: str, allowed: float) -> str:
    """What a round had to show."""
    if not record.promise:
        return (
            f"A round was kept if {metric} was worse than the uncut model's by {allowed} at most. That compares measured values, "
            "and promises nothing about other examples."
        )
    error_rate = 1 - record.promise["confidence"]
    return (
        f"A round was kept if the upper confidence bound of how much worse {metric} is than the uncut model's, example by example, "
        f"was {allowed} at most; all rounds together may err with probability {error_rate:.4g}."
    )


def _how_chosen(report: PruningReport, config: PruningConfig) -> list[str]:
    """Which layers went in a round, and what it cost to know."""
    coarse = any(round_.granularity > 1 for round_ in report.rounds)
    if config.plans_by_threshold:
        return [
            f"Neighbouring layers with a similarity (CKA) of {config.threshold} or more form a cluster, of which the first "
            "stays" + (" (in a round with k=2 or k=3 every second or third, too)." if coarse else ".")
        ]
    record = report.record
    name = _named(record, chosen_by(record) or [config.criterion])
    lines = [f"In each round a number of layers went, chosen by {name}" + (_FEWER if coarse else ".")]
    if record.search:
        tried = sum(round_.was_tested for round_ in record.rounds)
        lines.append(
            "The number was searched for, by galloping and bisection from the last model that was kept: of at most "
            f"{record.search['most_recoveries']} candidates {tried} were judged."
        )
    if cost := total_cost(record):
        lines.append(f"Choosing them took {cost_in_words(cost, chosen_over(record))}.")
    if any(round_.merged for round_ in report.rounds):
        lines.append("Layers that stayed took over a part of the weights of those that went.")
    return lines


def limits(report: PruningReport, config: PruningConfig | None, base_model: str | None) -> list[str]:
    """What these numbers do not say."""
    record, kept, after = report.record, kept_round(report), report.after
    chose = record.data.get("choosing") or record.data.get("calibration", {})
    judged = record.data.get("judging", {})
    said = []
    measured = after is not None and after.metric is not None
    if measured:
        said.append("All numbers are from the data and the device named here; nothing else was tried.")
    else:
        said.append("No metric was measured.")
    if _same(chose, judged):
        said.append("The layers were chosen on the same data that judged the rounds, which flatters the result.")
    tries = sum(round_.drop is not None for round_ in report.rounds)
    if record.promise:
        said.append(
            "What is promised is about examples drawn like those that judged, and about the weights that were judged: not about "
            "other data, and not about a quantised, converted or further trained copy."
        )
    elif tries > 1:
        said.append(
            f"The judging data decided {tries} rounds, so its numbers are a little too good: data that decided nothing "
            "would say how much."
        )
    said += _noise(kept, after, record)
    if measured and kept is not None and kept.decided_at_step and not (config and config.ends_when_done):
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
    if kept is None or kept.drop is None or after is None or not record.metric or kept.bound:
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
    """Whether both are known to be the same data; two sets of the user's own need not be."""
    if CHOSEN_BY_JUDGE in (one.get("source"), other.get("source")):
        return True
    if "drawn_from" in other:  # a part that has no other use
        return False
    if one.get("dataset") or other.get("dataset"):
        return all(one.get(key) == other.get(key) for key in ("dataset", "config", "split", "revision"))
    sources = [str(part.get("source") or "").removeprefix("sample of the ") for part in (one, other)]
    return sources[0] == sources[1] and sources[0] not in ("", "given by the user")


def all_settings(config: PruningConfig | None, record: PruningRecord) -> dict[str, Any]:
    """Every setting that has a value, for whoever wants to repeat the run."""
    pruning = {} if config is None else {key: value for key, value in config.to_dict().items() if value is not None}
    parts: dict[str, Any] = {"pruning": pruning, "training": record.training}
    return {name: values for name, values in parts.items() if values}


def credits(report: PruningReport) -> list[str]:
    """Whose measure chose the layers, where it is not that of the paper below."""
    names = [name for name in chosen_by(report.record) if name != "cka"]
    said = []
    for name in names:
        try:
            source = find_criterion(name).source
        except ValueError:  # the user's own, of another process
            source = ""
        said.append(f"{code(name)}: {plain(source)}" if source else f"{code(name)} is a criterion of the user's own")
    if not said:
        return []
    return [
        f"What chose the layers: {'; '.join(said)}.",
        "Cutting, recovering and judging in rounds is the way of MPruner:",
    ]
