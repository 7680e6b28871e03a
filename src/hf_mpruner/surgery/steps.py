"""The single steps of a cut: each writes one place of the model or its config, and can be undone."""

from __future__ import annotations

import copy
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_mpruner.architectures import ABSENT, ConfigEdit, ModuleMove, TensorSlice, ValueEdit
from hf_mpruner.architectures.reference import plain
from hf_mpruner.errors import UnsupportedArchitectureError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CHANGED = "{} changed between preparing the cut and applying it. Prepare a new ModelEdit."


@dataclass(frozen=True)
class Write:
    """New content for one entry of a namespace: `vars(module)`, `vars(config)`, a module's buffers.

    Writing to the namespace instead of the attribute passes by setters that would validate half an edit. `following`
    are the names behind an entry that goes, so that it comes back to its place.
    """

    namespace: MutableMapping[str, Any]
    name: str
    old: Any
    new: Any
    label: str
    following: tuple[str, ...] = ()

    @classmethod
    def prepare(cls, namespace: MutableMapping[str, Any], name: str, new: Any, label: str) -> Write:
        """A write that will replace what is there now; `new` may be `ABSENT`, and becomes a tuple where one was."""
        old = namespace.get(name, ABSENT)
        names = list(namespace)
        following = tuple(names[names.index(name) + 1 :]) if new is ABSENT else ()
        return cls(namespace, name, old, tuple(new) if isinstance(old, tuple) else new, label, following)

    def apply(self) -> None:
        """Write.

        Raises:
            RuntimeError: the place changed since the step was prepared.
        """
        if self.namespace.get(self.name, ABSENT) is not self.old:
            raise RuntimeError(_CHANGED.format(self.label))
        self._set(self.new)

    def undo(self) -> None:
        """Put back what was there."""
        self._set(self.old)
        for name in self.following:
            if name in self.namespace:
                self.namespace[name] = self.namespace.pop(name)

    def _set(self, value: Any) -> None:
        if value is ABSENT:
            del self.namespace[self.name]
        else:
            self.namespace[self.name] = value


@dataclass(frozen=True)
class Rewire:
    """New entries for a module list, which stays the object that it is."""

    children: dict[str, nn.Module | None]
    old: dict[str, nn.Module | None]
    new: dict[str, nn.Module | None]
    label: str

    def apply(self) -> None:
        """Write.

        Raises:
            RuntimeError: the place changed since the step was prepared.
        """
        if self.children != self.old:
            raise RuntimeError(_CHANGED.format(self.label))
        self._fill(self.new)

    def undo(self) -> None:
        """Put back what was there."""
        self._fill(self.old)

    def _fill(self, entries: dict[str, nn.Module | None]) -> None:
        self.children.clear()
        self.children.update(entries)


@dataclass(frozen=True)
class Trim:
    """The room of the removed layers leaves a parameter, which stays the object that it is."""

    parameter: nn.Parameter
    old: torch.Tensor
    part: TensorSlice
    label: str

    def apply(self) -> None:
        """Write.

        Raises:
            RuntimeError: the place changed since the step was prepared.
        """
        if self.parameter.data.shape != self.old.shape:
            raise RuntimeError(_CHANGED.format(self.label))
        self._set(kept_part(self.old, self.part))

    def undo(self) -> None:
        """Put back what was there."""
        self._set(self.old)

    def _set(self, data: torch.Tensor) -> None:
        self.parameter.grad = None  # of the other shape
        self.parameter.data = data


Step = Write | Rewire | Trim


def _prepare(namespace: MutableMapping[str, Any], name: str, old: Any, new: Any, label: str) -> Write:
    """A write whose present value was checked against the one that the proof started from."""
    present = namespace.get(name, ABSENT)
    if plain(present) != plain(old):
        raise UnsupportedArchitectureError(
            f"{label} is {present!r}, but a model built from the config has {old!r} there, so the cut cannot be proved "
            "right. Load the model again with from_pretrained."
        )
    return Write.prepare(namespace, name, new, label)


def prepare_value(module: nn.Module, edit: ValueEdit) -> Write:
    """A new value for a plain attribute of a module, or for a buffer that no checkpoint holds."""
    label = f"attribute {edit.name!r} of module {edit.path!r}"
    if edit.name in module._buffers:
        return Write.prepare(module._buffers, edit.name, edit.new, label)
    return _prepare(vars(module), edit.name, edit.old, edit.new, label)


def prepare_move(model: nn.Module, move: ModuleMove) -> Write:
    """A module of a removed block becomes a child of a kept one."""
    parent, _, name = move.target.rpartition(".")
    children = model.get_submodule(parent)._modules
    return Write.prepare(children, name, model.get_submodule(move.source), f"module {move.target!r}")


def prepare_swap(model: nn.Module, path: str, module: nn.Module) -> Write:
    """A module without tensors becomes what the new config builds."""
    parent, _, name = path.rpartition(".")
    module = copy.deepcopy(module).train(model.get_submodule(path).training)
    return Write.prepare(model.get_submodule(parent)._modules, name, module, f"module {path!r}")


def kept_part(tensor: torch.Tensor, part: TensorSlice) -> torch.Tensor:
    """What stays of a tensor with room for every layer.

    Args:
        tensor (`torch.Tensor`): any whose axis `part.axis` has a multiple of `part.cut.depth` entries.
        part (`TensorSlice`): which axis, and which layers stay.

    Returns:
        `torch.Tensor`: a new tensor.

    Example:
        >>> from hf_mpruner.architectures import StackCut
        >>> kept_part(torch.arange(6).reshape(1, 6), TensorSlice("", "weight", 1, StackCut(3, (0, 2))))
        tensor([[0, 1, 4, 5]])
    """
    shape = tensor.shape
    room = tensor.unflatten(part.axis, (part.cut.depth, shape[part.axis] // part.cut.depth))
    kept = torch.tensor(part.cut.kept, device=tensor.device)
    return room.index_select(part.axis, kept).flatten(part.axis, part.axis + 1)


def prepare_config(model: PreTrainedModel, edit: ConfigEdit) -> Write:
    """A new value in a config that a module holds, or in one nested in it."""
    node = vars(model.get_submodule(edit.path))[edit.holder]
    for part in edit.node.split(".") if edit.node else ():
        node = vars(node)[part]
    place = ".".join(part for part in (edit.path, edit.holder, edit.node) if part)
    return _prepare(vars(node), edit.name, edit.old, edit.new, f"{place}.{edit.name}")
