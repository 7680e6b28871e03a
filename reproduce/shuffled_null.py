"""Similarities against a shuffled null: what unrelated and equal layers get, how sure it is, and what a model's layers get.

    python reproduce/shuffled_null.py
    python reproduce/shuffled_null.py --model MODEL_DIR --data DATA_DIR

1. Layers of random features, few rows and many features: the plain similarity and the calibrated one, by estimator.
2. Lower ends of 95 % on rows whose true similarity is known in closed form: how often they are above it. Status 1 if more
   often than in 8 of 100 runs.
3. With a model and data: neighbours under the default protocol and the paper's, plain and calibrated.
"""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any

import torch
from early_stop import draw, make_mixes, true_cka
from torch import Tensor

from hf_mpruner import measure_similarity
from hf_mpruner.similarity import PROTOCOLS, SimilarityAccumulator, SimilarityMatrix, SimilarityProtocol
from hf_mpruner.similarity.null import CalibratedSimilarity

MOST_ABOVE = 0.08


def calibrated_of(matrix: SimilarityMatrix) -> CalibratedSimilarity:
    """What was measured beside the plain values."""
    if matrix.calibrated is None:
        raise ValueError("No null was measured: pass null_seed.")
    return matrix.calibrated


def show_few_rows(rows: int, width: int, groups: int) -> None:
    """Unrelated, half alike and equal layers."""
    print(f"1. {groups} batches of {rows} rows, {width} features")
    print("   estimator   layers        plain   calibrated   lower end of 95 %")
    for estimator in ("unbiased", "biased"):
        generator = torch.Generator().manual_seed(0)
        sums = SimilarityAccumulator(4, SimilarityProtocol(estimator), null_seed=0)  # type: ignore[arg-type]
        for _ in range(groups):
            one, other = torch.randn(2, rows, width, generator=generator)
            sums.update([one, other, one + other, one + 1e-3 * other])
        matrix = sums.compute()
        calibrated = calibrated_of(matrix)
        lower = calibrated.evidence()
        for name, layer in (("unrelated", 1), ("half alike", 2), ("equal", 3)):
            values = matrix.values[0, layer], calibrated.values[0, layer], lower[0, layer]
            print(f"   {estimator:<9}   {name:<10}   {values[0]:>6.3f}   {values[1]:>10.3f}   {values[2]:>17.3f}")


def check_lower_ends(num_runs: int) -> bool:
    """How often a lower end is above the truth, over runs and pairs of four layers."""
    print(f"\n2. lower ends of 95 %, {num_runs} runs: share above the true similarity, standard error / true spread")
    mixes = make_mixes([0.2, 0.3, 0.4])
    truth, (i, j) = true_cka(mixes), torch.triu_indices(4, 4, 1)
    passed = True
    print("   rows a batch   batches   Gaussian        heavy tails")
    for rows in (4, 8, 32):
        for groups in (8, 16, 64):
            cells = []
            for heavy in (False, True):
                generator = torch.Generator().manual_seed(rows * groups)
                above: list[Tensor] = []
                values: list[Tensor] = []
                errors: list[Tensor] = []
                for seed in range(num_runs):
                    x = draw((groups, rows), heavy, generator)
                    sums = SimilarityAccumulator(4, null_seed=seed)
                    sums.update([x @ mix for mix in mixes])
                    found = calibrated_of(sums.compute())
                    above.append((found.evidence() > truth)[i, j].double().mean())
                    values.append(found.values[i, j])
                    errors.append(torch.zeros(()) if found.errors is None else found.errors[i, j])
                share = float(torch.stack(above).mean())
                ratio = float((torch.stack(errors).square().mean(0).sqrt() / torch.stack(values).std(0)).mean())
                cells.append(f"{share:.3f}  {ratio:.2f}")
                passed = passed and (rows < 8 or heavy or share <= MOST_ABOVE)
            print(f"   {rows:>12} {groups:>9}   {cells[0]}     {cells[1]}")
    print(f"   {MOST_ABOVE} or less from 8 Gaussian rows on: {'yes' if passed else 'NO'}")
    return passed


def show_model(args: argparse.Namespace) -> None:
    """Neighbours of a model's stacks under two protocols."""
    from datasets import load_dataset
    from transformers import AutoModel, AutoTokenizer

    model: Any = AutoModel.from_pretrained(args.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    texts = load_dataset(args.data, split=args.split).shuffle(seed=0)[args.text_column][: args.num_samples]
    options = {"padding": True, "truncation": True, "max_length": args.max_length, "return_tensors": "pt"}
    batches = [
        tokenizer(texts[start : start + args.batch_size], **options) for start in range(0, len(texts), args.batch_size)
    ]
    print(f"\n3. neighbours, {len(texts)} examples in batches of {args.batch_size}")
    found = {name: measure_similarity(model, batches, protocol=name, null_seed=0) for name in PROTOCOLS}
    for path in found["default"]:
        print(f"   {path}\n   layers    " + "".join(f"{name:<38}" for name in found))
        print("             " + "plain   calibrated   lower end        " * len(found))
        pairs: dict[str, list[tuple[float, float, float]]] = {}
        for name, matrices in found.items():
            calibrated = calibrated_of(matrices[path])
            columns = matrices[path].values, calibrated.values, calibrated.evidence()
            pairs[name] = list(zip(*(column.diagonal(1).tolist() for column in columns), strict=True))
        for layer in range(len(pairs["default"])):
            cells = "".join(
                f"{plain:>5.3f}   {calibrated:>10.3f}   {lower:>9.3f}        "
                for plain, calibrated, lower in (pairs[name][layer] for name in found)
            )
            print(f"   {layer:>2}-{layer + 1:<6} {cells}".rstrip())


def main() -> int:
    """Run all; 0 if the lower ends hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300, help="of each kind of stream (default: 300)")
    parser.add_argument("--model", metavar="MODEL_DIR", help="an encoder, folder or Hub id")
    parser.add_argument("--data", metavar="DATA_DIR", help="folder of parquet files, or Hub id, with a text column")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--text_column", default="text")
    parser.add_argument("--num_samples", type=int, default=512)
    parser.add_argument("--max_length", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("hf_mpruner").setLevel(logging.ERROR)
    show_few_rows(8, 512, 32)
    passed = check_lower_ends(args.runs)
    if args.model and args.data:
        show_model(args)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
