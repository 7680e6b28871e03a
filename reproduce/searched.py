"""An architecture that a search has found has no clusters (arXiv 2408.13482, "TinyNas"): does it hold?

    python reproduce/searched.py

For each width the search trains ResNets of two stages with 1 to 8 blocks each on handwritten digits, several seeds, and takes
the fewest blocks whose mean accuracy on `validation` is within `--tolerance` of the best of that width. Clusters of the
searched network are counted beside those of the deepest one of the same width, by the paper's protocol and by ours, and
of both before training: what is alike then was not learned. A stage of one block cannot have a cluster; where the search
ends there the paper's statement holds for no reason of its own, and the verdict is open.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from papers import Cells, Claim, add_arguments, in_words, plot_lines, table, write_page
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification

from hf_mpruner import find_clusters, measure_similarity
from hf_mpruner.architectures import count_parameters

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

PRESETS = ("paper", "default")
THRESHOLDS = (0.99, 0.98, 0.95, 0.9)
# The paper's own thresholds of ResNets and BERT.
JUDGED = 0.98
STAGES = 2
BATCH = 64
RATE = 4e-3
Parts = dict[str, tuple[Tensor, Tensor]]


def build(width: int, depth: int, seed: int) -> ResNetForImageClassification:
    """A ResNet of two stages, the second twice as wide."""
    torch.manual_seed(seed)
    config = ResNetConfig(
        num_channels=1, num_labels=10, embedding_size=width, hidden_sizes=[width, STAGES * width],
        depths=[depth] * STAGES, layer_type="basic",
    )  # fmt: skip
    return ResNetForImageClassification(config)


def fit(model: ResNetForImageClassification, images: Tensor, digits: Tensor, epochs: int) -> None:
    """AdamW, one cycle of the learning rate."""
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    steps = epochs * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            model(pixel_values=images[rows], labels=digits[rows]).loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def removable(model: ResNetForImageClassification, images: Tensor) -> dict[str, dict[str, int]]:
    """By protocol and threshold: layers that are in a cluster and not its first, of both stages."""
    if all(len(stage.layers) == 1 for stage in model.resnet.encoder.stages):
        return {preset: {f"{threshold:g}": 0 for threshold in THRESHOLDS} for preset in PRESETS}
    found = {}
    for preset in PRESETS:
        batches = [{"pixel_values": part} for part in images.split(100)]
        matrices = measure_similarity(model, batches, protocol=preset, show_progress=False).values()
        found[preset] = {
            f"{threshold:g}": sum(len(run.layers) - 1 for one in matrices for run in find_clusters(one, threshold))
            for threshold in THRESHOLDS
        }
    return found


def train(width: int, depth: int, seed: int, parts: Parts, epochs: int) -> dict[str, Any]:
    """One network: size, accuracies, and what is alike before and after training."""
    model = build(width, depth, seed)
    model.eval()
    untrained = removable(model, parts["validation"][0])
    started = time.perf_counter()
    fit(model, *parts["train"], epochs)
    seconds = time.perf_counter() - started
    accuracies = {}
    with torch.no_grad():
        for name in ("validation", "test"):
            images, digits = parts[name]
            accuracies[name] = float((model(pixel_values=images).logits.argmax(-1) == digits).float().mean())
    return {
        "parameters": count_parameters(model), "seconds": seconds, **accuracies,
        "untrained": untrained, "trained": removable(model, parts["validation"][0]),
    }  # fmt: skip


def main() -> None:
    """Run what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "searched")
    parser.add_argument("--widths", nargs="+", type=int, default=[4, 8, 16], help="channels of the first stage")
    parser.add_argument("--depths", nargs="+", type=int, default=[1, 2, 3, 4, 6, 8], help="blocks in each stage")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tolerance", type=float, default=0.01, help="of accuracy, below the best of a width")
    parser.add_argument("--train", type=int, help="training examples (default: all 1,100)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    from offline_data import digits

    data = digits(size=16)
    parts = {name: (part[: args.train if name == "train" else None]["pixel_values"],
                    part[: args.train if name == "train" else None]["labels"]) for name, part in data.items()}  # fmt: skip
    settings = {"epochs": args.epochs, "rate": RATE, "batch": BATCH, "train": len(parts["train"][0]), "pixels": 16}
    cells = Cells(args.output_dir, settings)
    runs = {
        (width, depth): [
            cells.get(
                f"w{width}-d{depth}-s{seed}", lambda w=width, d=depth, s=seed: train(w, d, s, parts, args.epochs)
            )
            for seed in range(args.seeds)
        ]
        for width in args.widths
        for depth in args.depths
    }
    searched = {width: search(runs, width, args.tolerance) for width in args.widths}
    _write(args, {**settings, "tolerance": args.tolerance, "seeds": args.seeds}, runs, searched)
    print(f"{cells.seconds / 60:.1f} minutes of cells; see {args.output_dir / 'table.md'}")


def search(runs: dict[tuple[int, int], list[Any]], width: int, tolerance: float) -> int:
    """The fewest blocks a stage whose mean accuracy on `validation` is within the tolerance of the width's best."""
    means = {
        depth: statistics.fmean(run["validation"] for run in some) for (found, depth), some in runs.items() if found == width
    }  # fmt: skip
    return min(depth for depth, mean in means.items() if mean >= max(means.values()) - tolerance)


def _write(
    args: argparse.Namespace,
    settings: dict[str, Any],
    runs: dict[tuple[int, int], list[Any]],
    searched: dict[int, int],
) -> None:
    header = ["width", "blocks a stage", "parameters", "validation, %", "test, %",
              *(f"{preset} {threshold:g}" for preset in PRESETS for threshold in THRESHOLDS), "paper 0.98, untrained",
              "default 0.98, untrained"]  # fmt: skip
    rows = []
    for (width, depth), some in runs.items():
        mark = " (searched)" if searched[width] == depth else ""
        rows.append([
            width, f"{depth}{mark}", f"{some[0]['parameters']:,}", in_words([run["validation"] for run in some]),
            in_words([run["test"] for run in some]),
            *(in_words(_counts(some, "trained", preset, threshold), False) for preset in PRESETS for threshold in THRESHOLDS),
            *(in_words(_counts(some, "untrained", preset, JUDGED), False) for preset in PRESETS),
        ])  # fmt: skip
    sections = [("Layers in clusters (without the first of each) by threshold", table(header, rows))]
    for preset in PRESETS:
        series = {
            f"width {width}, searched: {searched[width]}": {
                float(STAGES * depth): [100 * n / (STAGES * depth) for n in _counts(some, "trained", preset, JUDGED)]
                for (found, depth), some in runs.items() if found == width
            } for width in searched
        }  # fmt: skip
        plot_lines(
            args.output_dir / f"clusters-{preset}.png",
            series,
            ("layers", f"% of layers in clusters at {JUDGED:g}"),
            preset,
        )
        sections.append((f"Share by depth, `{preset}`", f"![share of layers in clusters](clusters-{preset}.png)"))
    title = (
        "Clusters of a searched architecture\n\nAfter arXiv 2408.13482, section TinyNas. Different from the paper: a search over "
        "depths of a small ResNet instead of TinyNAS, whose networks cannot be had offline; handwritten digits. `a (b-c)`: "
        "mean, smallest and largest over seeds."
    )
    results = {
        "runs": [{"width": width, "depth": depth, "runs": some} for (width, depth), some in runs.items()],
        "searched": [{"width": width, "depth": depth} for width, depth in searched.items()],
    }  # fmt: skip
    write_page(args.output_dir, title, settings, results, sections, _claims(runs, searched))


def _counts(some: list[Any], when: str, preset: str, threshold: float) -> list[float]:
    return [float(run[when][preset][f"{threshold:g}"]) for run in some]


def _claims(runs: dict[tuple[int, int], list[Any]], searched: dict[int, int]) -> list[Claim]:
    claims = []
    for preset in PRESETS:
        for width, depth in searched.items():
            deepest = max(found for other, found in runs if other == width)
            own = _counts(runs[width, depth], "trained", preset, JUDGED)
            deep = _counts(runs[width, deepest], "trained", preset, JUDGED)
            where = f"width {width}, {preset}, threshold {JUDGED:g}"
            verdict = None if depth == 1 or depth == deepest else statistics.fmean(own) < 1
            claims.append(Claim(
                f"TinyNas: a searched architecture has no multi-layer clusters ({where})",
                f"{STAGES * depth} layers, of which {in_words(own, False)} could go", verdict,
            ))  # fmt: skip
            claims.append(Claim(
                f"the other side of it: a deeper network than the task needs has clusters ({where})",
                f"{STAGES * deepest} layers, of which {in_words(deep, False)} could go",
                None if depth == deepest else statistics.fmean(deep) >= 1,
            ))  # fmt: skip
            left = [STAGES * deepest - count for count in deep]
            claims.append(Claim(
                f"Abstract: pruning finds the size that the task needs ({where}, one iteration, k=1, before recovery)",
                f"of {STAGES * deepest} layers {in_words(left, False)} are left; the search needs {STAGES * depth}",
                None if depth == deepest else abs(statistics.fmean(left) - STAGES * depth) <= 1,
            ))  # fmt: skip
    return claims


if __name__ == "__main__":
    main()
