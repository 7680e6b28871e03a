"""The attention and the feed-forward half of a block: measured apart, and dropped where the config can say so."""

from hf_mpruner.halves.bench import Bench, capture_calls
from hf_mpruner.halves.config import describe_skips, find_skips, with_skips
from hf_mpruner.halves.find import KINDS, Half, UnclearHalvesError, find_halves
from hf_mpruner.halves.measure import find_all_halves, measure_halves
from hf_mpruner.halves.report import HALVES_NAME, HalfScore, HalvesReport, StackHalves

__all__ = [
    "HALVES_NAME",
    "KINDS",
    "Bench",
    "Half",
    "HalfScore",
    "HalvesReport",
    "StackHalves",
    "UnclearHalvesError",
    "capture_calls",
    "describe_skips",
    "find_all_halves",
    "find_halves",
    "find_skips",
    "measure_halves",
    "with_skips",
]
