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
            not stay, or does not exist, or a coefficient that is not finite.

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
        lines = [
            f"{path:<{width}}  {stack.depth} -> {len(stack.kept)} layers, without {ranges(stack.removed)}"
            for path, stack in self.stacks.items()
        ]
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
