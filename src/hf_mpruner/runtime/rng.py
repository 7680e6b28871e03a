"""The random state that we must not touch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def keep_rng_state() -> Iterator[None]:
    """Leave the random generators of Python, NumPy and torch (CPU and accelerator) as they are found.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> with keep_rng_state():
        ...     first = torch.rand(1)
        >>> torch.equal(torch.rand(1), first)
        True
    """
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    read, write = _accelerator_generators()
    accelerator = read()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        write(accelerator)


def _accelerator_generators() -> tuple[Callable[[], Any], Callable[[Any], None]]:
    """Functions that read and set the state of every generator of the current accelerator."""
    device = torch.accelerator.current_accelerator()
    if device is None or not torch.accelerator.is_available():
        return (lambda: None), (lambda state: None)
    module = torch.get_device_module(device)
    if hasattr(module, "get_rng_state_all"):
        return module.get_rng_state_all, module.set_rng_state_all
    return module.get_rng_state, module.set_rng_state
