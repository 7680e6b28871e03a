"""A repository as it is now: its head, its files, and whose model lies there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

from hf_mpruner.errors import PushError

CARD = "README.md"
# What `from_pretrained` of any framework could take for the weights; at the top of a repository only.
WEIGHTS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
    "flax_model.msgpack",
)


@dataclass(frozen=True)
class Remote:
    """One revision of a repository.

    Args:
        repo_id (`str`): with its namespace.
        head (`str`): the commit that this is about.
        files (`tuple[str, ...]`): paths of all its files.
        private (`bool`): whether others may see it.
        model_type (`str`, *optional*): of its config.json.
        token: what to ask with.
    """

    repo_id: str
    head: str
    files: tuple[str, ...]
    private: bool = False
    model_type: str | None = None
    token: str | bool | None = None

    @property
    def weights(self) -> tuple[str, ...]:
        """Files that hold a model's weights."""
        return tuple(name for name in self.files if matches(name, WEIGHTS))

    def check_private(self, asked: bool | None) -> None:
        """Refuse to send to everybody what was meant for few.

        Raises:
            PushError: if a private repository was asked for and this one is public.
        """
        if asked and not self.private:
            raise PushError(
                f"'{self.repo_id}' is public, and private was asked for. Push to a new name, make it private in its "
                "settings on the Hub, or leave --private (private=True) out. Nothing was sent."
            )

    def read(self, path: str) -> bytes:
        """A small file of this very commit, from the Hub and from no cache.

        Raises:
            RemoteEntryNotFoundError: there is none; everything else says nothing about whether there is one.
        """
        url = hf_hub_url(self.repo_id, path, revision=self.head, endpoint=HfApi().endpoint)
        answer = get_session().get(url, headers=build_hf_headers(token=self.token))
        hf_raise_for_status(answer)
        return bytes(answer.content)

    def read_card(self) -> str | None:
        """The README.md; `None` if there is none, and an error if the Hub cannot say."""
        try:
            return self.read(CARD).decode("utf-8")
        except RemoteEntryNotFoundError:
            return None

    def read_json(self, path: str) -> Mapping[str, Any] | None:
        """A JSON file's values; `None` if there is none or it holds something else."""
        if path not in self.files:
            return None
        try:
            values = json.loads(self.read(path))
        except ValueError:
            return None
        return values if isinstance(values, dict) else None


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a path fits one of some patterns; "*" stays within a folder.

    Example:
        >>> matches("model.safetensors", WEIGHTS), matches("onnx/model.safetensors", WEIGHTS)
        (True, False)
    """
    return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)


def find_remote(repo_id: str, revision: str | None = None, token: str | bool | None = None) -> Remote | None:
    """Look at a repository; `None` if there is none that this token may see.

    Raises:
        RevisionNotFoundError: for a branch, tag or commit that it does not have.
    """
    try:
        info = HfApi().model_info(repo_id, revision=revision, token=token)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return None
    files = tuple(found.rfilename for found in info.siblings or ())
    config = info.config or {}
    return Remote(repo_id, str(info.sha), files, bool(info.private), config.get("model_type"), token)
