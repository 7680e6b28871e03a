"""What the Hub keeps: repositories with refs, commits and files, the contents of LFS files, pull requests, people.

A commit is one assignment to a ref under a lock: it is there whole or not at all. Nothing here knows HTTP; what is not
allowed raises `HubError`, which carries the status and the header that the clients tell errors apart by.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

GIT_ATTRIBUTES = b"*.bin filter=lfs\n*.pt filter=lfs\n*.safetensors filter=lfs\n"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"
MAIN = "main"


class HubError(Exception):
    """An answer that is no success: `code` becomes `X-Error-Code`, `body` is merged into the JSON."""

    def __init__(
        self, status: int, message: str, code: str = "", headers: Mapping[str, str] | None = None, **body: Any
    ):
        super().__init__(f"{status} {code}: {message}")
        self.status, self.message, self.code, self.body = status, message, code, body
        self.headers = dict(headers or {})


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def git_sha1(kind: str, data: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Blob:
    """A file of a commit. An LFS file's git object is its pointer; what the Hub serves is the content."""

    data: bytes
    lfs: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        return POINTER.format(self.sha256, len(self.data)).encode()

    @property
    def oid(self) -> str:
        """SHA-1 of the git object."""
        return git_sha1("blob", self.pointer if self.lfs else self.data)

    @property
    def etag(self) -> str:
        """What a client knows the content by: SHA-256 for LFS, else the git SHA-1."""
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """A state of all files. Two commits of equal files are two commits."""

    oid: str
    parent: str | None
    files: Mapping[str, Blob]
    title: str
    message: str
    user: str
    date: str


@dataclass
class Discussion:
    """A discussion, or a pull request with the ref `refs/pr/NUM`."""

    num: int
    title: str
    author: str
    status: str
    is_pull_request: bool
    base: str | None = None
    merged_as: str | None = None
    created: str = field(default_factory=now)
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ref(self) -> str:
        return f"refs/pr/{self.num}"

    def add_event(self, kind: str, author: str, **data: Any) -> dict[str, Any]:
        event = {
            "id": f"{self.num:04x}{len(self.events):04x}",
            "type": kind,
            "createdAt": now(),
            "author": {"name": author},
            "data": data,
        }
        self.events.append(event)
        return event


# A change of one path: its new content, or None to delete it.
Changes = Mapping[str, Blob | None]


class Repo:
    """One repository: `kind` is model, dataset or space, `id` is `namespace/name`."""

    def __init__(self, kind: str, id: str, owner: str, private: bool = False):
        self.kind, self.id, self.owner, self.private = kind, id, owner, private
        self.gated: bool | str = False
        self.granted: set[str] = set()  # who may read the files although it is gated
        self.created = now()
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.pull_refs: dict[str, str] = {}
        self.commits: dict[str, Commit] = {}
        self.discussions: dict[int, Discussion] = {}
        self.objects: dict[str, bytes] = {}  # contents of LFS files by SHA-256, referenced by a commit or not
        self.lock = threading.RLock()
        self._numbers = itertools.count(1)
        self.commit(MAIN, lambda _: {".gitattributes": Blob(GIT_ATTRIBUTES)}, "initial commit", "", owner)

    def find_oid(self, revision: str) -> str:
        """The commit that a branch, tag, pull request, full or short SHA stands for."""
        name = revision.removeprefix("refs/heads/")
        for refs in (self.branches, self.pull_refs, self.tags):
            if name in refs:
                return refs[name]
        if len(revision) >= 7:
            for oid in self.commits:
                if oid.startswith(revision):
                    return oid
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def at(self, revision: str) -> Commit:
        return self.commits[self.find_oid(revision)]

    def files(self, revision: str = MAIN) -> dict[str, bytes]:
        """`{path: content}`, for tests to compare with."""
        return {path: blob.data for path, blob in self.at(revision).files.items()}

    def history(self, revision: str = MAIN) -> list[Commit]:
        """From the newest to the first."""
        found = [self.at(revision)]
        while found[-1].parent is not None:
            found.append(self.commits[found[-1].parent])
        return found

    def _refs_of(self, ref: str) -> dict[str, str]:
        if ref in self.pull_refs:
            return self.pull_refs
        if ref in self.branches or not self.commits:
            return self.branches
        if ref in self.tags or ref in self.commits:
            raise HubError(400, f"Cannot commit to {ref}: it is no branch")
        raise HubError(404, f"Invalid rev id: {ref}", "RevisionNotFound")

    def commit(
        self,
        ref: str,
        change: Callable[[Mapping[str, Blob]], Changes],
        title: str,
        message: str,
        user: str,
        parent: str | None = None,
    ) -> Commit:
        """Apply `change` (called with the files as they are) to a ref. `parent`, full or short, must be its head."""
        with self.lock:
            refs = self._refs_of(ref)
            head = refs.get(ref)
            if parent is not None and (head is None or not head.startswith(parent)):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(self.commits[head].files) if head else {}
            for path, blob in change(files).items():
                if blob is None:
                    files.pop(path, None)
                else:
                    files[path] = blob
            listing = "".join(f"{path} {blob.oid}\n" for path, blob in sorted(files.items()))
            oid = git_sha1("commit", f"{next(self._numbers)} {self.id} {head} {title}\n{listing}".encode())
            self.commits[oid] = Commit(oid, head, files, title, message, user, now())
            refs[ref] = oid
            return self.commits[oid]

    def write(self, files: Mapping[str, bytes], title: str = "somebody else's commit", ref: str = MAIN) -> str:
        """Commit files past all clients, as another person would; returns the commit's id."""
        return self.commit(ref, lambda _: {path: Blob(data) for path, data in files.items()}, title, "", "other").oid

    def open_discussion(
        self, title: str, author: str, *, pull_request: bool, status: str, parent: str | None = None
    ) -> Discussion:
        with self.lock:
            found = Discussion(len(self.discussions) + 1, title, author, status, pull_request)
            if pull_request:
                found.base = self.find_oid(parent or MAIN)
                self.pull_refs[found.ref] = found.base
            self.discussions[found.num] = found
            return found

    def changed(self, old: str, new: str) -> dict[str, Blob | None]:
        """Which paths differ between two commits, with what they are in the new one."""
        before, after = self.commits[old].files, self.commits[new].files
        return {path: after.get(path) for path in before.keys() | after.keys() if before.get(path) != after.get(path)}

    def merge(self, discussion: Discussion, user: str) -> Commit:
        """What the pull request changed since it was opened, as one commit on main."""
        if discussion.base is None or discussion.status not in ("open", "draft"):
            raise HubError(409, f"Pull request {discussion.num} is {discussion.status}")
        with self.lock:
            changes = self.changed(discussion.base, self.pull_refs[discussion.ref])
            commit = self.commit(MAIN, lambda _: changes, f"{discussion.title} (#{discussion.num})", "", user)
            discussion.status, discussion.merged_as = "merged", commit.oid
            return commit


@dataclass(frozen=True)
class User:
    """Whom a token stands for. A `read` token writes nothing, its owner's repositories included."""

    name: str
    role: str = "write"
    orgs: tuple[str, ...] = ()

    def owns(self, repo_id: str) -> bool:
        return repo_id.partition("/")[0] in (self.name, *self.orgs)


class Store:
    """All repositories and all tokens."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.users: dict[str, User] = {}
        self.lock = threading.RLock()

    def create(self, kind: str, id: str, owner: str, private: bool = False) -> Repo:
        with self.lock:
            if (kind, id) in self.repos:
                raise FileExistsError(id)
            self.repos[kind, id] = Repo(kind, id, owner, private)
            return self.repos[kind, id]

    def repo(self, id: str, kind: str = "model") -> Repo:
        """For tests; `KeyError` if there is none."""
        return self.repos[kind, id]

    def find(self, kind: str, id: str, user: User | None) -> Repo:
        """The repository, if this person may know of it: else 404, or 401 for who is not logged in."""
        repo = self.repos.get((kind, id))
        if repo is None or (repo.private and not (user and user.owns(id))):
            if user is None:
                raise HubError(401, "Invalid username or password.", "RepoNotFound")
            raise HubError(404, "Repository not found", "RepoNotFound")
        return repo

    def find_files(self, kind: str, id: str, user: User | None) -> Repo:
        """As `find`, for who wants the files: a gated repository shows them to its owner and to who was granted them."""
        repo = self.find(kind, id, user)
        if repo.gated and not (user and (user.owns(id) or user.name in repo.granted)):
            where = f"Access to {kind} {id} is restricted"
            if user is None:
                raise HubError(401, f"{where}. You must have access to it and be authenticated.", "GatedRepo")
            raise HubError(403, f"{where} and you are not in the authorized list.", "GatedRepo")
        return repo

    def find_writable(self, kind: str, id: str, user: User | None, *, as_pull_request: bool = False) -> Repo:
        """As `find`, for who wants to change it. A pull request needs no right on the repository."""
        repo = self.find(kind, id, user)
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if user.role != "write":
            raise HubError(403, f"Forbidden: you must use a write token to upload to the {kind} {id}")
        if not (user.owns(id) or as_pull_request):
            raise HubError(403, f"Forbidden: you have no right to write to the {kind} {id}, open a pull request")
        return repo


def tree_entries(files: Mapping[str, Blob], folder: str, recursive: bool) -> list[dict[str, Any]]:
    """Files and directories below `folder` in the order of their paths, as the tree routes answer them."""
    prefix = f"{folder}/" if folder else ""
    found: dict[str, dict[str, Any]] = {}
    for path, blob in files.items():
        if not path.startswith(prefix):
            continue
        parts = path[len(prefix) :].split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            directory = prefix + "/".join(parts[:depth])
            found[directory] = directory_entry(files, directory)
        if recursive or len(parts) == 1:
            found[path] = file_entry(path, blob)
    return [found[path] for path in sorted(found)]


def directory_entry(files: Mapping[str, Blob], directory: str) -> dict[str, Any]:
    rows = [f"{path} {blob.oid}\n" for path, blob in sorted(files.items()) if path.startswith(f"{directory}/")]
    return {"type": "directory", "path": directory, "size": 0, "oid": git_sha1("tree", "".join(rows).encode())}


def file_entry(path: str, blob: Blob) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(blob.data), "oid": blob.oid}
    if blob.lfs:
        entry["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}
    return entry


def is_folder(files: Iterable[str], path: str) -> bool:
    return any(name.startswith(f"{path}/") for name in files)
