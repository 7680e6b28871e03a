"""Files that are never half-written: a reader sees the old content or the new one, nothing between."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from .errors import MPrunerError


def write_text(file: Path, text: str) -> Path:
    """Write a text file through a temporary name, `fsync` and a rename in the same folder.

    Args:
        file (`Path`): where the text goes; its folder must exist.
        text (`str`): the whole content, written as UTF-8.

    Returns:
        `Path`: the same path.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
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
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            torch.save(values, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except (OSError, RuntimeError) as error:
        raise MPrunerError(
            f"'{file}' cannot be written ({shutil.disk_usage(file.parent).free} bytes free): {error}. Make room or choose "
            "another output_dir. The model and the optimizer are as they were."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return file
