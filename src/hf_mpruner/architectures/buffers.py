"""Buffers that differ from layer to layer and that no checkpoint holds: computed from a layer's number when it is built."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def find_numbered_buffer(model: nn.Module, path: str, facts: Sequence[object] = ()) -> str | None:
    """Find a buffer of a block that depends on the block's number, and that reloading would compute anew.

    A build on the meta device has no values to compare, so the layers of the live model are compared with each other.

    Args:
        model (`nn.Module`): the live one; nothing is found on the meta device.
        path (`str`): of the stack.
        facts (`Sequence[object]`): what the config says about each layer; only layers of which it says the same are
            compared.

    Returns:
        `str`: name of the buffer inside the block, or `None`.

    Example:
        >>> class Block(nn.Module):
        ...     def __init__(self, number):
        ...         super().__init__()
        ...         self.register_buffer("decay", torch.tensor([0.5 ** number]), persistent=False)
        >>> find_numbered_buffer(nn.ModuleDict({"layers": nn.ModuleList(map(Block, range(2)))}), "layers")
        'decay'
    """
    first: dict[tuple[str, str, type, torch.Size], torch.Tensor] = {}
    for number, block in enumerate(model.get_submodule(path).children()):
        said = repr(facts[number]) if facts else ""
        for inner, module in block.named_modules():
            for name in module._non_persistent_buffers_set:
                buffer = module._buffers.get(name)
                if buffer is None or buffer.is_meta:
                    continue
                full = f"{inner}.{name}".strip(".")
                other = first.setdefault((said, full, type(module), buffer.shape), buffer)
                if other is not buffer and not torch.equal(other, buffer.to(other.device)):
                    return full
    return None
