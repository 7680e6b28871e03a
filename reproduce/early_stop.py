"""Intervals of similarities, and measurements that stop early: how often they hold what they promise. Status 1 if not.

    python reproduce/early_stop.py
    python reproduce/early_stop.py --model MODEL_DIR --data DATA_DIR

1. Intervals of 95 % on rows whose true similarity is known in closed form: how often they hold it, and the standard error
   over the true spread, by examples in a batch, number of batches, and tails of the rows.
2. Streams that are stopped by `SequentialStop`: the share of runs that stop with other clusters than those of unlimited
   data, which the error rate bounds, and how many batches were needed, by how near the nearest pair is to the threshold.
3. With a model and data: the same for batches drawn from its examples, whose true similarities are known, too.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hf_mpruner.clusters import compared_pairs, find_clusters
from hf_mpruner.features.looks import Looks
from hf_mpruner.runtime import Runtime, SingleProcess
from hf_mpruner.sequential import SequentialStop
from hf_mpruner.similarity import SimilarityAccumulator, SimilarityMatrix

DIM = 16
# Of the heavy tails: rows are scaled by an inverse root of chi squared, as in Student's t with so many degrees.
DEGREES = 6
LOWEST_COVERAGE = 0.88


def make_mixes(steps: list[float], seed: int = 0) -> Tensor:
    """One matrix a layer, each the one before plus noise: a residual stream."""
    generator = torch.Generator().manual_seed(seed)
    mixes = [torch.randn(DIM, DIM, generator=generator)]
    for step in steps:
        mixes.append(mixes[-1] + step * torch.randn(DIM, DIM, generator=generator))
    return torch.stack(mixes) / DIM**0.5


def true_cka(mixes: Tensor) -> Tensor:
    """Of rows `x @ mix` with x of unit covariance, whatever its tails: |A_i^T A_j|^2, normalised."""
    covariances = torch.einsum("lab,mac->lmbc", mixes.double(), mixes.double())
    energy = covariances.square().sum((2, 3))
    return energy / (energy.diag()[:, None] * energy.diag()[None, :]).sqrt()


def draw(shape: tuple[int, ...], heavy: bool, generator: torch.Generator) -> Tensor:
    """Rows of unit covariance, Gaussian or with heavy tails."""
    x = torch.randn(*shape, DIM, generator=generator)
    if not heavy:
        return x
    chi = torch.randn(*shape, DEGREES, generator=generator).square().sum(-1, keepdim=True)
    return x * ((DEGREES - 2) / chi).sqrt()


def check_intervals(num_runs: int) -> bool:
    """Coverage of intervals, over runs and pairs of four layers."""
    print(f"1. intervals of 95 %, {num_runs} runs: share that hold the true similarity, standard error / true spread")
    mixes = make_mixes([0.2, 0.3, 0.4])
    truth, (i, j) = true_cka(mixes), torch.triu_indices(4, 4, 1)
    passed = True
    print("   rows a batch   batches   Gaussian        heavy tails")
    for rows in (4, 8, 32):
        for groups in (8, 16, 64):
            cells = []
            for heavy in (False, True):
                generator = torch.Generator().manual_seed(rows * groups)
                held, errors, values = [], [], []
                for _ in range(num_runs):
                    x = draw((groups, rows), heavy, generator)
                    accumulator = SimilarityAccumulator(4)
                    accumulator.update([x @ mix for mix in mixes])
                    matrix = accumulator.compute()
                    lower, upper = matrix.interval() or (truth, truth)
                    held.append(((lower <= truth) & (truth <= upper))[i, j].double().mean().item())
                    errors.append(torch.zeros(()) if matrix.errors is None else matrix.errors[i, j])
                    values.append(matrix.values[i, j])
                ratio = (torch.stack(errors).square().mean(0).sqrt() / torch.stack(values).std(0)).mean().item()
                cells.append(f"{statistics.fmean(held):.3f}  {ratio:.2f}")
                passed = passed and (rows < 8 or statistics.fmean(held) >= LOWEST_COVERAGE)
            print(f"   {rows:>12} {groups:>9}   {cells[0]}     {cells[1]}")
    print(f"   {LOWEST_COVERAGE} or more from 8 rows on: {'yes' if passed else 'NO'}")
    return passed


@dataclass
class Case:
    """One kind of stream: what batches are, what the layers make of them, and the similarities of unlimited data."""

    name: str
    batches: Callable[[int, torch.Generator], Tensor]
    outputs: Callable[[Tensor], list[Tensor]]
    truth: Tensor
    rule: SequentialStop


class Drawn:
    """Stands where `measure_similarity` has the hooks of a stack: sums over the batches so far."""

    path = "blocks"

    def __init__(self, depth: int) -> None:
        self.depth, self.sums = depth, SimilarityAccumulator(depth)

    @property
    def num_groups(self) -> int:
        """Batches so far."""
        return self.sums.num_groups

    def so_far(self, runtime: Runtime | None = None) -> SimilarityAccumulator:
        """A copy of the sums."""
        return copy.deepcopy(self.sums)


def measure(case: Case, seed: int, num_batches: int) -> SimilarityMatrix:
    """One stream, read until `Looks` ends it."""
    generator, drawn, done = torch.Generator().manual_seed(seed), Drawn(len(case.truth)), 0
    looks = Looks(case.rule, [drawn], SingleProcess(), ())  # type: ignore[list-item]
    for mark in case.rule.marks():
        now = min(mark, num_batches)
        drawn.sums.update(case.outputs(case.batches(now - done, generator)))
        done = now
        if (mark <= num_batches and looks.enough(done)) or done == num_batches:
            break
    return looks.conclude({drawn.path: drawn.sums.compute()}, None)[drawn.path]


def run_case(case: Case, num_runs: int, num_batches: int) -> bool:
    """Stop many streams, print how it went; false if too many ended with other clusters."""
    rule = case.rule
    right = find_clusters(case.truth, rule.threshold, rule.linkage)
    gaps = [abs(case.truth[i, j].item() - rule.threshold) for i, j in compared_pairs(right, rule.linkage)]
    wrong = settled = 0
    used = []
    for seed in range(num_runs):
        matrix = measure(case, seed, num_batches)
        if matrix.sampling is not None and matrix.sampling.ending == "settled":
            settled += 1
            found = find_clusters(matrix, rule.threshold, rule.linkage)
            wrong += [one.layers for one in found] != [one.layers for one in right]
        used.append(matrix.num_groups / num_batches)
    print(
        f"   {case.name:<42} {min(gaps):.4f}   {wrong / num_runs:.3f}   {settled / num_runs:.3f}   "
        f"{statistics.median(used):>6.0%} {statistics.fmean(used):>6.0%}",
        flush=True,
    )
    bound = rule.error_rate + 2 * math.sqrt(rule.error_rate * (1 - rule.error_rate) / num_runs)
    return wrong / num_runs <= bound


def synthetic_cases(error_rate: float) -> Iterator[Case]:
    """Residual streams of six layers; the second pair of the first cluster is ever nearer to the threshold."""
    mixes = make_mixes([0.1, 0.5, 0.1, 0.5, 0.1])
    truth = true_cka(mixes)
    highest = min(truth[0, 1].item(), truth[2, 3].item(), truth[4, 5].item())

    def rule(gap: float, linkage: str = "anchor") -> SequentialStop:
        return SequentialStop(highest - gap, linkage, error_rate)  # type: ignore[arg-type]

    def rows(size: int, heavy: bool) -> Callable[[int, torch.Generator], Tensor]:
        return lambda number, generator: draw((number, size), heavy, generator)

    def outputs(batch: Tensor) -> list[Tensor]:
        return [batch @ mix for mix in mixes]

    for gap in (0.05, 0.002, 0.001, 0.0003):
        yield Case("32 Gaussian rows", rows(32, False), outputs, truth, rule(gap))
    yield Case("32 Gaussian rows, chain", rows(32, False), outputs, truth, rule(0.002, "chain"))
    yield Case("32 Gaussian rows, just below the threshold", rows(32, False), outputs, truth, rule(-1e-6))
    yield Case("32 Gaussian rows, just above the threshold", rows(32, False), outputs, truth, rule(1e-6))
    yield Case("8 rows with heavy tails", rows(8, True), outputs, truth, rule(0.004))
    yield Case("8 rows with heavy tails, just below", rows(8, True), outputs, truth, rule(-1e-6))
    yield Case("8 rows with heavy tails, just above", rows(8, True), outputs, truth, rule(1e-6))


def real_cases(args: argparse.Namespace) -> Iterator[Case]:
    """Batches drawn with replacement from a data set: its own similarities are those of unlimited data."""
    from datasets import load_dataset
    from transformers import AutoModel, AutoTokenizer

    from hf_mpruner.architectures import find_block_stacks

    model = AutoModel.from_pretrained(args.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    texts = load_dataset(args.data, split=args.split)[args.text_column][: args.num_samples]
    depth = find_block_stacks(model)[0].depth
    kept: list[list[Tensor]] = [[] for _ in range(depth)]
    settings = {"padding": "max_length", "truncation": True, "max_length": args.max_length, "return_tensors": "pt"}
    with torch.no_grad():
        for start in range(0, len(texts), 32):
            batch = tokenizer(texts[start : start + 32], **settings)
            states = model(**batch, output_hidden_states=True).hidden_states[1:]
            for layer, state in zip(kept, states, strict=True):
                layer.append((state * batch["attention_mask"].unsqueeze(2)).flatten(1))
    rows, grams = [], []
    for layer in kept:
        features = torch.cat(layer)
        layer.clear()
        features -= features.mean(0)
        grams.append((features @ features.T).double())
        values, vectors = torch.linalg.eigh(grams[-1])
        rows.append((vectors * values.clamp(min=0).sqrt()).float())  # the same inner products, in fewer numbers
    flat = torch.stack([gram.flatten() for gram in grams])  # centred: of these rows alone, HSIC is biased and exact
    energy = flat @ flat.T
    truth = energy / (energy.diag()[:, None] * energy.diag()[None, :]).sqrt()
    for threshold in args.thresholds:
        yield Case(
            f"{len(texts)} examples, at {threshold:g}",
            lambda number, generator: torch.randint(len(texts), (number, args.batch_size), generator=generator),
            lambda batch: [row[batch] for row in rows],
            truth,
            SequentialStop(threshold, error_rate=args.error_rate),
        )


def main() -> int:
    """Run all; 0 if every promise is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300, help="of each kind of stream (default: 300)")
    parser.add_argument("--num_batches", type=int, default=64, help="at most in a run (default: 64)")
    parser.add_argument("--error_rate", type=float, default=0.05)
    parser.add_argument("--model", metavar="MODEL_DIR", help="a trained encoder, folder or Hub id")
    parser.add_argument("--data", metavar="DATA_DIR", help="folder of parquet files, or Hub id, with a text column")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--text_column", default="text")
    parser.add_argument("--num_samples", type=int, default=1024)
    parser.add_argument("--max_length", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.99, 0.98, 0.95, 0.9, 0.8])
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("hf_mpruner").setLevel(logging.ERROR)
    passed = [check_intervals(args.runs)]
    print(f"\n2. {args.runs} runs of at most {args.num_batches} batches, error rate {args.error_rate:g}")
    head = f"   {'':<42} nearest   wrong   settled   used: median, mean"
    print(head)
    passed += [run_case(case, args.runs, args.num_batches) for case in synthetic_cases(args.error_rate)]
    if args.model and args.data:
        print(f"\n3. batches of {args.batch_size} examples of {Path(args.data).name}, {Path(args.model).name}")
        print(head)
        passed += [run_case(case, args.runs, args.num_batches) for case in real_cases(args)]
    print(f"\nwrong in no more runs than the error rate and chance allow: {'yes' if all(passed) else 'NO'}")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
