"""What the scripts of papers share: cells that are computed once, spreads over seeds, plots, and a page that is generated.

Use: `cells = Cells(output_dir, settings)`, `cells.get("seed0-cka", lambda: run(0, "cka"))` for every cell (plain values),
then `write_page(output_dir, title, settings, results, sections, claims)`. `add_arguments(parser, "name")` gives --output_dir.
`compute_all(cells, {name: (function, arguments)}, processes)` does many cells in processes of one thread each.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_mpruner.environment import describe_device, library_versions
from hf_mpruner.storage import write_json, write_text

RESULTS = Path(__file__).parent / "results"


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """`--output_dir`, by default `reproduce/results/NAME`, and `--processes`."""
    parser.add_argument(
        "--output_dir", type=Path, default=RESULTS / name, help="finished cells in it are not computed again"
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="cells computed at once, on one thread each",
    )


class Cells:
    """The cells of an experiment: each is one JSON file, written when it is finished, and read if it is there.

    Args:
        folder (`Path`): cells go into `folder/cells`.
        settings (`dict`): what every cell's value depends on, besides its name. A folder with cells of other settings is
            refused.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder / "cells"
        self.settings = json.loads(json.dumps(settings))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.seconds = 0.0

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """The value of a cell: what `compute()` gives, as plain values."""
        if not self.has(name):
            self.put(name, *timed(compute, ()))
        return self.read(name)

    def has(self, name: str) -> bool:
        """Whether a cell is finished."""
        return self._file(name).exists()

    def put(self, name: str, value: Any, seconds: float) -> None:
        """Write a finished cell."""
        write_json(self._file(name), {"settings": self.settings, "seconds": round(seconds, 3), "value": value})
        print(f"{name}: {seconds:.1f} s", flush=True)

    def read(self, name: str) -> Any:
        """The value of a finished cell."""
        cell = json.loads(self._file(name).read_text())
        if cell["settings"] != self.settings:
            keys = sorted({*cell["settings"], *self.settings})
            differ = [key for key in keys if cell["settings"].get(key) != self.settings.get(key)]
            raise SystemExit(
                f"{self._file(name)} was computed with other settings ({', '.join(differ)}): pass another --output_dir, or "
                "remove that folder."
            )
        self.seconds += cell["seconds"]
        return cell["value"]

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def timed(compute: Callable[..., Any], arguments: Sequence[Any]) -> tuple[Any, float]:
    """What a call gives, and its seconds."""
    started = time.perf_counter()
    value = compute(*arguments)
    return value, time.perf_counter() - started


def compute_all(
    cells: Cells, jobs: Mapping[str, tuple[Callable[..., Any], Sequence[Any]]], processes: int = 1
) -> dict[str, Any]:
    """The values of many cells. Each is computed on one thread, so that the number of processes changes no figure.

    Args:
        cells (`Cells`): where they are kept.
        jobs (`dict`): cell name to a function of a module's top level and its arguments, all plain values.
        processes (`int`): how many cells are computed at once.
    """
    for name in jobs:
        if cells.has(name):
            cells.read(name)  # a folder of other settings is refused before anything is computed
    waiting = {name: job for name, job in jobs.items() if not cells.has(name)}
    if waiting:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(processes, len(waiting)), context, torch.set_num_threads, (1,)) as pool:
            running = {pool.submit(timed, *job): name for name, job in waiting.items()}
            try:
                for done in as_completed(running):
                    cells.put(running[done], *done.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    cells.seconds = 0.0
    return {name: cells.read(name) for name in jobs}


@dataclass(frozen=True)
class Claim:
    """A statement of a paper beside what was measured here.

    Args:
        says (`str`): the paper's statement, with its place.
        measured (`str`): the figures here.
        agrees (`bool` or `None`): None where the figures do not decide.
    """

    says: str
    measured: str
    agrees: bool | None


def verdict(differences: Sequence[float]) -> bool | None:
    """Whether paired differences over seeds are above 0: None where their mean is within 2 standard errors of 0."""
    if len(differences) < 2:
        return None
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return None if abs(mean) <= 2 * error else mean > 0


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, smallest and largest over seeds."""
    return {"mean": statistics.fmean(values), "min": min(values), "max": max(values), "n": len(values)}


def in_words(values: Sequence[float], percent: bool = True, digits: int = 1) -> str:
    """`91.2 (90.1-92.0)`: mean, smallest and largest."""
    scaled = [100 * value if percent else value for value in values]
    mean = f"{statistics.fmean(scaled):.{digits}f}"
    return mean if len(scaled) == 1 else f"{mean} ({min(scaled):.{digits}f}-{max(scaled):.{digits}f})"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def claims_table(claims: Sequence[Claim]) -> str:
    """The claims, with the verdict that the figures gave."""
    words = {True: "agrees", False: "does not agree", None: "undecided"}
    return table(
        ["the paper says", "measured here", "verdict"], [(c.says, c.measured, words[c.agrees]) for c in claims]
    )


def plot_lines(
    file: Path,
    series: Mapping[str, Mapping[float, Sequence[float]]],
    labels: tuple[str, str],
    title: str = "",
    log_x: bool = False,
) -> Path:
    """A line a series: mean over seeds with bars from smallest to largest.

    Args:
        file (`Path`): of the picture.
        series (`dict`): name to {x: values over seeds}.
        labels (`tuple`): of x and y.
        title (`str`): above.
        log_x (`bool`): scale of x.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for name, points in series.items():
        places = sorted(points)
        means = [statistics.fmean(points[x]) for x in places]
        below = [mean - min(points[x]) for x, mean in zip(places, means, strict=True)]
        above = [max(points[x]) - mean for x, mean in zip(places, means, strict=True)]
        axes.errorbar(places, means, yerr=[below, above], marker="o", markersize=3, capsize=2, label=name)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_title(title, fontsize=10)
    if log_x:
        axes.set_xscale("log")
    if not log_x and all(float(x).is_integer() for points in series.values() for x in points):
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    # Without a date and the library's version the same figures give the same file.
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return file


def write_page(
    folder: Path,
    title: str,
    settings: Mapping[str, Any],
    results: Mapping[str, Any],
    sections: Sequence[tuple[str, str]],
    claims: Sequence[Claim],
) -> None:
    """Write `results.json` and `table.md`.

    Args:
        folder (`Path`): where the two go, beside the plots.
        title (`str`): of the page; what was run, in one paragraph, may follow after an empty line.
        settings (`dict`): of the run.
        results (`dict`): all figures, plain values.
        sections (sequence of `(heading, Markdown)`): tables and plots of the page.
        claims (sequence of `Claim`): what of the paper is seen here.
    """
    machine = {**library_versions(), "device": describe_device("cpu"), "threads": torch.get_num_threads()}
    shown = [{"says": c.says, "measured": c.measured, "agrees": c.agrees} for c in claims]
    write_json(folder / "results.json", {"settings": dict(settings), "machine": machine, **results, "claims": shown})
    parts = [f"# {title}", *(f"## {heading}\n\n{text}" for heading, text in sections)]
    if claims:
        parts.append(
            "## Beside the paper\n\nEach verdict is computed from the figures above.\n\n" + claims_table(claims)
        )
    listed = "\n".join(f"- {name}: {value}" for name, value in {**settings, **machine}.items())
    parts.append(f"## Settings\n\n{listed}")
    write_text(folder / "table.md", "\n\n".join(parts) + "\n")
