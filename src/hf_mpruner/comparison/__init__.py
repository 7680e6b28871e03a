"""Criteria side by side: before and after the same recovery."""

from hf_mpruner.comparison.result import Comparison
from hf_mpruner.comparison.rows import Row, Spread
from hf_mpruner.comparison.run import compare_criteria

__all__ = ["Comparison", "Row", "Spread", "compare_criteria"]
