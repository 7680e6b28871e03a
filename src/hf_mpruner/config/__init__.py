"""`PruningConfig`: what the user asked for. The same names in Python, on the command line and in JSON."""

from .config import CONFIG_NAME, PruningConfig
from .kinds import LearningRatePolicy, RecoveryKind, SnapshotPlace, TeacherDtype, Verification
from .layers import resolve_protected, resolve_targets
from .limits import Limit

__all__ = [
    "CONFIG_NAME",
    "LearningRatePolicy",
    "Limit",
    "PruningConfig",
    "RecoveryKind",
    "SnapshotPlace",
    "TeacherDtype",
    "Verification",
    "resolve_protected",
    "resolve_targets",
]
