"""Seconds that hf_mpruner adds to what a user imports anyway, and from `hf-mpruner --help` to its first byte.

Run: `python benchmarks/import_time.py [--runs 7]`.

Both times of a pair are taken in one fresh interpreter, one import after the other, so that a slow disk or a busy
machine slows both. The first interpreter is thrown away: it fills the file cache for the rest.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from statistics import median

from measure import Results, ratio

PAIRS = {
    "import hf_mpruner": ("import transformers", "import hf_mpruner"),
    "the callback": ("from transformers import Trainer", "from hf_mpruner import LayerPruningCallback"),
}
CODE = """
import time
begin = time.perf_counter()
{first}
between = time.perf_counter()
{second}
print(between - begin, time.perf_counter() - between)
"""


def measure_pair(first: str, second: str, runs: int) -> list[tuple[float, float]]:
    """Seconds of two imports in a fresh interpreter, `runs` times.

    Args:
        first (`str`): the import that a user has anyway.
        second (`str`): ours, executed after it.
        runs (`int`): number of pairs.

    Returns:
        `list[tuple[float, float]]`: seconds of the first and of the second import.
    """
    pairs = []
    for _ in range(runs + 1):
        code = CODE.format(first=first, second=second)
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        base, added = map(float, done.stdout.split()[-2:])
        pairs.append((base, added))
    return pairs[1:]


def measure_first_byte(*words: str, runs: int) -> list[float]:
    """Seconds until a command's first byte on stdout, process start included.

    Args:
        words (`str`): after `hf-mpruner`.
        runs (`int`): processes.

    Returns:
        `list[float]`: of each process.
    """
    seconds = []
    for _ in range(runs + 1):
        begin = time.perf_counter()
        with subprocess.Popen([sys.executable, "-m", "hf_mpruner", *words], stdout=subprocess.PIPE) as process:
            if process.stdout is None or not process.stdout.read(1):
                raise SystemExit(f"hf-mpruner {' '.join(words)} printed nothing")
            seconds.append(time.perf_counter() - begin)
            process.stdout.read()
    return seconds[1:]


def main() -> None:
    """Print a row a pair: the median of the base, the median and the largest of what is added; then a row a command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=7, help="interpreters a pair")
    results = Results(__doc__, parser)
    runs, rows = results.args.runs, []
    for name, (first, second) in PAIRS.items():
        base, added = zip(*measure_pair(first, second, runs), strict=True)
        rows.append(
            {"added": name, "after": first, "base s": median(base), "added s": median(added), "max s": max(added)}
        )
        results.ratio(f"{name}, added to {first}", ratio(added, base))
    results.table("imports", rows)
    rows = []
    for words in (["--help"], ["prune", "--help"]):
        seconds = measure_first_byte(*words, runs=runs)
        rows.append({"command": " ".join(["hf-mpruner", *words]), "s": median(seconds), "max s": max(seconds)})
    results.table("to the first byte", rows)
    results.finish()


if __name__ == "__main__":
    main()
