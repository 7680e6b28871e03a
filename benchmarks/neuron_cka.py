"""Seconds of greedy CKA pruning of neurons: the published search against the closed form. Run: `python benchmarks/neuron_cka.py`.

The search computes the CKA of every remaining neuron's removal anew, from activations, with feature-space products (the
cheapest way to compute one); both give the same order, which is checked. It is timed for `--removals` of `--neurons`
neurons, and the closed form for the same, both in float64 and one after the other in one process. Then the closed form
alone for a quarter of `--wide` neurons, its matrix product included.
"""

from __future__ import annotations

import argparse
import sys
from statistics import median

import torch
from measure import Results, in_turn, ratio, timed

from hf_mpruner.similarity import linear_cka
from hf_mpruner.width import greedy_cka_order


def search(x: torch.Tensor, number: int) -> list[int]:
    """The order of the published text: for every step the CKA without each neuron."""
    gone: list[int] = []
    for _ in range(number):
        best, found = -1, -1.0
        for i in range(x.shape[1]):
            if i not in gone:
                without = x.clone()
                without[:, [*gone, i]] = 0
                value = linear_cka(x, without, "biased").item()
                if value > found:
                    best, found = i, value
        gone.append(best)
    return gone


def drawn(samples: int, neurons: int, seed: int) -> torch.Tensor:
    """Activations of a random ReLU layer."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, neurons, generator=generator)
    weight = torch.randn(neurons, neurons, generator=generator) / neurons**0.5
    return (x @ weight).relu().double()


def main() -> int:
    """Print both times and their ratio; 1 if the orders differ."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--neurons", type=int, default=128)
    parser.add_argument("--removals", type=int, help="default: a fifth of the neurons")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--wide", type=int, default=4096)
    parser.add_argument("--runs", type=int, default=5, help="of the closed form; the search runs once")
    results = Results(__doc__, parser)
    args = results.args
    removals = args.removals or args.neurons // 5

    x = drawn(args.samples, args.neurons, 0)
    slow, _, searched = timed(lambda: search(x, removals))
    fast = in_turn({"closed form": lambda: greedy_cka_order(x, removals)}, args.runs)["closed form"].wall
    same = searched == greedy_cka_order(x, removals)[0].tolist()
    wide = drawn(2 * args.wide, args.wide, 1)
    took, _, _ = timed(lambda: greedy_cka_order(wide, args.wide // 4))
    rows = [
        {"way": "search", "removed": removals, "of": args.neurons, "samples": args.samples, "s": slow},
        {"way": "closed form", "removed": removals, "of": args.neurons, "samples": args.samples, "s": median(fast)},
        {"way": "closed form", "removed": args.wide // 4, "of": args.wide, "samples": len(wide), "s": took},
    ]
    results.table("greedy removal of neurons", rows)
    results.ratio(
        "search / closed form", ratio([slow] * len(fast), fast), at_least=1000 if args.neurons >= 128 else None
    )
    results.note("the same order" if same else "ANOTHER ORDER")
    results.finish()
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
