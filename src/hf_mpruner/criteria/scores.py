"""What a criterion says of one stack, as plain numbers; and what it cost to find out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from hf_mpruner.architectures import BlockStack
from hf_mpruner.errors import CalibrationError


@dataclass(frozen=True)
class LayerScores:
    """How much each layer of one stack matters: the lowest go first.

    Args:
        path (`str`): dotted path of the stack.
        values (`tuple` of `float` or `None`): one a layer; `None` where there is none, e.g. of a pinned layer that the
            model cannot run without. Comparable within one stack only.
        order (`tuple` of `int`): of a greedy criterion, the layers it removed, first one first.
        pairs (`tuple` of rows): square, of a criterion that compares places in the stack; what its rows are is the
            criterion's own (`angular`: outputs, the embeddings first; `cka`: similarity of layers).
        details (`dict`): further plain values, for the report.

    Raises:
        CalibrationError: for a value that is not finite.
        ValueError: for an order that names a layer twice or one that is none.

    Example:
        >>> LayerScores("encoder.layer", (0.5, 0.1, 0.3)).ranking
        (1, 2, 0)
    """

    path: str
    values: tuple[float | None, ...]
    order: tuple[int, ...] = ()
    pairs: tuple[tuple[float, ...], ...] = ()
    details: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        """Check every number."""
        for layer, value in enumerate(self.values):
            if value is not None and not math.isfinite(value):
                raise CalibrationError(
                    f"The score of layer {layer} of '{self.path}' is {value}. Scores are finite numbers, or None for a "
                    "layer that has none: look at that layer's weights and outputs."
                )
        if len(set(self.order)) != len(self.order) or not set(self.order) <= set(range(len(self.values))):
            raise ValueError(
                f"order={list(self.order)} of '{self.path}' is no order of removal: name each of its {len(self.values)} "
                "layers once at most."
            )

    @property
    def ranking(self) -> tuple[int, ...]:
        """The layers that have a score, lowest first; of equal ones the later layer first."""
        scored = [(value, -layer) for layer, value in enumerate(self.values) if value is not None]
        return tuple(-layer for _, layer in sorted(scored))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LayerScores:
        """Build from `to_dict()`'s result."""
        rows = tuple(tuple(row) for row in values.get("pairs") or ())
        details = dict(values.get("details") or {})
        return cls(values["path"], tuple(values["values"]), tuple(values.get("order") or ()), rows, details)


@dataclass(frozen=True)
class ScoringCost:
    """What scoring cost.

    Args:
        forward_passes (`float`): over the calibration data: 1.0 is one pass over all of it.
        backward_passes (`float`): likewise.
        seconds (`float`): wall-clock time.
    """

    forward_passes: float = 0.0
    backward_passes: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class ScoredLayers:
    """What a criterion says of a model.

    Args:
        criterion (`str`): its name.
        scores (`dict[str, LayerScores]`): for each stack.
        cost (`ScoringCost`): of finding out.
        title (`str`): the criterion's one line on what it measures.
    """

    criterion: str
    scores: dict[str, LayerScores]
    cost: ScoringCost = ScoringCost()
    title: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        scores = {path: one.to_dict() for path, one in self.scores.items()}
        return {"criterion": self.criterion, "title": self.title, "scores": scores, "cost": asdict(self.cost)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ScoredLayers:
        """Build from `to_dict()`'s result."""
        scores = {path: LayerScores.from_dict(one) for path, one in values["scores"].items()}
        cost = ScoringCost(**values.get("cost", {}))
        return cls(values["criterion"], scores, cost, values.get("title", ""))


def check_scores(name: str, found: Any, stacks: Sequence[BlockStack]) -> dict[str, LayerScores]:
    """What a criterion returned, as `LayerScores` for every stack.

    Args:
        name (`str`): the criterion's.
        found: what its `score` returned: for each stack path `LayerScores`, or one number a layer.
        stacks (`Sequence[BlockStack]`): that were to be scored.

    Raises:
        TypeError: if it is no mapping from stack paths to scores.
        ValueError: for a stack without scores, or another number of them than layers.
        CalibrationError: for a score that is not finite.
    """
    if not isinstance(found, Mapping):
        raise TypeError(
            f"The criterion '{name}' returned a {type(found).__name__}: return a dict from stack paths to scores, e.g. "
            f"{{'{stacks[0].path}': [one number a layer]}}."
        )
    scores = {}
    for stack in stacks:
        if stack.path not in found:
            raise ValueError(f"The criterion '{name}' gave no scores for '{stack.path}', only for {sorted(found)}.")
        one = found[stack.path]
        if not isinstance(one, LayerScores):
            one = LayerScores(stack.path, _plain(name, stack.path, one))
        if len(one.values) != stack.depth:
            raise ValueError(
                f"The criterion '{name}' gave {len(one.values)} scores for '{stack.path}', which has {stack.depth} layers: "
                "give one a layer, in their order."
            )
        scores[stack.path] = one
    return scores


def _plain(name: str, path: str, values: Any) -> tuple[float | None, ...]:
    """A tensor, an array or a sequence of numbers as floats."""
    values = values.tolist() if hasattr(values, "tolist") else values
    try:
        return tuple(None if value is None else float(value) for value in values)
    except TypeError as error:
        raise ValueError(
            f"The scores that the criterion '{name}' gave for '{path}' are not one number a layer: {error}."
        ) from None
