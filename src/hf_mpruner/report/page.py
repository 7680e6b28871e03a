"""A report as one HTML file: everything is in it, nothing is fetched, no script runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_mpruner.record import Measurement, PruningRecord, Round
from hf_mpruner.similarity import SimilarityMatrix

from .charts import (
    curve_key,
    heat_map,
    metric_chart,
    similarity_chart,
    similarity_scale,
    state_key,
    strip_chart,
)
from .costs import cache_in_words, run_cost_in_words, saved_apart, throughput
from .limits import limits_in_words
from .promised import promise_in_words, promised_bound
from .scores import chose_on_data, score_chart, scored_rounds
from .series import (
    STATES,
    MeasuredModel,
    decided_rounds,
    layer_strips,
    measured_models,
    metric_curve,
    short_names,
    threshold_of,
)
from .words import counted, format_bytes, format_count, format_ranges, format_rate, format_seconds

if TYPE_CHECKING:
    from jinja2 import Template

PAGE_NAME = "report.html"
_DATA_NAMES = {
    "training": "Training",
    "calibration": "Choosing layers",
    "choosing": "Choosing layers",
    "judging": "Judging rounds",
}


def render_page(record: PruningRecord, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The whole page; what the record does not know is left out.

    Args:
        record (`PruningRecord`): the run.
        header (`list[str]`): names of the table's columns.
        rows (`list[list[str]]`): its cells; the first of a row names the model.
    """
    models, names = measured_models(record), short_names(list(record.depths))
    curve = metric_curve(record)
    return _template().render(
        title=f"Pruning report: {_name(record)}" if _name(record) else "Pruning report",
        name=_name(record),
        summary=_summary(record),
        promise=promise_in_words(record),
        tiles=_tiles(record),
        header=header,
        rows=rows,
        kept_row=str(_accepted(record)[-1].number) if _accepted(record) else "original",
        strips=[(strip.path, strip_chart(strip)) for strip in layer_strips(record)] if decided_rounds(record) else [],
        states=_states(record),
        metric=metric_chart(curve) if curve else "",
        curve=curve,
        curves=_curves(record, models),
        curve_keys=[(model.name, curve_key(i, model)) for i, model in enumerate(models)],
        threshold=threshold_of(record),
        scored=[
            (scored, [(marks.path, score_chart(marks)) for marks in scored.marks]) for scored in scored_rounds(record)
        ],
        models=_models(models, names),
        how=_how_all(models),
        scale=similarity_scale(),
        verdicts=[(round_, _facts_of_round(round_)) for round_ in decided_rounds(record)],
        stopped=record.stopped,
        groups=[(heading, facts) for heading, facts in _groups(record) if facts],
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string((Path(__file__).parent / "page.html.jinja").read_text(encoding="utf-8"))


def _name(record: PruningRecord) -> str:
    return record.source_model or record.model_type or ""


def _accepted(record: PruningRecord) -> list[Round]:
    return [round_ for round_ in decided_rounds(record) if round_.verdict != "rejected"]


def _after(record: PruningRecord) -> Measurement | None:
    accepted = _accepted(record)
    return accepted[-1].after if accepted else record.baseline


def _summary(record: PruningRecord) -> str:
    """What was removed, in one sentence."""
    strips, model = layer_strips(record), _name(record) or "the model"
    removed = {strip.path: sorted(set(range(strip.depth)) - set(strip.kept)) for strip in strips}
    total = sum(map(len, removed.values()))
    if not total:
        rounds = len(decided_rounds(record))
        why = ": the cut was rejected" if rounds == 1 else f": all {rounds} cuts were rejected" if rounds else ""
        return f"No layer of {model} was removed{why}."
    where = "; ".join(f"{format_ranges(layers)} of {path}" for path, layers in removed.items() if layers)
    verb = "was" if total == 1 else "were"
    return f"{total} of {counted(sum(record.depths.values()), 'layer')} of {model} {verb} removed: {where}."


def _tiles(record: PruningRecord) -> list[tuple[str, str, str]]:
    """Name, before and after, and what that means, of the figures that matter most."""
    before, after = record.baseline, _after(record)
    strips = layer_strips(record)
    tiles = [("layers", _change(sum(one.depth for one in strips), sum(len(one.kept) for one in strips)), "")]
    if before is None or after is None:
        return tiles
    fewer = 1 - after.parameters / before.parameters if before.parameters else 0
    counts = (format_count(before.parameters), format_count(after.parameters))
    tiles.append(("parameters", _change(*counts), f"{fewer:.1%} fewer" if fewer else ""))
    saved = saved_apart(after)
    note = "" if saved is None else f"{format_bytes(saved)} as saved"
    tiles.append(("size", _change(format_bytes(before.num_bytes), format_bytes(after.num_bytes)), note))
    if before.metric is not None and after.metric is not None:
        allowed, accepted = record.config.get("max_metric_drop"), _accepted(record)
        note = f"drop {accepted[-1].drop:+.4f}" if accepted and accepted[-1].drop is not None else ""
        bound = promised_bound(record)
        note += f", at most {bound.upper:+.4f}" if note and bound else ""
        note = f"{note}, {allowed:g} allowed" if note and allowed is not None else note
        tiles.append((record.metric or "metric", _change(f"{before.metric:.4f}", f"{after.metric:.4f}"), note))
    for name, one, other in (
        (_batch_name(record), before.latency_seconds, after.latency_seconds),
        ("latency of one example", before.single_latency_seconds, after.single_latency_seconds),
        ("evaluation", before.evaluation_seconds, after.evaluation_seconds),
    ):
        if one is not None and other is not None:
            faster = one / other if other else 1.0
            note = f"{faster:.2f} times as fast" if f"{faster:.2f}" != "1.00" else ""
            tiles.append((name, _change(format_seconds(one), format_seconds(other)), note))
    if before.cache and after.cache:
        each = [format_bytes(one.cache["bytes_per_token"]) for one in (before, after)]
        tiles.append(("cache for each token", _change(*each), ""))
    return tiles


def _batch_name(record: PruningRecord) -> str:
    size = record.latency.get("batch_size")
    return f"latency of {size} examples" if size and size > 1 else "latency"


def _costs(record: PruningRecord) -> list[tuple[str, str]]:
    """What a model gets done in a second and what it takes, before and after."""
    found = [*limits_in_words(record).items()]
    found += [("cost of the run", words)] if (words := run_cost_in_words(record)) else []
    both = [one for one in (record.baseline, _after(record)) if one is not None]
    if len(both) < 2:
        return found
    each = [throughput(record, one) for one in both]
    for name in each[1]:
        if name in each[0]:
            found.append((f"{name} a second", _change(*(format_rate(one[name]) for one in each))))
    for name in ("latency_range", "single_latency_range"):
        ranges = [getattr(one, name) for one in both]
        if all(ranges):
            what = "one example" if name.startswith("single") else "a batch"
            found.append((f"fastest and slowest pass of {what}", _change(*(_range(one) for one in ranges))))
    caches = [cache_in_words(one.cache) for one in both if one.cache]
    return [*found, *([("cache of a sequence", _change(*caches))] if len(caches) == 2 else [])]


def _range(seconds: Sequence[float]) -> str:
    return f"{format_seconds(seconds[0])} to {format_seconds(seconds[1])}"


def _change(before: int | str, after: int | str) -> str:
    one, other = (f"{value:,}" if isinstance(value, int) else value for value in (before, after))
    return (
        one
        if one == other
        else f"{one} → {other}".replace(" ", "\N{NO-BREAK SPACE}").replace("→\N{NO-BREAK SPACE}", "→ ")
    )


def _states(record: PruningRecord) -> list[tuple[str, str]]:
    shown = {state for strip in layer_strips(record) for row in strip.rows for state in row.states}
    return [(words, state_key(state)) for state, words in STATES.items() if state in shown]


def _curves(record: PruningRecord, models: list[MeasuredModel]) -> list[tuple[str, str]]:
    threshold, found = threshold_of(record), []
    for path, depth in record.depths.items():
        measured = [model for model in models if path in model.matrices and len(model.matrices[path].layers) > 1]
        if measured:
            found.append((path, similarity_chart(path, depth, models, threshold)))
    return found


def _decided_on(model: MeasuredModel) -> str:
    if not model.rounds:
        return ""
    rounds = format_ranges(model.rounds)
    return f"round {rounds} was decided on it" if len(model.rounds) == 1 else f"rounds {rounds} were decided on it"


def _models(models: list[MeasuredModel], names: dict[str, str]) -> list[tuple[str, list[tuple[str, str, str, str]]]]:
    """Heat maps under headings: of a model with one stack all side by side, of others a heading a measured model."""
    maps = [
        (
            model,
            [
                (names.get(path, path), _how(matrix), heat_map(matrix, model.clusters.get(path, [])))
                for path, matrix in model.matrices.items()
            ],
        )
        for model in models
    ]
    if not models:
        return []
    if len(names) == 1:
        figures = [
            (_capital(model.name), _decided_on(model), how, picture)
            for model, found in maps
            for _, how, picture in found
        ]
        return [("", figures)]
    return [
        (
            _capital(f"{model.name}: {decided}" if (decided := _decided_on(model)) else model.name),
            [(path, "", how, picture) for path, how, picture in found],
        )
        for model, found in maps
    ]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _how_all(models: list[MeasuredModel]) -> str:
    """The one way in which all were measured; empty if there are several."""
    found = {_how(matrix) for model in models for matrix in model.matrices.values()}
    return found.pop() if len(found) == 1 else ""


def _how(matrix: SimilarityMatrix) -> str:
    return str(matrix).splitlines()[0].partition(": ")[2]


def _facts_of_round(round_: Round) -> str:
    facts = [f"k = {round_.granularity}"]
    if round_.decided_at_step:
        facts.append(f"steps {round_.started_at_step:,} to {round_.decided_at_step:,}")
    if round_.analysis_seconds:
        what = f"layers scored by {round_.criterion}" if round_.scores else "similarity measured"
        facts.append(f"{what} in {format_seconds(round_.analysis_seconds)}")
    if round_.decided_at_step > round_.started_at_step and round_.recovery_seconds:
        facts.append(f"recovery {format_seconds(round_.recovery_seconds)}")
    return ", ".join(facts)


def _groups(record: PruningRecord) -> list[tuple[str, list[tuple[str, str]]]]:
    """Everything else that is known, as names and values under headings."""
    metrics = _metrics(record)
    names = _DATA_NAMES if chose_on_data(record) else {**_DATA_NAMES, "calibration": "Measuring"}
    data = [(names.get(use, use.replace("_", " ")), _data_in_words(facts)) for use, facts in record.data.items()]
    run = _plain({"base model": record.source_model, "revision": record.source_revision, "model type": record.model_type,
                  "device": record.device, "processes": record.world_size if record.world_size > 1 else None})  # fmt: skip
    return [
        ("Model and machine", run),
        ("Data", [(use, facts) for use, facts in data if facts]),
        ("Other measured values", metrics),
        ("Where metrics come from", _plain(record.metric_sources)),
        ("Latency", _plain({**record.latency, "shape": _shapes(record.latency.get("shape"))})),
        ("Speed and memory", _costs(record)),
        ("Recovery training", _plain(record.training)),
        ("Settings", _plain(record.config)),
        ("Versions", _plain(record.versions)),
    ]


def _data_in_words(facts: Mapping[str, Any]) -> str:
    named = {"source": "{}", "dataset": "{}", "num_examples": "{} examples"}
    known = {name: text for name, value in facts.items() if (text := _text(value, counts=name.startswith("num_")))}
    first = [named[name].format(known[name]) for name in named if name in known]
    return ", ".join(
        [*first, *(f"{name.replace('_', ' ')} {text}" for name, text in known.items() if name not in named)]
    )


def _metrics(record: PruningRecord) -> list[tuple[str, str]]:
    """Values beside the deciding one, before and after."""
    before, after = record.baseline, _after(record)
    if before is None or after is None:
        return []
    both = [name for name in before.metrics if name in after.metrics and name != record.metric]
    return [(name, _change(f"{before.metrics[name]:.4f}", f"{after.metrics[name]:.4f}")) for name in both]


def _shapes(shapes: Any) -> str:
    """Shapes of inputs by name, e.g. `input_ids 32 x 128`."""
    if not isinstance(shapes, Mapping):
        return _text(shapes)
    return ", ".join(f"{name} {_text(shape).replace(', ', ' x ')}" for name, shape in shapes.items())


def _plain(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values as text, without what is not known."""
    return [(name.replace("_", " "), text) for name, value in facts.items() if (text := _text(value))]


def _text(value: Any, counts: bool = False) -> str:
    """A plain value in words; empty if it says nothing."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {text}" for name, text in _plain(value))
    if isinstance(value, list | tuple):
        return ", ".join(text for one in value if (text := _text(one)))
    return f"{value:,}" if counts and isinstance(value, int) else str(value)
