"""A checkpoint on its way to the Hub: without what is secret, and sealed again, so that a download of it resumes."""

from __future__ import annotations

import os
import time
import zipfile
from pathlib import Path

from hf_mpruner.checkpoint import reseal
from hf_mpruner.hub import NEVER_SENT, scrub_json
from hf_mpruner.record import RECORD_NAME

from .parcel import Parcel

_PATIENCE_SECONDS = 10.0


def add_checkpoint(parcel: Parcel, folder: Path, place: str) -> None:
    """Take a checkpoint along.

    Args:
        parcel (`Parcel`): where to.
        folder (`Path`): of the checkpoint, which is written already but for the random states of other processes.
        place (`str`): folder in the repository, e.g. `"last-checkpoint"`.

    Raises:
        PushError: if a file that is needed tells a secret.
        OSError: if a file cannot be read or copied.
    """
    _wait_for_random_states(folder)
    changed: dict[str, bytes] = {}
    gone: list[str] = []
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        name = file.relative_to(folder).as_posix()
        if name == RECORD_NAME:
            continue
        if file.name in NEVER_SENT or name.endswith(".tmp"):
            gone.append(name)
            continue
        content = parcel.add(f"{place}/{name}", file, lasting=file)
        if f"{place}/{name}" not in parcel.files:
            gone.append(name)
        elif content is not None:
            changed[name] = content
    if (folder / RECORD_NAME).is_file():
        record = scrub_json((folder / RECORD_NAME).read_bytes(), parcel.secrets)
        parcel.put(f"{place}/{RECORD_NAME}", reseal(record, changed=changed, gone=gone))


def _wait_for_random_states(folder: Path) -> None:
    """Other processes of this machine write theirs at this moment, and the Trainer does not wait for them."""
    count = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if count < 2 or not any(folder.glob("rng_state_*.pth")):
        return
    files = [folder / f"rng_state_{rank}.pth" for rank in range(count)]
    limit = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < limit and not all(file.is_file() and zipfile.is_zipfile(file) for file in files):
        time.sleep(0.05)
