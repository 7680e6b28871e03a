"""Where a checkpoint's files are: a folder here, or one commit of a repository on the Hub."""

from __future__ import annotations

import os
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

from hf_mpruner.errors import CheckpointError
from hf_mpruner.hub import check_repo_id
from hf_mpruner.hub.explain import explain
from hf_mpruner.hub.retry import patiently

from .format import Header, parse_header, read_header

# Of a file on the Hub, to begin with: most headers are shorter, and one request costs more than these bytes.
_FIRST_BYTES = 100_000
Result = TypeVar("Result")


class Place(Protocol):
    """Files by their paths in it, with "/" between.

    Args:
        source (`str`): as the user named it.
        files (`dict[str, int | None]`): size in bytes of each, where it is known.
        commit (`str`, *optional*): on the Hub.
    """

    source: str
    files: dict[str, int | None]
    commit: str | None

    def find(self, name: str) -> Path | None:
        """The file if it is on this machine."""

    def fetch(self, name: str) -> Path:
        """The file, downloaded if need be."""

    def header(self, name: str) -> Header:
        """What a safetensors file says about its tensors."""

    def lacks(self, name: str) -> str:
        """What to say of a file that is not there."""


class Folder:
    """A folder on this machine.

    Args:
        source (`str`): as the user named it.
        path (`Path`): the folder.
        commit (`str`, *optional*): if it is what the cache has of a commit on the Hub.
    """

    def __init__(self, source: str, path: Path, commit: str | None = None) -> None:
        self.source, self.path, self.commit = source, path, commit
        self.files: dict[str, int | None] = {}
        for root, folders, names in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                file = Path(root, name)
                if file.is_file():  # no pipe, and no link to nothing
                    self.files[file.relative_to(path).as_posix()] = file.stat().st_size

    def find(self, name: str) -> Path | None:
        """See `Place`."""
        return self.path / name if name in self.files else None

    def fetch(self, name: str) -> Path:
        """See `Place`."""
        return self.path / name

    def header(self, name: str) -> Header:
        """See `Place`."""
        return read_header(self.path / name)

    def lacks(self, name: str) -> str:
        """See `Place`."""
        if self.commit:
            return (
                f"offline mode is on, and the cache has no {name} of '{self.source}' at commit {self.commit}. Unset "
                "HF_HUB_OFFLINE, then try again."
            )
        return f"there is no {name} in '{self.path}'. Copy or download it again."


class Repository:
    """One commit of a repository on the Hub; what is downloaded goes to the cache, and what is there is not fetched again.

    Args:
        repo_id (`str`): its name.
        revision (`str`, *optional*): branch, tag or commit; the main branch by default.
        token: what to ask with; that of the login by default.

    Raises:
        CheckpointError: if the Hub does not show it; says why.
    """

    def __init__(self, repo_id: str, revision: str | None, token: str | bool | None) -> None:
        from huggingface_hub import HfApi

        self.source, self.token, self.api = repo_id, token, HfApi(token=token)
        info = self._ask(lambda: self._find(revision), f"read '{repo_id}'" + (f" at '{revision}'" if revision else ""))
        self.commit: str | None = str(info.sha)
        self.files: dict[str, int | None] = {found.rfilename: found.size for found in info.siblings or ()}

    def _find(self, revision: str | None) -> Any:
        """What there is, by one commit.

        The config is asked for by the revision's name, so that the cache knows the name without the Hub, too.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import RemoteEntryNotFoundError

        try:
            config = hf_hub_download(self.source, "config.json", revision=revision, token=self.token)
            revision = Path(config).parent.name
        except RemoteEntryNotFoundError:  # there is none
            pass
        return self.api.model_info(self.source, revision=revision, files_metadata=True)

    def find(self, name: str) -> Path | None:
        """See `Place`."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.source, name, revision=self.commit)
        return Path(found) if isinstance(found, str) else None

    def fetch(self, name: str) -> Path:
        """See `Place`."""
        from huggingface_hub import hf_hub_download

        return Path(
            self._ask(
                lambda: hf_hub_download(self.source, name, revision=self.commit, token=self.token),
                f"download {name} of '{self.source}'",
            )
        )

    def header(self, name: str) -> Header:
        """The header alone, by range requests."""
        if found := self.find(name):
            return read_header(found)
        first = self._range(name, 0, _FIRST_BYTES)

        def read(start: int, length: int) -> bytes:
            end = start + length
            return first[start:end] if end <= len(first) else first[start:] + self._range(name, len(first), end)

        return parse_header(f"{self.source}/{name}", self.files.get(name), read)

    def _range(self, name: str, start: int, end: int) -> bytes:
        """Bytes of a file; fewer, or none, if it has no more."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

        url = hf_hub_url(self.source, name, revision=self.commit, endpoint=self.api.endpoint)

        def ask() -> bytes:
            headers = {**build_hf_headers(token=self.token), "Range": f"bytes={start}-{end - 1}"}
            answer = get_session().get(url, headers=headers)
            if answer.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return b""
            hf_raise_for_status(answer)
            whole = answer.status_code != HTTPStatus.PARTIAL_CONTENT
            return bytes(answer.content[start:end] if whole else answer.content)

        return self._ask(ask, f"read the header of {name} of '{self.source}'")

    def lacks(self, name: str) -> str:
        """See `Place`."""
        return f"'{self.source}' has no {name} at commit {self.commit}. Pass a revision that is whole."

    def _ask(self, action: Callable[[], Result], doing: str) -> Result:
        try:
            return patiently(action, doing)
        except Exception as error:
            raise CheckpointError(explain(error, self.source, doing, writing=False)) from error


def find_place(source: str, revision: str | None, token: str | bool | None) -> Place:
    """A folder if there is one of that name, else a repository; in offline mode, what the cache has of it.

    Raises:
        CheckpointError: if there is neither.
    """
    if Path(source).is_dir():
        if revision is not None:
            raise CheckpointError(
                f"'{source}' is a folder here, and revision='{revision}' is for the Hub. Leave the revision out, or name a "
                "repository that is no folder here."
            )
        return Folder(source, Path(source))
    if Path(source).exists():
        raise CheckpointError(f"'{source}' is a file. Pass the folder that it is in: '{Path(source).parent}'.")
    try:
        check_repo_id(source)
    except ValueError as error:
        raise CheckpointError(f"There is no folder '{source}', and it is no name on the Hub: {error}") from error
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return _from_cache(source, revision)
    return Repository(source, revision, token)


def _from_cache(repo_id: str, revision: str | None) -> Folder:
    from huggingface_hub import try_to_load_from_cache

    for name in ("config.json", "model.safetensors", "model.safetensors.index.json"):
        found = try_to_load_from_cache(repo_id, name, revision=revision or "main")
        if isinstance(found, str):
            return Folder(repo_id, Path(found).parent, commit=Path(found).parent.name)
    at = f" at '{revision}'" if revision else ""
    raise CheckpointError(
        f"There is no folder '{repo_id}'. It may be a name on the Hub, but offline mode is on, and the cache has nothing "
        f"of it{at}. Unset HF_HUB_OFFLINE (and TRANSFORMERS_OFFLINE), or pass a folder."
    )


def check_inside(name: object, listed_in: str) -> str:
    """Refuse a file's name that leads out of the folder that it is said to be in.

    Raises:
        CheckpointError: for an absolute path, one with "..", or something that is no name.
    """
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    if not parts or ".." in parts or "\\" in str(name) or PurePosixPath(str(name)).is_absolute() or ":" in parts[0]:
        raise CheckpointError(
            f"'{listed_in}' names {name!r} as a file of weights. Only files inside the checkpoint's folder are read: "
            "correct it."
        )
    return str(name)
