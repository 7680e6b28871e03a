"""The only module that changes a model's structure. Every change is proved first and has an exact undo."""

from hf_mpruner.surgery.apply import apply_plan_
from hf_mpruner.surgery.checkpointing import mark_returned
from hf_mpruner.surgery.edit import ModelEdit
from hf_mpruner.surgery.halves import HalvesEdit, drop_halves_
from hf_mpruner.surgery.narrow import WidthEdit, apply_compared_, apply_width_plan_, masked

__all__ = [
    "HalvesEdit",
    "ModelEdit",
    "WidthEdit",
    "apply_compared_",
    "apply_plan_",
    "apply_width_plan_",
    "drop_halves_",
    "mark_returned",
    "masked",
]
