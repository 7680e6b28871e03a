"""Is there room for what will be written, and is the place for it no part of what is read?"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from hf_mpruner.errors import CheckpointError

from .checkpoint import Checkpoint


def check_apart(source: str | Path, output_dir: str | Path) -> None:
    """Refuse a folder to write to that is, holds, or lies in the checkpoint that is read.

    Args:
        source (`str` or `Path`): the checkpoint's folder, or a name on the Hub, which is no folder.
        output_dir (`str` or `Path`): where the smaller checkpoint is to go; need not exist.

    Raises:
        CheckpointError: names both.
    """
    if not Path(source).is_dir():
        return
    read, written = Path(source).resolve(), Path(output_dir).resolve()
    if read == written:
        raise CheckpointError(
            f"'{output_dir}' is the checkpoint itself, which is never written to. Choose a new folder."
        )
    if written.is_relative_to(read):
        raise CheckpointError(f"'{output_dir}' lies in the checkpoint '{source}'. Choose a folder outside of it.")
    if read.is_relative_to(written):
        raise CheckpointError(
            f"The checkpoint '{source}' lies in '{output_dir}', which would be replaced as a whole. Choose a new folder."
        )


def check_room(checkpoint: Checkpoint, names: Iterable[str], needed: int, folder: Path) -> None:
    """Refuse to begin what the disk cannot hold.

    Args:
        checkpoint (`Checkpoint`): what is read.
        names (`Iterable[str]`): tensors that are needed of it; files of the Hub that hold them go to the cache.
        needed (`int`): bytes that will be written to `folder`.
        folder (`Path`): where to; need not exist.

    Raises:
        CheckpointError: with the bytes that are needed and free.
    """
    downloads = sum(checkpoint.downloads(names).values())
    place = _existing(folder)
    wanted = {place: needed}
    if downloads:
        from huggingface_hub.constants import HF_HUB_CACHE

        cache = _existing(Path(HF_HUB_CACHE))
        if cache.stat().st_dev == place.stat().st_dev:
            wanted[place] += downloads
        else:
            wanted[cache] = downloads
    for where, size in wanted.items():
        free = shutil.disk_usage(where).free
        if size > free:
            also = f" ({downloads} of them to download from the Hub)" if downloads and size > needed else ""
            raise CheckpointError(
                f"{size} bytes are needed on the disk of '{where}'{also}, {free} are free. Make room, or choose a folder on "
                "another disk; HF_HOME moves the Hub's cache. Nothing was written."
            )


def _existing(path: Path) -> Path:
    path = path.resolve()
    return path if path.exists() else _existing(path.parent)
