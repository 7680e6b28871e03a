"""A plan for the next round: as a round of a record, in the original numbering, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .clusters import LayerCluster, find_clusters
from .config import PruningConfig
from .criteria import ScoredLayers, from_original, to_original
from .criteria.cka import similarity_of
from .plan import PruningPlan, StackPlan
from .record import Measurement, PruningRecord, Round
from .similarity import SimilarityMatrix

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class RoundPlan:
    """What the next round would do, in the numbering of the model as it is now.

    Args:
        plan (`PruningPlan`): the layers that would stay.
        granularity (`int`): the k it was planned with.
        matrices (`dict[str, SimilarityMatrix]`): the evidence, by stack path.
        clusters (`dict[str, list[LayerCluster]]`): found in them.
        analysis_seconds (`float`): wall-clock time of measuring.
        scored (`ScoredLayers`, *optional*): what a criterion said; `None` if whole clusters go.
    """

    plan: PruningPlan
    granularity: int
    matrices: dict[str, SimilarityMatrix]
    clusters: dict[str, list[LayerCluster]]
    analysis_seconds: float
    scored: ScoredLayers | None = None


def find_alike(
    scored: ScoredLayers, plan: PruningPlan
) -> tuple[dict[str, SimilarityMatrix], dict[str, list[LayerCluster]]]:
    """Similarities that a criterion has measured on its way, and the clusters that hold what a plan removes.

    Args:
        scored (`ScoredLayers`): of the model that the plan is for.
        plan (`PruningPlan`): in the same numbering.

    Returns:
        by stack path, the matrices, and clusters at the largest similarity at which every layer that goes follows another
        one in its cluster; both without stacks that have none.
    """
    matrices, clusters = {}, {}
    for path, scores in scored.scores.items():
        if not (scores.pairs and "protocol" in scores.details):
            continue
        matrices[path] = matrix = similarity_of(scores)
        going = set(plan.stacks[path].removed)
        for threshold in sorted(set(matrix.values.triu(1).flatten().tolist()), reverse=True):
            found = find_clusters(matrix, min(max(threshold, 0.0), 1.0), scores.details.get("linkage", "anchor"))
            if going and going <= {layer for cluster in found for layer in cluster.layers[1:]}:
                clusters[path] = found
                break
    return matrices, clusters


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
        similarity=original_similarity(following.matrices, original),
        after=size,
        started_at_step=step,
        analysis_seconds=following.analysis_seconds,
        criterion="cka" if following.scored is None else following.scored.criterion,
        scores={} if following.scored is None else to_original(following.scored, original),
        merged=_original_merges(plan, original),
    )


def _original_merges(plan: PruningPlan, original: Mapping[str, list[int]]) -> dict[str, dict[str, dict[str, float]]]:
    """What layers take over, in the original numbering; without stacks where nothing is merged."""
    return {
        path: {
            str(original[path][layer]): {str(original[path][term]): share for term, share in terms.items()}
            for layer, terms in stack.merged.items()
        }
        for path, stack in plan.stacks.items()
        if stack.merged
    }


def original_similarity(
    matrices: Mapping[str, SimilarityMatrix], original: Mapping[str, list[int]]
) -> dict[str, dict[str, Any]]:
    """Similarities of a live model as a record holds them.

    Args:
        matrices (`Mapping[str, SimilarityMatrix]`): by stack path.
        original (`Mapping[str, list[int]]`): for each stack the original number of each layer.
    """
    return {path: replace(matrix, layers=tuple(original[path])).to_dict() for path, matrix in matrices.items()}


def _original_clusters(
    clusters: Mapping[str, list[LayerCluster]], original: Mapping[str, list[int]]
) -> dict[str, list[list[int]]]:
    """Layers of the clusters of two or more, in the original numbering."""
    return {
        path: [[original[path][i] for i in cluster.layers] for cluster in found if len(cluster.layers) > 1]
        for path, found in clusters.items()
    }


def plan_of(round_: Round, record: PruningRecord) -> RoundPlan:
    """The plan that a round of a record carried out, in the numbering of the model before it."""
    current = record.kept
    numbers = live_numbers(round_.kept, current)
    position = {path: {layer: i for i, layer in enumerate(layers)} for path, layers in current.items()}
    # a stack that is down to one layer is no stack any more
    paths = [path for path in current if len(current[path]) > 1] if round_.scores else list(round_.similarity)
    plan = PruningPlan(
        {
            path: StackPlan(
                len(current[path]), tuple(numbers[path]), _live_merges(round_.merged.get(path, {}), position[path])
            )
            for path in paths
        }
    )
    matrices = {path: SimilarityMatrix.from_dict(values) for path, values in round_.similarity.items()}
    clusters = {
        path: [LayerCluster(tuple(position[path][layer] for layer in layers), 0.0) for layers in found]
        for path, found in round_.clusters.items()
    }
    scored = from_original(round_.scores) if round_.scores else None
    return RoundPlan(plan, round_.granularity, matrices, clusters, round_.analysis_seconds, scored)


def _live_merges(merged: dict[str, dict[str, float]], position: dict[int, int]) -> dict[int, dict[int, float]]:
    return {
        position[int(layer)]: {position[int(term)]: share for term, share in terms.items()}
        for layer, terms in merged.items()
    }


def live_numbers(kept: dict[str, list[int]], current: dict[str, list[int]]) -> dict[str, list[int]]:
    """Layers of the original model as they are numbered in a model that has the `current` ones."""
    return {path: [current[path].index(layer) for layer in layers] for path, layers in kept.items()}
