"""`Sampling`: how a measurement ended that was allowed to stop early."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

# With fewer groups a standard error is itself too uncertain for an interval. `reproduce/early_stop.py` shows how intervals
# over this many do.
MIN_GROUPS = 8

Ending = Literal["settled", "all used", "order"]


@dataclass(frozen=True)
class Sampling:
    """How a measurement ended that was allowed to stop early.

    Args:
        threshold (`float`): similarity in 0..1 whose clusters were to be settled.
        linkage (`str`): of these clusters, `"anchor"` or `"chain"`.
        error_rate (`float`): largest probability, in 0..1, that they are not those of unlimited data.
        ending (`str`): `"settled"`: the clusters are; `"all used"`: every example was used and some pairs are open;
            `"order"`: the batches differed more from the first to the last than chance allows, so that nothing can be
            said of other data, and all were used.
        open_pairs (`tuple` of pairs of `int`): positions of the layers whose comparison is not settled.
        num_available (`int`, *optional*): examples that could have been used, where that is known.
    """

    threshold: float
    linkage: str
    error_rate: float
    ending: Ending
    open_pairs: tuple[tuple[int, int], ...] = ()
    num_available: int | None = None

    def describe(self, layers: tuple[int | str, ...]) -> str:
        """One line for a reader.

        Args:
            layers (`tuple`): the labels of the layers.
        """
        goal = f"clusters at {self.threshold:g} ({self.linkage}, error rate {self.error_rate:g})"
        if self.ending == "settled":
            return f"{goal}: settled" + ("" if self.num_available is None else f", of {self.num_available} samples")
        if self.ending == "order":
            return f"{goal}: not settled, the batches are in no random order"
        pairs = ", ".join(f"{layers[i]}-{layers[j]}" for i, j in self.open_pairs)
        return f"{goal}: all samples used, open: {pairs or 'too few batches to tell'}"

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {**asdict(self), "open_pairs": [list(pair) for pair in self.open_pairs]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Sampling:
        """What `to_dict` wrote."""
        return cls(**{**data, "open_pairs": tuple((int(i), int(j)) for i, j in data["open_pairs"])})
