"""Words that fields of `PruningConfig` take."""

from typing import Literal

SnapshotPlace = Literal["cpu", "device", "disk"]
Verification = Literal["structure", "full"]
RecoveryKind = Literal["full", "lora"]
LearningRatePolicy = Literal["run", "restart"]
TeacherDtype = Literal["float32", "bfloat16", "float16"]
