"""Tensors go from the files of a checkpoint to those of a smaller one, as bytes; no tensor is ever held as a whole."""

from __future__ import annotations

import errno
import json
import math
import os
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Any

from hf_mpruner.errors import CheckpointError

from .checkpoint import Checkpoint, changed
from .format import Header, Placed, dtypes, make_header, num_bytes, state_of
from .recipe import Piece, StoredTensor
from .room import check_room

_CHUNK = 64 * 2**20  # bytes that the kernel copies in one go; a key press is heard between two
_PAGE = 4096
_COPIED = 64 * _PAGE  # bytes that are read at a time where the kernel does not copy
_BUFFER = 4 * 2**20  # bytes that are read at a time where columns are picked
_LONG = 64 * 2**10  # from so many bytes on, each stretch that stays is copied by itself
# What the kernel says where it cannot copy between two files itself (another file system, an old one, no such call).
_CANNOT = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM, errno.ETXTBSY)


@dataclass(frozen=True)
class _Move:
    """Bytes that lie one after another in a file of the checkpoint and in a new one."""

    start: int
    target: FileIO
    at: int
    length: int


def write_tensors_of(
    checkpoint: Checkpoint,
    recipe: Mapping[str, Piece],
    folder: Path,
    max_shard_size: int | str = "50GB",
    *,
    num_parameters: int | None = None,
    storages: Mapping[str, Hashable] | None = None,
    progress: bool | None = None,
) -> list[Path]:
    """Write the files of weights that `save_pretrained` would write for these tensors, byte for byte.

    Files are read in the order of their bytes, and only those that hold a kept tensor; from the Hub, only those are
    downloaded. The memory needed is a small buffer, whatever the size of the tensors.

    Args:
        checkpoint (`Checkpoint`): of `open_checkpoint`.
        recipe (`Mapping[str, Piece]`): what each tensor of the new checkpoint is made from, in the order of the model's
            state dict, which decides how they are split into files.
        folder (`Path`): exists, and is the caller's to remove if this fails.
        max_shard_size (`int` or `str`): bytes of a file at most, e.g. `"5GB"`; a larger tensor gets a file of its own.
        num_parameters (`int`, *optional*): of the new model, for the index.
        storages (`Mapping[str, Hashable]`, *optional*): for tensors that are views of one in the model, as the experts
            that a checkpoint stores apart and the model as one tensor: anything that is equal for those of one storage.
            `save_pretrained` puts them in one file, and counts them as one against `max_shard_size`.
        progress (`bool`, *optional*): whether to draw a bar; by default if stderr is a terminal.

    Returns:
        `list[Path]`: `model.safetensors`, or several files and `model.safetensors.index.json`.

    Raises:
        CheckpointError: for a tensor or entries that the checkpoint does not have, too small a disk (before anything is
            written), a file that cannot be read or that changes meanwhile, and what the Hub refuses.
        ValueError: for a `max_shard_size` that is no size.
    """
    targets = {name: _shape_target(checkpoint, name, piece) for name, piece in recipe.items()}
    if not targets:
        raise CheckpointError(f"Nothing of '{checkpoint.source}' would stay. Keep at least one tensor.")
    split = _split(targets, max_shard_size, storages or {})
    headers = {
        name: make_header([targets[tensor] for tensor in tensors], {"format": "pt"})
        for name, tensors in split.filename_to_tensors.items()
    }
    needed = sum(header.end for _, header in headers.values())
    check_room(needed, folder, sum(checkpoint.downloads(piece.source for piece in recipe.values()).values()))
    with ExitStack() as stack:
        placed: dict[str, tuple[FileIO, Placed]] = {}
        for name, (content, header) in headers.items():
            target = stack.enter_context((folder / name).open("xb", buffering=0))
            _write(target, memoryview(content))
            target.truncate(header.end)
            placed.update({tensor: (target, where) for tensor, where in header.placed.items()})
        bar = stack.enter_context(_bar(sum(where.length for _, where in placed.values()), progress))
        # What is copied goes to the disk while the next file is read, so that little is left to wait for at the end.
        flusher = stack.enter_context(ThreadPoolExecutor(1))
        flushes: list[Future[None]] = []
        for shard in dict.fromkeys(checkpoint.shard_of[piece.source] for piece in recipe.values()):
            file, header = checkpoint.shard(shard)
            here = {name: piece for name, piece in recipe.items() if checkpoint.shard_of[piece.source] == shard}
            _fill(file, header, here, placed, bar)
            flushes += [flusher.submit(os.fsync, number) for number in {placed[name][0].fileno() for name in here}]
        for flush in flushes:
            _finish(flush, folder)
    written = [folder / name for name in headers]
    if split.is_sharded:
        written.append(_write_index(folder, split, num_parameters))
    return written


def _finish(flush: Future[None], folder: Path) -> None:
    """Wait until bytes are on the disk, where writing can still fail."""
    try:
        flush.result()
    except OSError as error:
        raise CheckpointError(
            f"Writing into '{folder}' failed: {error}. Make room on the disk, or take another one, then try again."
        ) from error


def _shape_target(checkpoint: Checkpoint, name: str, piece: Piece) -> StoredTensor:
    """The new tensor: named anew, and shorter along an axis if only some entries stay."""
    if piece.source not in checkpoint.shard_of:
        raise CheckpointError(
            f"'{name}' is to be made from '{piece.source}', which '{checkpoint.source}' does not have."
        )
    source = checkpoint.shards[checkpoint.shard_of[piece.source]].placed[piece.source].tensor
    if piece.axis is None and piece.indices is None:
        return replace(source, name=name)
    axis, indices, shape = piece.axis, piece.indices, list(source.shape)
    if axis is None or indices is None or not 0 <= axis < len(shape):
        raise CheckpointError(
            f"'{name}' takes indices {indices} along axis {axis} of '{piece.source}' with shape {shape}."
        )
    if any(not 0 <= index < shape[axis] for index in indices):
        raise CheckpointError(
            f"'{name}' takes entries {list(indices)} of '{piece.source}', which has {shape[axis]} along axis {axis}."
        )
    shape[axis] = len(indices)
    return StoredTensor(name, source.dtype, tuple(shape))


def _split(targets: Mapping[str, StoredTensor], max_shard_size: int | str, storages: Mapping[str, Hashable]) -> Any:
    """Which file each tensor goes to, by the rule of `save_pretrained`, which goes by storages."""
    from huggingface_hub import split_state_dict_into_shards_factory

    sizes: Counter[Hashable] = Counter()
    for name, target in targets.items():
        sizes[storages.get(name, target)] += num_bytes(target)

    def storage_of(target: StoredTensor) -> Hashable:
        return storages.get(target.name, None if num_bytes(target) else "empty")  # empty ones all lie at address 0

    return split_state_dict_into_shards_factory(
        dict(targets),
        get_storage_size=lambda target: sizes[storages.get(target.name, target)],
        get_storage_id=storage_of,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )


def _write_index(folder: Path, split: Any, num_parameters: int | None) -> Path:
    total = {} if num_parameters is None else {"total_parameters": num_parameters}
    values = {"metadata": {**total, **split.metadata}, "weight_map": split.tensor_to_filename}
    file = folder / "model.safetensors.index.json"
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return file


def _bar(total: int, progress: bool | None) -> Any:
    from tqdm.auto import tqdm

    return tqdm(
        total=total,
        unit="B",
        unit_scale=True,
        desc="Copying weights",
        disable=None if progress is None else not progress,
    )


def _fill(
    file: Path, header: Header, recipe: Mapping[str, Piece], placed: Mapping[str, tuple[FileIO, Placed]], bar: Any
) -> None:
    """Copy everything that comes from one file, in the order in which it lies there."""
    moves: list[_Move] = []
    try:
        with file.open("rb", buffering=0) as source:
            for name, piece in recipe.items():
                (target, where), whole = placed[name], header.placed[piece.source]
                if not where.length:
                    continue
                if piece.axis is None or piece.indices is None:
                    moves.append(_Move(whole.start, target, where.start, where.length))
                    continue
                outer, inner = _around(whole.tensor, piece.axis)
                if inner >= _LONG:
                    moves.extend(_stretches(whole, piece.axis, piece.indices, target, where.start))
                else:
                    _pick(source, whole, outer, inner, piece.indices, target, where.start)
                    bar.update(where.length)
            for move in _merge(moves):
                _copy(source, move, bar)
        if state_of(file) != header.state:
            raise changed(file)
    except OSError as error:
        raise CheckpointError(
            f"Copying from '{file}' failed: {error}. Make the file readable and room on the disk, then try again."
        ) from error


def _around(tensor: StoredTensor, axis: int) -> tuple[int, int]:
    """How often the axis is repeated, and how many bytes each of its entries has every time.

    Raises:
        CheckpointError: if those are no whole bytes.
    """
    bits = math.prod(tensor.shape[axis + 1 :]) * dtypes()[tensor.dtype].bits
    if bits % 8:
        raise CheckpointError(
            f"Entries along axis {axis} of '{tensor.name}' ({tensor.dtype}, {list(tensor.shape)}) are no whole bytes. Load "
            "the model and cut it in memory."
        )
    return math.prod(tensor.shape[:axis]), bits // 8


def _stretches(whole: Placed, axis: int, indices: tuple[int, ...], target: FileIO, at: int) -> Iterator[_Move]:
    outer, inner = _around(whole.tensor, axis)
    for row in range(outer):
        begin = whole.start + row * whole.tensor.shape[axis] * inner
        for index in indices:
            yield _Move(begin + index * inner, target, at, inner)
            at += inner


def _merge(moves: list[_Move]) -> Iterator[_Move]:
    """Moves in the order of the source; neighbours in both files become one."""
    last: _Move | None = None
    for move in sorted(moves, key=lambda move: move.start):
        if last and (last.target, last.start + last.length, last.at + last.length) == (
            move.target,
            move.start,
            move.at,
        ):
            last = replace(last, length=last.length + move.length)
            continue
        if last:
            yield last
        last = move
    if last:
        yield last


def _copy(source: FileIO, move: _Move, bar: Any) -> None:
    """Let the kernel copy where pages of one file become pages of the other; else, or where it cannot, use a buffer.

    Where the two do not lie alike in their pages, the kernel moves every page in two parts, which takes longer
    than to read and write; the buffer is small enough for the processor's cache.
    """
    start, at, left = move.start, move.at, move.length
    in_kernel = hasattr(os, "copy_file_range") and (start - at) % _PAGE == 0
    while left and in_kernel:
        try:
            count = os.copy_file_range(source.fileno(), move.target.fileno(), min(left, _CHUNK), start, at)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            count = 0
        in_kernel = count > 0  # some file systems copy nothing and say so; a file cut short shows below
        start, at, left = start + count, at + count, left - count
        bar.update(count)
    source.seek(start)
    move.target.seek(at)
    buffer = memoryview(bytearray(min(left, _COPIED)))
    while left:
        part = buffer[: min(left, _COPIED - at % _PAGE)]  # all writes but the first begin with a page
        _read(source, part)
        _write(move.target, part)
        at, left = at + len(part), left - len(part)
        bar.update(len(part))


def _pick(
    source: FileIO, whole: Placed, outer: int, inner: int, indices: tuple[int, ...], target: FileIO, at: int
) -> None:
    """Some entries of an axis whose entries are short: windows of rows are read, and what stays is written."""
    import numpy as np

    row = whole.length // outer
    rows = max(1, _BUFFER // row)
    chosen = np.asarray(indices)
    target.seek(at)
    for first in range(0, outer, rows):
        count = min(rows, outer - first)
        buffer = bytearray(count * row)
        source.seek(whole.start + first * row)
        _read(source, memoryview(buffer))
        window = np.frombuffer(buffer, dtype=np.uint8).reshape(count, row // inner, inner)
        _write(target, memoryview(window[:, chosen].tobytes()))


def _read(source: FileIO, into: memoryview) -> None:
    done = 0
    while done < len(into):
        count = source.readinto(into[done:])
        if not count:
            raise changed(Path(str(source.name)))  # it had these bytes when its header was read
        done += count


def _write(target: FileIO, content: memoryview) -> None:
    done = 0
    while done < len(content):
        done += target.write(content[done:]) or 0
