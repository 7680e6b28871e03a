"""Where the values of a snapshot lie: copies in memory, or one file that is complete or absent."""

from __future__ import annotations

import os
import pickle
import shutil
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from hf_mpruner.errors import MPrunerError


class Store(Protocol):
    """Values of a list of tensors."""

    def read(self) -> list[Tensor]:
        """The values, in the order they were given."""

    def release(self) -> None:
        """Free them; may be called again."""


@dataclass
class InMemory:
    """Copies in memory, on the CPU or beside the tensors."""

    tensors: list[Tensor]

    @classmethod
    def copy(cls, tensors: list[Tensor], *, to_cpu: bool) -> InMemory:
        """Clone every tensor; of a `DTensor`, the part that this process holds."""
        return cls([_clone(local_tensor(tensor), to_cpu) for tensor in tensors])

    def read(self) -> list[Tensor]:
        """The copies themselves."""
        return self.tensors

    def release(self) -> None:
        """Forget the copies."""
        self.tensors = []


@dataclass
class InFile:
    """One file of torch's format: written under a temporary name, flushed to the disk and renamed."""

    path: Path
    size: int

    @classmethod
    def write(cls, tensors: list[Tensor], directory: Path) -> InFile:
        """Write the tensors one after the other, without a second copy of them all in memory.

        Raises:
            MPrunerError: if that fails; nothing is left behind.
        """
        # The process and a random part keep the files of several processes apart.
        path = directory / f"_mpruner_rollback_{os.getpid()}_{uuid.uuid4().hex[:8]}.pt"
        temporary = path.with_suffix(".tmp")
        needed = num_bytes_of(tensors)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(directory).free < needed:
                raise OSError("the disk is too full")
            with temporary.open("wb") as stream:
                torch.save([_compact(local_tensor(tensor)) for tensor in tensors], stream)
                stream.flush()
                os.fsync(stream.fileno())
            size = temporary.stat().st_size
            temporary.replace(path)
            _sync(directory)
        except (OSError, RuntimeError) as error:
            raise MPrunerError(
                f"A snapshot of {needed} bytes cannot be written to '{directory}' ({_free(directory)}): {error}. Make "
                'room, choose another output_dir, or keep it in memory: PruningConfig(snapshot="cpu"). '
                "Nothing was changed."
            ) from error
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        return cls(path, size)

    def read(self) -> list[Tensor]:
        """Map the file into memory, after a look at its size.

        Raises:
            MPrunerError: if it is missing, truncated or not readable.
        """
        try:
            size = self.path.stat().st_size
            if size != self.size:
                raise OSError(f"it has {size} bytes, but {self.size} were written")
            tensors: list[Tensor] = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
            raise MPrunerError(
                f"The snapshot '{self.path}' cannot be read back: {error}. Without it the weights before the cut are "
                "lost: start again from a checkpoint of the Trainer that was saved before it."
            ) from error
        return tensors

    def release(self) -> None:
        """Delete the file."""
        self.path.unlink(missing_ok=True)


def local_tensor(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds: itself, or the shard of a `DTensor` (same memory).

    Args:
        tensor (`Tensor`): of any kind.

    Returns:
        `Tensor`: detached; writing to it writes to `tensor`.
    """
    tensor = tensor.detach()
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def num_bytes_of(tensors: list[Tensor]) -> int:
    """Bytes of the parts of some tensors that this process holds, as they are stored (quantised, if they are)."""
    return sum(_num_bytes(local_tensor(tensor)) for tensor in tensors)


def _num_bytes(local: Tensor) -> int:
    parts, _ = _flatten(local)
    return local.nbytes if parts is None else sum(map(_num_bytes, parts.values()))


def _clone(local: Tensor, to_cpu: bool) -> Tensor:
    parts, context = _flatten(local)
    if parts is not None:
        copies = {name: _clone(part, to_cpu) for name, part in parts.items()}
        rebuilt: Tensor = type(local).__tensor_unflatten__(copies, context, local.size(), local.stride())  # type: ignore[attr-defined]
        return rebuilt
    return local.to("cpu") if to_cpu and local.device.type != "cpu" else local.clone()


def _flatten(local: Tensor) -> tuple[dict[str, Tensor] | None, object]:
    """The tensors inside a tensor subclass, e.g. torchao's quantised moments, which cannot be cloned as a whole."""
    flatten = getattr(local, "__tensor_flatten__", None)
    if flatten is None:
        return None, None
    names, context = flatten()
    return {name: getattr(local, name) for name in names}, context


def _compact(local: Tensor) -> Tensor:
    # a view would be saved with all of the memory it looks into
    plain = type(local) is Tensor
    return local.clone() if plain and local.untyped_storage().nbytes() > local.nbytes else local


def _sync(directory: Path) -> None:
    """Make the rename last through a power cut, where the system can open a folder."""
    with suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _free(directory: Path) -> str:
    while not directory.exists():
        directory = directory.parent
    return f"{shutil.disk_usage(directory).free} bytes free"
