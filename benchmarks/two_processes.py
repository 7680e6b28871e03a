"""The analysis on several processes that share the batches, against one process: seconds, and whether the results agree.

Run: `python benchmarks/two_processes.py`. Every process holds the model and has one thread, so that two have twice the cores of
one; they meet by gloo, and process r measures batches r, r + W, ... In turn, in one run of both processes: rank 0 alone on
all batches, then both on a share each. Seconds are the longest of the two, without starting them and without the model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import Results, ratio
from models import add_size, batches_of, bert, bert_stack
from torch import distributed

from hf_mpruner.features import measure_similarity
from hf_mpruner.runtime.copies import Copies


def work(args: argparse.Namespace) -> None:
    """One process's part; rank 0 writes the seconds of both ways and the largest difference of the matrices."""
    distributed.init_process_group("gloo")
    rank, runtime = distributed.get_rank(), Copies(timedelta(seconds=600))
    model, stacks, batches = bert(args), [bert_stack(args.layers)], batches_of(args, args.num_batches)
    seconds: dict[str, list[float]] = {"one": [], "shared": []}
    for number in range(args.runs + 1):
        matrices = {}
        for way in ("one", "shared") if number % 2 else ("shared", "one"):
            distributed.barrier()
            started = time.perf_counter()
            if way == "shared":
                matrices[way] = measure_similarity(model, batches, stacks, runtime=runtime, show_progress=False)
            elif rank == 0:
                matrices[way] = measure_similarity(model, batches, stacks, show_progress=False)
            distributed.barrier()
            if number:  # the first round warms up
                seconds[way].append(time.perf_counter() - started)
    if rank == 0:
        values = [matrix["encoder.layer"].values for matrix in matrices.values()]
        off = (values[0] - values[1]).abs().max().item()
        Path(args.write).write_text(json.dumps({**seconds, "off": off}), encoding="utf-8")
    distributed.destroy_process_group()


def main() -> None:
    """Start the processes and print what they found."""
    parser = argparse.ArgumentParser()
    add_size(parser, layers=6, batch=8)
    parser.add_argument("--num_batches", type=int, default=8)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--write", help=argparse.SUPPRESS)
    results = Results(__doc__, parser)
    args = results.args
    if args.write:
        torch.set_num_threads(1)
        work(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        own = ("layers", "hidden", "batch", "length", "num_batches", "runs")
        words = [word for name in own for word in (f"--{name}", str(getattr(args, name)))]
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(args.processes)]
        subprocess.run(
            [sys.executable, *launch, __file__, *words, "--write", str(file)], check=True, capture_output=True
        )
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    results.table(
        f"{args.num_batches} batches of {args.batch}, one thread a process",
        [{"way": way, "s": median(found[way])} for way in ("one", "shared")],
    )
    results.ratio(f"{args.processes} processes / one", ratio(found["shared"], found["one"]))
    results.note(f"the matrices differ by at most {found['off']:.1e}")
    results.finish()
    if found["off"] > 1e-6:
        raise SystemExit("the processes do not find what one finds")


if __name__ == "__main__":
    sys.exit(main())
