"""What two builds differ in: edits that follow a cut, and differences that nothing explains."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .stack import StackCut


@dataclass(frozen=True)
class ValueEdit:
    """A plain attribute of a module that follows the cut.

    Args:
        path (`str`): module path, in the numbering before the cut.
        name (`str`): attribute name, or that of a buffer that no checkpoint holds and that goes.
        old: value before the cut.
        new: value after the cut; `ABSENT` if the attribute or buffer goes.
    """

    path: str
    name: str
    old: Any
    new: Any


@dataclass(frozen=True)
class ModuleMove:
    """A module of a removed first block that the new first block takes over.

    Args:
        source (`str`): its path, in the numbering before the cut.
        target (`str`): where it goes, in the same numbering.
    """

    source: str
    target: str


@dataclass(frozen=True)
class TensorSlice:
    """A parameter outside the stack with room for every layer, of which the room of the kept layers stays.

    Args:
        path (`str`): path of the module that owns it.
        name (`str`): its name there.
        axis (`int`): the axis that holds the layers, one behind the other.
        cut (`StackCut`): which layers stay.
    """

    path: str
    name: str
    axis: int
    cut: StackCut


@dataclass
class Comparison:
    """What two builds differ in.

    Args:
        values (`list[ValueEdit]`): attributes that follow the cut.
        swaps (`list[str]`): paths, before the cut, of modules without tensors that the new config builds otherwise.
        moves (`list[ModuleMove]`): modules that go from a removed first block to the new one.
        slices (`list[TensorSlice]`): parameters that lose the room of the removed layers.
        differences (`list[Difference]`): everything else, the gravest first. The cut is right if there is nothing.
    """

    values: list[ValueEdit] = field(default_factory=list)
    swaps: list[str] = field(default_factory=list)
    moves: list[ModuleMove] = field(default_factory=list)
    slices: list[TensorSlice] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)


@dataclass(frozen=True)
class Difference:
    """Something that would not be the same after saving and reloading the cut model.

    Args:
        kind (`str`): `"lacks"` (the reloaded model has it, the kept blocks do not), `"extra"` (the other way round),
            `"class"`, `"shape"` or `"value"`.
        stack (`str`): path of the cut stack it is in, `""` for the rest of the model.
        layer (`int`): the block it is in, in the numbering before the cut; -1 for the rest of the model.
        name (`str`): dotted name inside the block, or inside the model for the rest of it.
        old: as it is.
        new: as the shortened config builds it.
    """

    kind: str
    stack: str
    layer: int
    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        """One clause of an error message."""
        place = f"'{self.name}' of layer {self.layer}" if self.layer >= 0 else f"'{self.name}'"
        if self.kind == "lacks":
            where = f"layer {self.layer}" if self.layer >= 0 else "the model"
            return f"the shortened config expects '{self.name}' in {where}, which has none"
        if self.kind == "extra":
            return f"{place} has no place in the shortened config"
        return f"{self.kind} of {place} is {_short(self.old)} and would be {_short(self.new)} after reloading"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
