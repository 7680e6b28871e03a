"""What similarity costs over a plain forward pass of the same batches, in one run.

    python benchmarks/analysis_overhead.py                   # 12 layers of BERT-base size, batch 32, 128 tokens, CPU
    python benchmarks/analysis_overhead.py --padding 0.5     # examples of different lengths
    python benchmarks/analysis_overhead.py --device cuda --dtype bfloat16

Every batch is timed once per method before the next one comes, the order turning, so that a busy machine slows all
methods alike; ratios are medians over those pairs. A machine that is never quiet still scatters them by several percent,
so the last column takes the processor time spent in our hooks from the very pass they ran in: pass / (pass - hooks).
Weights are random: they change no cost.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from statistics import median

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from hf_mpruner.architectures.stack import BlockStack, ConfigField
from hf_mpruner.features import measure_similarity
from hf_mpruner.features.recorder import StackRecorder
from hf_mpruner.similarity import SimilarityProtocol

Batch = dict[str, Tensor]
PROTOCOLS = {
    "default": SimilarityProtocol.named("default"),
    "paper": SimilarityProtocol.named("paper"),
    "pooled tokens": SimilarityProtocol(rows="tokens"),
}


def build_model(args: argparse.Namespace) -> nn.Module:
    """A random BERT of the size asked for."""
    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=args.layers,
        hidden_size=args.hidden,
        intermediate_size=4 * args.hidden,
        num_attention_heads=args.hidden // 64,
        max_position_embeddings=max(512, args.length),
    )
    return BertModel(config, add_pooling_layer=False).eval().to(args.device, getattr(torch, args.dtype))


def build_batches(args: argparse.Namespace, count: int) -> list[Batch]:
    """Random tokens; with `--padding p` lengths are uniform between (1 - p) and all of the length."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(count):
        ids = torch.randint(1000, 30000, (args.batch, args.length), generator=generator)
        shortest = max(4, round((1 - args.padding) * args.length))
        lengths = torch.randint(shortest, args.length + 1, (args.batch, 1), generator=generator)
        lengths[0] = args.length
        batches.append({"input_ids": ids, "attention_mask": (torch.arange(args.length) < lengths).long()})
    return batches


@torch.no_grad()
def run_plain(model: nn.Module, batches: list[Batch], device: str) -> None:
    """The forward passes alone."""
    for batch in batches:
        model(**{name: value.to(device) for name, value in batch.items()})


@torch.no_grad()
def run_by_hand(model: nn.Module, batches: list[Batch], device: str) -> None:
    """What one would write otherwise: keep all features, then HSIC with H K H for each pair of layers."""
    kept = [model(**{k: v.to(device) for k, v in b.items()}, output_hidden_states=True).hidden_states for b in batches]
    depth = len(kept[0]) - 1
    values = torch.zeros(depth, depth)
    for states in kept:
        n = len(states[0])
        centre = torch.eye(n, device=device) - torch.ones(n, n, device=device) / n

        def hsic(x: Tensor, y: Tensor, centre: Tensor = centre) -> Tensor:
            return ((centre @ (x @ x.T) @ centre) * (centre @ (y @ y.T) @ centre)).sum()

        flat = [state.float().flatten(1) for state in states[1:]]
        for i in range(depth):
            for j in range(depth):
                ratio = hsic(flat[i], flat[j]) / (hsic(flat[i], flat[i]) * hsic(flat[j], flat[j])).sqrt()
                values[i, j] += ratio.item() / len(kept)


def timed(method: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    method()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - wall, time.process_time() - processor


class HookClock:
    """Processor seconds inside the hooks and the comparison of layers, while it is installed."""

    def __init__(self) -> None:
        self.seconds = 0.0
        for name in ("begin", "_record", "end"):
            setattr(StackRecorder, name, self.wrap(getattr(StackRecorder, name)))

    def wrap(self, method: Callable[..., None]) -> Callable[..., None]:
        """The method, timed."""

        def timed_method(*args: object) -> None:
            start = time.process_time()
            method(*args)
            self.seconds += time.process_time() - start

        return timed_method


def live_tensor_bytes() -> int:
    """Bytes of all tensors that exist now."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor):  # isinstance would touch deprecated objects
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def print_times(model: nn.Module, stacks: list[BlockStack], args: argparse.Namespace) -> None:
    """Time every method on every batch and print medians of the paired ratios."""
    batches = build_batches(args, args.batches)
    chosen = {name: PROTOCOLS[name] for name in args.protocols}
    run_plain(model, batches[:1], args.device)  # warm up
    times: dict[str, list[tuple[float, float]]] = {}
    clock, inside = HookClock(), {}
    for repeat in range(args.repeats):
        for number, batch in enumerate(batches):
            methods: dict[str, Callable[[], object]] = {
                "plain forward": lambda b=batch: run_plain(model, [b], args.device)
            }
            for name, protocol in chosen.items():
                methods[f"similarity, {name}"] = lambda b=batch, p=protocol: measure_similarity(
                    model, [b], stacks, protocol=p, show_progress=False
                )
            if args.by_hand:
                methods["by hand, pair by pair"] = lambda b=batch: run_by_hand(model, [b], args.device)
            names = list(methods)
            turn = (repeat * len(batches) + number) % len(names)
            for name in names[turn:] + names[:turn]:
                before = clock.seconds
                times.setdefault(name, []).append(timed(methods[name]))
                whole, hooks = times[name][-1][1], clock.seconds - before
                inside.setdefault(name, []).append(whole / (whole - hooks))
    plain = times["plain forward"]
    print(f"{'':24}{'s/batch':>9}{'ratio':>8}{'CPU s/batch':>14}{'ratio':>8}{'by hooks':>10}")
    for name in sorted(times, key=lambda name: name != "plain forward"):
        wall, processor = ([pair[i] for pair in times[name]] for i in (0, 1))
        ratios = [median(pair[i] / base[i] for pair, base in zip(times[name], plain, strict=True)) for i in (0, 1)]
        print(
            f"{name:24}{median(wall):9.3f}{ratios[0]:8.3f}{median(processor):14.3f}{ratios[1]:8.3f}{median(inside[name]):10.3f}"
        )


def print_memory(model: nn.Module, stacks: list[BlockStack], args: argparse.Namespace) -> None:
    """Bytes held between batches, at the first and at the last one."""
    few = argparse.Namespace(**{**vars(args), "batch": min(args.batch, 8), "length": min(args.length, 64)})
    batches = build_batches(few, 8)
    for name in args.protocols:
        seen: list[int] = []

        def watched(seen: list[int] = seen) -> Iterator[Batch]:
            for batch in batches:
                yield batch
                seen.append(live_tensor_bytes())

        measure_similarity(model, watched(), stacks, protocol=PROTOCOLS[name], show_progress=False)
        grown = (seen[-1] - seen[1]) / 1e6
        print(
            f"tensors held after 2 batches {seen[1] / 1e6:.3f} MB, after 8 {seen[-1] / 1e6:.3f} MB: {grown:+.3f} MB ({name})"
        )
    features = 6 * args.layers * few.batch * few.length * args.hidden * 4 / 1e6
    print(f"storing the features instead would have added {features:.1f} MB over those 6 batches of {few.batch}")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--batch", type=int, default=32, help="examples in a batch")
    parser.add_argument("--length", type=int, default=128, help="tokens of the longest example")
    parser.add_argument("--padding", type=float, default=0.0, help="fraction of the length that examples may lack")
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=["default", "paper"])
    parser.add_argument("--by_hand", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--threads", type=int, help="processor threads; 1 on a machine that others use too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = build_model(args)
    stacks = [BlockStack("encoder.layer", "BertLayer", args.layers, ConfigField("num_hidden_layers"))]
    print(
        f"{args.layers} layers, hidden {args.hidden}, batch {args.batch} x {args.length}, padding {args.padding}, "
        f"{args.dtype} on {args.device}, {torch.get_num_threads()} threads, {args.batches} batches x {args.repeats}"
    )
    print_times(model, stacks, args)
    print_memory(model, stacks, args)


if __name__ == "__main__":
    main()
