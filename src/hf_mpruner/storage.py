"""Files that are never half-written: a reader sees the old content or the new one, nothing between."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from .errors import MPrunerError

# What makes a folder somebody's model.
_MODEL_FILES = (
    "config.json",
    "adapter_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
)
_RUN_FILES = ("checkpoint-*",)


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

    What a killed process of this machine left of the same folder is cleared away first: its draft is removed, and the
    folder that it had moved aside comes back.

    Args:
        folder (`Path`): whole as it was, or whole as it will be; never between. May not exist yet.

    Yields:
        `Path`: an empty folder; it is gone after an error.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _clear_remains(folder)
    draft, old = (folder.with_name(f".{folder.name}.{_machine()}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    draft.mkdir()
    _OWN.add(draft)
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
        _OWN.discard(draft)


def runs_beside(pid: int) -> bool:
    """Whether another process of this number is running on this machine; where that cannot be asked, yes.

    Args:
        pid (`int`): e.g. from the name of a file that a process leaves if it is killed.
    """
    if pid == os.getpid():
        return False
    if os.name != "posix":  # elsewhere the question would end the process
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is somebody else's
        return True
    return True


_OWN: set[Path] = set()  # drafts that this process is writing


@cache
def _machine() -> str:
    """Tells machines that share a disk apart; no name, since folders travel."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _clear_remains(folder: Path) -> None:
    """Drafts of processes that are gone, and their numbers anew in use by this one; those of other machines may live."""
    name = re.compile(rf"\.{re.escape(folder.name)}\.{_machine()}\.(\d+)\.(tmp|old)")
    for entry in list(folder.parent.iterdir()):
        match = name.fullmatch(entry.name)
        if match is None or entry in _OWN or entry.with_suffix(".tmp") in _OWN:
            continue
        if runs_beside(int(match[1])):
            continue
        if match[2] == "old" and not folder.exists():
            with suppress(OSError):  # another process was faster
                entry.rename(folder)
        else:
            shutil.rmtree(entry, ignore_errors=True)


def check_output_dir(
    output_dir: str | os.PathLike[str],
    *,
    source: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Refuse a folder that must not be written, before any work is done.

    Args:
        output_dir (path): where a pruned model is to be written.
        source (path or `str`, *optional*): the model that is read; its folder is never replaced.
        overwrite (`bool`): whether another model in that folder may be replaced.

    Returns:
        `Path`: the folder, absolute.

    Raises:
        ValueError: if it is the source's folder, or no folder that can be replaced.
        FileExistsError: if it holds a model and `overwrite` is not set, or files that are no model.
        PermissionError: if nothing can be written there.
    """
    folder = Path(output_dir).expanduser().resolve()
    if source is not None and Path(source).is_dir() and Path(source).resolve().is_relative_to(folder):
        raise ValueError(
            f"output_dir='{output_dir}' is the folder of the model that is read, '{source}'. Pass another one, e.g. "
            f"--output_dir {folder.with_name(folder.name + '-pruned')}."
        )
    if folder.is_mount():
        raise ValueError(
            f"output_dir='{output_dir}' is a mount point, which cannot be replaced in one step. Pass a folder in it: "
            f"--output_dir {folder / 'pruned'}."
        )
    ancestor = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not ancestor.is_dir():
        raise ValueError(f"output_dir='{output_dir}': '{ancestor}' is a file. Pass a folder.")
    if not os.access(folder.parent if folder.exists() else ancestor, os.W_OK):
        raise PermissionError(f"output_dir='{output_dir}': nothing can be written there. Pass another folder.")
    found = find_model_files(folder)
    if found and not overwrite:
        raise FileExistsError(
            f"output_dir='{output_dir}' holds another model ({_listed(found)}). Pass another folder with --output_dir, "
            "or --overwrite (overwrite=True) to replace all of it but the words of a person in README.md."
        )
    if folder.is_dir() and not found and any(folder.iterdir()):
        raise FileExistsError(
            f"output_dir='{output_dir}' is not empty ({_listed(sorted(entry.name for entry in folder.iterdir()))}) "
            f"and holds no model, so it is not replaced. Pass a new folder: --output_dir {folder / 'pruned'}."
        )
    return folder


def find_model_files(folder: Path) -> list[str]:
    """Names of the files in a folder that make it somebody's model or training run."""
    return sorted({file.name for pattern in (*_MODEL_FILES, *_RUN_FILES) for file in folder.glob(pattern)})


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
