"""`SimilarityMatrix`: the similarity of all pairs of layers. It prints, saves, loads and draws itself."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_mpruner.similarity.null import CalibratedSimilarity
from hf_mpruner.similarity.protocol import SimilarityProtocol
from hf_mpruner.similarity.sampling import MIN_GROUPS, Sampling
from hf_mpruner.similarity.spread import interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Cells are labelled with their value up to this depth; beyond it the numbers would not be readable.
_MAX_ANNOTATED = 16


@dataclass(frozen=True, eq=False)
class SimilarityMatrix:
    """Similarity of every pair of layers of one stack.

    Args:
        values (`torch.Tensor` of shape `(layers, layers)`): CKA, kept as float64 on the CPU.
        protocol (`SimilarityProtocol`): how it was measured.
        num_samples (`int`): examples it was measured on.
        path (`str`): dotted path of the stack, e.g. `"bert.encoder.layer"`.
        layers (`tuple`, *optional*): label of each layer; by default `0 .. layers - 1`.
        errors (`torch.Tensor` of shape `(layers, layers)`, *optional*): standard error of each value, over
            `num_groups`; for data drawn at random, in random order.
        num_groups (`int`): batches (or examples, where each is compared by itself) that the values are an average of.
        sampling (`Sampling`, *optional*): how the measurement ended, if it was allowed to stop early.
        calibrated (`CalibratedSimilarity`, *optional*): the same similarities against a shuffled null, where that was
            measured, too.

    Raises:
        ValueError: if the values are not a square matrix of finite numbers, or the labels or errors do not fit it.

    Example:
        >>> matrix = SimilarityMatrix(torch.tensor([[1.0, 0.9], [0.9, 1.0]]), SimilarityProtocol(), num_samples=32)
        >>> print(matrix)
        CKA of 2 layers: unbiased, rows: examples, ratio of sums, 32 samples
                 0     1
            0  1.000 0.900
            1  0.900 1.000
    """

    values: Tensor
    protocol: SimilarityProtocol
    num_samples: int
    path: str = ""
    layers: tuple[int | str, ...] = field(default=())
    errors: Tensor | None = None
    num_groups: int = 0
    sampling: Sampling | None = None
    calibrated: CalibratedSimilarity | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check the shape, keep a float64 copy, number the layers."""
        values = self.values.detach().to("cpu", torch.float64, copy=True)
        if values.dim() != 2 or values.shape[0] != values.shape[1] or not len(values):
            raise ValueError(
                f"values have shape {tuple(values.shape)}; a similarity matrix is square: (layers, layers)."
            )
        if not values.isfinite().all():
            i, j = (~values.isfinite()).nonzero()[0].tolist()
            raise ValueError(f"values[{i}, {j}] is {values[i, j].item()}; every similarity must be a finite number.")
        layers = tuple(self.layers) or tuple(range(len(values)))
        if len(layers) != len(values):
            raise ValueError(
                f"{len(layers)} labels in layers={layers} for a matrix of {len(values)} layers: one each."
            )
        if self.errors is not None:
            errors = self.errors.detach().to("cpu", torch.float64, copy=True)
            if errors.shape != values.shape or not (errors >= 0).all():
                raise ValueError(
                    f"errors have shape {tuple(errors.shape)}, or a negative or missing entry; they are standard errors of "
                    f"values of shape {tuple(values.shape)}."
                )
            object.__setattr__(self, "errors", errors)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "layers", layers)

    @property
    def adjacent(self) -> tuple[float, ...]:
        """Similarity of each layer with the next: layers - 1 values."""
        return tuple(self.values.diagonal(1).tolist())

    def interval(self, confidence: float = 0.95) -> tuple[Tensor, Tensor] | None:
        """Where the similarities of unlimited data from the same source lie, each pair by itself.

        For batches in random order, asymptotically. With 8 to 64 batches of 4 to 32 examples, intervals of 95 % held the true
        value 91 to 96 times of 100, the fewer the heavier the tails of the activations (`reproduce/early_stop.py`).

        Args:
            confidence (`float`): of each interval, between 0 and 1.

        Returns:
            `tuple` of two `torch.Tensor` of shape `(layers, layers)`: lower and upper ends; or `None` if there are no
            standard errors, or they are over fewer than 8 batches.

        Raises:
            ValueError: for a confidence that is none.
        """
        if not 0.0 < confidence < 1.0:
            raise ValueError(f"confidence={confidence} is not between 0 and 1. For 95 % pass 0.95.")
        if self.errors is None or self.num_groups < MIN_GROUPS:
            return None
        return interval(self.values, self.errors, self.num_groups, (1.0 - confidence) / 2)

    def __eq__(self, other: object) -> bool:
        """Equal in every value and every description."""
        if not isinstance(other, SimilarityMatrix):
            return NotImplemented
        if self._key() != other._key() or not torch.equal(self.values, other.values):
            return False
        if self.errors is None or other.errors is None:
            return self.errors is other.errors
        return torch.equal(self.errors, other.errors)

    def __hash__(self) -> int:
        """Equal matrices hash alike."""
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        return self.protocol, self.num_samples, self.path, self.layers, self.num_groups, self.sampling

    def __str__(self) -> str:
        """A table with three decimals."""
        width = max(5, *(len(str(label)) for label in self.layers))
        rows = [" " * width + " " + " ".join(f"{label!s:^{width}}" for label in self.layers)]
        for label, values in zip(self.layers, self.values.tolist(), strict=True):
            rows.append(f"{label!s:>{width}}  " + " ".join(f"{value:>{width}.3f}" for value in values))
        notes = [] if self.sampling is None else [self.sampling.describe(self.layers)]
        return "\n".join([self._title(), *(row.rstrip() for row in rows), *notes])

    def _title(self) -> str:
        where = f" of {self.path}" if self.path else ""
        return f"CKA of {len(self.layers)} layers{where}: {self._how()}"

    def _how(self) -> str:
        p = self.protocol
        rows = f"tokens of each {p.token_groups}" if p.rows == "tokens" else p.rows
        mean = "mean of ratios" if p.average == "ratios" else "ratio of sums"
        return f"{p.estimator}, rows: {rows}, {mean}, {self.num_samples} samples"

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types; `from_dict` gives an equal matrix back."""
        return {
            "path": self.path,
            "layers": list(self.layers),
            "num_samples": self.num_samples,
            "protocol": asdict(self.protocol),
            "values": self.values.tolist(),
            **({} if self.errors is None else {"errors": self.errors.tolist()}),
            **({"num_groups": self.num_groups} if self.num_groups else {}),
            **({} if self.sampling is None else {"sampling": self.sampling.to_dict()}),
            **({} if self.calibrated is None else {"calibrated": self.calibrated.to_dict()}),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SimilarityMatrix:
        """The matrix that `to_dict` wrote.

        Raises:
            ValueError: if an entry is missing.
        """
        missing = sorted({"path", "layers", "num_samples", "protocol", "values"} - set(data))
        if missing:
            raise ValueError(f"not a similarity matrix: no entry {', '.join(missing)}; found {sorted(data)}.")
        return cls(
            values=torch.tensor(data["values"], dtype=torch.float64),
            protocol=SimilarityProtocol(**data["protocol"]),
            num_samples=data["num_samples"],
            path=data["path"],
            layers=tuple(data["layers"]),
            # files of versions that kept no standard errors have none of these
            errors=torch.tensor(data["errors"], dtype=torch.float64) if data.get("errors") else None,
            num_groups=data.get("num_groups", 0),
            sampling=Sampling.from_dict(data["sampling"]) if data.get("sampling") else None,
            calibrated=CalibratedSimilarity.from_dict(data["calibrated"]) if data.get("calibrated") else None,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON, whole or not at all."""
        target = Path(path)
        draft = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        try:
            draft.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SimilarityMatrix:
        """Read what `save` wrote.

        Raises:
            ValueError: if the file holds something else.
        """
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))

    def plot(self, ax_or_path: Axes | str | os.PathLike[str] | None = None, title: str | None = None) -> Axes:
        """Draw a heat map.

        Args:
            ax_or_path (`matplotlib.axes.Axes` or path, *optional*): axes to draw in, or an image file to write. By
                default a new figure, reachable as `.figure` of what is returned.
            title (`str`, *optional*): by default the stack's path.

        Returns:
            `matplotlib.axes.Axes`: the axes drawn in.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure  # not pyplot: the user's backend and open figures stay as they are
        except ImportError as error:
            raise ImportError(
                "a heat map needs matplotlib, which is missing: pip install hf_mpruner[plots]"
            ) from error
        if ax_or_path is None or isinstance(ax_or_path, (str, os.PathLike)):
            side = min(9.0, 1.5 + 0.44 * max(4, len(self.layers)))  # inches
            figure = Figure(figsize=(side + 0.7, side), layout="constrained")
            ax = figure.add_subplot()
        else:
            ax = ax_or_path
        self._draw(ax, self.path if title is None else title)
        if isinstance(ax_or_path, (str, os.PathLike)):
            figure.savefig(ax_or_path, dpi=150, bbox_inches="tight", pad_inches=0.08)
        return ax

    def _draw(self, ax: Axes, title: str) -> None:
        """The cells, their numbers when there is room, the labels and the colour bar."""
        depth = len(self.layers)
        # One scale for all matrices, so that two pictures can be compared; only the unbiased estimator goes below 0.
        image = ax.imshow(self.values.numpy(), cmap="viridis", vmin=0.0, vmax=1.0)
        if depth <= _MAX_ANNOTATED:
            for i, row in enumerate(self.values.tolist()):
                for j, value in enumerate(row):
                    # ".996" rather than "1.00": thresholds lie in the third decimal.
                    number = "1" if i == j else f"{value:.3f}".replace("0.", ".", 1)
                    colour = "white" if value < 0.6 else "black"
                    ax.text(j, i, number, ha="center", va="center", color=colour, fontsize=7)
        step = 1 if depth <= 2 * _MAX_ANNOTATED else depth // _MAX_ANNOTATED
        ticks = range(0, depth, step)
        labels = [str(self.layers[i]) for i in ticks]
        ax.set_xticks(ticks, labels, fontsize=8)
        ax.set_yticks(ticks, labels, fontsize=8)
        ax.set_xticks([i - 0.5 for i in range(1, depth)], minor=True)
        ax.set_yticks([i - 0.5 for i in range(1, depth)], minor=True)
        ax.grid(which="minor", color="white", linewidth=0.6)
        ax.tick_params(which="both", length=0)
        ax.spines[:].set_visible(False)
        ax.set_xlabel("layer")
        ax.set_ylabel("layer")
        ax.set_title(title, fontsize=11, pad=18)
        offset: dict[str, Any] = {"xytext": (0, 5), "textcoords": "offset points"}
        ax.annotate(self._how(), (0.5, 1), xycoords="axes fraction", ha="center", fontsize=7.5, color="0.35", **offset)
        bar = ax.figure.colorbar(image, ax=ax, label="CKA", fraction=0.046, pad=0.03)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8)
