"""From a loaded model and raw data to similarities, clusters and the plan they suggest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from hf_mpruner.architectures import BlockStack
from hf_mpruner.clusters import LayerCluster, find_clusters
from hf_mpruner.config import PruningConfig
from hf_mpruner.data import Columns, calibration_loader, draw_sample
from hf_mpruner.features import measure_layer_by_layer, measure_similarity
from hf_mpruner.placement import measurable_stacks
from hf_mpruner.plan import PruningPlan
from hf_mpruner.runtime import Runtime
from hf_mpruner.similarity import SimilarityMatrix
from hf_mpruner.tasks import Purpose, Settings, Task

from .parser import UsageError

Matrices = dict[str, SimilarityMatrix]


def chosen_stacks(model: PreTrainedModel, config: PruningConfig) -> list[BlockStack]:
    """The model's stacks, or those of them that `--stacks` names.

    Raises:
        UsageError: for a path that is no stack of the model.
    """
    stacks = measurable_stacks(model)
    unknown = set(config.stacks or ()) - {stack.path for stack in stacks}
    if unknown:
        raise UsageError(
            f"--stacks {' '.join(sorted(unknown))}: no stack of this model. Its stacks are: "
            f"{', '.join(stack.path for stack in stacks)}."
        )
    return [stack for stack in stacks if config.stacks is None or stack.path in config.stacks]


class Rows(NamedTuple):
    """Raw data, and what turns it into batches of a model."""

    model: PreTrainedModel
    data: Any
    processing_class: Any
    columns: Columns
    task: Task
    settings: Settings

    def batches(
        self, config: PruningConfig, purpose: Purpose = "calibration", *, keep_labels: bool = False
    ) -> Iterable[Mapping[str, Any]]:
        """Calibration batches of a sample, drawn and read as the config and the task say."""
        sample = draw_sample(self.data, config.calibration_samples, config.seed)
        return calibration_loader(
            self.task.prepare(sample, self.columns, self.model, self.processing_class, self.settings, purpose),
            num_samples=config.calibration_samples,
            batch_size=config.calibration_batch_size,
            seed=config.seed,
            processing_class=self.processing_class,
            model=self.model,
            keep_labels=keep_labels,
        )


def measure(rows: Rows, config: PruningConfig, stacks: list[BlockStack], runtime: Runtime | None = None) -> Matrices:
    """Similarity matrices on a sample of raw data, by stack path; of several processes each measures a part of it."""
    return measure_similarity(
        rows.model, rows.batches(config), stacks, protocol=config.protocol, stop=config.stop, runtime=runtime
    )


def measure_streaming(rows: Rows, config: PruningConfig, stacks: list[BlockStack]) -> Matrices:
    """The same, one layer after the other for all of the sample."""
    return measure_layer_by_layer(rows.model, rows.batches(config), stacks, protocol=config.protocol)


def cluster(matrices: Matrices, config: PruningConfig, threshold: float) -> dict[str, list[LayerCluster]]:
    """Clusters of every stack at a threshold."""
    return {path: find_clusters(matrix, threshold, config.linkage) for path, matrix in matrices.items()}


def suggest(
    name: str, model: PreTrainedModel, matrices: Matrices, stacks: list[BlockStack], config: PruningConfig
) -> PruningPlan:
    """The plan that the config makes of the similarities, with them as its evidence."""
    clusters = cluster(matrices, config, config.fixed_threshold)
    return PruningPlan.from_clusters(
        clusters,
        stacks,
        config.granularity,
        config.protect,
        model_type=model.config.model_type,
        # a folder of this machine says nothing to whoever reads the plan elsewhere
        source_model=None if Path(name).exists() else name,
        source_revision=getattr(model.config, "_commit_hash", None),
        evidence={
            "threshold": config.fixed_threshold,
            "linkage": config.linkage,
            "granularity": config.granularity,
            "similarity": {path: matrix.to_dict() for path, matrix in matrices.items()},
            "clusters": {path: [list(found.layers) for found in runs] for path, runs in clusters.items()},
        },
    )
