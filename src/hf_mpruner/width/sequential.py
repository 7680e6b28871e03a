"""Masked neurons of an `nn.Sequential` leave it: narrower layers that compute the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hf_mpruner.errors import UnsupportedArchitectureError
from hf_mpruner.width.masks import alive_neurons

# What treats every channel by itself, whatever its number.
_BY_CHANNEL = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Identity)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d)


def shrink_sequential_(model: nn.Sequential) -> dict[str, tuple[int, int]]:
    """Take masked neurons and channels out of a stack of layers, in place; what it computes stays the same.

    Each masked row goes, with what reads it: columns of the next layer, its part of a batch norm in between. Parameters
    that stay are new tensors without masks, so build the optimizer afterwards. Layers without masks are left as they are,
    the last one, whose neurons are the outputs, keeps all of them.

    Args:
        model (`nn.Sequential`): of `nn.Linear` and `nn.Conv2d` (one group) with activation functions, dropout, batch norms,
            pooling and `nn.Flatten` between them. Masks are those of `mask_neurons` with `bias=True`.

    Returns:
        `dict`: name of each layer to its neurons before and after.

    Raises:
        UnsupportedArchitectureError: for another module, or where a masked neuron still puts out something (a bias that
            was not masked, a batch norm's shift, an activation function with f(0) other than 0); nothing was changed.

    Example:
        >>> from hf_mpruner.width.masks import mask_neurons
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> mask_neurons(model[0], [1, 5])
        >>> shrink_sequential_(model)
        {'0': (8, 6), '2': (3, 3)}
        >>> model[2].weight.shape
        torch.Size([3, 6])
    """
    layers = [name for name, module in model.named_children() if isinstance(module, nn.Linear | nn.Conv2d)]
    made: dict[str, nn.Module] = {}
    sizes: dict[str, tuple[int, int]] = {}
    read: Tensor | None = None
    positions = False
    for name, module in model.named_children():
        if isinstance(module, nn.Linear | nn.Conv2d):
            stays = alive_neurons(module)
            if positions and isinstance(module, nn.Linear) and read is not None and not read.all():
                raise _refusal(name, "reads positions of channels: put nn.Flatten() before it")
            positions = isinstance(module, nn.Conv2d)
            if name == layers[-1] and not stays.all():
                raise UnsupportedArchitectureError(
                    f"Layer '{name}' is the last one: its neurons are the model's outputs, and {int((~stays).sum())} of "
                    "them are masked. Only hidden neurons can leave."
                )
            made[name] = _narrow_layer(name, module, read, stays)
            sizes[name] = (len(stays), int(stays.sum()))
            read = stays
            continue
        positions = positions and not isinstance(module, nn.Flatten)
        if read is not None and not read.all():
            if isinstance(module, _NORMS):
                made[name] = _narrow_norm(name, module, read)
            else:
                _check_silent(name, module)
    for name, module in made.items():
        setattr(model, name, module)
    return sizes


def _narrow_layer(name: str, module: nn.Linear | nn.Conv2d, read: Tensor | None, stays: Tensor) -> nn.Module:
    """The same layer with fewer inputs and neurons; itself if nothing goes."""
    if (read is None or bool(read.all())) and bool(stays.all()):
        return module
    weight, bias = module.weight.detach(), None if module.bias is None else module.bias.detach()
    if bias is not None and bool((bias.cpu()[~stays] != 0).any()):
        raise _refusal(name, "has masked neurons whose bias is not masked")
    if isinstance(module, nn.Conv2d) and module.groups != 1:
        raise _refusal(name, f"is a convolution of {module.groups} groups")
    inputs = torch.ones(weight.shape[1], dtype=torch.bool)
    if read is not None:
        # Behind nn.Flatten a channel is as many inputs as it has positions, one after the other.
        inputs = read.repeat_interleave(weight.shape[1] // len(read))
    kept: Any = weight[stays.to(weight.device)][:, inputs.to(weight.device)].clone()
    with torch.device("meta"):
        if isinstance(module, nn.Linear):
            narrow: Any = nn.Linear(kept.shape[1], kept.shape[0], bias=bias is not None)
        else:
            size: Any = {key: getattr(module, key) for key in ("kernel_size", "stride", "padding", "dilation")}
            mode = module.padding_mode
            narrow = nn.Conv2d(kept.shape[1], kept.shape[0], **size, bias=bias is not None, padding_mode=mode)
    narrow.weight = nn.Parameter(kept)
    if bias is not None:
        narrow.bias = nn.Parameter(bias[stays.to(bias.device)].clone())
    return narrow.train(module.training)


def _narrow_norm(name: str, module: nn.BatchNorm1d | nn.BatchNorm2d, read: Tensor) -> nn.Module:
    """A batch norm of the channels that stay."""
    if not module.affine:
        raise _refusal(name, "subtracts a running mean from masked neurons")
    mean = torch.zeros(len(read)) if module.running_mean is None else module.running_mean.cpu()
    gone = (module.bias.detach().cpu() != 0) | (module.weight.detach().cpu() * mean != 0)
    if bool(gone[~read].any()):
        raise _refusal(name, "shifts masked neurons away from zero (mask it, too: PlainLayer(..., norm=...))")
    keep = read.to(module.weight.device)
    narrow: Any = type(module)(
        int(read.sum()), module.eps, module.momentum, True, module.track_running_stats, device=module.weight.device
    )
    narrow.weight = nn.Parameter(module.weight.detach()[keep].clone())
    narrow.bias = nn.Parameter(module.bias.detach()[keep].clone())
    for buffer in ("running_mean", "running_var"):
        values = getattr(module, buffer)
        if values is not None:
            setattr(narrow, buffer, values[keep].clone())
    if module.num_batches_tracked is not None:
        narrow.num_batches_tracked = module.num_batches_tracked.clone()
    return narrow.train(module.training)


def _check_silent(name: str, module: nn.Module) -> None:
    """Whether zeros stay zeros, channel by channel."""
    if isinstance(module, (*_BY_CHANNEL, *_DROPOUTS)) or (isinstance(module, nn.Flatten) and module.start_dim == 1):
        return
    elementwise = type(module).__module__ == "torch.nn.modules.activation" and not list(module.parameters())
    if not elementwise or isinstance(module, nn.Softmax | nn.LogSoftmax | nn.Softmin | nn.Softmax2d | nn.GLU):
        raise _refusal(name, f"is a {type(module).__name__}, which is not known to treat every neuron by itself")
    if float(module(torch.zeros(1))) != 0.0:
        raise _refusal(name, f"is a {type(module).__name__}, which makes something else of a masked neuron's zero")


def _refusal(name: str, why: str) -> UnsupportedArchitectureError:
    return UnsupportedArchitectureError(
        f"Masked neurons cannot leave: module '{name}' {why}. Nothing was changed; the masks hold as they are."
    )
