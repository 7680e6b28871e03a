"""What the analysis holds beside the model: against the length of sequences and the number of examples.

Run: `python benchmarks/memory.py`. For the default protocol and every combination of two lengths and two numbers of batches:

- `hooks, MB`: the most bytes of tensors that our hooks and the accumulator made and held at one time;
- `kept, MB`: bytes of them that are left when the last batch is done;
- `resident, MB`: how much higher the process's peak resident memory was than in a process that ran the plain forward pass
  of the same batches (both measured from after a warm-up on one short batch). Pages of the allocator make it coarse. On an
  accelerator (`--device cuda`): what its allocator had handed out at most, and all in one process.

The hooks look at features a part at a time, so what they hold grows until a batch has two whole parts (86 tokens of 768
features in a batch of 16), and no further.

Features of all blocks, kept for a comparison at the end, are the last column: what grows with both.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from measure import Ratio, Results
from models import add_model, add_size, batches_of, model_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hf_mpruner.architectures.stack import BlockStack
from hf_mpruner.features import measure_similarity
from hf_mpruner.features.recorder import StackRecorder


class Held(TorchDispatchMode):
    """Bytes of the tensors made under it that still live, and the most there ever were; storages count once."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count what it made."""
        given = {x.untyped_storage().data_ptr() for x in args if torch.is_tensor(x)}
        made = func(*args, **(kwargs or {}))
        for x in filter(torch.is_tensor, made if isinstance(made, list | tuple) else [made]):
            storage = x.untyped_storage()
            if storage.data_ptr() not in given and storage.nbytes():
                self._sizes[id(x)] = storage.nbytes()
                weakref.finalize(x, self._sizes.pop, id(x), None)
        self.most = max(self.most, self.now)
        return made

    @property
    def now(self) -> int:
        """Bytes that live."""
        return sum(self._sizes.values())


@contextmanager
def watching_hooks() -> Iterator[Held]:
    """Count inside the hooks and the comparison of layers only."""
    held, methods = Held(), {name: getattr(StackRecorder, name) for name in ("record", "end")}

    def wrap(method: Callable[..., None]) -> Callable[..., None]:
        def watched(*args: object) -> None:
            with held:
                method(*args)

        return watched

    for name, method in methods.items():
        setattr(StackRecorder, name, wrap(method))
    try:
        yield held
    finally:
        for name, method in methods.items():
            setattr(StackRecorder, name, method)


def peak(device: str) -> int:
    """The most bytes so far: the process's resident memory, or what the accelerator's allocator has handed out."""
    if device != "cpu":
        return torch.accelerator.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def work(args: argparse.Namespace, model: nn.Module, stack: BlockStack) -> dict[str, int]:
    """One way in this process: `plain`, `ours`, or `watched` (ours, with every operation counted)."""
    short = batches_of(argparse.Namespace(**{**vars(args), "batch": 4, "length": 8}), 1)
    measure_similarity(model, short, [stack], show_progress=False)
    batches = batches_of(args, args.batches)
    if args.device != "cpu":
        gc.collect()
        torch.accelerator.reset_peak_memory_stats()
    before = peak(args.device)
    with watching_hooks() if args.way == "watched" else nullcontext() as held:
        if args.way == "plain":
            with torch.no_grad():
                for batch in batches:
                    model(**{name: value.to(args.device) for name, value in batch.items()})
        else:
            measure_similarity(model, batches, [stack], show_progress=False)
        return {
            "resident": peak(args.device) - before,
            "most": held.most if held else 0,
            "left": held.now if held else 0,
        }


def in_own_process(args: argparse.Namespace) -> dict[str, int]:
    """The same in a process of its own, whose resident memory nothing else has raised."""
    names = ("model", "layers", "hidden", "batch", "length", "dtype", "batches", "way")
    words = [word for name in names for word in (f"--{name}", str(getattr(args, name)))]
    command = [sys.executable, __file__, *words, "--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure every cell, and print them."""
    parser = argparse.ArgumentParser()
    add_size(parser, layers=4, batch=16)
    add_model(parser)
    parser.add_argument("--lengths", type=int, nargs=2, default=[96, 384])
    parser.add_argument("--num_batches", type=int, nargs=2, default=[2, 5])
    parser.add_argument("--batches", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    results = Results(__doc__, parser)
    args = results.args
    if args.way:
        print(json.dumps(work(args, *model_of(args))))
        return
    here = (
        None if args.device == "cpu" else model_of(argparse.Namespace(**{**vars(args), "length": max(args.lengths)}))
    )
    rows, most = [], {}
    for length in args.lengths:
        for count in args.num_batches:
            found = {}
            for way in ("plain", "ours", "watched"):
                cell = argparse.Namespace(**{**vars(args), "length": length, "batches": count, "way": way})
                found[way] = in_own_process(cell) if here is None else work(cell, *here)
            most[length, count] = found["watched"]["most"]
            bytes_each = getattr(torch, args.dtype).itemsize
            rows.append({
                "tokens": length, "examples": count * args.batch,
                "hooks, MB": found["watched"]["most"] / 1e6, "kept, MB": found["watched"]["left"] / 1e6,
                "resident, MB": (found["ours"]["resident"] - found["plain"]["resident"]) / 1e6,
                "all features, MB": args.layers * args.batch * count * length * args.hidden * bytes_each / 1e6,
            })  # fmt: skip
    results.table("default protocol, beside the model and its forward pass", rows)
    (short, long), (few, many) = args.lengths, args.num_batches
    for name, a, b in (
        (f"hooks' memory at {long} tokens / at {short}", (long, many), (short, many)),
        (f"hooks' memory with {many} batches / with {few}", (long, many), (long, few)),
    ):
        value = most[a] / most[b]
        results.ratio(name, Ratio(value, value, value), at_most=1.05)
    results.finish()


if __name__ == "__main__":
    sys.exit(main())
