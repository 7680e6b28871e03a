"""Run a model as if some blocks, or halves of blocks, were not there."""

from hf_mpruner.skipping.blocks import SkippedBlocks, hand_on_blocks, skip_blocks
from hf_mpruner.skipping.branches import silence
from hf_mpruner.skipping.handing import HandedOn, NoHandingOnError, hand_on

__all__ = ["HandedOn", "NoHandingOnError", "SkippedBlocks", "hand_on", "hand_on_blocks", "silence", "skip_blocks"]
