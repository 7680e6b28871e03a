"""What a measured drop says about the true one: paired outcomes, an upper confidence bound, and the price of several tests."""

from .bound import DropBound, bound_drop, check_outcomes, smallest_sample
from .levels import TestLevels
from .outcomes import Outcomes
from .promise import promise
from .replicates import NUM_RESAMPLES, resample_indices
from .spare import spare_losses

__all__ = [
    "NUM_RESAMPLES",
    "DropBound",
    "Outcomes",
    "TestLevels",
    "bound_drop",
    "check_outcomes",
    "promise",
    "resample_indices",
    "smallest_sample",
    "spare_losses",
]
