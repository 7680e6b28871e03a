"""What can be cut in a model: block stacks found by experiment, configs rewritten, every cut proved before it happens."""

from __future__ import annotations

from .edits import ModuleMove, TensorSlice, ValueEdit
from .find import Examination, examine, find_block_stacks
from .proof import ConfigEdit, CutProof, check_kept, prove_cut
from .reference import ABSENT
from .registry import register_architecture
from .size import Remains, count_parameters, count_remaining, parameters_after, remains_of
from .stack import BlockStack, ConfigField, Follower, FollowingField, StackCut
from .width import WidthGroup, Widths, WidthSlice, WidthUnit
from .width_proof import WidthProof, check_found, find_widths, prove_width

__all__ = [
    "ABSENT",
    "BlockStack",
    "ConfigEdit",
    "ConfigField",
    "CutProof",
    "Examination",
    "Follower",
    "FollowingField",
    "ModuleMove",
    "Remains",
    "StackCut",
    "TensorSlice",
    "ValueEdit",
    "WidthGroup",
    "WidthProof",
    "WidthSlice",
    "WidthUnit",
    "Widths",
    "check_found",
    "check_kept",
    "count_parameters",
    "count_remaining",
    "examine",
    "find_block_stacks",
    "find_widths",
    "parameters_after",
    "prove_cut",
    "prove_width",
    "register_architecture",
    "remains_of",
]
