"""What zeros cost and bring: passes and seconds of `sparsify_`, and a forward pass before and after.

Run: `python benchmarks/sparsity.py`. An encoder of base size with random weights, `--batch` sequences of `--length` tokens. The
zeros are in ordinary dense matrices, as `save_pretrained` writes them. Seconds of a pass are the median of `--repeats`, and
the passes of the three models take turns, so that a busy machine slows all of them.
"""

from __future__ import annotations

import argparse
import copy
from statistics import median

import torch
from measure import Results, in_turn, ratio
from models import add_size, bert_config
from transformers import BertForSequenceClassification

from hf_mpruner import sparsify_

KINDS = {"unstructured": "unstructured", "2:4": "2:4"}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    add_size(parser, batch=8, length=64)
    parser.add_argument("--samples", type=int, default=32, help="examples of calibration")
    parser.add_argument("--repeats", type=int, default=9)
    results = Results(__doc__, parser)
    args = results.args
    torch.manual_seed(0)
    config = bert_config(args)
    config.vocab_size = 1000
    models = {"dense": BertForSequenceClassification(config).eval()}
    rows = torch.randint(1000, (args.samples, args.length))
    batches = [{"input_ids": part} for part in rows.split(args.batch)]
    table = []
    for name, pattern in KINDS.items():
        models[name] = copy.deepcopy(models["dense"])
        report = sparsify_(models[name], 0.5, pattern=pattern, calibration=batches, num_samples=args.samples)
        table.append({"pattern": name, "sparsity": report.sparsity, "passes": report.passes, "s": report.seconds})
    results.table("sparsify_", table)
    sides = {name: torch.no_grad()(lambda m=model: m(**batches[0])) for name, model in models.items()}
    times = in_turn(sides, args.repeats)
    results.table("a forward pass", [{"model": name, "ms": 1e3 * median(t.wall)} for name, t in times.items()])
    for name in KINDS:
        results.ratio(f"{name} / dense, a forward pass", ratio(times[name], times["dense"]))
    results.finish()


if __name__ == "__main__":
    main()
