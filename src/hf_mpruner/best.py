"""The Trainer's best checkpoint so far: of a bigger model it is none, and of a model that was gone back to it is one again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import TrainerState

    from .record import PruningRecord, Round

_NAMES = ("best_metric", "best_global_step", "best_model_checkpoint")


def best_of(state: TrainerState) -> dict[str, Any]:
    """Metric, step and checkpoint that the Trainer holds for its best."""
    return {name: getattr(state, name) for name in _NAMES}


def put_back_best(state: TrainerState, record: PruningRecord, round_: Round) -> None:
    """After a verdict: the best before the cut, if the model is that of before; else none.

    Args:
        state (`TrainerState`): of the run.
        record (`PruningRecord`): its `best` is from before the cut, and is let go of.
        round_ (`Round`): that was decided.
    """
    best = record.best or {}
    if round_.verdict != "rejected" or not Path(best.get("best_model_checkpoint") or "").is_dir():
        best = {}  # a checkpoint of the bigger model must not be loaded into this one at the end
    for name in _NAMES:
        setattr(state, name, best.get(name))
    record.best = None
