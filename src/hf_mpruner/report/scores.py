"""What a criterion said of every layer: a mark for each, for the browser and for files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_mpruner.record import CHOSEN_BY_JUDGE, PruningRecord, Round

from .charts import draw_cell, padded
from .proposals import proposals_in_words
from .series import STATES, State, decided_rounds, short_names
from .style import FAINT, LOOKS, new_figure, plain_axes
from .svg import Axis, add, drawing, to_text, with_title
from .words import cost_in_words, format_ranges, nice_ticks, tick_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Marks say which layer was removed first up to this depth; beyond it the numbers would not be readable.
_MAX_LABELLED = 32


@dataclass(frozen=True)
class ScoreMarks:
    """The scores of one stack before a round.

    Args:
        criterion (`str`): its name.
        path (`str`): dotted path of the stack.
        layers (`tuple[int, ...]`): original numbers of the layers that were left.
        values (`tuple` of `float` or `None`): a score for each; the lowest go first.
        states (`tuple`): what the round did to each: kept, removed, or in a cut that was rejected.
        order (`tuple[int, ...]`): of a greedy criterion, original numbers in the order of removal.
    """

    criterion: str
    path: str
    layers: tuple[int, ...]
    values: tuple[float | None, ...]
    states: tuple[State, ...]
    order: tuple[int, ...] = ()

    @property
    def in_words(self) -> str:
        """For who cannot see the marks."""
        known = [(value, layer) for layer, value in zip(self.layers, self.values, strict=True) if value is not None]
        going = [layer for layer, state in zip(self.layers, self.states, strict=True) if state != "kept"]
        ends = f" Lowest: layer {min(known)[1]}, highest: layer {max(known)[1]}." if known else ""
        return f"Scores of {self.path} by {self.criterion}.{ends} To go: {format_ranges(going) or 'none'}."


@dataclass(frozen=True)
class ScoredRound:
    """What a criterion said before a round, of every stack that it scored.

    Args:
        round_ (`Round`): decided on it.
        criterion (`str`): its name.
        title (`str`): what it measures, in one line.
        cost (`str`): of scoring, in words.
        marks (`tuple[ScoreMarks, ...]`): a stack each.
        proposals (`tuple[str, ...]`): whose proposal was taken, if several criteria made some.
    """

    round_: Round
    criterion: str
    title: str
    cost: str
    marks: tuple[ScoreMarks, ...]
    proposals: tuple[str, ...] = ()


def chosen_by(record: PruningRecord) -> list[str]:
    """Names of the criteria that chose layers in this run, as far as the record says so; `"cka"` of clusters."""
    found = [round_.criterion for round_ in record.rounds if round_.scores or round_.similarity]
    return list(dict.fromkeys(found))


def total_cost(record: PruningRecord) -> dict[str, float]:
    """What scoring has cost over the whole run, as `Round.scores["cost"]`; empty if nothing was scored.

    Rounds after a rejected one were decided on the same scores, which count once.
    """
    total: dict[str, float] = {}
    last: dict[str, Any] = {}
    for round_ in record.rounds:
        if round_.scores and round_.scores != last:
            for name, value in (round_.scores.get("cost") or {}).items():
                total[name] = total.get(name, 0.0) + value
        last = round_.scores
    return total


def chose_on_data(record: PruningRecord) -> bool:
    """Whether calibration data had a part in which layers went, as far as is known."""
    cost = total_cost(record)
    return not cost or cost.get("forward_passes", 0.0) > 0


def scored_rounds(record: PruningRecord) -> list[ScoredRound]:
    """Every decided round with scores."""
    over = chosen_over(record)
    return [_scored(round_, over) for round_ in decided_rounds(record) if round_.scores]


def chosen_over(record: PruningRecord) -> str:
    """The data that criteria ran on, in words."""
    if "choosing" in record.data:
        return "the choosing data"
    source = record.data.get("calibration", {}).get("source")
    return CHOSEN_BY_JUDGE if source == CHOSEN_BY_JUDGE else "the calibration data"


def _scored(round_: Round, over: str) -> ScoredRound:
    change: State = "candidate" if round_.verdict == "rejected" else "removed"
    marks = marks_of(round_.scores, round_.kept, change)
    cost = cost_in_words(round_.scores.get("cost") or {}, over)
    return ScoredRound(
        round_,
        round_.criterion,
        round_.scores.get("title", ""),
        cost,
        tuple(marks),
        tuple(proposals_in_words(round_.scores, round_.kept)),
    )


def marks_of(values: Mapping[str, Any], kept: Mapping[str, Sequence[int]], change: State) -> list[ScoreMarks]:
    """Marks of scores as a record holds them.

    Args:
        values (`Mapping`): `Round.scores`.
        kept (`Mapping[str, Sequence[int]]`): original numbers of the layers that stay.
        change (`State`): what becomes of the others.
    """
    found = []
    for path, one in values["scores"].items():
        states: tuple[State, ...] = tuple("kept" if layer in kept[path] else change for layer in one["layers"])
        order = tuple(one.get("order") or ())
        layers, scores = tuple(one["layers"]), tuple(one["values"])
        found.append(ScoreMarks(values["criterion"], path, layers, scores, states, order))
    return found


def score_chart(marks: ScoreMarks) -> str:
    """A mark over each layer that was left, those that go apart by form as well as by colour.

    The axis holds the values and need not begin at 0: losses without a layer differ in their last digits.
    """
    count = len(marks.layers)
    cell = 30.0 if count <= 20 else max(9.0, 820 / count)
    left, top, height, bottom = 78.0, 16.0, 150.0, 40.0
    kind = "scores" if count <= 20 else "scores wide"
    svg = drawing(left + cell * count + 12, top + height + bottom, marks.in_words, kind)
    known = [value for value in marks.values if value is not None] or [0.0]
    y = Axis(*padded(min(known), max(known), 0.12), top + height, top)
    ticks = [tick for tick in nice_ticks(y.low, y.high, 4) if y.low <= tick <= y.high]
    for tick, label in zip(ticks, _labels(ticks), strict=True):
        add(svg, "path", class_="grid", d=f"M{left:g} {y(tick):.2f}H{left + cell * count:.2f}")
        add(svg, "text", label, x=left - 8, y=y(tick) + 4, text_anchor="end")
    place = {layer: number for number, layer in enumerate(marks.order, 1)}
    side = min(14.0, cell - 2)
    for i, (layer, value, state) in enumerate(zip(marks.layers, marks.values, marks.states, strict=True)):
        x = left + cell * (i + 0.5)
        if value is not None:
            words = f"layer {layer}: {value:.6g}, {STATES[state]}"
            words += f", {_ordinal(place[layer])} to go" if layer in place else ""
            add(svg, "path", class_="grid", d=f"M{x:.2f} {top + height:g}V{y(value):.2f}")
            group = with_title(add(svg, "g", class_=f"cell {state}"), words)
            draw_cell(group, x - side / 2, y(value) - side / 2, side, side, state)
            if layer in place and count <= _MAX_LABELLED:
                add(svg, "text", str(place[layer]), x=x, y=y(value) - side / 2 - 3, text_anchor="middle")
        if count <= _MAX_LABELLED or i % 4 == 0:
            add(svg, "text", str(layer), x=x, y=top + height + 15, text_anchor="middle")
    middle = left + cell * count / 2
    add(svg, "text", "layer of the original model", class_="name", x=middle, y=top + height + 33, text_anchor="middle")
    return to_text(svg)


def _labels(ticks: list[float]) -> list[str]:
    """Gradients are tiny and norms are large: powers of ten where decimals would be all zeros or too many."""
    usual = len(ticks) > 1 and ticks[1] - ticks[0] >= 1e-7 and max(map(abs, ticks)) < 1e6
    return tick_labels(ticks) if usual else [f"{tick:.4g}" for tick in ticks]


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def draw_scores(marks: ScoreMarks, when: str = "") -> Figure:
    """The same marks as matplotlib draws them.

    Args:
        marks (`ScoreMarks`): of one stack.
        when (`str`): what the title says beside the stack: "before round 1".

    Raises:
        ImportError: if matplotlib is not installed.
    """
    count = len(marks.layers)
    figure = new_figure(max(4.8, min(13.0, 0.3 * count + 1.6)), 2.9)
    ax = figure.add_subplot()
    place = {layer: number for number, layer in enumerate(marks.order, 1)}
    known = [value for value in marks.values if value is not None] or [0.0]
    low, high = padded(min(known), max(known), 0.18)
    for i, (layer, value, state) in enumerate(zip(marks.layers, marks.values, marks.states, strict=True)):
        if value is None:
            continue
        ax.vlines(i, low, value, color=FAINT, linewidth=1.2, zorder=1)
        ax.scatter(i, value, s=72, marker="s", linewidth=0.8, zorder=2, **LOOKS[state])
        if layer in place and count <= _MAX_LABELLED:
            offset: dict[str, Any] = {"xytext": (0, 5), "textcoords": "offset points"}
            ax.annotate(str(place[layer]), (i, value), ha="center", va="bottom", fontsize=7, **offset)
    step = 1 if count <= _MAX_LABELLED else 4
    ax.set_xticks(range(0, count, step), [str(layer) for layer in marks.layers[::step]])
    ax.set_xlim(-0.6, count - 0.4)
    ax.set_ylim(low, high)
    name = short_names([marks.path])[marks.path]
    ax.set_title(", ".join(part for part in (name, when) if part), fontsize=9, loc="left")
    ax.set_ylabel(marks.criterion, fontsize=9)
    ax.set_xlabel("layer (original numbering); lowest go first", fontsize=9)
    plain_axes(ax)
    ax.ticklabel_format(axis="y", useOffset=False)
    ax.grid(visible=False, axis="x")
    shown = [state for state in STATES if state in marks.states]
    from matplotlib.patches import Patch

    handles = [Patch(label=STATES[state], **LOOKS[state]) for state in shown]
    figure.legend(handles=handles, loc="outside lower left", ncols=2, frameon=False, fontsize=8)
    return figure
