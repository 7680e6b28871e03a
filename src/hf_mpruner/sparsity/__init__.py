"""Weights set to zero, by Wanda or magnitude, unstructured or 2:4.

Ours, because no maintained package does it for a Trainer's models: torchao took its `WandaSparsifier` off its main branch
in August 2026 (it took the norms of all layers from the dense model, padding included), llm-compressor and
neural-compressor bring a pipeline and version limits of their own with them.
"""

from __future__ import annotations

from .apply import METHODS, sparsify_
from .keep import KeepZeros
from .pattern import Pattern, choose_zeros
from .report import LayerZeros, SparsityReport
from .where import find_paths

__all__ = [
    "METHODS",
    "KeepZeros",
    "LayerZeros",
    "Pattern",
    "SparsityReport",
    "choose_zeros",
    "find_paths",
    "sparsify_",
]
