"""What was measured of the halves of blocks, as data that prints itself and goes through JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hf_mpruner.storage import write_json

HALVES_NAME = "halves.json"


@dataclass(frozen=True)
class HalfScore:
    """One half of one block.

    Args:
        module (`str`): whose output is added to the residual stream, by its name in the block.
        influence (`float`): 1 - mean cosine of the stream before and after the half; after its norm, in a post-norm block.
        output_change (`float`, *optional*): mean angle over pi between the model's output with and without the half; 0
            alike, 1 opposite. `None` where the output is no direction.
    """

    module: str
    influence: float
    output_change: float | None = None


@dataclass(frozen=True)
class StackHalves:
    """The halves of one stack.

    Args:
        path (`str`): of the stack.
        layout (`str`): `"pre-norm"`, `"post-norm"` or `"parallel"`; empty if the halves were not found.
        layers (`tuple` of `dict`): for each layer, from kind of half to its scores.
        skips (`dict[str, str]`): from kind of half to the word that makes the installed transformers leave it out.
        note (`str`): why nothing was measured, or why no half can be dropped for good.
    """

    path: str
    layout: str = ""
    layers: tuple[dict[str, HalfScore], ...] = ()
    skips: dict[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class HalvesReport:
    """The halves of all stacks of a model.

    Args:
        stacks (`dict[str, StackHalves]`): by path.
        forward_passes (`float`): over the calibration data that it took.
        seconds (`float`): likewise.

    Example:
        >>> score = HalfScore("mlp", 0.125, 0.5)
        >>> print(HalvesReport({"h": StackHalves("h", "pre-norm", ({"feed_forward": score},))}))
        h (pre-norm blocks)
        layer  feed_forward: influence  output change
            0                 0.1250         0.5000
    """

    stacks: dict[str, StackHalves]
    forward_passes: float = 0.0
    seconds: float = 0.0

    def __str__(self) -> str:
        """A table a stack."""
        return "\n\n".join(_table(stack) for stack in self.stacks.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def save(self, path: str | Path) -> None:
        """Write `to_dict()` to a JSON file."""
        write_json(Path(path), self.to_dict())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HalvesReport:
        """Build from `to_dict()`'s result."""
        stacks = {}
        for path, stack in values["stacks"].items():
            layers = tuple({kind: HalfScore(**one) for kind, one in layer.items()} for layer in stack["layers"])
            stacks[path] = StackHalves(**{**stack, "layers": layers})
        return cls(stacks, values["forward_passes"], values["seconds"])


def _table(stack: StackHalves) -> str:
    if not stack.layers:
        return f"{stack.path}: not measured. {stack.note}"
    fullest = max(range(len(stack.layers)), key=lambda layer: len(stack.layers[layer]))
    kinds = list(stack.layers[fullest])  # some decoders read the encoder in some of their layers only
    heads = [(f"{kind}: influence", "output change") for kind in kinds]
    lines = [
        f"{stack.path} ({stack.layout} blocks)",
        "layer" + "".join(f"  {one}  {other}" for one, other in heads),
    ]
    for number, layer in enumerate(stack.layers):
        cells = [
            f"  {_number(layer.get(kind), 'influence'):>{len(one)}}  {_number(layer.get(kind), 'output_change'):>{len(other)}}"
            for kind, (one, other) in zip(kinds, heads, strict=True)
        ]
        lines.append(f"{number:>5}" + "".join(cells))
    return "\n".join([*lines, *([stack.note] if stack.note else [])])


def _number(half: HalfScore | None, name: str) -> str:
    value = None if half is None else getattr(half, name)
    return "-" if value is None else f"{value:.4f}"
