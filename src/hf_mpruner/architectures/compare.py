"""Proof A: the kept blocks of a model are the blocks that its shortened config builds, and nothing else moves.

Both sides are descriptions of builds on the meta device, so that the comparison costs milliseconds and no memory.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from .edits import Comparison, Difference, ModuleMove, TensorSlice, ValueEdit
from .reference import ABSENT, ModuleDescription
from .rules import (
    BLOCK_COUNTS,
    FIRST_BLOCK_MODULES,
    LAYER_AXES,
    LAYER_REFERENCES,
    LAYER_STORES,
    POSITION_ATTRIBUTES,
    STOCHASTIC_DEPTH,
)
from .stack import StackCut

_SEVERITY = {"lacks": 0, "extra": 1, "shape": 2, "class": 3, "value": 4}


def compare_builds(
    old: Mapping[str, ModuleDescription],
    new: Mapping[str, ModuleDescription],
    cuts: Mapping[str, StackCut],
    rewritten: Sequence[tuple[Any, Any]] = (),
    positions: Container[str] = POSITION_ATTRIBUTES,
) -> Comparison:
    """Compare a build, restricted to its kept blocks, with the build of its shortened config.

    Args:
        old (`Mapping[str, ModuleDescription]`): description of the model as it is.
        new (`Mapping[str, ModuleDescription]`): description of what the shortened config builds.
        cuts (`Mapping[str, StackCut]`): by path of a list, what stays; other lists are whole.
        rewritten (`Sequence[tuple[Any, Any]]`): plain config values, before and after, of which modules keep copies.
        positions (`Container[str]`): attributes that hold a layer's number.

    Returns:
        `Comparison`: edits that make the first the second, and the differences that no edit explains.
    """
    matcher = _Matcher(old, cuts, rewritten, positions)
    unmatched = dict(new)
    pairs: list[tuple[str, tuple[str, int, str], ModuleDescription, ModuleDescription]] = []
    for path, before in old.items():
        stack, layer, name, renumbered = _locate(path, cuts)
        if renumbered is None:
            continue
        after = unmatched.pop(renumbered, None)
        if after is None:
            matcher.differ("extra", (stack, layer, name), "", before.kind, None)
        elif before != after:
            pairs.append((path, (stack, layer, name), before, after))
    for path, after in unmatched.items():
        if not matcher.move(path, after):
            place = _locate_new(path, cuts)
            for tensor, shape in (after.tensors or {"": None}).items():
                matcher.differ("lacks", place, tensor, None, shape)
    for path, place, before, after in pairs:
        matcher.compare_tensors(path, place, before, after)
    for path, place, before, after in pairs:
        matcher.compare_values(path, place, before, after)
    found = matcher.found
    found.differences.sort(key=lambda one: (_SEVERITY[one.kind], one.old is one.new))
    return found


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


class _Matcher:
    """What was found so far, module by module."""

    def __init__(
        self,
        old: Mapping[str, ModuleDescription],
        cuts: Mapping[str, StackCut],
        rewritten: Sequence[tuple[Any, Any]],
        positions: Container[str],
    ) -> None:
        self.old = old
        self.cuts = cuts
        self.rewritten = rewritten
        self.positions = positions
        self.found = Comparison()
        self.widths: list[tuple[str, tuple[int, int]]] = []

    def differ(self, kind: str, place: tuple[str, int, str], name: str, old: Any, new: Any) -> None:
        stack, layer, inner = place
        self.found.differences.append(Difference(kind, stack, layer, f"{inner}.{name}".strip("."), old, new))

    def move(self, path: str, after: ModuleDescription) -> bool:
        """Whether a module that the new first block needs can be had from the removed one."""
        stack, layer, name = _locate_new(path, self.cuts)
        if not stack or 0 in self.cuts[stack].kept or layer != self.cuts[stack].kept[0]:
            return False
        source = f"{stack}.0.{name}"
        owned = [part for part in name.split(".") if part in FIRST_BLOCK_MODULES]
        if not owned or self.old.get(source) != after:
            return False
        if name.endswith(owned[0]):
            self.found.moves.append(ModuleMove(source, f"{stack}.{layer}.{name}"))
        return True

    def compare_tensors(
        self, path: str, place: tuple[str, int, str], before: ModuleDescription, after: ModuleDescription
    ) -> None:
        """Compare the tensors of one module that is not equal in the two builds."""
        if self._is_training_only(path, before, after) or self._only_lost(place, before, after):
            return
        for name in {**before.tensors, **after.tensors}:
            a, b = before.tensors.get(name), after.tensors.get(name)
            if a == b:
                continue
            part = _slice_of(path, name, a, b, self.cuts) if a and b and place[1] < 0 else None
            if part is not None and a and b:
                self.found.slices.append(part)
                self.widths.append((path, (a[part.axis], b[part.axis])))
            else:
                self.differ("lacks" if a is None else "extra" if b is None else "shape", place, name, a, b)

    def compare_values(
        self, path: str, place: tuple[str, int, str], before: ModuleDescription, after: ModuleDescription
    ) -> None:
        """Compare the class and the plain attributes of one module."""
        training_only = self._is_training_only(path, before, after)
        if training_only and before.kind != after.kind:
            self.found.swaps.append(path)
            return
        if self._only_lost(place, before, after):
            self.found.values += _follow(path, before, after)
            return
        if before.kind != after.kind:
            kinds = (kind.rpartition(".")[2] for kind in (before.kind, after.kind))
            self.differ("class", place, "", *kinds)
        for name in {**before.values, **after.values}:
            a, b = before.values.get(name, ABSENT), after.values.get(name, ABSENT)
            if a == b:
                continue
            # the module that owns a tensor with room for every layer, and those around it, know its width
            width = any(owner.startswith(path) and (a, b) == pair for owner, pair in self.widths)
            if width or training_only or self._follows(path, place, name, a, b):
                self.found.values.append(ValueEdit(path, name, a, b))
            else:
                self.differ("value", place, name, a, b)

    def _is_training_only(self, path: str, before: ModuleDescription, after: ModuleDescription) -> bool:
        return path.rpartition(".")[2] in STOCHASTIC_DEPTH and not before.tensors and not after.tensors

    def _only_lost(self, place: tuple[str, int, str], before: ModuleDescription, after: ModuleDescription) -> bool:
        """Whether this is a computed module outside the blocks that has fewer entries now."""
        return place[1] < 0 and before.kind == after.kind and before.computed and _holds_less(before, after)

    def _follows(self, path: str, place: tuple[str, int, str], name: str, old: Any, new: Any) -> bool:
        """Whether it is clear why an attribute is another in the new build, so that it may be written."""
        if name in self.positions or name in STOCHASTIC_DEPTH:
            return True
        if isinstance(old, float) and isinstance(new, float):
            return math.isclose(old, new, rel_tol=1e-12)  # a constant of the depth, computed from a rewritten value
        if place[1] < 0:
            return (old, new) in self.rewritten or _follows_count(old, new, self.cuts)
        if name in BLOCK_COUNTS and (old, new) == (self.cuts[place[0]].depth, len(self.cuts[place[0]].kept)):
            return True
        if name in LAYER_REFERENCES:
            kept = self.cuts[place[0]].kept
            return old in kept and bool(new == kept.index(old))
        if name in LAYER_STORES and not self._is_read(place[0], LAYER_STORES[name][0]):
            return True
        if isinstance(old, tuple) and (old, new) in self.rewritten:
            return True
        flags = {flag: owned for owned, (flag, _) in FIRST_BLOCK_MODULES.items()}
        return name in flags and any(move.target == f"{path}.{flags[name]}" for move in self.found.moves)

    def _is_read(self, stack: str, flag: str) -> bool:
        """Whether a layer that stays has a flag."""
        places = ((module, *_locate(path, self.cuts)) for path, module in self.old.items() if flag in module.values)
        return any(owner == stack and after and module.values[flag] for module, owner, _, _, after in places)


def _slice_of(
    path: str, name: str, old: tuple[int, ...], new: tuple[int, ...], cuts: Mapping[str, StackCut]
) -> TensorSlice | None:
    """How a parameter with room for every layer loses some, if it is one."""
    full = f"{path}.{name}"
    for known, (axis, _) in LAYER_AXES.items():
        if (
            not full.endswith(known)
            or len(old) != len(new)
            or old[:axis] + old[axis + 1 :] != new[:axis] + new[axis + 1 :]
        ):
            continue
        fits = [
            (stack, cut)
            for stack, cut in cuts.items()
            if old[axis] % cut.depth == 0 and new[axis] == old[axis] // cut.depth * len(cut.kept)
        ]
        if fits:  # of towers of one depth, the one that the parameter lies next to
            _, cut = max(fits, key=lambda fit: len(_common(fit[0].split("."), path.split("."))))
            return TensorSlice(path, name, axis, cut)
    return None


def _common(first: list[str], second: list[str]) -> list[str]:
    """Longest common beginning."""
    return [a for n, a in enumerate(first) if first[: n + 1] == second[: n + 1]]


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


def _follows_count(old: Any, new: Any, cuts: Mapping[str, StackCut]) -> bool:
    """Whether an attribute outside the blocks follows a cut: a copy of the count, alone or in a list, or a list by layer."""
    if type(old) is int and type(new) is int:
        return any(old - cut.depth == new - len(cut.kept) and old - cut.depth in (-1, 0, 1) for cut in cuts.values())
    if isinstance(old, frozenset):  # of layer numbers
        return any(new == {cut.kept.index(layer) for layer in old if layer in cut.kept} for cut in cuts.values())
    if not isinstance(old, tuple) or not isinstance(new, tuple):
        return False
    for cut in cuts.values():  # one entry for each layer, or for each hidden state
        left = tuple(old[layer] for layer in cut.kept if layer < len(old))
        if (len(old) == cut.depth and new == left) or (
            len(old) == cut.depth + 1 and new == (old[0], *(old[layer + 1] for layer in cut.kept))
        ):
            return True
    return len(old) == len(new) and all(a == b or _follows_count(a, b, cuts) for a, b in zip(old, new, strict=True))


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
