"""What is written, and from where: the data between what finds the names and what moves the bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a checkpoint stores it; its values are not read.

    Args:
        name (`str`): in the checkpoint.
        dtype (`str`): as safetensors writes it, e.g. `"BF16"`.
        shape (`tuple[int, ...]`): empty for a number.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """Where a tensor of the smaller checkpoint comes from.

    Args:
        source (`str`): name of the tensor in the checkpoint that is cut.
        axis (`int`, *optional*): along which only some entries stay, for a tensor that has an entry for each layer.
        indices (`tuple[int, ...]`, *optional*): those entries, in their order; given if and only if `axis` is.
    """

    source: str
    axis: int | None = None
    indices: tuple[int, ...] | None = None
