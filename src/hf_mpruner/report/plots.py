"""The figures of a report as matplotlib draws them, and the picture files that go beside a model."""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_mpruner.similarity import SimilarityMatrix
from hf_mpruner.storage import write_bytes

from .scores import draw_scores, marks_of, scored_rounds
from .series import (
    STATES,
    LayerStrip,
    MetricCurve,
    MetricPoint,
    State,
    layer_strips,
    measured_models,
    metric_curve,
    middles,
    short_names,
    threshold_of,
)
from .style import CHANGE, INK, KEPT, LOOKS, new_figure, plain_axes
from .words import count_labels, nice_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .report import PruningReport

logger = logging.getLogger(__name__)

PLOTS_FOLDER = "plots"
Size = Literal["parameters", "bytes"]

# A line of strips holds so many layers before the next stack goes below.
_LINE_LAYERS = 40
_CELL = 0.24  # inches
# Of the similarity curves: from the first round to the model that was kept.
_CURVES = ("#2b6cb0", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#0e7490", "#be185d", "#4d5b6a")


def write_plots(report: PruningReport, folder: str | os.PathLike[str]) -> list[str]:
    """Draw every figure that the report has the facts for into `plots/`; each file appears whole or not at all.

    Args:
        report (`PruningReport`): of a finished run.
        folder (path): where the folder `plots` is made, or written into.

    Returns:
        `list[str]`: names relative to the folder: `plots/scores_round_{n}_{stack}.png` where a criterion scored layers,
        `plots/similarity_round_{n}_{stack}.png`, `plots/similarity_after_{stack}.png`, `plots/layers.png`, `plots/metric.png`, `plots/adjacent_similarity.png`.
        Without matplotlib nothing is drawn, and the log says so once.
    """
    names = []
    try:
        for name, figure in draw_figures(report):
            target = Path(folder) / PLOTS_FOLDER / f"{name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(target, to_png(figure))
            names.append(f"{PLOTS_FOLDER}/{name}.png")
    except ImportError as error:
        logger.warning("No plots were drawn: %s", error)
        return []
    return names


def to_png(figure: Figure) -> bytes:
    """A figure as a PNG file; equal figures give equal bytes under one matplotlib."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150, bbox_inches="tight", pad_inches=0.08, metadata={"Software": None})
    return stream.getvalue()


def to_pixels(figure: Figure) -> Any:
    """A figure as an array of shape (height, width, 3), 0..255."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(120)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[:, :, :3]


def write_heat_maps(folder: Path, matrices: dict[str, SimilarityMatrix], stem: str) -> list[str]:
    """Draw `{stem}_{stack}.png` for each stack; without matplotlib say so once and draw nothing."""
    names = []
    try:
        for name, figure in _heat_maps(stem, matrices):
            write_bytes(folder / f"{name}.png", to_png(figure))
            names.append(f"{name}.png")
    except ImportError as error:
        logger.warning("No heat maps were drawn: %s", error)
        return []
    return names


def write_score_charts(folder: Path, values: dict[str, Any], kept: Mapping[str, Sequence[int]]) -> list[str]:
    """Draw `scores_{stack}.png` for each stack; without matplotlib say so once and draw nothing.

    Args:
        folder (`Path`): where they go.
        values (`dict`): scores as a record holds them, `Round.scores`.
        kept (`Mapping[str, Sequence[int]]`): the layers that a plan would keep.
    """
    names = []
    try:
        for marks in marks_of(values, kept, "removed"):
            name = f"scores_{file_name(marks.path)}.png"
            write_bytes(folder / name, to_png(draw_scores(marks)))
            names.append(name)
    except ImportError as error:
        logger.warning("No scores were drawn: %s", error)
        return []
    return names


def draw_figures(
    report: PruningReport, only: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, Figure]]:
    """Every figure that the report has the facts for, with its name.

    Args:
        report (`PruningReport`): of a run.
        only (callable): says of a name whether that figure is wanted.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    models, curve = measured_models(report.record), metric_curve(report.record)
    for scored in scored_rounds(report.record):
        for marks in scored.marks:
            if only(name := f"scores_round_{scored.round_.number}_{file_name(marks.path)}"):
                yield name, draw_scores(marks, f"before round {scored.round_.number}")
    for number, matrices in report.similarities():
        yield from _heat_maps(f"similarity_round_{number}", matrices, f"before round {number}", only)
    for model in models:
        if model.kept:
            yield from _heat_maps("similarity_after", model.matrices, "after", only)
    if report.rounds and only("layers"):
        yield "layers", draw_layers(report)
    if curve is not None and only("metric"):
        yield "metric", draw_metric(curve)
    paired = any(len(matrix.layers) > 1 for model in models for matrix in model.matrices.values())
    if paired and only("adjacent_similarity"):
        yield "adjacent_similarity", draw_adjacent_similarity(report)


def _heat_maps(
    stem: str, matrices: dict[str, SimilarityMatrix], when: str = "", only: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, Figure]]:
    for path, matrix in matrices.items():
        if only(name := f"{stem}_{file_name(path)}"):
            figure: Any = matrix.plot(title=f"{path}, {when}" if when else None).figure
            yield name, figure


def file_name(path: str) -> str:
    """A stack's path as part of a file's name: what no path of a module has cannot lead out of the folder."""
    return re.sub(r"[^\w.-]", "_", path).lstrip(".") or "stack"


def draw_layers(report: PruningReport) -> Figure:
    """What every round did to every original layer: a row a round, a column a layer, a strip a stack.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    strips = layer_strips(report.record)
    names = short_names([strip.path for strip in strips])
    needed = {strip.path: max(strip.depth, 1 + len(names[strip.path]) // 3) for strip in strips}  # a cell is 3 letters
    lines = _lines(strips, needed)
    widest = max(sum(needed[strip.path] + 1 for strip in line) for line in lines)
    cell = min(_CELL, 13 / widest)
    height = (len(report.rounds) + 1) * _CELL + 0.75
    figure = new_figure(max(5.2, widest * cell + 1.7), len(lines) * height + 0.45)
    for part, line in zip(figure.subfigures(len(lines), 1, squeeze=False)[:, 0], lines, strict=True):
        rest = widest - sum(needed[strip.path] + 1 for strip in line)
        ratios = [*(needed[strip.path] + 1 for strip in line), max(1e-3, rest)]
        axes = part.subplots(1, len(ratios), squeeze=False, width_ratios=ratios)[0]
        axes[-1].set_axis_off()
        for number, (ax, strip) in enumerate(zip(axes, line, strict=False)):
            _draw_strip(ax, strip, names[strip.path], needed[strip.path], labelled=number == 0)
    from matplotlib.patches import Patch

    shown = {state for strip in strips for row in strip.rows for state in row.states} | {"kept"}
    handles = [Patch(label=words, **LOOKS[state]) for state, words in STATES.items() if state in shown]
    figure.legend(handles=handles, loc="outside lower left", ncols=2, frameon=False, fontsize=8)
    return figure


def _lines(strips: list[LayerStrip], needed: dict[str, int]) -> list[list[LayerStrip]]:
    """Short stacks, such as the stages of a ResNet, stand side by side."""
    lines: list[list[LayerStrip]] = []
    for strip in strips:
        if lines and sum(needed[one.path] + 1 for one in lines[-1]) + needed[strip.path] <= _LINE_LAYERS:
            lines[-1].append(strip)
        else:
            lines.append([strip])
    return lines


def _draw_strip(ax: Axes, strip: LayerStrip, name: str, width: int, labelled: bool) -> None:
    from matplotlib.patches import Rectangle

    kept = set(strip.kept)
    end: tuple[State, ...] = tuple("kept" if layer in kept else "gone" for layer in range(strip.depth))
    rounds = [(f"round {row.round_.number}, {row.verdict}", row.states) for row in strip.rows]
    rows = [*rounds, ("in the end", end)]
    for y, (_, states) in enumerate(rows):
        for x, state in enumerate(states):
            ax.add_patch(Rectangle((x - 0.46, y - 0.42), 0.92, 0.84, linewidth=0.6, **LOOKS[state]))
    ax.set_xlim(-0.5, width + 0.5)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    step = max(1, round(strip.depth / 16))
    ax.set_xticks(range(0, strip.depth, step), [str(i) for i in range(0, strip.depth, step)], fontsize=7)
    ax.set_yticks(range(len(rows)), [row for row, _ in rows] if labelled else [""] * len(rows), fontsize=8)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(name, fontsize=9, loc="left")


def draw_metric(curve: MetricCurve, size: Size = "parameters") -> Figure:
    """The deciding metric of every measured model against its size.

    Args:
        curve (`MetricCurve`): the models.
        size (`"parameters"` or `"bytes"`): what the horizontal axis shows.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    from matplotlib.ticker import EngFormatter

    figure = new_figure(6.4, 4.2)
    ax = figure.add_subplot()
    xs = [_size(point, size) for point in curve.points]
    kept = [(x, point.metric) for x, point in zip(xs, curve.points, strict=True) if point.accepted]
    ax.plot(*zip(*kept, strict=True), color=KEPT, linewidth=1.2, alpha=0.6, zorder=1)
    for x, point in zip(xs, curve.points, strict=True):
        colour = KEPT if point.accepted else CHANGE
        if point.interval is not None:
            low, high = point.interval
            errors = [[max(0.0, point.metric - low)], [max(0.0, high - point.metric)]]
            ax.errorbar(x, point.metric, yerr=errors, color=colour, capsize=3, linewidth=1, zorder=2)
        face = colour if point.accepted else "white"
        shape = "s" if point.label == "original" else "o"
        ax.plot(x, point.metric, shape, markersize=7, markeredgecolor=colour, markerfacecolor=face, zorder=3)
        offset: dict[str, Any] = {"xytext": (7, 5), "textcoords": "offset points"}
        ax.annotate(point.label, (x, point.metric), fontsize=8, color=INK, **offset)
    if curve.limit is not None:
        ax.axhline(curve.limit, color=INK, linewidth=0.9, linestyle="--", zorder=0)
        ax.annotate(
            "worst value allowed", (1, curve.limit), xycoords=("axes fraction", "data"), fontsize=8, ha="right",
            xytext=(-4, -11 if curve.greater_is_better else 4), textcoords="offset points", color=INK,
        )  # fmt: skip
    ax.margins(0.12)
    if size == "bytes":
        ax.xaxis.set_major_formatter(EngFormatter(unit="B"))
    else:  # billions are B there, not G
        low, high = ax.get_xlim()
        ticks = [tick for tick in nice_ticks(low, high, 6) if low <= tick <= high]
        ax.set_xticks(ticks, count_labels(ticks))
    ax.set_xlabel("size" if size == "bytes" else "parameters")
    ax.set_ylabel(curve.metric)
    notes = ["hollow: rejected"] if curve.has_rejected else []
    if curve.has_intervals:
        notes.append(f"bars: {curve.confidence:.0%} confidence interval")
    ax.set_title("; ".join(notes), fontsize=8, loc="left", color="0.35")
    plain_axes(ax)
    return figure


def _size(point: MetricPoint, size: Size) -> int:
    return point.measured.num_bytes if size == "bytes" else point.measured.parameters


def draw_adjacent_similarity(report: PruningReport) -> Figure:
    """Similarity of each layer with the next one that is left, for every measured model, on the original numbering.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    models, depths = measured_models(report.record), report.record.depths
    paths = [path for path in depths if any(_has_curve(model.matrices.get(path)) for model in models)]
    names, threshold = short_names(paths), threshold_of(report.record)
    columns = 1 if len(paths) == 1 or max(depths.values()) > _LINE_LAYERS else 2
    rows = -(-len(paths) // columns)
    figure = new_figure(7.2 if columns == 1 else 9.6, 2.6 * rows + 0.7)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    for ax, path in zip(axes, paths, strict=False):
        for number, model in enumerate(models):
            matrix = model.matrices.get(path)
            if matrix is not None and _has_curve(matrix):
                ax.plot(
                    *middles(matrix), color=_CURVES[number % len(_CURVES)], linestyle="--" if model.kept else "-",
                    marker="os^Dv"[number % 5], markersize=4 if depths[path] < 30 else 2, linewidth=1.2, label=model.name,
                )  # fmt: skip
        if threshold is not None:
            ax.axhline(threshold, color=INK, linewidth=0.9, linestyle=":", label=f"threshold {threshold:g}")
        ax.set_xlim(-0.5, depths[path] - 0.5)
        ax.set_title(names[path], fontsize=9, loc="left")
        ax.xaxis.get_major_locator().set_params(integer=True)
        plain_axes(ax)
    for ax in axes[len(paths) :]:
        ax.set_axis_off()
    figure.supylabel("CKA of neighbouring layers", fontsize=9)
    figure.supxlabel("between layers (original numbering)", fontsize=9)
    labels = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    order = [name for name in (*(model.name for model in models), *labels) if name in labels]
    shown = {name: labels[name] for name in order}
    figure.legend(shown.values(), shown, loc="outside upper left", ncols=4, frameon=False, fontsize=8)
    return figure


def _has_curve(matrix: SimilarityMatrix | None) -> bool:
    return matrix is not None and len(matrix.layers) > 1
