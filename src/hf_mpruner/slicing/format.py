"""The safetensors format: a header that says where each tensor's bytes lie, read with suspicion, written as the library writes.

A file is eight bytes (little-endian length of the header), the header (JSON, filled up with spaces to a multiple of
eight), and the tensors' bytes without a gap. https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from hf_mpruner.errors import CheckpointError

from .recipe import StoredTensor

_LENGTH_BYTES = 8
# The library's own limit: a longer header would be an attack on the reader's memory, or a broken length.
MAX_HEADER_BYTES = 100_000_000
_METADATA = "__metadata__"
# What torch can hold, by torch's names. Which of them the format has, in which order, the installed library says.
_TORCH_DTYPES = [
    "bool",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "complex64",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "float4_e2m1fn_x2",
]


@dataclass(frozen=True)
class Dtype:
    """A dtype of the format.

    Args:
        name (`str`): as the format writes it, e.g. `"BF16"`.
        bits (`int`): of one number.
        rank (`int`): tensors of a lower one come first in a file.
        torch_name (`str`): e.g. `"bfloat16"`.
    """

    name: str
    bits: int
    rank: int
    torch_name: str


@dataclass(frozen=True)
class Placed:
    """A tensor and where its bytes lie.

    Args:
        tensor (`StoredTensor`): name, dtype and shape.
        start (`int`): position in the file of its first byte.
        length (`int`): how many bytes it has.
    """

    tensor: StoredTensor
    start: int
    length: int


@dataclass(frozen=True)
class Header:
    """What a file says about its tensors.

    Args:
        placed (`dict[str, Placed]`): by name, in the order of their bytes.
        metadata (`dict[str, str]`): free text of whoever wrote the file.
        end (`int`): size that the file must have.
        state (`tuple`, *optional*): what tells whether the file was written to since, for one on this machine.
    """

    placed: dict[str, Placed]
    metadata: dict[str, str]
    end: int
    state: tuple[int, int, int] | None = None


@cache
def dtypes() -> dict[str, Dtype]:
    """The format's dtypes that torch can hold, by the format's names.

    Names, sizes and order are read off files that the installed safetensors writes, so that they are its own.
    """
    import torch
    from safetensors.torch import save

    found: dict[str, tuple[torch.dtype, int]] = {}
    for torch_name in _TORCH_DTYPES:
        dtype = getattr(torch, torch_name, None)
        if dtype is None:
            continue
        try:
            written = _split(save({"x": torch.empty(1, dtype=dtype)}))["x"]
        except (KeyError, ValueError, TypeError, NotImplementedError, RuntimeError):  # this one, it cannot write
            continue
        begin, end = written["data_offsets"]
        found[written["dtype"]] = dtype, 8 * (end - begin) // math.prod(written["shape"])
    order = list(_split(save({name: torch.empty(0, dtype=dtype) for name, (dtype, _) in found.items()})))
    return {
        name: Dtype(name, bits, order.index(name), str(dtype).removeprefix("torch."))
        for name, (dtype, bits) in found.items()
    }


def _split(content: bytes) -> dict[str, Any]:
    length = int.from_bytes(content[:_LENGTH_BYTES], "little")
    return dict(json.loads(content[_LENGTH_BYTES : _LENGTH_BYTES + length]))


def num_bytes(tensor: StoredTensor) -> int:
    """Bytes of a tensor's values.

    Raises:
        CheckpointError: for a dtype that the installed safetensors and torch do not both have.
    """
    known = dtypes().get(tensor.dtype)
    if known is None:
        raise CheckpointError(
            f"'{tensor.name}' has dtype {tensor.dtype!r}; safetensors and torch as installed here both have "
            f"{', '.join(dtypes())}. Update both, or convert the checkpoint to one of these."
        )
    bits = math.prod(tensor.shape) * known.bits
    if bits % 8:
        raise CheckpointError(
            f"'{tensor.name}' of {tensor.dtype} and shape {list(tensor.shape)} fills no whole bytes."
        )
    return bits // 8


def read_header(file: Path) -> Header:
    """Read and check a file's header; the tensors' bytes are left alone.

    Args:
        file (`Path`): a safetensors file.

    Returns:
        `Header`: with positions from the start of the file.

    Raises:
        CheckpointError: for a file that is cut short, or says something that cannot be; names the file.
    """
    try:
        state = state_of(file)
        with file.open("rb") as stream:

            def read(start: int, length: int) -> bytes:
                stream.seek(start)
                return stream.read(length)

            return replace(parse_header(file, state[1], read), state=state)
    except OSError as error:
        raise CheckpointError(f"'{file}' cannot be read: {error}. Make it readable, or copy it here again.") from error


def parse_header(file: Path | str, size: int | None, read: Callable[[int, int], bytes]) -> Header:
    """Check a header, wherever its file is.

    Args:
        file (`Path` or `str`): for the errors.
        size (`int`, *optional*): bytes of the file, where they are known.
        read: gives the bytes of the file from a position on, as many as it is asked for if there are so many.

    Raises:
        CheckpointError: see `read_header`.
    """
    first = read(0, _LENGTH_BYTES)
    if len(first) < _LENGTH_BYTES:
        _refuse(file, f"it has {len(first)} bytes, fewer than the {_LENGTH_BYTES} of its header's length")
    length = int.from_bytes(first, "little")
    if length > MAX_HEADER_BYTES:
        _refuse(file, f"its header would have {length} bytes, at most {MAX_HEADER_BYTES} are allowed")
    content = read(_LENGTH_BYTES, length)
    begin, got = _LENGTH_BYTES + length, _LENGTH_BYTES + len(content)
    if got < begin:
        _refuse(file, f"it is cut short in its header: {got} bytes, the header alone ends at {begin}")
    try:
        values = json.loads(content.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        _refuse(file, f"its header is no JSON ({error})")
    if not isinstance(values, dict):
        _refuse(file, f"its header is a {type(values).__name__}, a JSON object is needed")
    metadata = values.pop(_METADATA, None) or {}
    if not isinstance(metadata, dict):
        _refuse(file, f"its {_METADATA} is a {type(metadata).__name__}, a JSON object is needed")
    header = _place(file, values, begin, metadata)
    if size is not None and header.end != size:
        what = "is cut short" if header.end > size else "has bytes that no tensor owns"
        _refuse(file, f"it {what}: {size} bytes, its tensors end at {header.end}")
    return header


def state_of(file: Path) -> tuple[int, int, int]:
    """What changes when a file is replaced or written to."""
    found = file.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"'{next(name for name in names if names.count(name) > 1)}' stands there twice")
    return values


def _place(file: Path | str, infos: Mapping[str, Any], begin: int, metadata: Mapping[str, str]) -> Header:
    """Check what a header says of its tensors: dtypes, shapes, and offsets without gap or overlap."""
    rows = []
    for name, info in infos.items():
        tensor, start, end = _read_info(file, name, info)
        try:
            length = num_bytes(tensor)
        except CheckpointError as error:
            raise CheckpointError(f"'{file}': {error}") from None
        if end - start != length:
            _refuse(
                file,
                f"'{name}' of {tensor.dtype} and shape {list(tensor.shape)} needs {length} bytes, not {end - start}",
            )
        rows.append((start, end, tensor))
    position = 0
    placed = {}
    for start, end, tensor in sorted(rows, key=lambda row: row[:2]):
        if start != position:
            what = "leave a gap before" if start > position else "lie over each other at"
            _refuse(
                file, f"its tensors {what} '{tensor.name}': it starts at {start}, what is before it ends at {position}"
            )
        placed[tensor.name] = Placed(tensor, begin + start, end - start)
        position = end
    return Header(placed, {str(key): str(value) for key, value in metadata.items()}, begin + position)


def _read_info(file: Path | str, name: str, info: Any) -> tuple[StoredTensor, int, int]:
    """A tensor's entry in the header, and its first and last offset."""
    try:
        dtype, shape, (start, end) = info["dtype"], info["shape"], info["data_offsets"]
    except (TypeError, KeyError, ValueError):
        _refuse(file, f"'{name}' needs dtype, shape and two data_offsets, and has {str(info)[:200]}")
    numbers = [*shape, start, end] if isinstance(shape, list | tuple) else [None]
    if not isinstance(dtype, str) or any(type(number) is not int or number < 0 for number in numbers):
        _refuse(file, f"'{name}' has dtype {dtype!r}, shape {shape!r} and offsets {start!r} to {end!r}")
    return StoredTensor(name, dtype, tuple(shape)), start, end


def _refuse(file: Path | str, fault: str) -> NoReturn:
    raise CheckpointError(f"'{file}' is no whole safetensors file: {fault}. Copy or download it again.")


def make_header(tensors: Iterable[StoredTensor], metadata: Mapping[str, str]) -> tuple[bytes, Header]:
    """The first bytes of a file of these tensors, as the safetensors library writes them.

    Args:
        tensors (`Iterable[StoredTensor]`): in any order; names must differ.
        metadata (`Mapping[str, str]`): free text; of more than one entry the library writes any order, we this one.

    Returns:
        `tuple[bytes, Header]`: what stands before the first tensor, and where each tensor's bytes go.
    """
    ordered = sorted(tensors, key=lambda tensor: (dtypes()[tensor.dtype].rank, tensor.name.encode("utf-8")))
    values: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    position, starts = 0, []
    for tensor in ordered:
        starts.append(position)
        position += num_bytes(tensor)
        offsets = [starts[-1], position]
        values[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
    content = json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    content += b" " * (-len(content) % _LENGTH_BYTES)
    begin = _LENGTH_BYTES + len(content)
    placed = {
        tensor.name: Placed(tensor, begin + start, num_bytes(tensor))
        for tensor, start in zip(ordered, starts, strict=True)
    }
    return len(content).to_bytes(_LENGTH_BYTES, "little") + content, Header(placed, dict(metadata), begin + position)
