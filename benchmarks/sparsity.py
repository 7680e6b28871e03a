"""What zeros cost and bring: passes and seconds of `sparsify_`, and a forward pass before and after.

Run: `python benchmarks/sparsity.py`. An encoder of base size with random weights, `--batch` sequences of `--length` tokens. The
zeros are in ordinary dense matrices, as `save_pretrained` writes them. Seconds of a pass are the median of `--repeats`, and
the passes of the three models take turns, so that a busy machine slows all of them.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from transformers import BertConfig, BertForSequenceClassification

from hf_mpruner import sparsify_

KINDS = {"unstructured": "unstructured", "2:4": "2:4"}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--samples", type=int, default=32, help="examples of calibration")
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=args.layers, hidden_size=args.hidden, intermediate_size=4 * args.hidden,
        num_attention_heads=max(1, args.hidden // 64), vocab_size=1000,
    )  # fmt: skip
    models = {"dense": BertForSequenceClassification(config).eval()}
    rows = torch.randint(1000, (args.samples, args.length))
    batches = [{"input_ids": part} for part in rows.split(args.batch)]
    print(f"{'pattern':14}{'sparsity':>9}{'passes':>8}{'seconds':>9}")
    for name, pattern in KINDS.items():
        models[name] = copy.deepcopy(models["dense"])
        report = sparsify_(models[name], 0.5, pattern=pattern, calibration=batches, num_samples=args.samples)
        print(f"{name:14}{report.sparsity:9.4f}{report.passes:8.2f}{report.seconds:9.1f}")
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with torch.no_grad():
        for repeat in range(args.repeats + 1):
            for name, model in models.items():
                started = time.perf_counter()
                model(**batches[0])
                if repeat:  # the first warms up
                    seconds[name].append(time.perf_counter() - started)
    print(f"\n{'forward pass':14}{'ms':>9}{'of dense':>10}")
    dense = statistics.median(seconds["dense"])
    for name, values in seconds.items():
        print(f"{name:14}{1000 * statistics.median(values):9.1f}{statistics.median(values) / dense:10.3f}")


if __name__ == "__main__":
    main()
