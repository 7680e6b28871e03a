"""Take parameters out of a live optimizer and its scheduler, lend it to others, and put them back exactly."""

from hf_mpruner.optimizer.checks import check_optimizer, check_optimizer_matches, find_missing_parameters
from hf_mpruner.optimizer.dropped import cannot_insert, insert_dropped_groups
from hf_mpruner.optimizer.edit import OptimizerEdit
from hf_mpruner.optimizer.loan import OptimizerLoan
from hf_mpruner.optimizer.wrappers import find_schedulers, unwrap_optimizer

__all__ = [
    "OptimizerEdit",
    "OptimizerLoan",
    "cannot_insert",
    "check_optimizer",
    "check_optimizer_matches",
    "find_missing_parameters",
    "find_schedulers",
    "insert_dropped_groups",
    "unwrap_optimizer",
]
