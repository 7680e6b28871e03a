"""A report as README.md: metadata, title, and the section that is ours."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from hf_mpruner.config import PruningConfig
from hf_mpruner.report import PruningReport, run_cost_in_words
from hf_mpruner.report.limits import limits_in_words
from hf_mpruner.report.plots import file_name

from .check import check_card, is_hub_id
from .facts import ModelFacts
from .front import BEGIN, END, dump_yaml, written_note
from .headlines import headlines
from .metadata import build_metadata
from .prose import (
    all_settings,
    credits,
    data_lines,
    has_trained,
    kept_now,
    limits,
    opening,
    recovery_lines,
    stack_rows,
    state,
)
from .snippets import replay_snippet, usage_snippet
from .words import code, plain

_BEFORE, _AFTER, _SCORES = "similarity_round_", "similarity_after_", "scores_round_"


def render_card(
    report: PruningReport,
    *,
    model: ModelFacts,
    config: PruningConfig | None = None,
    repo_id: str | None = None,
    title: str,
    pictures: Sequence[str] = (),
    base_model: str | None = None,
    license: str | None = None,
    language: str | Sequence[str] | None = None,
    tags: Sequence[str] = (),
    datasets: Sequence[str] = (),
) -> str:
    """The whole README.md of a pruned model.

    Args:
        report (`PruningReport`): every number is from it.
        model (`ModelFacts`): of the pruned model.
        config (`PruningConfig`, *optional*): by default the one in the report's record.
        repo_id (`str`, *optional*): where its code loads the model from; by default the folder that the card lies in.
        title (`str`): the heading.
        pictures (sequence of `str`): names relative to the card, as `write_plots` gives them.
        base_model (`str`, *optional*): Hub id of the model that was pruned, if the record does not know it.
        license (`str`, *optional*): the Hub's name of it.
        language (`str` or sequence of `str`, *optional*): ISO 639 codes.
        tags (sequence of `str`): more of them.
        datasets (sequence of `str`): more of them; what is no Hub id is left out.

    Returns:
        `str`: metadata, heading, and the text between `<!-- hf_mpruner: begin -->` and `<!-- hf_mpruner: end -->`.

    Raises:
        ValueError: for a license or a language that the Hub does not know.
    """
    if config is None and report.record.config:
        config = PruningConfig.from_dict(report.record.config)
    named = (report.record.source_model, base_model, model.base_model)
    base = next((name for name in named if is_hub_id(name)), None)
    metadata = build_metadata(
        report, model, name=title, base_model=base, license=license, language=language, tags=tags, datasets=datasets
    )
    values = _values(report, model, config, repo_id or ".", base, pictures)
    text = _template().render(values).strip().replace("<!--", "<! --")  # no name may end our section
    section = f"{BEGIN}\n{written_note(metadata)}\n\n{text}\n\n{END}"
    card = f"---\n{dump_yaml(metadata)}---\n\n# {plain(title)}\n\n{section}\n"
    check_card(card)
    return card


def _values(
    report: PruningReport,
    model: ModelFacts,
    config: PruningConfig | None,
    source: str,
    base: str | None,
    pictures: Sequence[str],
) -> dict[str, Any]:
    record = report.record
    removed = kept_now(record) != {path: list(range(depth)) for path, depth in record.depths.items()}
    revision = record.source_revision if base == record.source_model else None
    targets = [f"`{limit}` {words}." for limit, words in limits_in_words(record).items()]
    stopped = [f"The run stopped: {plain(record.stopped)}."] if record.stopped else []
    given = all_settings(config, record)
    settings = json.dumps(given, indent=2, default=str, ensure_ascii=False)
    return {
        "state": state(report),
        "opening": opening(report, model, base),
        "headlines": headlines(report),
        "usage": usage_snippet(model, source),
        "class_name": code(model.class_name),
        "table": _table(report),
        "after_table": [*(f"{plain(text[0].upper() + text[1:])}" for text in report.refusals), *targets, *stopped],
        "removed": removed,
        "rows": stack_rows(record),
        **_pictures(report, pictures),
        "data": data_lines(report),
        "how": [*recovery_lines(report, config), *_run_cost(report)],
        "settings": settings if given else "",
        "limits": limits(report, config, base),
        "replay": replay_snippet(model, source, base, revision) if removed and not record.pending else "",
        "command": _apply_command(source, base, revision) if removed and base and not record.pending else "",
        "trained": has_trained(report),
        "credits": credits(report),
        "versions": _versions(report),
    }


def _table(report: PruningReport) -> str:
    """The report's table; a name with a `|` in it adds no column."""
    header, *rows = report.to_markdown().splitlines()
    for name in (report.record.metric or "", *report.record.depths):
        if "|" in name:
            header = header.replace(name, name.replace("|", "\\|"), 1)
    return "\n".join([header, *rows])


def _run_cost(report: PruningReport) -> list[str]:
    words = run_cost_in_words(report.record)
    return [f"What it took: {words}."] if words else []


def _apply_command(source: str, base: str | None, revision: str | None) -> str:
    at = ["--revision", revision] if revision else []
    return shlex.join(["hf-mpruner", "apply", str(base), *at, "--plan", source, "--output_dir", "out"])


def _versions(report: PruningReport) -> str:
    record = report.record
    parts = [f"{name} {version}" for name, version in record.versions.items()]
    parts += [record.device] if record.device else []
    parts += [f"{record.world_size} processes"] if record.world_size > 1 else []
    return f"{plain(', '.join(parts))}." if parts else ""


def _pictures(report: PruningReport, pictures: Sequence[str]) -> dict[str, list[str]]:
    """Pictures by where they stand: curves under the table, scores, heat maps before and after, the rounds between."""
    maps = [name for name in pictures if Path(name).name.startswith((_BEFORE, _AFTER))]
    scores = [name for name in pictures if Path(name).name.startswith(_SCORES)]
    rounds = report.rounds
    at_first = f"{_SCORES}{rounds[0].number}_" if rounds else _SCORES
    first = f"{_BEFORE}{rounds[0].number}_" if rounds else ""
    rows, shown = [], set()
    for path in report.record.depths:
        pair = [_named(maps, f"{first}{file_name(path)}.png"), _named(maps, f"{_AFTER}{file_name(path)}.png")]
        found = [(label, name) for label, name in zip(("before", "after"), pair, strict=True) if name]
        if not found or not first:
            continue
        shown |= {name for _, name in found}
        titles = [f"{code(path)} {label}" for label, _ in found]
        rows += ["", f"| {' | '.join(titles)} |", f"|{' :---: |' * len(found)}"]
        rows.append(f"| {' | '.join(_image(name) for _, name in found)} |")
    return {
        "curves": [_image(name) for name in pictures if name not in (*maps, *scores)],
        "scores": [_image(name) for name in scores if Path(name).name.startswith(at_first)],
        "more_scores": [_image(name) for name in scores if not Path(name).name.startswith(at_first)],
        "heat_maps": rows[1:],
        "more_pictures": [_image(name) for name in maps if name not in shown],
    }


def _named(names: Sequence[str], name: str) -> str | None:
    return next((found for found in names if Path(found).name == name), None)


def _image(name: str) -> str:
    return f"![{plain(Path(name).stem.replace('_', ' '))}]({quote(name)})"


@cache
def _template() -> jinja2.Template:
    # not read as HTML: this is Markdown, and what goes in is escaped for that (words.py)
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    return environment.from_string((Path(__file__).parent / "template.md.jinja").read_text(encoding="utf-8"))
