"""How many parameters and bytes a model has, and would have after a cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn


def count_parameters(model: nn.Module) -> int:
    """Number of parameters of a model; a tied parameter counts once.

    Args:
        model (`nn.Module`): on any device, the meta device included.

    Returns:
        `int`: number of scalars.

    Example:
        >>> count_parameters(nn.Linear(3, 2))
        8
    """
    return sum(parameter.numel() for parameter in model.parameters())


def parameters_after(model: nn.Module, kept: Mapping[str, Sequence[int]]) -> tuple[int, int]:
    """What would be left of a model after a cut, without cutting it.

    Args:
        model (`nn.Module`): left as it is; on any device.
        kept (`Mapping[str, Sequence[int]]`): by stack path, the layers that stay; other stacks stay whole.

    Returns:
        `tuple[int, int]`: parameters, and the bytes they take in their present dtypes. Tied parameters count once,
        and a parameter that a remaining module shares with a removed one stays.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        >>> parameters_after(nn.ModuleDict({"layers": model}), {"layers": [0]})
        (12, 48)
    """
    removed = tuple(
        f"{path}.{layer}."
        for path, layers in kept.items()
        for layer in range(len(model.get_submodule(path)._modules))
        if layer not in layers
    )
    left = {
        id(parameter): parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if not name.startswith(removed)
    }.values()
    return sum(p.numel() for p in left), sum(p.numel() * p.element_size() for p in left)
