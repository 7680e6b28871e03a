"""The cells of a sweep as a table, as Markdown, and as the paper's Figure 4."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_mpruner.report.plots import to_png
from hf_mpruner.report.style import new_figure
from hf_mpruner.storage import write_bytes

from .output import align

_COLOURS = {"original": "#2b6cb0", "pruned": "#c2410c"}


def table(values: Mapping[str, Any]) -> str:
    """Aligned columns, and what they are of."""
    header, rows = _rows(values)
    return f"{_caption(values)}\n\n{align(header, rows, right=list(range(2, len(header))))}"


def markdown(values: Mapping[str, Any]) -> str:
    """The same as a Markdown table."""
    header, rows = _rows(values)
    lines = [header, ["---", "---", *("---:" for _ in header[2:])], *rows]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{_caption(values)}\n\n{body}\n"


def draw(values: Mapping[str, Any], file: Path) -> bool:
    """The metric against the zeros, a line a model; false if matplotlib is missing."""
    try:
        figure = new_figure(6.4, 4.2)
    except ImportError:
        return False
    ax = figure.add_subplot()
    for who in dict.fromkeys(cell["model"] for cell in values["cells"]):
        cells = [cell for cell in values["cells"] if cell["model"] == who]
        xs, ys = [cell["sparsity"] for cell in cells], [cell["value"] for cell in cells]
        label = f"{who}, {_layers(cells[0])} layers"
        ax.plot(xs, ys, "o-", color=_COLOURS[who], label=label, markersize=4, linewidth=1.2)
        if all(cell["interval"] for cell in cells):
            low, high = zip(*(cell["interval"] for cell in cells), strict=True)
            ax.fill_between(xs, low, high, color=_COLOURS[who], alpha=0.15, linewidth=0)
    ax.set_xlabel(f"share of zeros in the layers ({values['method']}, {values['pattern']})")
    ax.set_ylabel(values["cells"][0]["metric"])
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    write_bytes(file, to_png(figure))
    return True


def _caption(values: Mapping[str, Any]) -> str:
    first = values["cells"][0]
    return (
        f"{values['method']}, {values['pattern']}, without training; judged on '{values['eval_split']}' "
        f"({first['num_examples']:,} examples)"
    )


def _rows(values: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    cells = values["cells"]
    metric = cells[0]["metric"]
    has_interval = any(cell["interval"] for cell in cells)
    has_loss = metric != "loss" and all("loss" in cell["metrics"] for cell in cells)
    header = ["model", "layers", "parameters", "sparsity", "zeros", metric]
    header += ["95 % interval"] * has_interval + ["loss"] * has_loss + ["evaluation (s)", "passes", "zeroing (s)"]
    rows = []
    for cell in cells:
        row = [
            cell["model"],
            str(_layers(cell)),
            f"{cell['parameters']:,}",
            f"{cell['asked']:g}",
            f"{cell['sparsity']:.4f}",
        ]
        row += [f"{cell['value']:.4f}"]
        if has_interval:
            row += ["{:.4f} - {:.4f}".format(*cell["interval"]) if cell["interval"] else "-"]
        if has_loss:
            row += [f"{cell['metrics']['loss']:.4f}"]
        rows.append([*row, f"{cell['eval_seconds']:.2f}", f"{cell['passes']:.2f}", f"{cell['sparsify_seconds']:.1f}"])
    return header, rows


def _layers(cell: Mapping[str, Any]) -> int:
    return sum(cell["layers"].values())
