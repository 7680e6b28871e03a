"""Parameters, bytes and latency before and after `prune_width_`. Run: `python benchmarks/width.py [--fraction 0.5]`.

A BERT-base-shaped encoder with random weights, narrowed by L1 norms: which neurons go makes no difference to size and
speed. Latency is the median of `--runs` forward passes without gradients after two to warm up, of the whole and the
narrowed model in turn. The floor is what the multiplications that are left would take of the whole's time: what attention,
norms and embeddings take does not get less.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import BertConfig, BertModel
from transformers.utils import logging as transformers_logging

from hf_mpruner import prune_width_


def size_on_disk(model: BertModel) -> int:
    """Bytes of what `save_pretrained` writes.

    Args:
        model (`BertModel`): left as it is.

    Returns:
        `int`.
    """
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return sum(file.stat().st_size for file in Path(folder).iterdir())


def time_in_turn(models: list[BertModel], inputs: dict[str, torch.Tensor], runs: int) -> list[float]:
    """Median seconds of a forward pass of each model.

    Args:
        models (list of `BertModel`): run one after another, so that what else the machine does hits all alike.
        inputs (`dict`): arguments of their forward.
        runs (`int`): how often each.

    Returns:
        `list[float]`.
    """
    seconds: list[list[float]] = [[] for _ in models]
    with torch.no_grad():
        for run in range(runs + 2):
            for model, taken in zip(models, seconds, strict=True):
                started = time.perf_counter()
                model(**inputs)
                if run >= 2:
                    taken.append(time.perf_counter() - started)
    return [statistics.median(taken) for taken in seconds]


def linear_work(model: BertModel, length: int) -> int:
    """Multiplications of all projections and of attention for one example.

    Args:
        model (`BertModel`): of any width.
        length (`int`): tokens.

    Returns:
        `int`.
    """
    projections = sum(p.numel() for p in model.encoder.parameters() if p.ndim == 2) * length
    return projections + 2 * length * length * model.config.hidden_size * model.config.num_hidden_layers


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fraction", type=float, nargs="+", default=[0.25, 0.5, 0.75])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=args.hidden,
        intermediate_size=4 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=max(1, args.hidden // 64),
    )
    whole = BertModel(config).eval()
    inputs = {"input_ids": torch.randint(config.vocab_size, (args.batch, args.length))}
    models = [whole]
    for fraction in args.fraction:
        models.append(copy.deepcopy(whole))
        prune_width_(models[-1], fraction, criterion="l1", multiple_of=8)
    seconds = time_in_turn(models, inputs, args.runs)
    work = [linear_work(model, args.length) for model in models]
    print(f"batch {args.batch}, {args.length} tokens, {args.threads} threads, medians of {args.runs} passes in turn")
    print(f"{'neurons':>8} {'parameters':>12} {'bytes saved':>12} {'latency, ms':>12} {'ratio':>6} {'floor':>6}")
    for model, taken, left in zip(models, seconds, work, strict=True):
        number = sum(parameter.numel() for parameter in model.parameters())
        print(
            f"{model.config.intermediate_size:>8} {number:>12,} {size_on_disk(model):>12,} {1000 * taken:>12.1f} "
            f"{taken / seconds[0]:>6.3f} {left / work[0]:>6.3f}"
        )


if __name__ == "__main__":
    main()
