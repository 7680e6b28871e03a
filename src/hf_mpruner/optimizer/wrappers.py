"""What lies under the wrappers of accelerate and torch: the optimizer that steps, every scheduler inside another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.optim import Optimizer


def unwrap_optimizer(optimizer: Any) -> Any:
    """The optimizer that steps, under accelerate's wrapper.

    Args:
        optimizer: any optimizer. A wrapper is seen through if it shows the groups and the state of the optimizer that
            it holds; one that keeps state of its own is returned as it is.

    Returns:
        the innermost such optimizer.
    """
    inner = getattr(optimizer, "optimizer", None)
    while isinstance(inner, Optimizer) and optimizer.param_groups is inner.param_groups:
        if optimizer.state is not inner.state:
            break
        optimizer, inner = inner, getattr(inner, "optimizer", None)
    return optimizer


def find_schedulers(scheduler: Any) -> Iterator[Any]:
    """Look through a scheduler for every scheduler inside it (accelerate's wrapper, `SequentialLR`, ...).

    Args:
        scheduler: the outermost one, or `None`.

    Yields:
        schedulers, the outermost first, each once.
    """
    seen: set[int] = set()
    waiting = [scheduler] if is_scheduler(scheduler) else []
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        for value in vars(current).values():
            inside = value if isinstance(value, list | tuple) else (value,)
            waiting.extend(item for item in inside if is_scheduler(item))


def is_scheduler(value: Any) -> bool:
    """Whether a value steps learning rates; transformers' `GreedyLR` and accelerate's wrapper are no `LRScheduler`."""
    return hasattr(value, "step") and hasattr(value, "get_last_lr")
