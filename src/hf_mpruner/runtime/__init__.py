"""What kind of process group this is, what it needs around an edit, and the random state that we must not touch."""

from hf_mpruner.runtime.base import Runtime, SingleProcess
from hf_mpruner.runtime.copies import Copies, check_wrapped, copies_runtime, whole_models
from hf_mpruner.runtime.detect import detect_runtime
from hf_mpruner.runtime.rng import keep_rng_state

__all__ = [
    "Copies",
    "Runtime",
    "SingleProcess",
    "check_wrapped",
    "copies_runtime",
    "detect_runtime",
    "keep_rng_state",
    "whole_models",
]
