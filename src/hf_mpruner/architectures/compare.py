"""Proof A: the kept blocks of a model are the blocks that its shortened config builds, and nothing else moves.

Both sides are descriptions of builds on the meta device, so that the comparison costs milliseconds and no memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .reference import ABSENT, ModuleDescription
from .rules import POSITION_ATTRIBUTES


@dataclass(frozen=True)
class StackCut:
    """What stays of one stack.

    Args:
        depth (`int`): number of blocks before the cut.
        kept (`tuple[int, ...]`): the blocks that stay, ascending, in the numbering before the cut.
    """

    depth: int
    kept: tuple[int, ...]


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


_SEVERITY = {"lacks": 0, "extra": 1, "shape": 2, "class": 3, "value": 4}


def compare_builds(
    old: Mapping[str, ModuleDescription], new: Mapping[str, ModuleDescription], cuts: Mapping[str, StackCut]
) -> tuple[list[ValueEdit], list[Difference]]:
    """Compare a build, restricted to its kept blocks, with the build of its shortened config.

    Args:
        old (`Mapping[str, ModuleDescription]`): description of the model as it is.
        new (`Mapping[str, ModuleDescription]`): description of what the shortened config builds.
        cuts (`Mapping[str, StackCut]`): by stack path, what stays; other stacks are whole.

    Returns:
        `tuple[list[ValueEdit], list[Difference]]`: attributes that follow the cut (positions, copies of the count),
        and what else differs, the gravest first. The cut is right if the second list is empty.
    """
    comparison = _Comparison(cuts)
    unmatched = dict(new)
    for path, before in old.items():
        stack, layer, name, renumbered = _locate(path, cuts)
        if renumbered is None:
            continue
        after = unmatched.pop(renumbered, None)
        if after is None:
            comparison.differences.append(Difference("extra", stack, layer, name, before.kind, None))
        elif before != after:
            comparison.compare(path, (stack, layer, name), before, after)
    for path, after in unmatched.items():
        stack, layer, name = _locate_new(path, cuts)
        for tensor, shape in (after.tensors or {"": None}).items():
            full = f"{name}.{tensor}".strip(".")
            comparison.differences.append(Difference("lacks", stack, layer, full, None, shape))
    gravest_first = sorted(comparison.differences, key=lambda found: (_SEVERITY[found.kind], found.old is found.new))
    return comparison.edits, gravest_first


def renumber(path: str, cuts: Mapping[str, StackCut]) -> str | None:
    """Path of a module after a cut.

    Args:
        path (`str`): module path before the cut.
        cuts (`Mapping[str, StackCut]`): by stack path, what stays.

    Returns:
        `str`, or `None` for a module that goes.

    Example:
        >>> cuts = {"encoder.layer": StackCut(4, (0, 3))}
        >>> renumber("encoder.layer.3.output", cuts), renumber("encoder.layer.2", cuts), renumber("pooler", cuts)
        ('encoder.layer.1.output', None, 'pooler')
    """
    return _locate(path, cuts)[3]


class _Comparison:
    """What was found so far, module by module."""

    def __init__(self, cuts: Mapping[str, StackCut]) -> None:
        self.cuts = cuts
        self.edits: list[ValueEdit] = []
        self.differences: list[Difference] = []

    def compare(
        self, path: str, place: tuple[str, int, str], before: ModuleDescription, after: ModuleDescription
    ) -> None:
        """Compare one module that is not equal in the two builds."""
        stack, layer, inner = place
        outside = layer < 0
        if outside and before.kind == after.kind and before.computed and _holds_less(before, after):
            self.edits += _follow(path, before, after)
            return
        for name in {**before.tensors, **after.tensors}:
            a, b = before.tensors.get(name), after.tensors.get(name)
            if a != b:
                kind = "lacks" if a is None else "extra" if b is None else "shape"
                self.differences.append(Difference(kind, stack, layer, f"{inner}.{name}".strip("."), a, b))
        if before.kind != after.kind:
            kinds = (kind.rpartition(".")[2] for kind in (before.kind, after.kind))
            self.differences.append(Difference("class", stack, layer, inner, *kinds))
        for name in {**before.values, **after.values}:
            a, b = before.values.get(name, ABSENT), after.values.get(name, ABSENT)
            if a == b:
                continue
            if name in POSITION_ATTRIBUTES or (outside and _is_count_copy(a, b, self.cuts)):
                self.edits.append(ValueEdit(path, name, a, b))
            else:
                self.differences.append(Difference("value", stack, layer, f"{inner}.{name}".strip("."), a, b))


def _holds_less(before: ModuleDescription, after: ModuleDescription) -> bool:
    """Whether a computed module only lost entries, as rotary tables do when no layer of a kind is left."""
    return before.tensors.items() >= after.tensors.items() and all(
        name in before.values and _is_part(value, before.values[name]) for name, value in after.values.items()
    )


def _is_part(new: Any, old: Any) -> bool:
    if isinstance(new, dict) and isinstance(old, dict):
        return old.items() >= new.items()
    if isinstance(new, tuple) and isinstance(old, tuple):
        return all(item in old for item in new)
    return bool(new == old)


def _follow(path: str, before: ModuleDescription, after: ModuleDescription) -> Iterator[ValueEdit]:
    """Edits that make a computed module what the shortened config builds."""
    for name in before.tensors.keys() - after.tensors.keys():
        yield ValueEdit(path, name, before.tensors[name], ABSENT)
    for name, value in before.values.items():
        if after.values.get(name, ABSENT) != value:
            yield ValueEdit(path, name, value, after.values.get(name, ABSENT))


def _is_count_copy(old: Any, new: Any, cuts: Mapping[str, StackCut]) -> bool:
    """Whether an attribute outside the blocks went from the old depth of a cut stack to its new depth."""
    return isinstance(old, int) and any(old == cut.depth and new == len(cut.kept) for cut in cuts.values())


def _locate(path: str, cuts: Mapping[str, StackCut]) -> tuple[str, int, str, str | None]:
    """Split a module path into (stack, layer, rest) and give its path after the cut, `None` if it goes."""
    for stack, cut in cuts.items():
        if path.startswith(stack + "."):
            number, _, rest = path[len(stack) + 1 :].partition(".")
            layer = int(number)
            if layer not in cut.kept:
                return stack, layer, rest, None
            return stack, layer, rest, f"{stack}.{cut.kept.index(layer)}.{rest}".rstrip(".")
    return "", -1, path, path


def _locate_new(path: str, cuts: Mapping[str, StackCut]) -> tuple[str, int, str]:
    """The same for a path of the shortened build, with the layer in the numbering before the cut."""
    for stack, cut in cuts.items():
        if path.startswith(stack + "."):
            number, _, rest = path[len(stack) + 1 :].partition(".")
            position = int(number)
            return stack, cut.kept[position] if position < len(cut.kept) else position, rest
    return "", -1, path


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
