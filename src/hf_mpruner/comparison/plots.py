"""The figures of a comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_mpruner.report.style import new_figure

from .rows import UNCUT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .rows import Ranking, Row, Spread

# More criteria than this get a panel each, with the others in grey.
_TOGETHER = 5
_COLUMNS = 4
_INK, _GREY = "#1f2933", "#c9d0d8"
_COLOURS = ("#2b6cb0", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#0e7490", "#be185d", "#4d5b6a")
_MARKERS = "osD^vP*X"


def draw_quality(comparison: Ranking) -> Figure:
    """The metric against layers that are left: a line a criterion, dashed before recovery and solid after it.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    names = list(dict.fromkeys(row.criterion for row in comparison.rows if row.before))
    together = len(names) <= _TOGETHER
    panels = [names] if together else [[name] for name in names]
    columns = min(_COLUMNS, max(1, len(panels)))
    lines = -(-max(1, len(panels)) // columns)
    figure = new_figure(*((7.0, 4.6) if together else (3.0 * columns, 2.5 * lines + 0.6)))
    axes = list(figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flat)
    for ax, shown in zip(axes, panels, strict=False):
        for name in names:
            if name not in shown:
                _line(ax, comparison, name, "after" if comparison.recovers else "before", color=_GREY, linewidth=0.8)
        for number, name in enumerate(shown):
            colour = _COLOURS[number % len(_COLOURS)]
            _line(ax, comparison, name, "before", color=colour, linestyle="--", band=True, label=_label(shown, name))
            if comparison.recovers:
                _line(ax, comparison, name, "after", color=colour, band=True)
        _uncut(ax, comparison)
        ax.set_title("" if together else shown[0], fontsize=9)
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[max(0, len(panels) - columns) : len(panels)]:
        ax.tick_params(labelbottom=True)  # the lowest of its column
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    left = sorted({row.total_layers for row in [comparison.uncut, *comparison.rows] if row.before})
    axes[0].set_xticks(left)
    axes[0].set_xlim(left[-1] + 0.3, left[0] - 0.3)  # the cut goes deeper to the right
    _zoom(axes[0], comparison)
    figure.supxlabel("layers left", fontsize=9)
    figure.supylabel(comparison.metric, fontsize=9)
    _legend(figure, comparison, together)
    return figure


def draw_cost(comparison: Ranking) -> Figure:
    """The metric after recovery (or before, without any) against the seconds that scoring took, a panel for each depth.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    targets = [target for target in comparison.targets if any(row.before for row in comparison.at(target))]
    names = list(dict.fromkeys(row.criterion for row in comparison.rows if row.before))
    columns = max(1, len(targets))
    figure = new_figure(max(5.0, 3.2 * columns), 3.4 + 0.12 * len(names))
    axes = figure.subplots(1, columns, squeeze=False, sharey=True)[0]
    handles: dict[str, Any] = {}
    for ax, target in zip(axes, targets, strict=False):
        for row in comparison.at(target):
            spread = row.spread_after if comparison.recovers else row.spread_before
            if spread is None:
                continue
            number = names.index(row.criterion)
            low, high = spread.interval or (spread.mean, spread.mean)
            looks = {
                "color": _COLOURS[number % len(_COLOURS)],
                "marker": _MARKERS[number // len(_COLOURS) % len(_MARKERS)],
            }
            handles[row.criterion] = ax.errorbar(
                max(row.scoring.get("seconds", 0.0), 1e-4), spread.mean, [[spread.mean - low], [high - spread.mean]],
                linestyle="none", elinewidth=0.8, label=row.criterion, **looks,
            )  # fmt: skip
        _uncut(ax, comparison)
        ax.set_xscale("log")
        ax.tick_params(labelsize=8)
        ax.set_title(f"{target} layers", fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
    _zoom(axes[0], comparison)
    figure.supxlabel("seconds of scoring, once for all depths", fontsize=9)
    figure.supylabel(f"{comparison.metric} {'after' if comparison.recovers else 'before'} recovery", fontsize=9)
    figure.legend(
        [handles[name] for name in names if name in handles], [name for name in names if name in handles],
        loc="outside upper center", ncols=min(5, max(1, len(names))), frameon=False, fontsize=8,
    )  # fmt: skip
    return figure


def _zoom(ax: Axes, comparison: Ranking) -> None:
    """Show the means; an interval of few seeds may be far wider than what there is to see, and leaves the picture."""
    spreads = [_of(row, when) for row in [comparison.uncut, *comparison.rows] for when in ("before", "after")]
    means = [spread.mean for spread in spreads if spread is not None]
    margin = 0.15 * (max(means) - min(means)) or 0.05 * abs(means[0]) or 0.05
    ax.set_ylim(min(means) - margin, max(means) + margin)


def _label(shown: list[str], name: str) -> str | None:
    return name if len(shown) > 1 else None


def _line(ax: Axes, comparison: Ranking, name: str, when: str, band: bool = False, **looks: Any) -> None:
    """One criterion over the depths, from the uncut model on; its interval as a band."""
    points = [(row.total_layers, _of(row, when)) for row in [comparison.uncut, *comparison.rows] if _is(row, name)]
    there = sorted((left, spread) for left, spread in points if spread is not None)
    ax.plot([left for left, _ in there], [spread.mean for _, spread in there], marker=".", markersize=4, **looks)
    ranges = [(left, *spread.interval) for left, spread in there if spread.interval is not None]
    if band and len(ranges) > 1:
        places, lows, highs = zip(*ranges, strict=True)
        ax.fill_between(places, lows, highs, color=looks["color"], alpha=0.13, linewidth=0)


def _is(row: Row, name: str) -> bool:
    return row.criterion in (name, UNCUT)


def _of(row: Row, when: str) -> Spread | None:
    return row.spread_before if when == "before" else row.spread_after


def _uncut(ax: Axes, comparison: Ranking) -> None:
    spread = comparison.uncut.spread_before
    if spread is not None:
        ax.axhline(spread.mean, color=_INK, linewidth=0.8, linestyle=":")


def _legend(figure: Figure, comparison: Ranking, together: bool) -> None:
    from matplotlib.lines import Line2D

    handles = []
    if together:
        names = list(dict.fromkeys(row.criterion for row in comparison.rows if row.before))
        handles = [
            Line2D([], [], color=_COLOURS[i % len(_COLOURS)], marker=".", label=name) for i, name in enumerate(names)
        ]
    handles.append(Line2D([], [], color=_INK, linestyle="--", label="before recovery"))
    if comparison.recovers:
        handles.append(Line2D([], [], color=_INK, linestyle="-", label="after recovery"))
    handles.append(Line2D([], [], color=_INK, linestyle=":", linewidth=0.8, label="uncut, before"))
    if not together:
        what = "after" if comparison.recovers else "before"
        handles.append(Line2D([], [], color=_GREY, label=f"the other criteria, {what} recovery"))
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
