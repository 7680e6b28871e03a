"""A pruned model on the Hub: a folder that is checked, pushed whole, loaded back and compared."""

from .destination import check_destination
from .folder import ModelFolder, read_folder
from .preview import PushPreview, preview_push
from .push import Target, push_command, push_pruned_model

__all__ = [
    "ModelFolder",
    "PushPreview",
    "Target",
    "check_destination",
    "preview_push",
    "push_command",
    "push_pruned_model",
    "read_folder",
]
