"""`silence`: a residual branch adds zero, so that what runs is the model without that half of a block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def silence(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let modules put out zeros until the context ends: their tensor, or the first of a tuple. They still run.

    Args:
        modules (iterable of `nn.Module`): whose output is added to a residual stream, and used for nothing else.

    Example:
        >>> linear = nn.Linear(2, 2)
        >>> with silence([linear]):
        ...     linear(torch.ones(1, 2)).tolist()
        [[0.0, 0.0]]
    """
    handles = [module.register_forward_hook(_zeros) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _zeros(module: nn.Module, args: Any, output: Any) -> Any:
    if isinstance(output, Tensor):
        return torch.zeros_like(output)
    first, *others = output
    kind: Any = type(output)
    return kind((torch.zeros_like(first), *others))
