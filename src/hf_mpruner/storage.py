"""Files that are never half-written: a reader sees the old content or the new one, nothing between."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import MPrunerError


def write_text(file: Path, text: str) -> Path:
    """Write a text file through a temporary name, `fsync` and a rename in the same folder.

    Args:
        file (`Path`): where the text goes; its folder must exist.
        text (`str`): the whole content, written as UTF-8.

    Returns:
        `Path`: the same path.
    """
    return write_bytes(file, text.encode("utf-8"))


def write_bytes(file: Path, content: bytes) -> Path:
    """Write a file the way `write_text` writes."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    return file


def write_json(file: Path, values: object) -> Path:
    """Write plain values as JSON, the way `write_text` writes.

    Raises:
        ValueError: if a value is NaN or infinite, which JSON cannot hold.
    """
    return write_text(file, json.dumps(values, indent=2, allow_nan=False) + "\n")


def write_tensors(file: Path, values: dict[str, Any]) -> Path:
    """Write tensors and plain values in torch's format, the way `write_text` writes.

    Raises:
        MPrunerError: if that fails, e.g. on a full disk; says how much is free, and nothing is left behind.
    """
    import torch

    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            torch.save(values, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except (OSError, RuntimeError) as error:
        raise cannot_write(file, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return file


def cannot_write(file: Path, error: Exception) -> MPrunerError:
    """What to raise when a running training's file could not be written; says how much is free."""
    return MPrunerError(
        f"'{file}' cannot be written ({shutil.disk_usage(file.parent).free} bytes free): {error}. Make room or choose "
        "another output_dir. The model and the optimizer are as they were."
    )


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A sibling to write into, which takes the folder's place once everything went well and is on the disk.

    Args:
        folder (`Path`): whole as it was, or whole as it will be; never between. May not exist yet.

    Yields:
        `Path`: an empty folder; it is gone after an error.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    draft.mkdir()
    try:
        yield draft
        for file in draft.rglob("*"):
            if file.is_file():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
        if folder.is_dir():
            folder.rename(old)
        try:
            draft.rename(folder)
        except OSError:
            if old.is_dir():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if folder.is_dir():
            shutil.rmtree(old, ignore_errors=True)
