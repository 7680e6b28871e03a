"""The model card of a narrowed model: README.md written from its report, beside whatever a person wrote."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from hf_mpruner.card import BEGIN, END, ModelFacts, check_card
from hf_mpruner.card.check import is_hub_id
from hf_mpruner.card.front import dump_yaml, written_note
from hf_mpruner.card.metadata import known_metrics, model_index, unique
from hf_mpruner.card.prose import described
from hf_mpruner.card.snippets import replay_snippet, usage_snippet
from hf_mpruner.card.words import code, count, number, plain, settings
from hf_mpruner.report import format_bytes
from hf_mpruner.width import find_neuron_criterion

from .report import NarrowingReport, NarrowingRound

_UNITS = {"neurons": "feed-forward neurons", "heads": "attention heads (with grouped queries, groups of them)"}


def render_narrowing_card(
    report: NarrowingReport,
    *,
    model: ModelFacts,
    repo_id: str | None = None,
    title: str,
    base_model: str | None = None,
    license: str | None = None,
    language: str | Sequence[str] | None = None,
    tags: Sequence[str] = (),
) -> str:
    """The whole README.md of a narrowed model.

    Args:
        report (`NarrowingReport`): every number is from it.
        model (`ModelFacts`): of the narrowed model.
        repo_id (`str`, *optional*): where its code loads the model from; by default the folder that the card lies in.
        title (`str`): the heading.
        base_model (`str`, *optional*): Hub id of the model that was narrowed, if the plan does not know it.
        license (`str`, *optional*): the Hub's name of it.
        language (`str` or sequence of `str`, *optional*): ISO 639 codes.
        tags (sequence of `str`): more of them.

    Returns:
        `str`: metadata, heading, and the text between `<!-- hf_mpruner: begin -->` and `<!-- hf_mpruner: end -->`.

    Raises:
        ValueError: for a license or a language that the Hub does not know.
    """
    base = next((name for name in (report.plan.source_model, base_model, model.base_model) if is_hub_id(name)), None)
    metadata = _metadata(report, model, title, base)
    metadata |= {"license": license, "language": [language] if isinstance(language, str) else list(language or ())}
    metadata["tags"] = unique([*metadata["tags"], *tags])
    metadata = {key: value for key, value in metadata.items() if value not in (None, "", [])}
    parts = [
        *_state(report),
        _opening(report, model, base),
        _bullets(_headlines(report)),
        _usage(model, repo_id or "."),
        f"## Measured\n\n{_table(report)}",
        f"## What was removed\n\n{_removed(report)}",
        _titled("Data", _bullets(_data(report))),
        _titled("How it was narrowed", _how(report)),
        f"## Limits\n\n{_bullets(_limits(report, base))}",
        _reproduce(report, model, repo_id or ".", base),
        _titled("Versions", _versions(report)),
        _titled("Source", _source(report)),
    ]
    text = "\n\n".join(part for part in parts if part).replace("<!--", "<! --")  # no name may end our section
    section = f"{BEGIN}\n{written_note(metadata)}\n\n{text}\n\n{END}"
    card = f"---\n{dump_yaml(metadata)}---\n\n# {plain(title)}\n\n{section}\n"
    check_card(card)
    return card


def _metadata(report: NarrowingReport, model: ModelFacts, title: str, base: str | None) -> dict[str, Any]:
    last = _last(report)
    metrics = known_metrics({report.metric_name: last.metric} if last and report.metric_name else {})
    sources = [part.get("dataset") for part in report.data.values()]
    chosen = report.plan.evidence.get("criterion")
    found = {
        "library_name": "transformers",
        "pipeline_tag": model.pipeline_tag,
        "license": None,
        "language": [],
        **({"base_model": base, "base_model_relation": "finetune"} if base else {}),
        "tags": ["pruned", "width-pruning", "hf_mpruner", *([chosen.replace("_", "-")] if chosen else [])],
        "datasets": unique(name for name in sources if is_hub_id(name)),
        "metrics": unique(metric["type"] for metric in metrics),
        "model-index": model_index(report.data.get("judging", {}), model, title, metrics),
    }
    return found


def _last(report: NarrowingReport) -> NarrowingRound | None:
    """The round that the weights are of."""
    return next((one for one in reversed(report.rounds) if one.accepted), None)


def _state(report: NarrowingReport) -> list[str]:
    if report.rounds:
        return []
    return [
        "> [!WARNING]\n> No evaluation judged this, and nothing was trained in the course of it: how well the narrower model does "
        "its task is not known."
    ]


def _opening(report: NarrowingReport, model: ModelFacts, base: str | None) -> str:
    what = code(model.class_name)
    if base:
        revision = report.plan.source_revision if base == report.plan.source_model else None
        at = f" at revision {code(revision)}" if revision else ""
        what += f", narrowed from [{base}](https://huggingface.co/{base}){at}"
    end = "" if base else " The model it was narrowed from is not on the Hub, or its name there is not known."
    gone: dict[str, list[int]] = {}
    for kind, size, kept, layers in report.sizes:
        total = gone.setdefault(kind, [0, 0])
        total[0] += (size - kept) * layers
        total[1] += size * layers
    parts = [f"{removed:,} of {size:,} {_UNITS[kind].partition(' (')[0]}" for kind, (removed, size) in gone.items()]
    chosen = report.plan.evidence.get("criterion")
    return f"{what}: {' and '.join(parts) or 'nothing'} removed{f', chosen by {code(chosen)}' if chosen else ''}.{end}"


def _headlines(report: NarrowingReport) -> list[str]:
    size, last = report.preview, _last(report)
    fewer = 1 - size.parameters_after / size.parameters_before
    lines = [
        f"**Size**: {size.parameters_before:,} -> {size.parameters_after:,} parameters ({fewer:.1%} fewer), "
        f"{format_bytes(size.bytes_before)} -> {format_bytes(size.bytes_after)}"
    ]
    if last is not None and report.baseline is not None:
        verdict = f"{'better' if last.drop <= 0 else 'worse'} by {number(abs(last.drop))}"
        line = f"**{plain(report.metric_name)}**: {number(report.baseline)} -> {number(last.metric)} ({verdict})"
        judged = described(report.data.get("judging", {}))
        lines.append(f"{line} on {judged}" if judged else line)
    return lines


def _usage(model: ModelFacts, source: str) -> str:
    usage = usage_snippet(model, source)
    if usage is None:
        return f"## Use\n\nThe class {code(model.class_name)} is defined in its author's own script, whose code is not here."
    return f"## Use\n\n```python\n{usage}\n```"


def _table(report: NarrowingReport) -> str:
    size = report.preview
    if not report.rounds:
        return "\n".join([
            "| | parameters | size |", "| :--- | ---: | ---: |",
            f"| original | {size.parameters_before:,} | {format_bytes(size.bytes_before)} |",
            f"| narrowed | {size.parameters_after:,} | {format_bytes(size.bytes_after)} |",
        ])  # fmt: skip
    before = "" if report.baseline is None else number(report.baseline)
    rows = [
        f"| | parameters | {plain(report.metric_name)} | drop | verdict |", "| :--- | ---: | ---: | ---: | :--- |",
        f"| original | {size.parameters_before:,} | {before} | | |",
    ]  # fmt: skip
    return "\n".join([
        *rows,
        *(
            f"| round {one.number} | {one.parameters:,} | {number(one.metric)} | {one.drop:+.4f} | "
            f"{'kept' if one.accepted else 'taken back'} |"
            for one in report.rounds
        ),
    ])  # fmt: skip


def _removed(report: NarrowingReport) -> str:
    rows = [f"| {_UNITS[kind]} | {layers} | {size} | {kept} |" for kind, size, kept, layers in report.sizes]
    head = ["| what | layers | in each before | in each after |", "| :--- | ---: | ---: | ---: |"]
    return "\n".join(
        [*head, *rows, "", "Which ones, layer by layer and in the original numbering, is in `width_plan.json`."]
    )


def _data(report: NarrowingReport) -> list[str]:
    roles = {"calibration": "**Chose** what goes", "judging": "**Judged** every round"}
    parts = {role: described(report.data.get(role, {})) for role in roles}
    return [f"{words}: {parts[role]}" for role, words in roles.items() if parts[role]]


def _how(report: NarrowingReport) -> str:
    told = {key: value for key, value in report.plan.evidence.items() if value is not None}
    lines = [f"With {settings(told)}."] if told else []
    if report.rounds:
        lines.append(f"In {count(len(report.rounds), 'round')}, with a training of its own after each.")
    return " ".join(lines)


def _limits(report: NarrowingReport, base: str | None) -> list[str]:
    last = _last(report)
    said = ["No metric was measured."]
    if last is not None:
        said = ["All numbers are from the data and the device named here; nothing else was tried."]
        said.append(f"How much of the difference in {code(report.metric_name)} is chance is not known.")
        if len(report.rounds) > 1:
            said.append(f"The judging data decided {len(report.rounds)} rounds, so its numbers are a little too good.")
    inherited = f"[{base}](https://huggingface.co/{base})" if base else "the model it was narrowed from"
    return [*said, f"Biases and limits of {inherited} were not examined, and are to be expected here as well."]


def _reproduce(report: NarrowingReport, model: ModelFacts, source: str, base: str | None) -> str:
    if not report.plan.num_removed:
        return ""
    revision = report.plan.source_revision if base == report.plan.source_model else None
    replay = replay_snippet(model, source, base, revision, "WidthPlan", "apply_width_plan_")
    without = ", without the training that followed it" if report.rounds else ""
    lines = ["## Reproduce", f"The same on a fresh copy of the original model{without}:", f"```python\n{replay}\n```"]
    if base:
        at = ["--revision", revision] if revision else []
        command = shlex.join(["hf-mpruner", "narrow", base, *at, "--plan", source, "--output_dir", "out"])
        lines += ["Or on the command line:", f"```bash\n{command}\n```"]
    return "\n\n".join(lines)


def _versions(report: NarrowingReport) -> str:
    parts = [f"{name} {version}" for name, version in report.versions.items()]
    parts += [report.device] if report.device else []
    return f"{plain(', '.join(parts))}." if parts else ""


def _source(report: NarrowingReport) -> str:
    chosen = report.plan.evidence.get("criterion")
    if not chosen:
        return ""
    try:
        return f"{code(chosen)}: {plain(find_neuron_criterion(chosen).source)}."
    except ValueError:  # the user's own, of another process
        return f"{code(chosen)} is a criterion of the user's own."


def _titled(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
