"""The files of one commit, as they are now: no later save can change them, and none of them tells a secret."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub.utils import DEFAULT_IGNORE_PATTERNS, filter_repo_objects  # type: ignore[attr-defined]

from hf_mpruner.errors import PushError
from hf_mpruner.hub import NEVER_SENT, Secrets, find_leaks, scrub_json

logger = logging.getLogger(__name__)

PARCEL_PREFIX = "_mpruner_push-"
"""Of the folders that hold large files until they are sent; the leading `_` keeps them out of the Trainer's uploads."""

TOP_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "model-?????-of-?????.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model-?????-of-?????.bin",
)
"""What transformers calls a model's weights: of a push these are whole, or of another model and gone."""

# Nothing can be left out of these without leaving a model that does not load.
_NEEDED = (*TOP_WEIGHTS, "config.json", "tokenizer*.json", "*processor_config.json", "*.py")
_IN_MEMORY_BYTES = 1_000_000
_TEXT_BYTES = 100_000_000  # a JSON file up to this size is read whole: vocabularies are large
_DRAFTS = (".tmp", ".old")  # what is being written, and what it takes the place of (`storage.new_folder`)
_NUMBERS = itertools.count()
_told: set[str] = set()


class Parcel:
    """Files on their way into one commit.

    Args:
        output_dir (`Path`): the Trainer's; a folder in it holds large files until they are sent.
        step (`int`): of the training.
        secrets (`Secrets`): what no file may tell.

    Attributes:
        files (`dict[str, Path | bytes]`): by their path in the repository.
    """

    def __init__(self, output_dir: Path, step: int, secrets: Secrets) -> None:
        """Begin with nothing."""
        self.files: dict[str, Path | bytes] = {}
        self.secrets = secrets
        self._folder = output_dir / f"{PARCEL_PREFIX}{step}-{os.getpid()}-{next(_NUMBERS)}"

    def add(self, name: str, file: Path, *, lasting: Path | None = None, as_is: bool = False) -> bytes | None:
        """Take a file along: small ones are read, large ones linked or copied.

        Args:
            name (`str`): its path in the repository.
            file (`Path`): as it is now.
            lasting (`Path`, *optional*): the same file in a checkpoint, which nothing writes into any more: it is linked to.
            as_is (`bool`): take a large file from where it is, as nothing writes there before it is sent.

        Returns:
            `bytes`, *optional*: the content that is sent, if that is not the file's: a path was taken out of it.

        Raises:
            PushError: if the model needs the file, and it tells a secret.
            OSError: if it cannot be read or copied.
        """
        size = file.stat().st_size
        if size > (_TEXT_BYTES if file.suffix == ".json" else _IN_MEMORY_BYTES):
            if self._may_go(name, file, find_leaks(file, self.secrets)):
                self.files[name] = file if as_is else self._hold(name, lasting or file, link=lasting is not None)
            return None
        content = file.read_bytes()
        return self.put(name, content, file)

    def put(self, name: str, content: bytes, file: Path | None = None) -> bytes | None:
        """Take a content along; see `add`."""
        clean = scrub_json(content, self.secrets) if name.endswith(".json") else content
        if not self._may_go(name, file or Path(name), find_leaks(clean, self.secrets)):
            return None
        self.files[name] = clean
        return None if clean is content else clean

    def discard(self) -> None:
        """Let go of everything: it was sent, or will not be."""
        self.files.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _hold(self, name: str, file: Path, *, link: bool) -> Path:
        target = self._folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if link:
            try:
                os.link(file, target)
                return target
            except OSError as error:  # a file system without links
                logger.debug("'%s' is copied: %s", file, error)
        shutil.copyfile(file, target)
        return target

    def _may_go(self, name: str, file: Path, leaks: list[str]) -> bool:
        if not leaks:
            return True
        base = name.rpartition("/")[2]
        if any(fnmatchcase(base, pattern) for pattern in _NEEDED):
            raise PushError(
                f"'{file}' holds {leaks[0]}, which must not leave this machine, and the model does not load without that "
                "file. Take it out of what the file is saved from, then push again. Nothing was sent."
            )
        text = f"'{name}' is not pushed: it holds {', '.join(leaks[:3])}, which must not leave this machine."
        if text not in _told:
            _told.add(text)
            logger.warning("%s The file in '%s' is as it was.", text, file.parent)
        return False


def names_to_push(folder: Path, ignored: Iterable[str] = ()) -> list[str]:
    """Paths of a folder's files that a Trainer's push takes along, without those that never go.

    Args:
        folder (`Path`): e.g. the Trainer's `output_dir`.
        ignored: patterns of the Trainer.
    """
    patterns = [*ignored, *DEFAULT_IGNORE_PATTERNS]
    found = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return [
        name
        for name in filter_repo_objects(found, ignore_patterns=patterns)
        if name.rpartition("/")[2] not in NEVER_SENT and not any(part.endswith(_DRAFTS) for part in name.split("/"))
    ]


def is_top_weights(name: str) -> bool:
    """Whether transformers gives this name to a model's weights, at the top of a repository."""
    return any(fnmatchcase(name, pattern) for pattern in TOP_WEIGHTS)


def written_weights(folder: Path) -> set[str]:
    """The weights that the newest save into a folder wrote; others may lie there, of a model that was larger."""
    whole, index = folder / TOP_WEIGHTS[0], folder / TOP_WEIGHTS[1]
    if index.is_file() and not (whole.is_file() and whole.stat().st_mtime_ns >= index.stat().st_mtime_ns):
        return {index.name, *json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    if whole.is_file():
        return {whole.name}
    return {file.name for file in folder.iterdir() if is_top_weights(file.name)}


def sweep_parcels(output_dir: Path) -> None:
    """Delete what a killed run had on its way; what this process sends is left alone."""
    for folder in output_dir.glob(f"{PARCEL_PREFIX}*"):
        if f"-{os.getpid()}-" not in folder.name:
            logger.info("'%s' was left behind by a killed run and is deleted.", folder)
            shutil.rmtree(folder, ignore_errors=True)
