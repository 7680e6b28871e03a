"""What the benchmarks share: sides timed in turn, ratios with their spread, the machine, and results as JSON.

A script makes its parser, hands it to `Results`, times with `in_turn`, and prints with `Results.ratio` and `Results.table`.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from hf_mpruner.environment import describe_device, library_versions

Side = Callable[[], object]


@dataclass
class Times:
    """Seconds of each round: by the clock, and of the processor (all threads of this process)."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Ratio:
    """The median of paired ratios and the quartiles around it; of one pair, all three are the same."""

    median: float
    low: float
    high: float


def timed(work: Side) -> tuple[float, float, Any]:
    """Wall and processor seconds of one call, and what it returned; waits for accelerators."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def in_turn(sides: Mapping[str, Side], rounds: int, warm_up: int = 1) -> dict[str, Times]:
    """Time every side once a round, another one first each time, so that a busy machine slows all alike.

    Args:
        sides (`Mapping[str, Callable]`): what to run, by name.
        rounds (`int`): calls of each that count.
        warm_up (`int`): rounds before, which do not.
    """
    times = {name: Times() for name in sides}
    names = list(sides)
    for number in range(-warm_up, rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            gc.collect()  # what one side leaves behind is not the next one's to clear away
            wall, cpu, _ = timed(sides[name])
            if number >= 0:
                times[name].wall.append(wall)
                times[name].cpu.append(cpu)
    return times


def ratio(side: Times | Sequence[float], base: Times | Sequence[float]) -> Ratio:
    """`side` over `base`, round by round; of `Times` the wall seconds."""
    above, below = (x.wall if isinstance(x, Times) else x for x in (side, base))
    pairs = sorted(a / b for a, b in zip(above, below, strict=True))
    cuts = statistics.quantiles(pairs, n=4, method="inclusive") if len(pairs) > 1 else pairs * 3
    return Ratio(cuts[1], cuts[0], cuts[2])


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of log seconds over log sizes, by least squares."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in seconds]
    return statistics.linear_regression(x, y).slope


def machine(device: str = "cpu") -> dict[str, Any]:
    """The processor, its cores, memory, the device, and how busy the machine is with other work."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return {
        "processor": describe_device("cpu"),
        "cores": os.cpu_count(),
        "memory_gb": round(pages / 1e9, 1),
        "device": describe_device(device),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


class Results:
    """Prints figures as they come, and keeps them for `--json`.

    Args:
        doc (`str`): the script's docstring; its first line is the title.
        parser (`argparse.ArgumentParser`): the script's own flags; `--threads` and `--json` are added, and it is parsed.
    """

    def __init__(self, doc: str, parser: argparse.ArgumentParser) -> None:
        parser.description, parser.formatter_class = doc, argparse.RawDescriptionHelpFormatter
        parser.add_argument("--threads", type=int, help="processor threads; default: torch's own choice")
        parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures here")
        self.args = parser.parse_args()
        if self.args.threads:
            torch.set_num_threads(self.args.threads)
        device = getattr(self.args, "device", "cpu")
        left_out = ("json", "threads", "mergekit", "folder")  # places on this machine say nothing elsewhere
        settings = {k: v for k, v in vars(self.args).items() if k not in left_out and v is not None}
        self.figures: dict[str, Any] = {
            "benchmark": Path(sys.argv[0]).stem,
            "title": doc.strip().splitlines()[0],
            "measured": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": json.loads(json.dumps(settings, default=str)),
            "machine": machine(device),
            "versions": library_versions(),
            "ratios": [],
            "tables": [],
            "notes": [],
        }
        self._started = time.perf_counter()
        gc.collect()
        gc.freeze()  # what was imported need not be looked through between rounds

    def ratio(self, name: str, value: Ratio, *, at_most: float | None = None, at_least: float | None = None) -> None:
        """Print and keep one of the figures that a benchmark is about, with its bound if there is one."""
        kept = (at_most is None or value.median <= at_most) and (at_least is None or value.median >= at_least)
        entry = {"name": name, **asdict(value), "at_most": at_most, "at_least": at_least, "kept": kept}
        self.figures["ratios"].append(entry)
        print(f"{name}: {describe(entry)}", flush=True)

    def table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Print and keep a table; all rows have the same keys."""
        self.figures["tables"].append({"title": title, "rows": [dict(row) for row in rows]})
        cells = [list(rows[0]), *([shown(value) for value in row.values()] for row in rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        print(f"\n{title}")
        for row in cells:
            padded = (
                text.ljust(w) if not i else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))
            )
            print("   " + "  ".join(padded), flush=True)

    def note(self, text: str) -> None:
        """Print and keep a sentence."""
        self.figures["notes"].append(text)
        print(text, flush=True)

    def add_versions(self, **versions: str) -> None:
        """Versions of what was compared with."""
        self.figures["versions"].update(versions)

    def finish(self) -> None:
        """Write the file, if one was asked for."""
        self.figures["seconds"] = round(time.perf_counter() - self._started, 1)
        if self.args.json:
            self.args.json.parent.mkdir(parents=True, exist_ok=True)
            self.args.json.write_text(json.dumps(self.figures, indent=1) + "\n", encoding="utf-8")


def describe(entry: Mapping[str, Any]) -> str:
    """A kept ratio in words: the value, its quartiles, and whether its bound holds."""
    text = shown(entry["median"])
    if entry["low"] != entry["high"]:
        text += f" ({shown(entry['low'])} to {shown(entry['high'])})"
    for sign, bound in (("<=", entry["at_most"]), (">=", entry["at_least"])):
        if bound is not None:
            text += f", {sign} {shown(bound)}: {'yes' if entry['kept'] else 'NO'}"
    return text


def shown(value: Any) -> str:
    """A figure with about four digits, anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = 3 if value == 0 else max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 6)}f}"
