"""The part of a plan that is about one stack, and what a plan changes in numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class StackPlan:
    """The layers of one stack that stay.

    Args:
        depth (`int`): number of layers before the cut.
        kept (`tuple[int, ...]`): the layers that stay, ascending, each in 0..depth-1.
        merged (`dict[int, dict[int, float]]`): kept layers whose weights become a sum over layers before the cut: for each
            the coefficient of every layer in it. Empty if layers are only deleted.

    Raises:
        ValueError: if `kept` is empty, out of range, or not ascending without repeats; if `merged` names a layer that does
            not stay, or does not exist, or a coefficient that is not finite, or if no layer goes: a merge without a cut
            could not be told from the model before it.

    Example:
        >>> StackPlan(6, (0, 1, 5)).removed
        (2, 3, 4)
    """

    depth: int
    kept: tuple[int, ...]
    merged: Mapping[int, Mapping[int, float]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Check the kept layers against the depth."""
        object.__setattr__(self, "kept", tuple(int(i) for i in self.kept))
        if not self.kept:
            raise ValueError(
                f"A plan that keeps none of {self.depth} layers leaves the stack empty. Keep at least one."
            )
        outside = [i for i in self.kept if not 0 <= i < self.depth]
        if outside:
            raise ValueError(
                f"Kept layers {outside} do not exist in a stack of {self.depth} layers. "
                f"Layers are numbered 0..{self.depth - 1}."
            )
        if any(later <= earlier for earlier, later in zip(self.kept, self.kept[1:], strict=False)):
            raise ValueError(
                f"Kept layers {list(self.kept)} are not ascending. Layers keep their order and go in once: "
                f"pass {sorted(set(self.kept))}."
            )
        self._check_merged()

    def _check_merged(self) -> None:
        merged = {int(layer): {int(of): float(c) for of, c in sums.items()} for layer, sums in self.merged.items()}
        object.__setattr__(self, "merged", merged)
        for layer, sums in merged.items():
            if layer not in self.kept:
                raise ValueError(
                    f"Layer {layer} is to take over others' weights, but it goes. Kept are {list(self.kept)}."
                )
            wrong = {of: c for of, c in sums.items() if not 0 <= of < self.depth or not math.isfinite(c)}
            if wrong or not sums:
                raise ValueError(
                    f"Layer {layer} cannot become the sum {sums}: each term is a layer 0..{self.depth - 1} with a finite "
                    "coefficient."
                )
        if merged and len(self.kept) == self.depth:
            raise ValueError(
                f"Layers {sorted(merged)} are to take over others' weights, but none of {self.depth} layers goes. Leave the "
                "merged layers out of the kept ones, or leave 'merged' out."
            )

    def then(self, later: StackPlan) -> StackPlan:
        """This plan and then `later`, which was made for the layers that this one keeps, in this plan's numbering.

        Sums of sums are multiplied out: weights merged in two steps and in one agree up to rounding.

        Raises:
            ValueError: if `later` was made for another number of layers.

        Example:
            >>> first = StackPlan(4, (0, 1, 3), {1: {1: 0.5, 2: 0.5}})
            >>> first.then(StackPlan(3, (0, 2), {0: {0: 2.0, 1: -1.0}})).merged
            {0: {0: 2.0, 1: -0.5, 2: -0.5}}
        """
        if later.depth != len(self.kept):
            raise ValueError(f"The second plan expects {later.depth} layers, the first leaves {len(self.kept)}.")
        now = {layer: self.merged.get(layer, {layer: 1.0}) for layer in self.kept}
        merged: dict[int, dict[int, float]] = {}
        for place in later.kept:
            layer, total = self.kept[place], dict[int, float]()
            for term, coefficient in later.merged.get(place, {place: 1.0}).items():
                for of, inner in now[self.kept[term]].items():
                    total[of] = total.get(of, 0.0) + coefficient * inner
            if total != {layer: 1.0}:
                merged[layer] = total
        return StackPlan(self.depth, tuple(self.kept[place] for place in later.kept), merged)

    @property
    def changes(self) -> str:
        """In words: depth before and after, the layers that go, and those that are merged."""
        text = f"{self.depth} -> {len(self.kept)} layers, without {ranges(self.removed)}"
        into = [
            f"{ranges(sorted(of for of in terms if of != layer)) or 'nothing'} into {layer}"
            for layer, terms in sorted(self.merged.items())
        ]
        return f"{text}; merged: {', '.join(into)}" if into else text

    @property
    def removed(self) -> tuple[int, ...]:
        """The layers that go, ascending."""
        kept = set(self.kept)
        return tuple(i for i in range(self.depth) if i not in kept)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; merges are named only where there are any."""
        sums = {str(layer): {str(of): c for of, c in terms.items()} for layer, terms in self.merged.items()}
        return {"depth": self.depth, "kept": list(self.kept), **({"merged": sums} if sums else {})}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StackPlan:
        """Build from `to_dict()`'s result."""
        return cls(int(values["depth"]), tuple(values["kept"]), dict(values.get("merged") or {}))


@dataclass(frozen=True)
class PlanPreview:
    """What a plan changes, counted on a model that is not touched.

    Args:
        parameters_before, parameters_after (`int`): unique parameters of the whole model.
        bytes_before, bytes_after (`int`): their size at the model's data types.
        stacks (`dict[str, StackPlan]`): the plan's stacks.
    """

    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    stacks: dict[str, StackPlan]

    def __str__(self) -> str:
        """A few aligned lines, one for each stack and two totals."""
        width = max((len(path) for path in self.stacks), default=10)
        width = max(width, len("parameters"))
        lines = [f"{path:<{width}}  {stack.changes}" for path, stack in self.stacks.items()]
        share = 1 - self.parameters_after / self.parameters_before
        lines.append(
            f"{'parameters':<{width}}  {self.parameters_before:,} -> {self.parameters_after:,} ({share:.1%} fewer)"
        )
        lines.append(f"{'bytes':<{width}}  {self.bytes_before:,} -> {self.bytes_after:,}")
        return "\n".join(lines)


def ranges(layers: Sequence[int]) -> str:
    """`(2, 3, 4, 7)` as `2-4, 7`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) or "none"
