"""What a push would do, without doing it."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from fnmatch import fnmatchcase

from huggingface_hub.errors import RevisionNotFoundError

from hf_mpruner.hub import WEIGHTS, Remote, find_remote, patiently

from .folder import CARD, read_folder
from .push import Target, check_target_of, secrets_for
from .readme import make_card


@dataclass(frozen=True)
class PushPreview:
    """What a push would send.

    Args:
        repo_id (`str`): with its namespace.
        files (`dict[str, int]`): bytes of each file, the card among them as it would be written.
        removed (`tuple[str, ...]`): weights of an earlier push that would go.
        card (`str`): `"new"`, `"changed"`, `"unchanged"`, or `"none"`.
        card_diff (`tuple[str, ...]`): lines that the card gains and loses.
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
    make = make_card(found, full, secrets)
    state, lines = "none", []
    if make is not None:
        theirs = None if remote is None else patiently(remote.read_card, f"Reading the card of '{full}'")
        ours = make(theirs)
        sizes[CARD] = len(ours.encode("utf-8"))
        state = "new" if theirs is None else "unchanged" if ours == theirs else "changed"
        lines = list(
            difflib.unified_diff(
                (theirs or "").splitlines(), ours.splitlines(), "on the Hub", "after the push", lineterm="", n=1
            )
        )
    stale = [
        name
        for name in (remote.files if remote else ())
        if name not in sizes and any(fnmatchcase(name, pattern) for pattern in WEIGHTS)
    ]
    return PushPreview(full, dict(sorted(sizes.items())), tuple(stale), state, tuple(lines))


def _find(repo_id: str, target: Target, token: str | bool | None) -> Remote | None:
    try:
        return find_remote(repo_id, None if target.create_pr else target.revision, token)
    except RevisionNotFoundError:  # a branch that the push would make, of main
        return find_remote(repo_id, None, token)
