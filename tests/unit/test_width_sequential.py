"""Masked neurons leave a plain stack of layers, and what it computes stays."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hf_mpruner.errors import UnsupportedArchitectureError
from hf_mpruner.width.masks import make_permanent, mask_neurons
from hf_mpruner.width.sequential import shrink_sequential_


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    first = [nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.GELU()]
    second = [nn.Conv2d(6, 8, 3, stride=2, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout()]
    return nn.Sequential(*first, *second, nn.Linear(8 * 4, 10), nn.BatchNorm1d(10), nn.Tanh(), nn.Linear(10, 3))


def images(count: int = 16) -> torch.Tensor:
    return torch.randn(count, 2, 9, 9, generator=torch.Generator().manual_seed(1))


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_narrower_model_computes_what_the_masked_one_does() -> None:
    model, x = cnn(), images()
    for _ in range(3):
        model(x)  # statistics of the norms
    for layer, norm, gone in ((0, 1, [0, 4]), (3, None, [1, 2, 7]), (8, 9, [5])):
        mask_neurons(model[layer], gone)
        if norm is not None:
            mask_neurons(model[norm], gone)
    expected = model.eval()(x)
    assert shrink_sequential_(model) == {"0": (6, 4), "3": (8, 5), "8": (10, 9), "11": (3, 3)}
    assert not any(name.endswith(("_orig", "_mask")) for name in model.state_dict())
    assert not model[0].training
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)
    assert size(model) == (2 * 9 + 1 + 2) * 4 + 4 * 9 * 5 + (5 * 4 + 1 + 2) * 9 + (9 + 1) * 3
    loss = copy.deepcopy(model.train())(x).square().mean()
    loss.backward()


def test_without_masks_nothing_changes() -> None:
    model = cnn()
    before = dict(model.named_parameters())
    shrink_sequential_(model)
    assert all(value is before[name] for name, value in model.named_parameters())


@pytest.mark.parametrize(
    ("between", "why"),
    [
        (nn.Sigmoid(), "makes something else of a masked neuron's zero"),
        (nn.Softmax(1), "not known to treat every neuron by itself"),
        (nn.LayerNorm(6), "not known to treat every neuron by itself"),
        (nn.BatchNorm1d(6, affine=False), "subtracts a running mean"),
    ],
)
def test_what_masks_alone_can_do_is_refused_and_left(between: nn.Module, why: str) -> None:
    model = nn.Sequential(nn.Linear(4, 6), between, nn.Linear(6, 3)).eval()
    mask_neurons(model[0], [2])
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    before = model(x)
    with pytest.raises(UnsupportedArchitectureError, match=f"module '1' .*{why}"):
        shrink_sequential_(model)
    assert torch.equal(model(x), before)


def test_more_refusals() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        model[1].bias.fill_(0.5)
    mask_neurons(model[0], [2])
    with pytest.raises(UnsupportedArchitectureError, match="'1' shifts masked neurons"):
        shrink_sequential_(model)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    model(torch.randn(8, 4))
    mask_neurons(model[0], [2])
    with pytest.raises(UnsupportedArchitectureError, match="'1' shifts masked neurons"):
        shrink_sequential_(model)  # by the running mean from before the mask
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Linear(4, 3))
    mask_neurons(model[0], [2])
    with pytest.raises(UnsupportedArchitectureError, match=r"'2' reads positions of channels: put nn\.Flatten"):
        shrink_sequential_(model)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    mask_neurons(model[0], [2], bias=False)
    with pytest.raises(UnsupportedArchitectureError, match="'0' has masked neurons whose bias"):
        shrink_sequential_(model)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    mask_neurons(model[2], [1])
    with pytest.raises(UnsupportedArchitectureError, match="'2' is the last one"):
        shrink_sequential_(model)
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=2))
    mask_neurons(model[0], [1])
    with pytest.raises(UnsupportedArchitectureError, match="'2' is a convolution of 2 groups"):
        shrink_sequential_(model)
    make_permanent(model)
    assert shrink_sequential_(model) == {"0": (4, 4), "2": (4, 4)}, "plain zeros are weights like others"
