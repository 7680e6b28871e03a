"""How the pictures of a report look, whoever draws them with matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .series import State

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, KEPT, CHANGE = "#1f2933", "#d5dae0", "#2b6cb0", "#c2410c"
# How the states of a layer look, here and in charts of scores.
LOOKS: dict[State, dict[str, Any]] = {
    "kept": {"facecolor": KEPT, "edgecolor": "white"},
    "removed": {"facecolor": CHANGE, "edgecolor": "white"},
    "gone": {"facecolor": "#eef0f3", "edgecolor": "white"},
    "candidate": {"facecolor": "white", "edgecolor": CHANGE, "hatch": "////"},
}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that no pyplot knows: the user's backend and open figures stay as they are.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib, which is missing: pip install hf_mpruner[plots]") from error
    return Figure(figsize=(width, height), layout="constrained")


def plain_axes(ax: Axes) -> None:
    """Axes without a frame, with a faint grid behind what they show."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(FAINT)
    ax.tick_params(labelsize=8, color=FAINT)
    ax.grid(color="#eef0f3", linewidth=0.8)
    ax.set_axisbelow(True)
