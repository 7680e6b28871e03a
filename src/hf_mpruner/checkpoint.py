"""What a pruning run adds to the Trainer's checkpoints, and which of them are whole.

The Trainer writes a checkpoint file by file into its final folder, so a killed process leaves half of one. The record
goes in after the other files, under a temporary name that is renamed, and lists their sizes and checksums: a checkpoint
of a pruning run without a record that fits is not whole and is never read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import MPrunerError
from .record import RECORD_NAME, PruningRecord
from .storage import write_json

logger = logging.getLogger(__name__)

ROLLBACK_NAME = "pruning_rollback.pt"
STATE_NAME = "trainer_state.json"
# Name of the callback's entry in `trainer_state.json`: what tells a checkpoint of a pruning run from a plain one.
CALLBACK_NAME = "LayerPruningCallback"
_FOLDER = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A folder that the Trainer saved, as far as it can be trusted.

    Args:
        folder (`Path`): e.g. `out/checkpoint-500`.
        record (`PruningRecord`, *optional*): of the pruning run; `None` for a checkpoint of a plain training.
        fault (`str`): why it must not be read; empty if it is whole.
    """

    folder: Path
    record: PruningRecord | None
    fault: str = ""

    @property
    def step(self) -> int:
        """The training step, from the folder's name; -1 for any other folder."""
        match = _FOLDER.fullmatch(self.folder.name)
        return int(match[1]) if match else -1


def write_record(folder: Path, record: PruningRecord, files: Iterable[Path]) -> Path:
    """Seal a checkpoint: write the record with the sizes and checksums of the other files.

    Args:
        folder (`Path`): the checkpoint's.
        record (`PruningRecord`): the run so far.
        files (`Iterable[Path]`): files in it that are complete; they are flushed to the disk first.

    Returns:
        `Path`: of `pruning_record.json`.
    """
    values = {**record.to_dict(), "files": checksums(folder, files)}
    return write_json(folder / RECORD_NAME, {**values, "sha256": _digest(values)})


def reseal(record: bytes, *, changed: Mapping[str, bytes], gone: Iterable[str]) -> bytes:
    """The record of a checkpoint that is sent elsewhere with some of its files other than they are here.

    Args:
        record (`bytes`): content of its `pruning_record.json`.
        changed (`Mapping[str, bytes]`): contents of the files that are others, by their path in it.
        gone: paths of the files that are left out.

    Returns:
        `bytes`: the content to send; with it the copy is whole.
    """
    values = json.loads(record)
    files = {name: sums for name, sums in (values.get("files") or {}).items() if name not in set(gone)}
    for name in files.keys() & changed.keys():
        files[name] = {"size": len(changed[name]), "sha256": hashlib.sha256(changed[name]).hexdigest()}
    values = {key: value for key, value in values.items() if key != "sha256"} | {"files": files}
    return (json.dumps({**values, "sha256": _digest(values)}, indent=2, allow_nan=False) + "\n").encode()


def checksums(folder: Path, files: Iterable[Path]) -> dict[str, Any]:
    """Size and SHA-256 of some files in a folder, by their path in it; they are flushed to the disk first."""
    return {file.relative_to(folder).as_posix(): checksum(file, flush=True) for file in sorted(files)}


def find_fault(folder: Path, sums: Mapping[str, Any]) -> str:
    """The first file that is not as `checksums` found it, in words; empty if all are."""
    faults = ((name, _compare(folder / name, expected)) for name, expected in sums.items())
    return next((f"{name} {fault}" for name, fault in faults if fault), "")


def inspect_checkpoint(folder: str | os.PathLike[str]) -> Checkpoint:
    """Look whether a checkpoint is whole, reading every file that its record lists.

    Args:
        folder (path): a `checkpoint-*` folder, or any other that the Trainer saved into.

    Returns:
        `Checkpoint`: with the record, or with a fault in words.
    """
    folder = Path(folder)
    state = _read_json(folder / STATE_NAME)
    if not isinstance(state, dict):
        return Checkpoint(folder, None, f"{STATE_NAME} is missing or not complete")
    if not (folder / RECORD_NAME).is_file():
        ours = CALLBACK_NAME in (state.get("stateful_callbacks") or {})
        return Checkpoint(folder, None, f"it has no {RECORD_NAME}, so it was not finished" if ours else "")
    values = _read_json(folder / RECORD_NAME)
    if not isinstance(values, dict):
        return Checkpoint(folder, None, f"{RECORD_NAME} is no JSON object")
    told = values.pop("sha256", None)
    if told is not None and told != _digest(values):
        return Checkpoint(folder, None, f"{RECORD_NAME} was changed or damaged: its checksum does not fit")
    try:
        record = PruningRecord.from_dict(values)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        return Checkpoint(folder, None, f"{RECORD_NAME} is no record: {error}")
    return Checkpoint(folder, record, find_fault(folder, values.get("files") or {}))


def last_whole_checkpoint(output_dir: str | os.PathLike[str]) -> Checkpoint | None:
    """The newest checkpoint of a folder that is whole; what is passed over is named in a warning.

    Returns:
        `Checkpoint`, or `None` if there is none.
    """
    folder = Path(output_dir)
    found = [entry for entry in folder.iterdir() if _FOLDER.fullmatch(entry.name)] if folder.is_dir() else []
    for entry in sorted((e for e in found if e.is_dir()), key=lambda e: int(e.name.split("-")[1]), reverse=True):
        checkpoint = inspect_checkpoint(entry)
        if not checkpoint.fault:
            return checkpoint
        logger.warning("'%s' is passed over, it cannot be resumed from: %s.", entry, checkpoint.fault)
    return None


def read_whole_checkpoint(folder: str | os.PathLike[str]) -> Checkpoint:
    """A checkpoint that was named.

    Raises:
        MPrunerError: if it is not whole.
    """
    checkpoint = inspect_checkpoint(folder)
    if checkpoint.fault:
        raise MPrunerError(
            f"'{folder}' cannot be resumed from: {checkpoint.fault}. Pass an older checkpoint, or "
            "resume_from_checkpoint=True, which takes the newest one that is whole. Nothing was changed."
        )
    return checkpoint


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def checksum(file: Path, *, flush: bool = False) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file; with `flush` it is on the disk afterwards."""
    with file.open("rb") as stream:
        if flush:
            os.fsync(stream.fileno())
        return {"size": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _compare(file: Path, expected: dict[str, Any]) -> str:
    if not file.is_file():
        return "is missing"
    size = file.stat().st_size
    if size != expected["size"]:
        return f"has {size} bytes, but {expected['size']} were written"
    return "" if checksum(file) == expected else "was changed or damaged: its checksum does not fit"
