"""Bytes and seconds of `Snapshot.take` and `restore` against a naive deep copy. Run: `python benchmarks/snapshot.py`.

A BERT of base size with AdamW's state on the CPU loses 4 of 12 layers. The naive way copies both state dicts, deleted
layers and all, and loads them again; torch then takes over the copied moments without a copy, so that way back works
once, and is cheap, but the moments are other tensors than before. Seconds are the median of `--runs`; on a CPU `device` is memory like `cpu`.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import Results, ratio, timed
from transformers import BertConfig, BertForSequenceClassification

from hf_mpruner.snapshot import Snapshot

NAIVE = "deep copy"
KEPT = (0, 1, 2, 4, 5, 7, 8, 10)


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors inside nested dicts and lists."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(map(tensor_bytes, inside))


def naive(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float, float]:
    """Bytes, seconds to copy, seconds to load back."""
    took, _, kept = timed(lambda: copy.deepcopy((model.state_dict(), optimizer.state_dict())))
    back, _, _ = timed(lambda: (model.load_state_dict(kept[0]), optimizer.load_state_dict(kept[1])))
    return tensor_bytes(kept), took, back


def ours(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, removed: list[Any], where: Any, folder: Path
) -> tuple[int, float, float]:
    """Bytes, seconds to take, seconds to restore."""
    took, _, kept = timed(lambda: Snapshot.take(model, optimizer, removed=removed, where=where, directory=folder))
    back, _, _ = timed(kept.restore)
    size = kept.num_bytes
    kept.release()
    return size, took, back


def main() -> None:
    """Print a line for each way, with its ratio to the naive one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--layers", type=int, default=12)
    results = Results(__doc__, parser)
    args = results.args
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=args.layers))
    optimizer = torch.optim.AdamW(model.parameters())
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    optimizer.zero_grad()
    layers = model.bert.encoder.layer
    removed = [p for i, layer in enumerate(layers) if i not in KEPT for p in layer.parameters()]
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, Callable[[], tuple[int, float, float]]] = {NAIVE: lambda: naive(model, optimizer)}
        for where in ("cpu", "device", "disk"):
            ways[where] = lambda where=where: ours(model, optimizer, removed, where, Path(folder))
        measured: dict[str, list[tuple[int, float, float]]] = {name: [] for name in ways}
        for _ in range(args.runs):  # in turn, so that a busy machine slows all of them
            for name, way in ways.items():
                measured[name].append(way())
    columns = {name: list(zip(*rows, strict=True)) for name, rows in measured.items()}
    rows = [
        {"way": name, "MB": median(size) / 1e6, "take, s": median(take), "restore, s": median(back)}
        for name, (size, take, back) in columns.items()
    ]
    results.table(f"{len(removed)} of {len(list(model.parameters()))} parameters are in deleted layers", rows)
    for name in ("cpu", "device", "disk"):
        for i, part in enumerate(("bytes", "take", "restore")):
            results.ratio(f"{name}: {part} / {NAIVE}", ratio(columns[name][i], columns[NAIVE][i]))
    results.finish()


if __name__ == "__main__":
    main()
