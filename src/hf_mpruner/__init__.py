"""Prune whole layers of a Hugging Face model by how alike they are.

`import hf_mpruner` loads neither torch nor transformers: a name loads its module the first time it is used (PEP 562).
The modules and what each is for are in `docs/architecture.md`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_mpruner.architectures import BlockStack, find_block_stacks, register_architecture
    from hf_mpruner.callback import LayerPruningCallback
    from hf_mpruner.clusters import LayerCluster, find_clusters
    from hf_mpruner.comparison import Comparison, compare_criteria
    from hf_mpruner.config import PruningConfig
    from hf_mpruner.criteria import Criterion, register_criterion
    from hf_mpruner.cycles import prune_in_cycles
    from hf_mpruner.errors import (
        CalibrationError,
        CheckpointError,
        MPrunerError,
        PlanMismatchError,
        PushError,
        UnsupportedArchitectureError,
        UnsupportedBackendError,
    )
    from hf_mpruner.features import measure_similarity
    from hf_mpruner.halves import HalvesReport, measure_halves
    from hf_mpruner.narrowing import prune_width_, prune_width_in_rounds
    from hf_mpruner.oneshot import prune_
    from hf_mpruner.plan import PruningPlan, WidthPlan
    from hf_mpruner.publish import push_pruned_model
    from hf_mpruner.record import PruningRecord
    from hf_mpruner.report import PruningReport
    from hf_mpruner.scoring import make_compute_metrics
    from hf_mpruner.sequential import SequentialStop
    from hf_mpruner.similarity import SimilarityAccumulator, SimilarityMatrix, SimilarityProtocol, linear_cka
    from hf_mpruner.slicing import SlicedCheckpoint, slice_checkpoint
    from hf_mpruner.sparsity import sparsify_
    from hf_mpruner.surgery import apply_plan_, apply_width_plan_, drop_halves_

__version__ = "0.1.0"

__all__ = [
    "BlockStack",
    "CalibrationError",
    "CheckpointError",
    "Comparison",
    "Criterion",
    "HalvesReport",
    "LayerCluster",
    "LayerPruningCallback",
    "MPrunerError",
    "PlanMismatchError",
    "PruningConfig",
    "PruningPlan",
    "PruningRecord",
    "PruningReport",
    "PushError",
    "SequentialStop",
    "SimilarityAccumulator",
    "SimilarityMatrix",
    "SimilarityProtocol",
    "SlicedCheckpoint",
    "UnsupportedArchitectureError",
    "UnsupportedBackendError",
    "WidthPlan",
    "apply_plan_",
    "apply_width_plan_",
    "compare_criteria",
    "drop_halves_",
    "find_block_stacks",
    "find_clusters",
    "linear_cka",
    "make_compute_metrics",
    "measure_halves",
    "measure_similarity",
    "prune_",
    "prune_in_cycles",
    "prune_width_",
    "prune_width_in_rounds",
    "push_pruned_model",
    "register_architecture",
    "register_criterion",
    "slice_checkpoint",
    "sparsify_",
]

# Public name -> module. The imports above say the same to type checkers; tests/test_public_api.py compares the two.
_MODULE_OF = {
    "BlockStack": "architectures",
    "CalibrationError": "errors",
    "CheckpointError": "errors",
    "Comparison": "comparison",
    "Criterion": "criteria",
    "HalvesReport": "halves",
    "LayerCluster": "clusters",
    "LayerPruningCallback": "callback",
    "MPrunerError": "errors",
    "PlanMismatchError": "errors",
    "PruningConfig": "config",
    "PruningPlan": "plan",
    "PruningRecord": "record",
    "PruningReport": "report",
    "PushError": "errors",
    "SequentialStop": "sequential",
    "SimilarityAccumulator": "similarity",
    "SimilarityMatrix": "similarity",
    "SimilarityProtocol": "similarity",
    "SlicedCheckpoint": "slicing",
    "UnsupportedArchitectureError": "errors",
    "UnsupportedBackendError": "errors",
    "WidthPlan": "plan",
    "apply_plan_": "surgery",
    "apply_width_plan_": "surgery",
    "compare_criteria": "comparison",
    "drop_halves_": "surgery",
    "find_block_stacks": "architectures",
    "find_clusters": "clusters",
    "linear_cka": "similarity",
    "make_compute_metrics": "scoring",
    "measure_halves": "halves",
    "measure_similarity": "features",
    "prune_": "oneshot",
    "prune_in_cycles": "cycles",
    "prune_width_": "narrowing",
    "prune_width_in_rounds": "narrowing",
    "push_pruned_model": "publish",
    "register_architecture": "architectures",
    "register_criterion": "criteria",
    "slice_checkpoint": "slicing",
    "sparsify_": "sparsity",
}


def __getattr__(name: str) -> object:
    """Import the module of a public name, or a module itself, on first use.

    Raises:
        AttributeError: if `name` is neither.
    """
    if name in _MODULE_OF:
        value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        globals()[name] = value
        return value
    if name in _MODULE_OF.values():
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}. Public names: {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
