"""What was set to zero, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LayerZeros:
    """Weights of one layer after it was made sparse.

    Args:
        weights (`int`): how many there are.
        zeros (`int`): how many of them are zero, those among them that were before.
    """

    weights: int
    zeros: int

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return self.zeros / self.weights


@dataclass(frozen=True)
class SparsityReport:
    """What `sparsify_` did.

    Args:
        method (`str`): `"wanda"` or `"magnitude"`.
        pattern (`str`): `"unstructured"` or `"n:m"`.
        asked (`float`): the sparsity that was asked for.
        layers (`dict[str, LayerZeros]`): by dotted path.
        left_out (`dict[str, str]`): what lies in the blocks and was left dense, and why.
        parameters (`int`): of the whole model.
        model_zeros (`int`): zeros among them, biases and what is outside the blocks included.
        seconds (`float`): wall-clock time.
        passes (`float`): forward passes over the calibration data, in whole passes through all blocks: counted.
        examples (`int`): of calibration.
    """

    method: str
    pattern: str
    asked: float
    layers: dict[str, LayerZeros]
    left_out: dict[str, str] = field(default_factory=dict)
    parameters: int = 0
    model_zeros: int = 0
    seconds: float = 0.0
    passes: float = 0.0
    examples: int = 0

    @property
    def sparsity(self) -> float:
        """Share of zeros in the layers that were made sparse."""
        return sum(one.zeros for one in self.layers.values()) / sum(one.weights for one in self.layers.values())

    @property
    def model_sparsity(self) -> float:
        """Share of zeros in all parameters of the model."""
        return self.model_zeros / self.parameters

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "method": self.method,
            "pattern": self.pattern,
            "asked": self.asked,
            "sparsity": self.sparsity,
            "model_sparsity": self.model_sparsity,
            "parameters": self.parameters,
            "model_zeros": self.model_zeros,
            "layers": {name: {"weights": one.weights, "zeros": one.zeros} for name, one in self.layers.items()},
            "left_out": self.left_out,
            "seconds": self.seconds,
            "passes": self.passes,
            "examples": self.examples,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SparsityReport:
        """What `to_dict` gave, e.g. to make `KeepZeros` again before a training is resumed.

        Example:
            >>> report = SparsityReport("magnitude", "2:4", 0.5, {"0": LayerZeros(16, 8)}, parameters=20, model_zeros=9)
            >>> SparsityReport.from_dict(report.to_dict()) == report
            True
        """
        layers = {name: LayerZeros(**one) for name, one in values["layers"].items()}
        derived = {"layers", "sparsity", "model_sparsity"}
        return cls(layers=layers, **{name: value for name, value in values.items() if name not in derived})

    def __str__(self) -> str:
        """One line, and one for each thing left out."""
        lines = [
            f"{self.method}, {self.pattern}: {self.sparsity:.4f} of {len(self.layers)} layers is zero (asked: {self.asked:g}), "
            f"{self.model_sparsity:.4f} of the whole model; {self.passes:.1f} passes over {self.examples} examples, "
            f"{self.seconds:.1f} s"
        ]
        return "\n".join([*lines, *(f"left dense: {name}: {why}" for name, why in self.left_out.items())])
