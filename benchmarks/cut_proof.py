"""CPU seconds to find the stacks of a model and to prove a cut. Run: `python benchmarks/cut_proof.py [--models bert llama]`.

Default sizes of each model type, on the meta device: no weights are read or copied, whatever the size. The middle layer
of the deepest stack goes. Every time is the smallest of `--runs`; memory is what Python held at most meanwhile.
"""

from __future__ import annotations

import argparse
import logging
import time
import tracemalloc

import torch
from measure import Results
from transformers import AutoConfig, AutoModel
from transformers.utils import logging as transformers_logging

from hf_mpruner.architectures import examine, prove_cut

MODELS = ["bert", "deberta-v2", "gpt2", "t5", "vit", "swin", "resnet", "llama", "mixtral", "gemma3_text", "qwen3_vl"]


def measure(model_type: str, runs: int) -> tuple[int, int, float, float, float]:
    """Depth of the deepest stack, parameters, seconds to find, seconds to prove, and peak memory in MB.

    Args:
        model_type (`str`): of transformers.
        runs (`int`): how often; the smallest time counts.

    Returns:
        `tuple[int, int, float, float, float]`.
    """
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(model_type))
    finding, proving = [], []
    for _ in range(runs):
        started = time.process_time()
        found = examine(model)
        finding.append(time.process_time() - started)
        stack = max(found.stacks, key=lambda stack: stack.depth)
        middle = stack.prunable[len(stack.prunable) // 2]
        removed = stack.removable(range(middle, middle + stack.period)) or stack.prunable[-1:]
        kept = {stack.path: [layer for layer in range(stack.depth) if layer not in removed]}
        started = time.process_time()
        prove_cut(model, found, kept)
        proving.append(time.process_time() - started)
    tracemalloc.start()
    prove_cut(model, examine(model), kept)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return stack.depth, sum(p.numel() for p in model.parameters()), min(finding), min(proving), peak


def main() -> None:
    """Print one line a model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="TYPE")
    parser.add_argument("--runs", type=int, default=3)
    results = Results(__doc__, parser)
    transformers_logging.set_verbosity(logging.CRITICAL)
    columns = ("layers", "parameters", "find, s", "prove, s", "peak, MB")
    rows = [
        {"model type": name, **dict(zip(columns, measure(name, results.args.runs), strict=True))}
        for name in results.args.models
    ]
    results.table("on the meta device", rows)
    results.finish()


if __name__ == "__main__":
    main()
