"""A checkpoint on disk is cut tensor by tensor, without a model's weights."""

from .checkpoint import Checkpoint, open_checkpoint
from .cut import SlicedCheckpoint, Slicing, slice_checkpoint
from .recipe import Piece, StoredTensor
from .room import check_apart
from .trace import NotByNamesError
from .write import write_tensors_of

__all__ = [
    "Checkpoint",
    "NotByNamesError",
    "Piece",
    "SlicedCheckpoint",
    "Slicing",
    "StoredTensor",
    "check_apart",
    "open_checkpoint",
    "slice_checkpoint",
    "write_tensors_of",
]
