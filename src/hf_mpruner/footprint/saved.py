"""Bytes of a model as it is saved: counted in memory before anything is written, and of the files that are there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import nn

from hf_mpruner.architectures import Remains

# What from_pretrained reads, the first that is there: one file, or the index of several.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def saved_bytes(model: nn.Module, remains: Remains | None = None) -> int:
    """Bytes of the tensors that `save_pretrained` writes; a file of safetensors is larger by its header alone.

    Parameters and persistent buffers in their present types, those that share their memory once, without what the
    model's class leaves out of its files.

    Args:
        model (`nn.Module`): on any device, the meta device included; nothing is read but shapes.
        remains (`Remains`, *optional*): what a cut leaves of it, to count what would be written after that.

    Returns:
        `int`: bytes.

    Example:
        >>> batch_norm = nn.BatchNorm1d(3)  # weight, bias, mean and variance of float32, a count of int64
        >>> saved_bytes(batch_norm)
        56
    """
    left_out = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    found: dict[object, int] = {}
    remains = remains or Remains({})
    trimmed = remains.trimmed(model)
    for name, value in model.state_dict(keep_vars=True).items():
        if name not in left_out and isinstance(value, torch.Tensor) and remains.keeps(name):
            found[_identity(value)] = remains.number(value, trimmed.get(id(value))) * value.element_size()
    return sum(found.values())


def _identity(tensor: torch.Tensor) -> object:
    """Equal for tensors that are one and the same memory."""
    if tensor.device.type == "meta" or type(tensor) not in (torch.Tensor, nn.Parameter) or not tensor.numel():
        return id(tensor)  # there is no address to ask for
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def weight_files_bytes(folder: str | os.PathLike[str]) -> int | None:
    """Size of the files in a folder that `from_pretrained` reads weights from.

    Args:
        folder (path): that `save_pretrained` wrote.

    Returns:
        `int`, *optional*: bytes; `None` if there are no such files, or some that the index names are missing.
    """
    folder = Path(folder)
    first = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if first is None:
        return None
    if not first.name.endswith(".index.json"):
        return first.stat().st_size
    files = set(json.loads(first.read_text(encoding="utf-8"))["weight_map"].values())
    sizes = [(folder / name).stat().st_size for name in files if (folder / name).is_file()]
    return sum(sizes) if len(sizes) == len(files) else None
