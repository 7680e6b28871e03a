"""How much faster a model with fewer layers is: its block stack alone, and the whole model, against kept / total layers.

Run: `python benchmarks/latency.py`. BERT of base size with random weights, 12 -> 6 layers, batch 32, 128 tokens. The whole and the
cut model take turns; the cut one is a copy that `apply_plan_` cut. The stack alone is the time between entering its
first and leaving its last block, of the very same passes: embeddings and what follows the blocks do not get less, so
the whole model stays a little above.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from typing import Any

import torch
from measure import Results, Times, in_turn, ratio
from models import add_size, batches_of, bert, bert_stack
from torch import nn

from hf_mpruner import PruningPlan
from hf_mpruner.surgery import apply_plan_


class StackClock:
    """Seconds from the first to the last block of a model, pass by pass."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        self.seconds: list[float] = []
        blocks[0].register_forward_pre_hook(self.start)
        blocks[-1].register_forward_hook(self.stop)

    def start(self, *_: Any) -> None:
        """The first block is entered."""
        self._started = time.perf_counter()

    def stop(self, *_: Any) -> None:
        """The last block is left."""
        self.seconds.append(time.perf_counter() - self._started)


def main() -> None:
    """Print both ratios beside the layers'."""
    parser = argparse.ArgumentParser()
    add_size(parser)
    parser.add_argument("--kept", type=int, help="layers that stay, evenly spread; default: half")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[32, 1], help="examples in a batch, one table row each"
    )
    parser.add_argument("--repeats", type=int, default=9)
    results = Results(__doc__, parser)
    args = results.args
    kept = args.kept or args.layers // 2
    whole = bert(args)
    cut = copy.deepcopy(whole)
    layers = [i * args.layers // kept for i in range(kept)]
    apply_plan_(cut, PruningPlan.from_kept({"encoder.layer": layers}, [bert_stack(args.layers)]))
    share, rows = kept / args.layers, []
    for size in args.batches:
        batch = batches_of(argparse.Namespace(**{**vars(args), "batch": size}), 1)[0]
        clocks = {"whole": StackClock(whole.encoder.layer), "cut": StackClock(cut.encoder.layer)}
        with torch.no_grad():
            times = in_turn(
                {"whole": lambda b=batch: whole(**b), "cut": lambda b=batch: cut(**b)},
                args.repeats * (1 if size > 1 else 5),
            )
        stack = {name: Times(wall=clock.seconds[1:]) for name, clock in clocks.items()}
        for part, measured in (("block stack", stack), ("model", times)):
            found = ratio(measured["cut"], measured["whole"])
            rows.append({
                "batch": size, "part": part, "ratio": found.median, "kept / total": share, "off": f"{found.median / share - 1:+.1%}",
            })  # fmt: skip
            off = ratio(measured["cut"], [share * seconds for seconds in measured["whole"].wall])
            bound = 1.05 if part == "block stack" and size == args.batches[0] else None
            results.ratio(
                f"{part}, {args.layers} -> {kept} layers, batch {size}: latency / (kept / total)", off, at_most=bound
            )
    results.table("latency of the cut model over that of the whole one", rows)
    results.finish()


if __name__ == "__main__":
    sys.exit(main())
