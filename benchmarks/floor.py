"""How far the analysis is from what this machine could do at best: bytes over bandwidth, multiplications over their rate.

Run: `python benchmarks/floor.py`. Measured first, on this machine: float32 multiplications a second of a large square matrix
product, and bytes a second when an array larger than any cache is summed up. Then, for the default protocol:

- the forward pass: its multiplications at that rate (projections and attention; nothing for norms, softmax and activations);
- our hooks: reading each block's output once at that bandwidth, plus the multiplications of a Gram matrix a layer.

`times the floor` says how far each is from it. The table by layers has the hooks' share of the forward pass, per kind of block: BERT's
(12 D D multiplications a token) and Llama's at the same width.
"""

from __future__ import annotations

import argparse
import sys
from statistics import median

import torch
from growth import analysis
from measure import Results, in_turn
from models import add_size, batches_of, bert, llama_config
from transformers import LlamaModel


def llama(args: argparse.Namespace) -> LlamaModel:
    """That Llama with random weights, in eval mode."""
    torch.manual_seed(0)
    return LlamaModel(llama_config(args)).eval()


def block_work(model: torch.nn.Module, tokens: int, length: int, hidden: int) -> float:
    """Multiplications of one block for so many tokens: weights, and attention's two products."""
    blocks = model.encoder.layer if hasattr(model, "encoder") else model.layers
    return tokens * (sum(p.numel() for p in blocks[0].parameters() if p.ndim == 2) + 2 * length * hidden)


def main() -> None:
    """Measure the machine, then both models."""
    parser = argparse.ArgumentParser()
    add_size(parser)
    parser.add_argument("--depths", type=int, nargs="+", default=[12, 96], help="layers of the hooks' cost alone")
    parser.add_argument("--side", type=int, default=2048, help="of the matrices that give the rate")
    parser.add_argument("--megabytes", type=int, default=512, help="of the array that gives the bandwidth")
    parser.add_argument("--repeats", type=int, default=5)
    results = Results(__doc__, parser)
    args = results.args
    square, array = torch.randn(args.side, args.side), torch.ones(args.megabytes * 2**18)
    probes = in_turn({"product": lambda: square @ square, "sum": array.sum}, args.repeats)
    rate = args.side**3 / median(probes["product"].wall)
    bandwidth = array.numel() * 4 / median(probes["sum"].wall)
    del array
    results.note(f"{rate / 1e9:.1f} G multiplications a second, {bandwidth / 1e9:.1f} GB a second")

    batch = batches_of(args, 1)[0]
    tokens, outputs = args.batch * args.length, args.batch * args.length * args.hidden
    hooks_floor = outputs * 4 / bandwidth + args.batch * outputs / rate
    rows = []
    for name, build in (("bert", bert), ("llama", llama)):
        model = build(args)
        sides = {"forward": torch.no_grad()(lambda m=model: m(**batch))}
        sides["hooks"] = analysis("default", args.layers, args.batch, args.length, args.hidden, 1)
        taken = {key: median(times.wall) for key, times in in_turn(sides, args.repeats).items()}
        floors = {
            "forward": args.layers * block_work(model, tokens, args.length, args.hidden) / rate,
            "hooks": args.layers * hooks_floor,
        }
        rows += [
            {"model": name, "what": key, "s": taken[key], "floor, s": floors[key], "times the floor": taken[key] / floors[key],
             "share of the forward": taken[key] / taken["forward"]}
            for key in taken
        ]  # fmt: skip
        del model
    results.table(f"{args.layers} layers, hidden {args.hidden}, batch {args.batch} x {args.length}", rows)
    sides = {str(depth): analysis("default", depth, args.batch, args.length, args.hidden, 1) for depth in args.depths}
    taken_at = {depth: median(times.wall) for depth, times in in_turn(sides, args.repeats).items()}
    results.table(
        "the hooks by number of layers",
        [
            {"layers": int(d), "ms a layer": 1e3 * s / int(d), "times the floor": s / int(d) / hooks_floor}
            for d, s in taken_at.items()
        ],
    )
    results.finish()


if __name__ == "__main__":
    sys.exit(main())
