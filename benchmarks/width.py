"""Parameters, bytes and latency before and after `prune_width_`. Run: `python benchmarks/width.py [--fraction 0.5]`.

A BERT-base-shaped encoder with random weights, narrowed by L1 norms: which neurons go makes no difference to size and
speed. Latency is the median of `--runs` forward passes without gradients after two to warm up, of the whole and the
narrowed model in turn. The floor is what the multiplications that are left would take of the whole's time: what attention,
norms and embeddings take does not get less.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path
from statistics import median

import torch
from measure import Results, in_turn, ratio
from models import add_size, batches_of, bert
from transformers import BertModel
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
    parser = argparse.ArgumentParser()
    add_size(parser, batch=8)
    parser.add_argument("--fraction", type=float, nargs="+", default=[0.25, 0.5, 0.75])
    parser.add_argument("--runs", type=int, default=10)
    results = Results(__doc__, parser)
    args = results.args
    transformers_logging.disable_progress_bar()
    whole = bert(args)
    inputs = {"input_ids": batches_of(args, 1)[0]["input_ids"]}
    models = {0.0: whole}
    for fraction in args.fraction:
        models[fraction] = copy.deepcopy(whole)
        prune_width_(models[fraction], fraction, criterion="l1", multiple_of=8)
    times = in_turn({str(f): torch.no_grad()(lambda m=model: m(**inputs)) for f, model in models.items()}, args.runs)
    rows = []
    for fraction, model in models.items():
        rows.append({
            "neurons": model.config.intermediate_size, "parameters": sum(p.numel() for p in model.parameters()),
            "bytes saved": size_on_disk(model), "latency, ms": 1e3 * median(times[str(fraction)].wall),
            "floor": linear_work(model, args.length) / linear_work(whole, args.length),
        })  # fmt: skip
        if fraction:
            name = f"without {fraction:.0%} of the neurons / whole, a forward pass"
            results.ratio(name, ratio(times[str(fraction)], times["0.0"]))
    results.table("a narrowed encoder", rows)
    results.finish()


if __name__ == "__main__":
    main()
