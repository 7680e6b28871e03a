"""A checkpoint as its files say it is: names, dtypes and shapes of all tensors, and which file has each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_mpruner.errors import CheckpointError

from .format import Header, read_header
from .pickled import read_pickled
from .places import Place, check_inside, find_place
from .recipe import StoredTensor
from .room import check_room

_INDEX = ".index.json"
# What `from_pretrained` takes, in its order.
_WEIGHTS = ("model.safetensors", f"model.safetensors{_INDEX}", "pytorch_model.bin", f"pytorch_model.bin{_INDEX}")
_AT_ONCE = 8  # headers that are asked for at the same time


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, of which only what stands about its tensors has been read.

    Args:
        place (`Place`): where its files are.
        weights (`tuple[str, ...]`): its files of weights, and their index if there is one.
        shards (`dict[str, Header]`): what each file of weights holds, by the file's name.
        shard_of (`dict[str, str]`): name of the file for each tensor.
    """

    place: Place
    weights: tuple[str, ...]
    shards: dict[str, Header]
    shard_of: dict[str, str] = field(repr=False)

    @property
    def source(self) -> str:
        """The folder or the repository, as the user named it."""
        return self.place.source

    @property
    def commit(self) -> str | None:
        """The commit on the Hub that all of it is from; `None` for a folder."""
        return self.place.commit

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        """All tensors by name."""
        return {name: placed.tensor for header in self.shards.values() for name, placed in header.placed.items()}

    @property
    def metadata(self) -> dict[str, str]:
        """The free text in the headers of all files; usually `{"format": "pt"}`."""
        return {key: value for header in self.shards.values() for key, value in header.metadata.items()}

    @property
    def folder_files(self) -> tuple[str, ...]:
        """Paths of all files of the folder or the repository; `fetch` gives their contents."""
        return tuple(self.place.files)

    def size(self, names: Iterable[str]) -> int:
        """Bytes of some tensors."""
        return sum(self.shards[self.shard_of[name]].placed[name].length for name in names)

    def fetch(self, name: str) -> Path:
        """One of `folder_files` on this machine, downloaded if need be.

        Raises:
            CheckpointError: if it is not there, or the Hub does not give it.
        """
        if name not in self.place.files:
            raise CheckpointError(self.place.lacks(name))
        return self.place.fetch(name)

    def downloads(self, names: Iterable[str]) -> dict[str, int]:
        """Files that hold some tensors and are not on this machine yet, with their sizes in bytes."""
        wanted = dict.fromkeys(self.shard_of[name] for name in names)
        return {name: self.place.files[name] or self.shards[name].end for name in wanted if not self.place.find(name)}

    def shard(self, name: str) -> tuple[Path, Header]:
        """A file of weights on this machine, downloaded if need be, and its header as it is now.

        Raises:
            CheckpointError: if it does not hold what was read of it before.
        """
        file, before = self.fetch(name), self.shards[name]
        now = _read(file)
        held = [[placed.tensor for placed in header.placed.values()] for header in (before, now)]
        if held[0] != held[1] or before.state not in (None, now.state):
            raise changed(file)
        return file, now


def changed(file: Path) -> CheckpointError:
    """What to raise for a file that was written to between two looks at it."""
    return CheckpointError(f"'{file}' changed while it was read. Wait until nothing writes to it, then try again.")


def open_checkpoint(source: str | Path, *, revision: str | None = None, token: str | bool | None = None) -> Checkpoint:
    """Read what a checkpoint's files say about their tensors, without the tensors.

    From the Hub, only headers are fetched, by range requests, all of one commit; in offline mode the cache is read.

    Args:
        source (`str` or `Path`): a folder, or the name of a repository on the Hub.
        revision (`str`, *optional*): branch, tag or commit on the Hub.
        token (`str` or `bool`, *optional*): for the Hub; that of the login by default.

    Returns:
        `Checkpoint`: its tensors, and where they are.

    Raises:
        CheckpointError: if there is no checkpoint, a file of it is missing, broken or names what is not there.
    """
    place = find_place(str(source), revision, token)
    main = _choose(place)
    index = _read_index(place, main) if main.endswith(_INDEX) else {}
    names = sorted(set(index.values())) or [main]
    for name in names:
        if name not in place.files:
            named = f"{main} names {name}, but " if index else ""
            raise CheckpointError(f"{named}{place.lacks(name)}")
    if not names[0].endswith(
        ".safetensors"
    ):  # the names stand at their ends, among the tensors: no range request helps
        check_room(0, None, sum(place.files[name] or 0 for name in names if not place.find(name)))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        headers = list(pool.map(lambda name: _header(place, name), names))
    shards = dict(zip(names, headers, strict=True))
    shard_of: dict[str, str] = {}
    for name, header in shards.items():
        for tensor in header.placed:
            if tensor in shard_of:
                raise CheckpointError(
                    f"'{place.source}' has '{tensor}' twice, in {shard_of[tensor]} and in {name}, and only one can count. "
                    "Save the checkpoint again with save_pretrained."
                )
            shard_of[tensor] = name
    for tensor, name in index.items():
        if shard_of.get(tensor) != name:
            found = f"it is in {shard_of[tensor]}" if tensor in shard_of else "no file has it"
            raise CheckpointError(
                f"{main} of '{place.source}' says that '{tensor}' is in {name}, but {found}. Copy or download the "
                "checkpoint again."
            )
    return Checkpoint(place, (main, *names) if index else (main,), shards, shard_of)


def _choose(place: Place) -> str:
    """The file, or the index of files, that `from_pretrained` would read."""
    named = _named_in_config(place)
    if named is not None:
        name = check_inside(named, "config.json")
        if name not in place.files:
            raise CheckpointError(f"config.json names {name} as the weights, but {place.lacks(name)}")
        return name
    found = next((name for name in _WEIGHTS if name in place.files), None)
    if found is None:
        others = [name for name in place.files if name.endswith((".safetensors", ".bin", ".h5", ".msgpack", ".gguf"))]
        beside = f" (there are {', '.join(others[:5])})" if others else ""
        raise CheckpointError(
            f"'{place.source}' has no {', '.join(_WEIGHTS[:-1])} or {_WEIGHTS[-1]}{beside}. Pass the folder, or the name on "
            "the Hub, of a model that save_pretrained wrote."
        )
    return found


def _named_in_config(place: Place) -> Any:
    if "config.json" not in place.files:
        return None
    values = _read_json(place, "config.json")
    return values.get("transformers_weights")


def _read_index(place: Place, name: str) -> dict[str, str]:
    """Tensor -> file, every file checked to be a name inside the checkpoint."""
    listed = _read_json(place, name).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{name} of '{place.source}' has no weight_map. Copy or download it again.")
    return {str(tensor): check_inside(file, f"{place.source}/{name}") for tensor, file in listed.items()}


def _read_json(place: Place, name: str) -> dict[str, Any]:
    file = place.fetch(name)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"'{file}' cannot be read: {error}. Make it readable, or copy it here again.") from error
    except ValueError as error:
        raise CheckpointError(f"'{file}' is no JSON ({error}). Copy or download it again.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"'{file}' holds a {type(values).__name__}, a JSON object is needed. Copy it again.")
    return values


def _header(place: Place, name: str) -> Header:
    if name.endswith(".safetensors"):
        return place.header(name)
    return read_pickled(place.fetch(name))


def _read(file: Path) -> Header:
    return read_header(file) if file.suffix == ".safetensors" else read_pickled(file)
