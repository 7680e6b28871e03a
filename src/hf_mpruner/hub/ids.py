"""Names of repositories: what the Hub would refuse is refused here, with the name that was probably meant."""

from __future__ import annotations

import re
from pathlib import Path

_MAX_LENGTH = 96
_ENDPOINTS = re.compile(r"^(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?:models/)?")


def check_repo_id(repo_id: str) -> str:
    """Check the name of a model repository, without asking the Hub.

    Args:
        repo_id (`str`): `"namespace/name"`, or `"name"` for a repository of whoever is logged in.

    Returns:
        `str`: the same name.

    Raises:
        ValueError: for a path, a web address, more than one slash, or characters that the Hub does not take.

    Example:
        >>> check_repo_id("ann/bert-pruned")
        'ann/bert-pruned'
        >>> check_repo_id("./bert-pruned")
        Traceback (most recent call last):
        ...
        ValueError: repo_id='./bert-pruned' is a path. A repository on the Hub is named 'NAMESPACE/NAME': type ...
    """
    if not isinstance(repo_id, str) or not repo_id.strip():
        raise ValueError(f"repo_id={repo_id!r} names no repository. Type 'NAMESPACE/NAME', e.g. 'ann/bert-pruned'.")
    instead = f"type {_suggest(repo_id)!r}"
    if _ENDPOINTS.match(repo_id) or "://" in repo_id:
        raise ValueError(f"repo_id={repo_id!r} is a web address. The repository alone is meant: {instead}.")
    if repo_id.startswith((".", "/", "~")) or "\\" in repo_id or Path(repo_id).is_absolute():
        raise ValueError(
            f"repo_id={repo_id!r} is a path. A repository on the Hub is named 'NAMESPACE/NAME': {instead}."
        )
    if "/" not in repo_id and Path(repo_id).is_dir():
        raise ValueError(
            f"repo_id={repo_id!r} is a folder here. If a repository of that name is meant, put your name on the Hub "
            f"before it: type {_suggest(repo_id)!r}."
        )
    if repo_id.count("/") > 1:
        raise ValueError(
            f"repo_id={repo_id!r} has {repo_id.count('/')} slashes, one is allowed: 'NAMESPACE/NAME'. A push fills a "
            f"repository, not a folder in one: {instead}."
        )
    for part in repo_id.split("/"):
        if reason := _find_fault(part):
            raise ValueError(f"repo_id={repo_id!r}: {reason}. E.g. {instead}.")
    return repo_id


def _find_fault(part: str) -> str:
    """What the Hub has against a namespace or a name; empty if nothing."""
    if not part:
        return "nothing stands beside the slash. Both a namespace and a name are needed"
    if len(part) > _MAX_LENGTH:
        return f"'{part[:12]}...' has {len(part)} characters, at most {_MAX_LENGTH} are allowed"
    if wrong := sorted(set(re.sub(r"[A-Za-z0-9._-]", "", part))):
        return f"{', '.join(map(repr, wrong))} in '{part}' is not allowed. Letters, digits, '-', '_' and '.' are"
    if part[0] in "-." or part[-1] in "-." or "--" in part or ".." in part:
        return f"'{part}' must neither begin nor end with '-' or '.', nor have two of them in a row"
    if part.endswith(".git"):
        return f"'{part}' must not end with '.git'"
    return ""


def _suggest(repo_id: str) -> str:
    """The nearest name that the Hub takes; NAMESPACE and NAME stand for what cannot be known."""
    address, bare = _ENDPOINTS.match(repo_id), _ENDPOINTS.sub("", repo_id)
    parts = [part for part in re.split(r"[/\\]+", bare.rpartition("://")[2]) if part not in ("", "~", ".", "..")]
    clean = [_cleaned(part) for part in (parts[:2] if address else parts)]
    if repo_id.startswith((".", "/", "~")) or len(clean) != 2:
        return f"NAMESPACE/{(clean and clean[-1]) or 'NAME'}"
    return f"{clean[0] or 'NAMESPACE'}/{clean[1] or 'NAME'}"


def _cleaned(part: str) -> str:
    part = re.sub(r"[^A-Za-z0-9._-]+", "-", part.removesuffix(".git"))
    return re.sub(r"-{2,}|\.{2,}", "-", part)[:_MAX_LENGTH].strip("-.")
