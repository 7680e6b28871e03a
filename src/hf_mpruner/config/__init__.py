"""`PruningConfig`: what the user asked for. The same names in Python, on the command line and in JSON."""

from .config import (
    CONFIG_NAME,
    LearningRatePolicy,
    PruningConfig,
    RecoveryKind,
    SnapshotPlace,
    TeacherDtype,
    Verification,
)
from .layers import resolve_protected, resolve_targets

__all__ = [
    "CONFIG_NAME",
    "LearningRatePolicy",
    "PruningConfig",
    "RecoveryKind",
    "SnapshotPlace",
    "TeacherDtype",
    "Verification",
    "resolve_protected",
    "resolve_targets",
]
