"""The digits in many variants: a population so large that what a model is worth on it is known; and a ViT to prune.

scikit-learn's 1,797 images of 8 x 8 pixels are turned, moved, stretched and made noisy at random. Originals of what trains
have no variant in the population. Everything is drawn from fixed seeds.
"""

from __future__ import annotations

import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed
from transformers.utils import logging as chatter

sys.path.insert(0, str(Path(__file__).parents[1]))

import digits

BATCH = 500


@dataclass(frozen=True)
class Images:
    """Images `(n, 1, 8, 8)`, labels `(n,)` and the original `(n,)` that each is a variant of; a data set for a Trainer."""

    x: Tensor
    y: Tensor
    original: Tensor

    def __len__(self) -> int:
        """How many."""
        return len(self.x)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        """One example, as the model takes it."""
        return {"pixel_values": self.x[place], "labels": self.y[place]}

    def part(self, places: slice) -> Images:
        """Some of them."""
        return Images(self.x[places], self.y[places], self.original[places])


def load(originals: int, train: int, pool: int, strength: float = 1.0) -> tuple[Images, Images]:
    """What trains, and the population.

    Args:
        originals (`int`): images whose variants train; the others of the 1,797 are the population's.
        train (`int`): variants that train.
        pool (`int`): variants in the population.
        strength (`float`): how far variants are from their originals.
    """
    first, second, third = digits.load(originals, 0)
    others = digits.Split(torch.cat([second.x, third.x]), torch.cat([second.y, third.y]))
    return _vary(first, train, strength, seed=1), _vary(others, pool, strength, seed=2)


def _vary(data: digits.Split, number: int, strength: float, seed: int) -> Images:
    """Each original as often as the others, in a random order."""
    draw = torch.Generator().manual_seed(seed)
    chosen = (torch.arange(number) % len(data.y))[torch.randperm(number, generator=draw)]

    def uniform(most: float) -> Tensor:
        return (2 * torch.rand(number, generator=draw) - 1) * most * strength

    angle, shear = uniform(math.radians(20)), uniform(0.2)
    sizes, moves = [1 + uniform(0.15) for _ in range(2)], [uniform(0.25) for _ in range(2)]
    across = torch.stack([sizes[0] * angle.cos(), -angle.sin() + shear, moves[0]], dim=1)
    down = torch.stack([angle.sin(), sizes[1] * angle.cos(), moves[1]], dim=1)
    grid = nn.functional.affine_grid(torch.stack([across, down], dim=1), [number, 1, 8, 8], align_corners=False)
    # what moves in from outside is paper, which is the smallest value
    paper = data.x.min()
    moved = nn.functional.grid_sample(data.x[chosen] - paper, grid, align_corners=False) + paper
    noisy = moved + 0.3 * strength * torch.randn(moved.shape, generator=draw)
    return Images(noisy, data.y[chosen], chosen)


def build(layers: int, hidden: int) -> ViTForImageClassification:
    """A ViT of random weights that looks at patches of 2 x 2 pixels."""
    return ViTForImageClassification(
        ViTConfig(
            num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=4, intermediate_size=2 * hidden,
            image_size=8, patch_size=2, num_channels=1, num_labels=10,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


def settings(folder: str, steps: int, rate: float, seed: int, **more: Any) -> TrainingArguments:
    """Of a Trainer that writes and prints nothing."""
    return TrainingArguments(
        folder, max_steps=steps, learning_rate=rate, weight_decay=0.05, warmup_steps=0.1, seed=seed,
        per_device_train_batch_size=64, per_device_eval_batch_size=BATCH, report_to="none", save_strategy="no",
        logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=torch.accelerator.is_available(), **more,
    )  # fmt: skip


def fit(model: nn.Module, data: Images, steps: int, rate: float, seed: int) -> None:
    """Train in place: AdamW, 64 images a step, a rate that warms up and decays to 0."""
    chatter.set_verbosity_error()
    set_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model, settings(folder, steps, rate, seed), train_dataset=data)  # type: ignore[arg-type]
        trainer.remove_callback(PrinterCallback)
        trainer.train()


@torch.no_grad()
def answers(model: nn.Module, data: Images) -> tuple[Tensor, Tensor]:
    """The most likely digit `(n,)` and the cross-entropy `(n,)` of each image."""
    model.eval()
    device = next(model.parameters()).device
    logits = torch.cat([model(pixel_values=batch.to(device)).logits.cpu() for batch in data.x.split(BATCH)])
    return logits.argmax(1), nn.functional.cross_entropy(logits, data.y, reduction="none")
