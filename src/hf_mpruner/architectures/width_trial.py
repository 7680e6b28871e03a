"""One experiment with a width: build from an edited config, and see which parameters got narrower, where, by how much."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import UnsupportedArchitectureError
from .blueprint import Blueprint
from .reference import config_nodes
from .stack import ConfigField

# A numbered entry of a list: the block that a module is in, without what is inside.
_BLOCK = re.compile(r"(.+?\.)?\d+(?=\.)")


@dataclass(frozen=True)
class AxisChange:
    """A parameter that is shorter along one axis in an edited build.

    Args:
        path (`str`): module that owns it.
        name (`str`): its name there.
        axis (`int`): along which.
        old (`int`): entries as it is.
        each (`int`): how many of them one neuron or group of heads has.
        role (`"in"`, `"out"` or `""`): whether the module writes the entries or reads them, `""` if neither is known.
    """

    path: str
    name: str
    axis: int
    old: int
    each: int
    role: str

    @property
    def full(self) -> str:
        """The parameter's name in the model."""
        return f"{self.path}.{self.name}".lstrip(".")


def edit_config(config: PreTrainedConfig, values: Mapping[ConfigField, Any]) -> PreTrainedConfig:
    """A copy of a config with some raw values replaced or added; not yet validated."""
    edited = copy.deepcopy(config)
    nodes = config_nodes(edited)
    for field, value in values.items():
        vars(nodes[field.node])[field.name] = value
    return edited


def counts_heads(name: str) -> bool:
    """Whether a config value may be a number of heads, going by its name.

    Here names narrow, since the size of a head moves the same weights as their number.

    Example:
        >>> [counts_heads(name) for name in ("num_key_value_heads", "n_head", "head_dim", "d_head", "d_kv")]
        [True, True, False, False, False]
    """
    return re.search(r"heads(_kv)?$|(^|_)n(um)?_head(_kv)?$", name) is not None


def try_values(
    blueprint: Blueprint, values: Mapping[ConfigField, Any], fewer: int = 1
) -> list[AxisChange] | str | None:
    """What becomes narrower when some config values are others.

    Args:
        blueprint (`Blueprint`): of the model as it is.
        values (`Mapping[ConfigField, Any]`): the other values.
        fewer (`int`): by how many neurons or groups.

    Returns:
        The changes, in module order; `None` if something else changes than lengths of single axes; why there is no such
        model, where it cannot be built.
    """
    try:
        built = blueprint.rebuild(edit_config(blueprint.config, values))
    except UnsupportedArchitectureError as error:
        return " ".join(str(error.__cause__ or error).split())[:300]
    return axis_changes(blueprint.reference, built, fewer)


def axis_changes(before: PreTrainedModel, after: PreTrainedModel, fewer: int = 1) -> list[AxisChange] | None:
    """Parameters and buffers that are shorter along one axis; `None` if they differ in anything else."""
    olds, news = _tensors(before), _tensors(after)
    if olds.keys() != news.keys():
        return None
    found = []
    for full, tensor in olds.items():
        old, new = tuple(tensor.shape), tuple(news[full].shape)
        if old == new:
            continue
        axes = [axis for axis, (a, b) in enumerate(zip(old, new, strict=False)) if a != b]
        gone = old[axes[0]] - new[axes[0]] if len(old) == len(new) and len(axes) == 1 else 0
        if gone <= 0 or gone % fewer:
            return None
        path, _, name = full.rpartition(".")
        role = _role(before.get_submodule(path), name, axes[0])
        found.append(AxisChange(path, name, axes[0], old[axes[0]], gone // fewer, role))
    return found


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict((*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)))


def _role(module: nn.Module, name: str, axis: int) -> str:
    """Whether a parameter's axis is what its module writes or what it reads."""
    if isinstance(module, nn.Linear):
        return "in" if axis == 0 else "out"
    if isinstance(module, Conv1D):
        return "in" if axis == 1 or name == "bias" else "out"
    if isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups == 1 and set(module.kernel_size) == {1}:
        return {0: "in", 1: "out"}[axis]
    return ""


def block_of(path: str) -> str:
    """The outermost numbered block that a module is in, `""` if it is in none.

    Example:
        >>> block_of("bert.encoder.layer.3.output.dense"), block_of("cls.predictions.decoder")
        ('bert.encoder.layer.3', '')
    """
    found = _BLOCK.match(f"{path}.")
    return found[0] if found else ""


def group_by_reader(changes: Sequence[AxisChange]) -> dict[str, list[AxisChange]] | str:
    """Put each weight that writes to the one weight that reads it: the nearest around it in the tree of modules.

    Returns:
        By path of the reading module all changes of the unit; or what belongs to no reader.
    """
    readers = [change for change in changes if change.role == "out"]
    in_block: dict[str, list[AxisChange]] = {}
    for change in changes:
        in_block.setdefault(block_of(change.path), []).append(change)
    units: dict[str, list[AxisChange]] = {}
    placed: set[AxisChange] = set()
    for reader in sorted(
        readers, key=lambda one: -one.path.count(".")
    ):  # a feed-forward inside of another's block first
        around = block_of(reader.path)
        parts = reader.path.split(".")
        for end in range(len(parts) - 1, around.count("."), -1):
            prefix = ".".join(parts[:end]) + "."
            left = [one for one in in_block[around] if one not in placed and f"{one.path}.".startswith(prefix)]
            near = [one for one in left if one.role != "out"]
            if any(one.role == "in" for one in near):
                beside = [one.path for one in left if one.role == "out"]
                if len(beside) > 1:
                    return f"both '{beside[0]}' and '{beside[1]}' read what '{near[0].full}' writes, or one of the two"
                units[reader.path] = [*near, reader]
                placed.update(units[reader.path])
                break
        else:
            return f"nothing beside '{reader.full}' writes what it reads"
    for change in changes:
        if change not in placed:
            return f"'{change.full}' is set by it, too"
    return {reader.path: units[reader.path] for reader in readers}


def kind_of(model: nn.Module, change: AxisChange) -> str:
    """The class of a changed parameter's module."""
    return type(model.get_submodule(change.path)).__name__


def common_path(paths: Iterable[str]) -> str:
    """The innermost module around some modules."""
    split = [path.split(".") for path in paths]
    common = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)
