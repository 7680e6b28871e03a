"""One commit with all files, or none: tried again as a whole, never made twice, and no card of others lost."""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RevisionNotFoundError

from hf_mpruner.errors import MPrunerError, PushError

from .account import Account, find_account
from .explain import explain
from .ids import check_repo_id
from .remote import CARD, Remote, find_remote, matches
from .retry import brief, patiently, status_of

logger = logging.getLogger(__name__)

MAIN = "main"
CardState = Literal["written", "unchanged", "unknown", "refused", "none"]
Operation = CommitOperationAdd | CommitOperationDelete
# Smaller files are read once, at the start: what is sent is of one moment, in every try. The Hub checks the others
# against their SHA-256.
_READ_AT_ONCE_BYTES = 10_000_000
_NEWEST_PULL_REQUESTS = 5


@dataclass(frozen=True)
class Pushed:
    """What is on the Hub after a push.

    Args:
        repo_id (`str`): with its namespace.
        url (`str`): the page of the commit, or of the pull request.
        commit (`str`, *optional*): the commit that was made; `None` if everything was there already.
        head (`str`): the commit that has the files: `commit`, or the one that had them before.
        revision (`str`): the branch, or the ref of the pull request.
        pull_request_url (`str`, *optional*): its page.
        card (`str`): `"written"`; `"unchanged"`; `"none"` if there was none to write; `"unknown"` if the Hub could not
            say which README.md it has, so that none was written; `"refused"` if the Hub did not take it.
        card_reason (`str`): why README.md was not written.
    """

    repo_id: str
    url: str
    commit: str | None
    head: str
    revision: str = MAIN
    pull_request_url: str | None = None
    card: CardState = "none"
    card_reason: str = ""


def commit_files(
    repo_id: str,
    files: Mapping[str, Path | bytes],
    *,
    message: str,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    card: Callable[[str | None], str] | None = None,
    replaces: Sequence[str] = (),
    check: Callable[[Remote], None] | None = None,
) -> Pushed:
    """Put files into a model repository in one commit; the repository and the branch are made if there are none.

    The whole is tried again on errors that pass (see `retry`), with the head that is there then. A commit whose
    acknowledgement was lost is found again, by a mark in its description, and not made twice.

    Args:
        repo_id (`str`): the repository; without a namespace, the user's own.
        files (`dict[str, Path | bytes]`): what lies at each path of the repository afterwards.
        message (`str`): title of the commit or of the pull request.
        private (`bool`, *optional*): for a repository that is made here. `True` for one that is public is an error.
        revision (`str`, *optional*): a branch, or `refs/pr/N`; by default `"main"`.
        create_pr (`bool`): open a pull request on main instead.
        token (`str` or `bool`, *optional*): by default the one of `HF_TOKEN` or of `hf auth login`.
        card (callable, *optional*): gets the README.md of the repository (`None`: there is none) and returns the one to
            write. Without it, a README.md among `files` is written only where there is none.
        replaces (list of `str`): patterns ("*" stays within a folder); files of the repository that match one, and are not among `files`, go.
        check (callable, *optional*): looks at the repository before anything is sent, and raises to stop.

    Returns:
        `Pushed`: what is there now.

    Raises:
        ValueError: for a name that is none, or a `revision` beside `create_pr`.
        PushError: if nothing was committed; says why and what to do.
    """
    check_repo_id(repo_id)
    check_target(revision, create_pr)
    contents = {path: content for path, content in files.items() if path != CARD}
    if card is None and CARD in files:
        card = _keep_theirs(files[CARD])
    push = _Push(repo_id, contents, message, private, revision or MAIN, create_pr, token, card, replaces, check)
    try:
        push.read_()
        return patiently(push.attempt, f"Push to '{repo_id}'")
    except MPrunerError:
        raise
    except Exception as error:
        text = explain(error, push.repo_id, f"push to '{push.repo_id}'")
        raise PushError(f"{text} {push.left_behind()}") from error


def check_target(revision: str | None, create_pr: bool) -> None:
    """Refuse a revision that cannot be committed to.

    Raises:
        ValueError: for a commit's id, or a branch beside `create_pr`.
    """
    if create_pr and revision not in (None, MAIN):
        raise ValueError(
            f"revision={revision!r} with create_pr: a pull request goes to '{MAIN}'. Leave one of the two out."
        )
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(
            f"revision={revision!r} is a commit, which does not change any more. Pass a branch, e.g. revision='pruned'."
        )


@dataclass
class _Push:
    """One call of `commit_files`, with what its tries have found out."""

    repo_id: str
    files: dict[str, Path | bytes]
    message: str
    private: bool | None
    revision: str
    create_pr: bool
    token: str | bool | None
    card: Callable[[str | None], str] | None
    replaces: Sequence[str]
    check: Callable[[Remote], None] | None
    mark: str = field(default_factory=lambda: f"hf_mpruner push {uuid.uuid4().hex[:16]}")
    account: Account | None = None
    sent: bool = False
    in_doubt: bool = False
    card_sent: tuple[CardState, str] = ("none", "")
    refused: str = ""
    stats: dict[str, tuple[int, int]] = field(default_factory=dict)

    def read_(self) -> None:
        """Read small files, and note size and time of the others."""
        for path, content in self.files.items():
            if not isinstance(content, Path):
                continue
            if content.stat().st_size <= _READ_AT_ONCE_BYTES:
                self.files[path] = content.read_bytes()
            else:
                self.stats[path] = _stat(content)

    def attempt(self) -> Pushed:
        """Everything once, from the account to the commit."""
        if self.account is None:
            self.account = find_account(self.token)
            self.repo_id = self.account.complete(self.repo_id)
        self.account.check(self.repo_id, create_pr=self.create_pr)
        if self.sent:
            if made := self._find_commit():
                return made
            self.in_doubt = False
        remote = self._find_or_make()
        if self.check is not None and not self.sent:
            self.check(remote)
        text, state, reason = self._make_card(remote)
        operations = self._operations(remote, text)
        if not operations:
            return self._pushed(remote.head, None, None, state, reason)
        return self._commit(remote, operations, state, reason)

    def left_behind(self) -> str:
        """What can be said of the repository after an error that was not of the last step's making."""
        if not self.in_doubt:
            return "Nothing was committed."
        if self.create_pr:
            page = f"{HfApi().endpoint}/{self.repo_id}/discussions"
            return f"Whether the pull request was opened is not known: look at {page} before trying again."
        return "Whether it was committed is not known: a second push finds out, and commits nothing twice."

    def _find_or_make(self) -> Remote:
        api = HfApi(token=self.token)
        branch = None if self.create_pr or self.revision == MAIN else self.revision
        try:
            remote = find_remote(self.repo_id, branch, self.token)
        except RevisionNotFoundError:
            if self.revision.startswith("refs/"):
                raise
            if main := find_remote(self.repo_id, None, self.token):
                main.check_private(self.private)
            api.create_branch(self.repo_id, branch=self.revision, exist_ok=True)
            remote = find_remote(self.repo_id, branch, self.token)
        if remote is None:
            if self.account is not None:
                self.account.check_may_make(self.repo_id)
            api.create_repo(self.repo_id, private=self.private, exist_ok=True)
            if branch is not None:
                api.create_branch(self.repo_id, branch=branch, exist_ok=True)
            remote = find_remote(self.repo_id, branch, self.token)
        if remote is None:
            raise PushError(f"'{self.repo_id}' was made but cannot be found. Try again in a minute. Nothing was sent.")
        remote.check_private(self.private)
        return remote

    def _make_card(self, remote: Remote) -> tuple[str | None, CardState, str]:
        """README.md as it is to be written, if at all, with what is to be said of it."""
        if self.card is None:
            return None, "none", ""
        if self.refused:
            return None, "refused", self.refused
        try:
            theirs = patiently(remote.read_card, f"Looking for a card in '{self.repo_id}'")
        except Exception as error:  # whatever it is: nobody knows what would be overwritten
            return None, "unknown", brief(error)
        try:
            ours = self.card(theirs)
        except ValueError as error:
            return None, "refused", " ".join(str(error).split())
        return (None, "unchanged", "") if ours == theirs else (ours, "written", "")

    def _operations(self, remote: Remote, text: str | None) -> list[Operation]:
        contents: dict[str, Path | bytes] = dict(self.files)
        if text is not None:
            contents[CARD] = text.encode("utf-8")
        adding = [CommitOperationAdd(path, content) for path, content in contents.items()]
        stale = [name for name in remote.files if name not in contents and matches(name, self.replaces)]
        return [*adding, *(CommitOperationDelete(name) for name in stale)]

    def _commit(self, remote: Remote, operations: list[Operation], state: CardState, reason: str) -> Pushed:
        api = HfApi(token=self.token)
        adding = [operation for operation in operations if isinstance(operation, CommitOperationAdd)]
        # contents first, so that what can be seen of the files is looked at right before the commit
        api.preupload_lfs_files(
            self.repo_id, adding, revision=self.revision, create_pr=self.create_pr, free_memory=False
        )
        self._check_unchanged()
        self._check_none_ignored(adding)
        self.sent, self.card_sent = True, (state, reason)
        try:
            info = api.create_commit(
                self.repo_id,
                operations,
                commit_message=self.message,
                commit_description=self.mark,
                revision=self.revision,
                create_pr=self.create_pr,
                parent_commit=remote.head,
            )
        except Exception as error:
            status = status_of(error)
            self.in_doubt = status is None or status >= 500
            if state != "written" or not _is_about_card(error):
                raise
            self.in_doubt = False
            self.refused = " ".join(str(error).split())  # the weights are not held up by their description
            return self.attempt()
        made = None if info.oid == remote.head else info.oid
        if made is None and state == "written":
            state = "unchanged"
        return self._pushed(info.oid, made, info.pr_url, state, reason)

    def _check_unchanged(self) -> None:
        for path, noted in self.stats.items():
            file = self.files[path]
            if isinstance(file, Path) and _stat(file) != noted:
                raise PushError(
                    f"'{file}' changed while it was sent. Wait until nothing writes to it, then push again. Nothing was "
                    "committed."
                )

    def _check_none_ignored(self, adding: list[CommitOperationAdd]) -> None:
        """A `.gitignore` in the repository makes the client leave files out without a word."""
        ignored = [operation.path_in_repo for operation in adding if operation._should_ignore]
        if ignored:
            raise PushError(
                f"The .gitignore of '{self.repo_id}' leaves out '{ignored[0]}'. Take that line out of it, or push to "
                "another repository. Nothing was committed."
            )

    def _find_commit(self) -> Pushed | None:
        """The commit of an earlier try whose acknowledgement was lost."""
        api = HfApi(token=self.token)
        refs = [self.revision]
        if self.create_pr:
            found = api.list_repo_refs(self.repo_id, include_pull_requests=True).pull_requests or []
            numbers = sorted((int(ref.ref.rpartition("/")[2]) for ref in found), reverse=True)
            refs = [f"refs/pr/{number}" for number in numbers[:_NEWEST_PULL_REQUESTS]]
        for ref in refs:
            for commit in api.list_repo_commits(self.repo_id, revision=ref):
                if self.mark in commit.message:
                    number = ref.rpartition("/")[2] if self.create_pr else None
                    page = f"{api.endpoint}/{self.repo_id}/discussions/{number}" if number else None
                    return self._pushed(commit.commit_id, commit.commit_id, page, *self.card_sent)
        return None

    def _pushed(
        self, head: str, commit: str | None, pull_request_url: str | None, state: CardState, reason: str
    ) -> Pushed:
        url = pull_request_url or f"{HfApi().endpoint}/{self.repo_id}/commit/{head}"
        revision = f"refs/pr/{pull_request_url.rpartition('/')[2]}" if pull_request_url else self.revision
        return Pushed(self.repo_id, url, commit, head, revision, pull_request_url, state, reason)


def _is_about_card(error: Exception) -> bool:
    """Whether the Hub, or its client, does not take the metadata of README.md."""
    return isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError) and CARD in str(error)


def _keep_theirs(ours: Path | bytes) -> Callable[[str | None], str]:
    """A card only where there is none."""

    def keep(theirs: str | None) -> str:
        if theirs is not None:
            return theirs
        return ours.decode("utf-8") if isinstance(ours, bytes) else ours.read_text(encoding="utf-8")

    return keep


def _stat(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns
