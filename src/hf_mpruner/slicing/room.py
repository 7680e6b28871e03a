"""Is there room for what will be written, and is the place for it no part of what is read?"""

from __future__ import annotations

import shutil
from pathlib import Path

from hf_mpruner.errors import CheckpointError


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


def check_room(needed: int, folder: Path | None, downloads: int = 0) -> None:
    """Refuse to begin what the disk cannot hold.

    Args:
        needed (`int`): bytes that will be written to `folder`.
        folder (`Path`, *optional*): where to; need not exist.
        downloads (`int`): bytes that will be downloaded from the Hub to the cache.

    Raises:
        CheckpointError: with the bytes that are needed and free.
    """
    wanted: dict[int, tuple[Path, int]] = {}
    for place, size in ((folder, needed), (_cache() if downloads else None, downloads)):
        if place is not None:
            disk = _existing(place).stat().st_dev
            first, before = wanted.get(disk, (_existing(place), 0))
            wanted[disk] = first, before + size
    for where, size in wanted.values():
        free = shutil.disk_usage(where).free
        if size > free:
            also = f" ({downloads} of them to download from the Hub)" if downloads and size >= downloads else ""
            raise CheckpointError(
                f"{size} bytes are needed on the disk of '{where}'{also}, {free} are free. Make room, or choose a folder on "
                "another disk; HF_HOME moves the Hub's cache. Nothing was written."
            )


def _cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _existing(path: Path) -> Path:
    path = path.resolve()
    return path if path.exists() else _existing(path.parent)
