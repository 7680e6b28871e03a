"""Seconds of greedy CKA pruning of neurons: the published search against the closed form. Run: `python benchmarks/neuron_cka.py`.

The search computes the CKA of every remaining neuron's removal anew, from activations, with feature-space products (the
cheapest way to compute one); both give the same order, which is checked. It is timed for `--removals` of `--neurons`
neurons, and the closed form for the same, both in float64 and one after the other in one process. Then the closed form
alone for a quarter of `--wide` neurons, its matrix product included.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

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


def seconds(work: Callable[[], Any], runs: int) -> float:
    """Median seconds of `runs` calls."""
    took = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        took.append(time.perf_counter() - started)
    return statistics.median(took)


def main() -> int:
    """Print both times and their ratio; 1 if the orders differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--neurons", type=int, default=128)
    parser.add_argument("--removals", type=int, help="default: a fifth of the neurons")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--wide", type=int, default=4096)
    parser.add_argument("--runs", type=int, default=5, help="of the closed form; the search runs once")
    args = parser.parse_args()
    removals = args.removals or args.neurons // 5

    x = drawn(args.samples, args.neurons, 0)
    started = time.perf_counter()
    searched = search(x, removals)
    slow = time.perf_counter() - started
    fast = seconds(lambda: greedy_cka_order(x, removals), args.runs)
    same = searched == greedy_cka_order(x, removals)[0].tolist()
    print(f"{removals} of {args.neurons} neurons, {args.samples} samples, {torch.get_num_threads()} threads")
    print(f"   search       {slow:10.3f} s")
    print(
        f"   closed form  {fast:10.5f} s   {slow / fast:,.0f} times faster, {'the same order' if same else 'ANOTHER ORDER'}"
    )

    wide = drawn(2 * args.wide, args.wide, 1)
    took = seconds(lambda: greedy_cka_order(wide, args.wide // 4), 1)
    print(f"{args.wide // 4} of {args.wide} neurons, {len(wide)} samples")
    print(f"   closed form  {took:10.3f} s")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
