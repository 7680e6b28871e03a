"""A checkpoint on disk is cut tensor by tensor, without a model's weights."""

from .checkpoint import Checkpoint, open_checkpoint
from .recipe import Piece, StoredTensor
from .room import check_apart
from .write import write_tensors_of

__all__ = ["Checkpoint", "Piece", "StoredTensor", "check_apart", "open_checkpoint", "write_tensors_of"]
