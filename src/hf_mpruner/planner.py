"""What the next round of Algorithm 1 would cut: measured once, planned for ever coarser k until a cut is new."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .architectures import BlockStack, find_block_stacks
from .clusters import LayerCluster, find_clusters
from .config import PruningConfig, resolve_protected
from .errors import UnsupportedArchitectureError
from .plan import PruningPlan
from .record import Measurement, PruningRecord, Round
from .similarity import SimilarityMatrix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Measure = Callable[[list[BlockStack]], dict[str, SimilarityMatrix]]


@dataclass(frozen=True)
class RoundPlan:
    """What the next round would do, in the numbering of the model as it is now.

    Args:
        plan (`PruningPlan`): the layers that would stay.
        granularity (`int`): the k it was planned with.
        matrices (`dict[str, SimilarityMatrix]`): the evidence, by stack path.
        clusters (`dict[str, list[LayerCluster]]`): found in them.
        analysis_seconds (`float`): wall-clock time of measuring.
    """

    plan: PruningPlan
    granularity: int
    matrices: dict[str, SimilarityMatrix]
    clusters: dict[str, list[LayerCluster]]
    analysis_seconds: float


class RoundPlanner:
    """Plans rounds for one live model.

    Args:
        model (`PreTrainedModel`): read, not changed.
        config (`PruningConfig`): what the user asked for.
        measure: called with the live block stacks, returns a `SimilarityMatrix` for each path.
        record (`PruningRecord`, *optional*): of the run that is gone on with; the model is as it left it.

    Attributes:
        depths (`dict[str, int]`): for each stack that may be cut, the layers it has now.

    Raises:
        UnsupportedArchitectureError: if the model has no stack that can be cut.
        ValueError: if the config names unknown stacks or layers, or protects every layer.
    """

    def __init__(
        self, model: PreTrainedModel, config: PruningConfig, measure: Measure, record: PruningRecord | None = None
    ) -> None:
        """Look at the model and the config; nothing is measured yet."""
        self.model, self.config = model, config
        self._measure = measure
        self._measured: tuple[dict[str, SimilarityMatrix], float] | None = None
        self._measured_at: int | None = None  # the step of the training at which the model is as measured
        self._rejected: list[dict[str, tuple[int, ...]]] = []
        if record is not None:
            self.depths = dict(record.depths)
            self._protected = resolve_protected(config.protect, self.depths)
            self._adopt(record)
            return
        stacks = _selected(find_block_stacks(model), config.stacks)
        self.depths = {stack.path: stack.depth for stack in stacks}
        self._protected = resolve_protected(config.protect, self.depths)
        free = {stack.path: set(stack.prunable) - self._protected[stack.path] - {0} for stack in stacks}
        if not any(free.values()):
            held = "; ".join(f"'{path}': protected {sorted(layers)}" for path, layers in self._protected.items())
            raise ValueError(
                f"Every layer that could go is protected or pinned ({held}). A cluster keeps its first layer, so "
                "leave at least one layer after layer 0 out of protect."
            )

    def plan(self, record: PruningRecord, step: int = 0) -> RoundPlan | str:
        """Plan the next round, from `record.granularity` on.

        The model is measured only if it changed since. A cut that was rejected or refused from this very model is not
        tried again under a coarser k.

        Args:
            record (`PruningRecord`): the run so far.
            step (`int`): of the training.

        Returns:
            `RoundPlan`, or in words why there is none.
        """
        if self.config.max_rounds is not None and len(record.rounds) >= self.config.max_rounds:
            return f"max_rounds={self.config.max_rounds} reached"
        if all(len(layers) == 1 for layers in record.kept.values()):
            return "one layer is left in every stack"
        stacks = self._find_stacks()
        if isinstance(stacks, str):
            return stacks
        if self._measured is None:
            started = time.perf_counter()
            self._measured = (self._measure(stacks), time.perf_counter() - started)
            self._measured_at = step
        matrices, seconds = self._measured
        clusters = {
            path: find_clusters(matrix, threshold=self.config.threshold, linkage=self.config.linkage)
            for path, matrix in matrices.items()
        }
        if all(len(cluster.layers) == 1 for found in clusters.values() for cluster in found):
            return f"no two neighbouring layers are alike at threshold {self.config.threshold:g}"
        protect = [
            f"{path}:{live}"
            for path, layers in record.kept.items()
            for live, original in enumerate(layers)
            if original in self._protected[path] and path in matrices
        ]
        for granularity in range(record.granularity, self.config.max_granularity + 1):
            plan = PruningPlan.from_clusters(clusters, stacks, granularity, protect)
            if plan.num_removed and plan.kept not in self._rejected:
                return RoundPlan(plan, granularity, matrices, clusters, seconds)
        if self._rejected:
            return f"rejected up to granularity {self.config.max_granularity}"
        return "the layers that are alike are protected or pinned"

    def measure_kept(self, record: PruningRecord, step: int | None) -> dict[str, dict[str, Any]]:
        """Similarities of the model as it is, in the original numbering; measured only if it changed since the last time.

        Args:
            record (`PruningRecord`): of a run that has ended.
            step (`int`, *optional*): of the training; `None` if its weights were replaced.

        Returns:
            `dict`: for each stack that still is one `SimilarityMatrix.to_dict()`.
        """
        if self._measured is not None and self._measured_at == step:
            return _original_similarity(self._measured[0], record.kept)
        stacks = self._find_stacks()
        return {} if isinstance(stacks, str) else _original_similarity(self._measure(stacks), record.kept)

    def reject(self, plan: PruningPlan, step: int = 0) -> None:
        """Do not plan this cut again; the model is as it was, so what was measured still holds."""
        self._rejected.append(plan.kept)
        self._measured_at = step

    def _find_stacks(self) -> list[BlockStack] | str:
        """The stacks that may be cut, or in words why there is none; one that is down to one layer is no stack any more."""
        try:
            stacks = [stack for stack in find_block_stacks(self.model) if stack.path in self.depths]
        except UnsupportedArchitectureError as error:
            return f"no stack can be cut any further: {' '.join(str(error).split())}"
        return stacks or f"no stack of {', '.join(self.depths)} can be cut any further"

    def _adopt(self, record: PruningRecord) -> None:
        """Know what a run knew that is gone on with: what was measured and rejected since the last accepted cut.

        Similarities are read from the record, to the bit, so that the next plan is the one that would have been made.
        """
        for round_ in reversed(record.rounds):
            if round_.verdict not in ("rejected", "pending"):
                break
            position = {path: {layer: i for i, layer in enumerate(kept)} for path, kept in record.kept.items()}
            plan = {path: tuple(position[path][layer] for layer in round_.kept[path]) for path in round_.similarity}
            if round_.verdict == "rejected":
                self._rejected.insert(0, plan)
            if self._measured is None:
                matrices = {path: SimilarityMatrix.from_dict(values) for path, values in round_.similarity.items()}
                live = {path: replace(one, layers=tuple(range(len(one.layers)))) for path, one in matrices.items()}
                self._measured = (live, round_.analysis_seconds)
                self._measured_at = round_.decided_at_step if round_.verdict == "rejected" else None

    def forget(self) -> None:
        """The model changed: what was measured and rejected no longer holds."""
        self._measured = None
        self._rejected.clear()


def _selected(stacks: list[BlockStack], paths: list[str] | None) -> list[BlockStack]:
    known = [stack.path for stack in stacks]
    unknown = [path for path in paths or [] if path not in known]
    if unknown:
        raise ValueError(
            f"stacks={unknown} are no block stacks of this model. Its stacks are: {', '.join(known)}; pass some of these."
        )
    return [stack for stack in stacks if paths is None or stack.path in paths]


def new_record(model: PreTrainedModel, config: PruningConfig, depths: dict[str, int]) -> PruningRecord:
    """The record of a run that begins.

    Args:
        model (`PreTrainedModel`): uncut.
        config (`PruningConfig`): what the user asked for.
        depths (`dict[str, int]`): layers of each stack that may be cut.
    """
    name = getattr(model.config, "_name_or_path", "") or ""
    # a path of this machine says nothing elsewhere
    is_path = not name or Path(name).exists() or name.startswith(("/", ".", "~"))
    return PruningRecord(
        depths,
        model_type=model.config.model_type,
        source_model=None if is_path else name,
        source_revision=getattr(model.config, "_commit_hash", None),
        config=config.to_dict(),
        granularity=config.granularity,
    )


def new_round(following: RoundPlan, record: PruningRecord, size: Measurement, step: int) -> Round:
    """A plan as the next round of a record, in the original numbering; not decided.

    Args:
        following (`RoundPlan`): in the numbering of the model as it is.
        record (`PruningRecord`): the run so far.
        size (`Measurement`): of the model as it is.
        step (`int`): of the training.
    """
    original, plan = record.kept, following.plan
    kept = {path: [original[path][i] for i in stack.kept] for path, stack in plan.stacks.items()}
    return Round(
        number=len(record.rounds) + 1,
        granularity=following.granularity,
        kept={**original, **kept},
        clusters=_original_clusters(following.clusters, original),
        similarity={
            path: replace(matrix, layers=tuple(original[path])).to_dict()
            for path, matrix in following.matrices.items()
        },
        after=size,
        started_at_step=step,
        analysis_seconds=following.analysis_seconds,
    )


def _original_similarity(
    matrices: Mapping[str, SimilarityMatrix], original: Mapping[str, list[int]]
) -> dict[str, dict[str, Any]]:
    return {path: replace(matrix, layers=tuple(original[path])).to_dict() for path, matrix in matrices.items()}


def _original_clusters(
    clusters: Mapping[str, list[LayerCluster]], original: Mapping[str, list[int]]
) -> dict[str, list[list[int]]]:
    """Layers of the clusters of two or more, in the original numbering."""
    return {
        path: [[original[path][i] for i in cluster.layers] for cluster in found if len(cluster.layers) > 1]
        for path, found in clusters.items()
    }
