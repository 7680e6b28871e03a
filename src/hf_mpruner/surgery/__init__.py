"""The only module that changes a model's structure. Every change is proved first and has an exact undo."""

from hf_mpruner.surgery.apply import apply_plan_
from hf_mpruner.surgery.checkpointing import mark_returned
from hf_mpruner.surgery.edit import ModelEdit

__all__ = ["ModelEdit", "apply_plan_", "mark_returned"]
