"""Criteria side by side on one model: before and after the same recovery, resumable."""
