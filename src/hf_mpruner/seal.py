"""What goes into a checkpoint while the Trainer writes it: the record, and the way back from a pending cut."""

from __future__ import annotations

import logging
import os
import shutil
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from .checkpoint import ROLLBACK_NAME, STATE_NAME, write_record
from .pruned_base import FOLDER
from .record import RECORD_NAME
from .recovery.teacher import TEACHER_NAME
from .rollback import write_rollback
from .storage import cannot_write

if TYPE_CHECKING:
    from .cut import PendingCut
    from .engine import PruningEngine

logger = logging.getLogger(__name__)

# Lies in a checkpoint while `enable_jit_checkpoint` (SIGTERM) writes it, outside of the Trainer's own saving.
_UNFINISHED_NAME = "checkpoint-is-incomplete.txt"
_LATER = (RECORD_NAME, STATE_NAME, _UNFINISHED_NAME)


class Sealer:
    """Adds a pruning run's files to checkpoints.

    Attributes:
        before (`Mapping[str, Tensor]`, *optional*): names of the model's tensors before the pending cut.
    """

    def __init__(self) -> None:
        """Know of no cut yet."""
        self.before: Mapping[str, Tensor] | None = None
        self._written: Path | None = None
        self._cut: weakref.ref[PendingCut] | None = None  # that the file is of

    def forget(self) -> None:
        """The pending cut was decided."""
        self.before = self._written = None

    def seal(self, folder: Path, engine: PruningEngine) -> None:
        """Write the rollback file of a pending cut, then the record with the checksums of all files.

        Args:
            folder (`Path`): a checkpoint with weights, optimizer and random states written; if it is none yet, nothing
                is done.
            engine (`PruningEngine`): as it is now.

        Raises:
            MPrunerError: if a file cannot be written; model and optimizer are as they were, and the checkpoint is not
                whole.
        """
        if not folder.is_dir():
            return
        (folder / RECORD_NAME).unlink(missing_ok=True)  # of a run that was killed and has come here again
        (folder / ROLLBACK_NAME).unlink(missing_ok=True)
        if engine.cut is not None and engine.cut.snapshot is not None and engine.runtime.name != "FSDP2":
            self._put_rollback(folder / ROLLBACK_NAME, engine)
        # whoever resumes brings the base of his adapters with him, and a base may be a hundred times their size
        files = [
            file for file in folder.rglob("*") if FOLDER not in file.relative_to(folder).parts and _is_complete(file)
        ]
        try:
            write_record(folder, engine.record, files)
        except OSError as error:
            raise cannot_write(folder / RECORD_NAME, error) from error

    def _put_rollback(self, file: Path, engine: PruningEngine) -> None:
        # it says the same in every checkpoint until the verdict, so it is written once and linked to
        known = self._cut is not None and self._cut() is engine.cut
        if known and self._written is not None and self._written.is_file():
            try:
                os.link(self._written, file)
                self._written = file  # the Trainer deletes older checkpoints first
                return
            except OSError as error:
                logger.debug("No link to '%s' could be made, the file is written again: %s", self._written, error)
        if engine.cut is not None and self.before is not None:
            write_rollback(file, self.before, engine.cut)
            self._written, self._cut = file, weakref.ref(engine.cut)


def sweep(output_dir: Path) -> None:
    """Delete snapshots, half-written files and folders that a killed run of ours has left behind."""
    patterns = ("_mpruner_rollback_*.pt", "_mpruner_rollback_*.tmp", ".pruning_*.tmp", "checkpoint-*/.pruning_*.tmp")
    for file in (file for pattern in patterns for file in output_dir.glob(pattern)):
        logger.info("'%s' was left behind by a killed run and is deleted.", file)
        file.unlink(missing_ok=True)
    drafts = (f".{FOLDER}.*", f"checkpoint-*/.{FOLDER}.*", f".{TEACHER_NAME}.*")
    for folder in (folder for pattern in drafts for folder in output_dir.glob(pattern)):
        logger.info("'%s' was left behind by a killed run and is deleted.", folder)
        shutil.rmtree(folder, ignore_errors=True)


def _is_complete(file: Path) -> bool:
    # other processes write their random states at this moment
    foreign = file.name.startswith("rng_state_") and file.name != "rng_state_0.pth"
    return file.is_file() and file.name not in _LATER and not foreign and not file.name.endswith(".tmp")
