"""`Outcomes`: what one model did on each example of the judging set, to be paired with what another did."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Kind = Literal["binary", "values", "replicates"]
Unit = Literal["examples", "batches"]


@dataclass(frozen=True)
class Outcomes:
    """One model's outcomes on a judging set, in the metric's own unit and direction.

    Args:
        kind: `"binary"`: the metric is the share of ones among 0/1 outcomes of examples. `"values"`: it is the (weighted)
            mean of a number for each unit. `"replicates"`: it is a metric of the whole set, and these are its values
            on bootstrap resamples, which are the same resamples for every model (they follow from the seed and the
            number of examples).
        values (`tuple[float, ...]`): the outcomes, the numbers or the replicates.
        value (`float`): the metric itself.
        num_examples (`int`): of the judging set.
        unit (`"examples"` or `"batches"`): what a value of kind `"values"` is of, or what was resampled.
        weights (`tuple[float, ...]`): of the units in the mean, or of the batches that were resampled; empty if all count
            alike.

    Raises:
        ValueError: if the numbers do not fit together, or are not finite.

    Example:
        >>> Outcomes("binary", (1, 0, 1, 1), 0.75, 4).to_dict()["values"]
        '1011'
    """

    kind: Kind
    values: tuple[float, ...]
    value: float
    num_examples: int
    unit: Unit = "examples"
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check that the metric is what the outcomes say."""
        if self.kind not in get_args(Kind) or self.unit not in get_args(Unit):
            raise ValueError(f"Outcomes of kind {self.kind!r} and unit {self.unit!r} are not known.")
        if not self.values or not all(map(math.isfinite, (*self.values, self.value))):
            raise ValueError("Outcomes must be finite numbers, and at least one.")
        if self.kind == "binary" and not set(self.values) <= {0, 1}:
            raise ValueError("Outcomes of kind 'binary' must be 0 or 1 each.")
        if self.weights and self.kind != "replicates" and len(self.weights) != len(self.values):
            raise ValueError(f"{len(self.weights)} weights do not fit {len(self.values)} outcomes.")

    @property
    def num_units(self) -> int:
        """Examples, or batches, that were drawn independently of each other."""
        return (len(self.weights) or self.num_examples) if self.kind == "replicates" else len(self.values)

    def check_paired(self, other: Outcomes) -> None:
        """Refuse outcomes of other examples than these.

        Raises:
            ValueError: names the difference.
        """
        for name in ("kind", "unit", "num_examples", "weights"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(
                    f"The outcomes of two models cannot be paired: {name} is {getattr(self, name)!r:.80} for one and "
                    f"{getattr(other, name)!r:.80} for the other. Both must be judged on the same examples, in one order."
                )
        if len(self.values) != len(other.values):
            raise ValueError(f"{len(self.values)} outcomes cannot be paired with {len(other.values)}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; 0/1 outcomes as one string."""
        values: Any = list(self.values)
        if self.kind == "binary":
            values = "".join("1" if value else "0" for value in self.values)
        found = {"kind": self.kind, "values": values, "value": self.value, "num_examples": self.num_examples}
        return {**found, "unit": self.unit, "weights": list(self.weights)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Outcomes:
        """Build from `to_dict()`'s result."""
        numbers = tuple(float(value) for value in values["values"])
        given = {name: values[name] for name in ("kind", "value", "num_examples", "unit")}
        return cls(**given, values=numbers, weights=tuple(values["weights"]))
