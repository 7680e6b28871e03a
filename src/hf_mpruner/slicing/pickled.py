"""Old `pytorch_model.bin` files: names and shapes by torch's safe unpickler, and where each tensor's bytes lie in the file."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, NoReturn

from hf_mpruner.errors import CheckpointError

from .format import Header, Placed, dtypes, num_bytes, state_of
from .recipe import StoredTensor

_LOCAL_HEADER_BYTES = 30  # of an entry in a zip file, before its name and its extra field


def read_pickled(file: Path) -> Header:
    """Read what a file of `torch.save` says of its tensors; their bytes are left alone.

    A zip file stores tensors uncompressed. torch unpickles the names, with `weights_only=True` and no values, and says
    at which position of the file each tensor's storage begins; the zip file's own table must say the same.

    Args:
        file (`Path`): of a dict of tensors.

    Raises:
        CheckpointError: for a broken file, code in it, the format before torch 1.6, or tensors that do not lie in the
            file as safetensors would write them.
    """
    import torch

    if not zipfile.is_zipfile(file):
        _refuse(file, "it is cut short, or in torch's format from before torch 1.6")
    try:
        state = state_of(file)
        storages = _stored_ranges(file)
        values = torch.load(file, map_location="meta", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile's, pickle's and torch's, and of those any kind
        raise CheckpointError(
            f"'{file}' cannot be read with weights_only=True: {' '.join(str(error).split())[:300]}. If you trust it, load "
            "the model once where it works and save it with save_pretrained, which writes model.safetensors."
        ) from error
    names = {dtype.torch_name: dtype.name for dtype in dtypes().values()}
    placed = {}
    for name, value in values.items() if isinstance(values, dict) else _refuse(file, "it holds no dict of tensors"):
        if not isinstance(value, torch.Tensor):
            _refuse(file, f"'{name}' in it is a {type(value).__name__}, a tensor is needed")
        placed[str(name)] = _place(file, str(name), value, names, storages)
    return Header(placed, {}, state[1], state)


def _stored_ranges(file: Path) -> dict[int, int]:
    """Where the uncompressed entries of a zip file begin, and how many bytes each has."""
    ranges = {}
    with zipfile.ZipFile(file) as archive, file.open("rb") as stream:
        for entry in archive.infolist():
            stream.seek(entry.header_offset + _LOCAL_HEADER_BYTES - 4)
            lengths = stream.read(4)
            skipped = int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
            if entry.compress_type == zipfile.ZIP_STORED:
                ranges[entry.header_offset + _LOCAL_HEADER_BYTES + skipped] = entry.file_size
            if entry.filename.endswith("/byteorder") and archive.read(entry) != b"little":
                _refuse(file, "it was written on a machine with the other byte order")
    return ranges


def _place(file: Path, name: str, value: Any, names: dict[str, str], storages: dict[int, int]) -> Placed:
    torch_name = str(value.dtype).removeprefix("torch.")
    if torch_name not in names:
        _refuse(file, f"'{name}' in it is of {torch_name}, which safetensors does not store")
    shape = list(value.shape)
    if names[torch_name] == "F4" and shape:  # two numbers a byte, which torch counts as one
        shape[-1] *= 2
    tensor = StoredTensor(name, names[torch_name], tuple(shape))
    length = num_bytes(tensor)
    if not value.is_contiguous() or value.is_conj() or value.is_neg():
        _refuse(file, f"'{name}' in it does not lie row by row")
    begin = getattr(value.untyped_storage(), "_checkpoint_offset", None)
    first = value.storage_offset() * value.element_size()
    if not length:
        return Placed(tensor, 0, 0)
    if (
        begin is None
        or storages.get(begin, -1) != value.untyped_storage().nbytes()
        or first + length > storages[begin]
    ):
        _refuse(file, f"torch does not say where '{name}' lies in it")
    return Placed(tensor, begin + first, length)


def _refuse(file: Path, fault: str) -> NoReturn:
    raise CheckpointError(
        f"'{file}' cannot be cut as it is: {fault}. Copy or download it again, or load the model and save it with "
        "save_pretrained, which writes model.safetensors, and pass that folder."
    )
