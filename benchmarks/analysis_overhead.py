r"""What the similarity of all pairs of layers costs over a plain forward pass of the same batches, beside other libraries.

    python benchmarks/analysis_overhead.py                   # 12 layers of BERT-base size, batch 32, 128 tokens, CPU
    python benchmarks/analysis_overhead.py --padding 0.5     # examples of different lengths; without the other libraries
    python benchmarks/analysis_overhead.py --model llama --layers 32 --hidden 4096 --batch 32 --length 512 --batches 4 \
        --device cuda --dtype bfloat16

Sides take turns on the same batches. `by hooks` is the processor time spent in our hooks within the very pass they ran in,
pass / (pass - hooks): a machine that is never quiet scatters the other ratios more than what is to be measured. An accelerator
works while the processor waits, so there it would say nothing.

Beside ours, in a run of their own with the plain forward pass again: torch-cka and ckatorch (one pass over the data, where
its default is ten), if they are installed (the extra `benchmarks`), and the loop that papers describe: for each example
and each pair of layers H K H of its tokens, with H written out. torch-cka measures the same quantity as the default protocol,
from features that are not centred: of a float32 product the part that all examples have in common leaves few digits. How far
both are from what both give in float64 is printed. A library that fails is left out, with what it said.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import sys
import time
import warnings
from collections.abc import Callable
from statistics import median

import torch
from measure import Results, Side, Times, in_turn, ratio
from models import Batch, add_model, add_size, batches_of, model_of
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hf_mpruner.features import measure_similarity
from hf_mpruner.features.recorder import StackRecorder
from hf_mpruner.similarity import SimilarityProtocol

PROTOCOLS = {
    "default": SimilarityProtocol.named("default"),
    "paper": SimilarityProtocol.named("paper"),
    "pooled tokens": SimilarityProtocol(rows="tokens"),
}
PLAIN = "plain forward"


@torch.no_grad()
def run_plain(model: nn.Module, batches: list[Batch]) -> None:
    """The forward passes alone, of batches that come from a loader."""
    for batch in batches:
        model(**on_device(model, batch))


def on_device(model: nn.Module, batch: Batch) -> Batch:
    """The batch where the model is."""
    return {name: value.to(model.device) for name, value in batch.items()}


@torch.no_grad()
def papers_loop(model: nn.Module, batch: Batch) -> Tensor:
    """Equations 1-5 of MPruner as they stand, an example and a pair at a time (biased, a mean of CKA values)."""
    states = model(**on_device(model, batch), output_hidden_states=True).hidden_states[1:]
    values = torch.zeros(len(states), len(states))

    def hsic(x: Tensor, y: Tensor) -> Tensor:
        n = len(x)
        centre = torch.eye(n, device=x.device) - torch.ones(n, n, device=x.device) / n
        return torch.trace(centre @ (x @ x.T) @ centre @ (centre @ (y @ y.T) @ centre)) / (n - 1) ** 2

    for example in range(len(states[0])):
        rows = [state[example].float() for state in states]
        for i, x in enumerate(rows):
            for j, y in enumerate(rows):
                values[i, j] += (hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt()).item()
    return values / len(states[0])


def other_libraries(model: nn.Module, batch: Batch, names: list[str], device: str) -> dict[str, Side]:
    """Those that are installed, on the same batch; each returns its matrix."""
    found: dict[str, Side] = {}
    rows = [{name: value[i] for name, value in batch.items()} for i in range(len(batch["input_ids"]))]
    with contextlib.suppress(ImportError):
        from torch_cka import CKA as TorchCKA

        def torch_cka() -> Tensor:
            loader = DataLoader(batch["input_ids"], batch_size=len(rows), collate_fn=lambda ids: (torch.stack(ids),))
            compare = TorchCKA(model, model, "one", "other", model1_layers=names, model2_layers=names, device=device)
            compare.compare(loader)
            return compare.export()["CKA"]

        found["torch-cka"] = torch_cka
    with contextlib.suppress(ImportError):
        from ckatorch import CKA

        found["ckatorch, 1 epoch"] = lambda: CKA(model, model, names, device=device)(
            DataLoader(rows, batch_size=len(rows)), epochs=1
        )
    return {name: quietly(side, model) for name, side in found.items()}


def quietly(side: Side, model: nn.Module) -> Side:
    """Without bars and advice, and without the hooks that the library leaves on the model."""

    def work() -> object:
        before = [(module, list(module._forward_hooks)) for module in model.modules()]
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return side()
            finally:
                for module, hooks in before:
                    for key in [key for key in module._forward_hooks if key not in hooks]:
                        del module._forward_hooks[key]

    return work


class HookClock:
    """Processor seconds inside the hooks and the comparison of layers, while it is installed."""

    def __init__(self) -> None:
        self.seconds = 0.0
        for name in ("begin", "record", "end"):
            setattr(StackRecorder, name, self.wrap(getattr(StackRecorder, name)))

    def wrap(self, method: Callable[..., None]) -> Callable[..., None]:
        """The method, timed."""

        def timed_method(*args: object) -> None:
            start = time.process_time()
            method(*args)
            self.seconds += time.process_time() - start

        return timed_method


def keep(results: Results, title: str, times: dict[str, Times], bounds: dict[str, float]) -> None:
    """Print ratios to the plain forward pass."""
    results.table(title, [{"side": k, "s": median(t.wall), "CPU s": median(t.cpu)} for k, t in times.items()])
    for name, taken in times.items():
        if name != PLAIN:
            results.ratio(f"{name} / {PLAIN}", ratio(taken, times[PLAIN]), at_most=bounds.get(name))


def say_how_far(results: Results, model: nn.Module, torch_cka: Side, ours: Side) -> None:
    """Print how far torch-cka and ours are from each other, in float32 and in float64, and ours from itself."""
    found: dict[torch.dtype, tuple[Tensor, Tensor]] = {}
    for dtype in (torch.float32, torch.float64):
        model.to(dtype)
        torch.set_default_dtype(dtype)  # torch-cka multiplies Gram matrices with ones of this type
        try:
            found[dtype] = torch_cka().double().cpu(), ours().double().cpu()
        finally:
            torch.set_default_dtype(torch.float32)
    (theirs, own), (exact, own_exact) = found.values()
    off, off_exact, own_off = (
        (a - b).abs().max().item() for a, b in ((theirs, own), (exact, own_exact), (own, own_exact))
    )
    results.note(
        f"torch-cka and our default protocol differ by at most {off:.1e} in float32 and {off_exact:.1e} in float64; ours in "
        f"float32 and in float64 by {own_off:.1e}. torch-cka does not centre the features before it multiplies them: the more "
        "all examples have in common, the fewer digits of its float32 products are left."
    )


def time_others(args: argparse.Namespace, results: Results, sides: dict[str, Side]) -> None:
    """Time the sides in turn; of numbers other than float32, without those that do not run."""
    for name in list(sides) if args.dtype != "float32" else ():
        try:
            sides[name]()
        except (RuntimeError, AssertionError, ValueError) as error:
            results.note(f"{name} does not run here: {' '.join(str(error).split())[:200]}")
            del sides[name]
    keep(results, "others, seconds", in_turn(sides, args.repeats_others, warm_up=0), {})


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser()
    add_size(parser)
    add_model(parser)
    parser.add_argument("--batches", type=int, default=1, help="in one measurement")
    parser.add_argument("--padding", type=float, default=0.0, help="fraction of the length that examples may lack")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of ours")
    parser.add_argument(
        "--repeats_others", type=int, default=3, help="rounds of other libraries and the papers' loop; 0: none"
    )
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=["default", "paper"])
    results = Results(__doc__, parser)
    args = results.args
    model, stack = model_of(args)
    batches = batches_of(args, args.batches, args.padding)
    results.note(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    clock, inside = HookClock(), dict[str, list[float]]()

    def ours(name: str, batches: list[Batch]) -> Tensor:
        before, started = clock.seconds, time.process_time()
        matrix = measure_similarity(model, batches, [stack], protocol=PROTOCOLS[name], show_progress=False)
        whole = time.process_time() - started
        inside.setdefault(name, []).append(whole / (whole - clock.seconds + before))
        return matrix[stack.path].values

    sides: dict[str, Side] = {PLAIN: lambda: run_plain(model, batches)}
    sides |= {f"ours, {name}": lambda name=name: ours(name, batches) for name in args.protocols}
    bounds = {"ours, default": 1.05, "ours, paper": 1.05}
    keep(results, "ours, seconds", in_turn(sides, args.repeats), bounds)
    for name, ratios in inside.items() if args.device == "cpu" else ():
        results.ratio(f"ours, {name}, by hooks", ratio(ratios[1:] or ratios, [1.0] * len(ratios[1:] or ratios)))
    if args.repeats_others and not args.padding:
        one = batches[:1]
        others = other_libraries(
            model, on_device(model, one[0]), [f"{stack.path}.{i}" for i in range(args.layers)], args.device
        )
        for library in ("torch-cka", "ckatorch"):
            if any(name.startswith(library) for name in others):
                results.add_versions(**{library: importlib.metadata.version(library)})
            else:
                results.note(f"{library} is not installed, so it is left out: pip install 'hf_mpruner[benchmarks]'")
        sides = {PLAIN: lambda: run_plain(model, one), "ours, default": lambda: ours("default", one), **others}
        sides["the papers' loop"] = lambda: papers_loop(model, one[0])
        time_others(args, results, sides)
        if "torch-cka" in others and args.dtype == "float32":
            say_how_far(results, model, others["torch-cka"], lambda: ours("default", one))
    results.finish()


if __name__ == "__main__":
    sys.exit(main())
