"""`prune_in_cycles`: a training with a fresh Trainer for each round, for engines that cannot lose layers while they run."""

from hf_mpruner.cycles.run import prune_in_cycles

__all__ = ["prune_in_cycles"]
