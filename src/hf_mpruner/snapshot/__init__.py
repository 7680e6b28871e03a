"""What is needed to go back: survivors cloned, deleted blocks by reference."""

from hf_mpruner.snapshot.snapshot import SavedTraining, Snapshot, untouched_parameters
from hf_mpruner.snapshot.store import local_tensor

__all__ = ["SavedTraining", "Snapshot", "local_tensor", "untouched_parameters"]
