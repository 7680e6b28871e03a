"""All benchmarks, one after the other: figures on the screen, as JSON, and on one page.

    python benchmarks/run.py                      # everything, under 20 minutes on two cores
    python benchmarks/run.py --only latency cut   # some
    python benchmarks/run.py --page               # the page again, from results that are there

Every benchmark is a process of its own; each ratio comes from one process in which both sides take turns. Results go to
`benchmarks/results/NAME.json`, the page to `benchmarks/results/README.md`. Run it on a machine that does nothing else: the load
before each benchmark is kept with its figures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from measure import describe, shown

HERE = Path(__file__).parent
# In this order, with these words beside --json; most use the script's own defaults.
BENCHMARKS: dict[str, list[str]] = {
    "analysis_overhead": ["--repeats", "5", "--repeats_others", "2"],
    "memory": [],
    "growth": [],
    "floor": ["--repeats", "3"],
    "slicing": [],
    "cut": ["--runs", "3"],
    "two_processes": ["--runs", "3"],
    "latency": ["--repeats", "7"],
    "neuron_cka": [],
    "snapshot": ["--runs", "3"],
    "cut_proof": ["--runs", "1"],
    "import_time": ["--runs", "5"],
    "width": ["--runs", "5"],
    "sparsity": ["--repeats", "5"],
}


def run(name: str, words: list[str], folder: Path, limit: float) -> str | None:
    """Run one benchmark; what went wrong, if something did."""
    command = [sys.executable, str(HERE / f"{name}.py"), *words, "--json", str(folder / f"{name}.json")]
    paths = [str(HERE.parent / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        code = subprocess.run(
            command, check=False, timeout=limit, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        ).returncode
    except subprocess.TimeoutExpired:
        return f"stopped after {limit:.0f} s"
    return f"ended with code {code}" if code else None


def page(folder: Path) -> str:
    """The results of a folder in Markdown: all ratios first, then each benchmark's tables."""
    order = {name: number for number, name in enumerate(BENCHMARKS)}
    found = sorted(folder.glob("*.json"), key=lambda path: (order.get(path.stem, len(order)), path.stem))
    results = [read(path) | {"benchmark": path.stem} for path in found]
    lines = [
        "# Results of the benchmarks",
        "",
        f"Written by `python benchmarks/run.py`. What each compares: [README.md]({os.path.relpath(HERE / 'README.md', folder)}).",
        "",
    ]
    for about in sorted({machine_line(result) for result in results}):
        lines += [about, ""]
    lines += ["A ratio is the median of pairs from one run, with the quartiles in brackets.", ""]
    lines += ["| benchmark | ratio | value |", "| --- | --- | --- |"]
    for result in results:
        lines += [f"| {result['benchmark']} | {entry['name']} | {describe(entry)} |" for entry in result["ratios"]]
    for result in results:
        lines += ["", f"## {result['benchmark']}", "", result["title"], ""]
        settings = " ".join(f"{name}={value}" for name, value in result["settings"].items())
        about = f"{result['measured']}, {result['seconds']} s, load before {shown(result['machine']['load_before'])}"
        lines += [f"{about}. {settings}", ""]
        for table in result["tables"]:
            lines += [f"{table['title']}:", "", *markdown(table["rows"]), ""]
        lines += [f"- {note}" for note in result["notes"]]
    return "\n".join(lines).rstrip() + "\n"


def read(file: Path) -> dict[str, Any]:
    """One result.

    Raises:
        ValueError: if the file is no JSON.
    """
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(
            f"{file} is no result of a benchmark ({error}). Delete it, or run that benchmark again."
        ) from None


def machine_line(result: Mapping[str, Any]) -> str:
    """The machine and the versions of a result, in one sentence."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {value}" for name, value in result["versions"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores ({machine['threads']} threads), {machine['memory_gb']} GB, "
        f"device {machine['device']}; {versions}."
    )


def markdown(rows: list[dict[str, Any]]) -> list[str]:
    """A table as Markdown's lines."""
    head = [f"| {' | '.join(rows[0])} |", f"|{' --- |' * len(rows[0])}"]
    return [*head, *(f"| {' | '.join(shown(value) for value in row.values())} |" for row in rows)]


def main() -> int:
    """Run, and write the page; 1 if a benchmark failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    there = [name for name in BENCHMARKS if (HERE / f"{name}.py").is_file()]
    parser.add_argument("--only", nargs="+", choices=there, default=there, metavar="NAME", help=", ".join(there))
    parser.add_argument("--words", default="", help="further flags for each of them, in one string")
    parser.add_argument("--mergekit", metavar="PYTHON", help="an interpreter that has mergekit, for `slicing`")
    parser.add_argument("--results", type=Path, default=HERE / "results", metavar="FOLDER")
    parser.add_argument("--limit", type=float, default=600, metavar="SECONDS", help="for one benchmark")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page from what is there")
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    failed, started = {}, time.perf_counter()
    for name in [] if args.page else args.only:
        print(f"\n=== {name}", flush=True)
        words = ["--mergekit", args.mergekit] if name == "slicing" and args.mergekit else []
        begin = time.perf_counter()
        reason = run(name, [*BENCHMARKS[name], *words, *args.words.split()], args.results, args.limit)
        print(f"--- {name}: {time.perf_counter() - begin:.0f} s", flush=True)
        failed |= {name: reason} if reason else {}
    (args.results / "README.md").write_text(page(args.results), encoding="utf-8")
    print(f"\n{time.perf_counter() - started:.0f} s. The page: {args.results / 'README.md'}")
    for name, reason in failed.items():
        print(f"{name}: {reason}; its results are those of an earlier run, or none.", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
