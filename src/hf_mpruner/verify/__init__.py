"""Run a cut on real inputs before anyone relies on it: `verify="full"`."""

from hf_mpruner.verify.check import FullCheck, apply_verified_, check_request

__all__ = ["FullCheck", "apply_verified_", "check_request"]
