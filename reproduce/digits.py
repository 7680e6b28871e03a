"""The digits that ship with scikit-learn (1,797 images of 8 x 8), in place of MNIST, and plain training on them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


class Split(NamedTuple):
    """Images `(n, 1, 8, 8)` and labels `(n,)`."""

    x: Tensor
    y: Tensor


def load(train: int = 1000, validation: int = 300) -> tuple[Split, Split, Split]:
    """Train, validation and test (the rest), one fixed draw; with mean 0 and standard deviation 1 over the train images."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(data.images, dtype=torch.float32)[order, None]
    y = torch.tensor(data.target)[order]
    x = (x - x[:train].mean()) / x[:train].std()
    parts = (slice(0, train), slice(train, train + validation), slice(train + validation, None))
    first, second, third = (Split(x[part], y[part]) for part in parts)
    return first, second, third


@torch.no_grad()
def evaluate(model: nn.Module, data: Split) -> tuple[float, float]:
    """Loss and share of right answers."""
    model.eval()
    out = model(data.x)
    return nn.functional.cross_entropy(out, data.y).item(), (out.argmax(1) == data.y).float().mean().item()


def train(
    model: nn.Module,
    data: Split,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    validation: Split | None = None,
    patience: int = 3,
) -> int:
    """Adam on cross-entropy, from a fresh state of the optimizer; draws from torch's global random state.

    Args:
        model (`nn.Module`): trained in place.
        data (`Split`): to train on.
        epochs (`int`): at most.
        batch_size (`int`): examples of a step.
        learning_rate (`float`): of Adam.
        validation (`Split`, *optional*): training ends after `patience` epochs without a lower loss on it, with the weights
            as they are then. Default: all epochs.
        patience (`int`): see there.

    Returns:
        `int`: epochs trained.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    lowest, waited = float("inf"), 0
    for epoch in range(1, epochs + 1):
        model.train()
        for rows in torch.randperm(len(data.x)).split(batch_size):
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(data.x[rows]), data.y[rows]).backward()
            optimizer.step()
        if validation is not None:
            loss, _ = evaluate(model, validation)
            lowest, waited = (loss, 0) if loss < lowest else (lowest, waited + 1)
            if waited >= patience:
                return epoch
    return epochs
