"""What a push would do, without doing it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass

from huggingface_hub.errors import RevisionNotFoundError

from hf_mpruner.errors import PushError
from hf_mpruner.hub import Remote, brief, explain, find_remote, matches, patiently

from .folder import CARD, read_folder
from .push import Target, check_target_of, secrets_for
from .readme import make_card


@dataclass(frozen=True)
class PushPreview:
    """What a push would send.

    Args:
        repo_id (`str`): with its namespace.
        files (`dict[str, int]`): bytes of each file, the card among them as it would be written.
        removed (`tuple[str, ...]`): weights and heat maps of an earlier push that would go.
        card (`str`): `"new"`, `"changed"`, `"unchanged"`, or `"none"`; `"unknown"` if the Hub cannot say what it has,
            `"refused"` if what it has cannot be merged: then none is written.
        card_diff (`tuple[str, ...]`): lines that the card gains and loses, or why it is not written.
    """

    repo_id: str
    files: dict[str, int]
    removed: tuple[str, ...]
    card: str
    card_diff: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(self.files.values())


def preview_push(
    folder: str | os.PathLike[str], repo_id: str, target: Target, token: str | bool | None = None
) -> PushPreview:
    """Do everything that a push does, but for sending and loading back.

    Args:
        folder (path): the pruned model.
        repo_id (`str`): where it would go.
        target (`Target`): how.
        token (`str` or `bool`, *optional*): to ask the Hub with.

    Raises:
        ValueError, PlanMismatchError, PushError: as `push_pruned_model` does.
    """
    found = read_folder(folder, trust_remote_code=target.trust_remote_code)
    full = check_target_of(found, repo_id, target, token)
    found.check_weights()
    secrets = secrets_for(folder, token)
    contents = found.contents(secrets)
    sizes = {
        name: len(content) if isinstance(content, bytes) else content.stat().st_size
        for name, content in contents.items()
    }
    remote = _find(full, target, token)
    state, text, lines = _preview_card(make_card(found, full, secrets), remote)
    if text is not None:
        sizes[CARD] = len(text.encode("utf-8"))
    else:
        sizes.pop(CARD, None)
    stale = [name for name in (remote.files if remote else ()) if name not in sizes and matches(name, found.replaces)]
    return PushPreview(full, dict(sorted(sizes.items())), tuple(stale), state, tuple(lines))


def _preview_card(
    make: Callable[[str | None], str] | None, remote: Remote | None
) -> tuple[str, str | None, list[str]]:
    """What becomes of README.md, its text if it would be written, and how it would change."""
    if make is None:
        return "none", None, []
    try:
        theirs = None if remote is None else patiently(remote.read_card, f"Reading the card of '{remote.repo_id}'")
    except Exception as error:  # as in a push: nobody knows what would be overwritten
        return "unknown", None, [brief(error)]
    try:
        ours = make(theirs)
    except ValueError as error:
        return "refused", None, [" ".join(str(error).split())]
    state = "new" if theirs is None else "unchanged" if ours == theirs else "changed"
    old, new = (theirs or "").splitlines(), ours.splitlines()
    return state, ours, list(difflib.unified_diff(old, new, "on the Hub", "after the push", lineterm="", n=1))


def _find(repo_id: str, target: Target, token: str | bool | None) -> Remote | None:
    def look() -> Remote | None:
        try:
            return find_remote(repo_id, None if target.create_pr else target.revision, token)
        except RevisionNotFoundError:  # a branch that the push would make, of main
            return find_remote(repo_id, None, token)

    try:
        return patiently(look, f"Looking at '{repo_id}'")
    except Exception as error:
        raise PushError(explain(error, repo_id, f"look at '{repo_id}'", writing=False)) from error
