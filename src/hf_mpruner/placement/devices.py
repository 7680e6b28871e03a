"""Where a model takes its inputs, wherever its weights lie: several devices, offloaded, on no device at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from hf_mpruner.errors import UnsupportedBackendError


def input_device(model: nn.Module) -> torch.device:
    """The device on which a model's inputs must lie.

    A model that `device_map` spread over devices, memory and disk keeps offloaded weights on the meta device, and brings
    them to an execution device as a module runs: that one counts, not where its first parameter is.

    Args:
        model (`nn.Module`): any; a model without parameters takes its inputs on the CPU.

    Returns:
        `torch.device`: never the meta device, unless the model itself is an empty one there.

    Example:
        >>> input_device(nn.Linear(2, 2))
        device(type='cpu')
    """
    for module in model.modules():
        for hook in hooks_of(module):
            device = getattr(hook, "execution_device", None)
            if device is not None:
                return torch.device(device)
    parameters = list(model.parameters())
    here = next((parameter for parameter in parameters if not parameter.is_meta), None)
    return (here if here is not None else parameters[0]).device if parameters else torch.device("cpu")


def offloaded(model: nn.Module) -> list[str]:
    """Names of the weights that lie in no device's memory until their module runs.

    Args:
        model (`nn.Module`): loaded with accelerate's `device_map`, or dispatched by it.

    Returns:
        `list[str]`: of parameters; empty for a model whose weights are all there, and for an empty one on the meta device,
            which has no hooks that would bring them.
    """
    return [name for name, parameter in model.named_parameters() if parameter.is_meta] if is_dispatched(model) else []


def check_not_offloaded(model: nn.Module, doing: str, instead: str) -> None:
    """Refuse work that reads or copies weights which are not in memory.

    Args:
        model (`nn.Module`): loaded.
        doing (`str`): what was asked for, as the beginning of a sentence: `"prune_ copies weights"`.
        instead (`str`): what to do, as a sentence.

    Raises:
        UnsupportedBackendError: naming a weight.
    """
    if elsewhere := offloaded(model):
        raise UnsupportedBackendError(
            f"{doing}, but {len(elsewhere)} of them are offloaded to memory or disk by device_map, '{elsewhere[0]}' for one. "
            f"{instead} Nothing was changed."
        )


def is_dispatched(model: nn.Module) -> bool:
    """Whether accelerate's hooks move a model's weights or its activations while it runs."""
    return any(True for module in model.modules() for _ in hooks_of(module))


def hooks_of(module: nn.Module) -> Iterator[Any]:
    """Accelerate's hooks on one module; it keeps them in an attribute of that name, and chains in `hooks`."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        yield from getattr(hook, "hooks", (hook,))
