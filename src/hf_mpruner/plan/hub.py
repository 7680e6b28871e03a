"""A plan's way to the Hub and back."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_mpruner.errors import PushError
from hf_mpruner.hub import Pushed, Secrets, check_repo_id, commit_files, explain, find_leaks, status_of


def find_plan_file(
    path: str | os.PathLike[str], name: str, revision: str | None = None, token: str | bool | None = None
) -> Path:
    """The file of a plan: as given, in a folder, or downloaded from the Hub.

    Raises:
        FileNotFoundError, PermissionError, ConnectionError: see `PruningPlan.from_pretrained`.
    """
    file = Path(path).expanduser()
    if file.is_file():
        return file
    if file.is_dir():
        if not (file / name).is_file():
            raise FileNotFoundError(
                f"No {name} at '{path}': the folder holds none. Pass the folder that save_pretrained wrote."
            )
        return file / name
    try:
        repo_id = check_repo_id(os.fspath(path))
    except ValueError:
        raise FileNotFoundError(
            f"No {name} at '{path}': there is no such file or folder, and the Hub has no such names. Pass the folder "
            "that save_pretrained wrote, or a model id, e.g. 'ann/bert-pruned'."
        ) from None
    return _download(repo_id, name, revision, token)


def read_plan_file(
    path: str | os.PathLike[str],
    name: str,
    kind: str,
    revision: str | None = None,
    token: str | bool | None = None,
) -> dict[str, Any]:
    """What a plan's file holds: as given, in a folder, or on the Hub.

    Args:
        path (path or `str`): the file, the folder, or a model id.
        name (`str`): of the file in a folder or repository.
        kind (`str`): of plan, for messages: "pruning plan".
        revision (`str`, *optional*): of the repository.
        token (`str` or `bool`, *optional*): for a private one.

    Raises:
        FileNotFoundError, PermissionError, ConnectionError: see `PruningPlan.from_pretrained`.
        ValueError: if the file holds no plan.
    """
    file = find_plan_file(path, name, revision, token)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"'{path}' holds no {kind}: {file.name} is no JSON ({error}).") from error
    if not isinstance(values, dict):
        raise ValueError(f"'{path}' holds no {kind}: {file.name} is a {type(values).__name__}.")
    return values


def push_plan_file(repo_id: str, name: str, values: Mapping[str, Any], **target: Any) -> Pushed:
    """Commit a plan's values as its file, once nothing in them is private.

    Raises:
        PushError: for a local path or a token in it, and as `commit_files` does.
    """
    content = (json.dumps(values, indent=2, allow_nan=False) + "\n").encode("utf-8")
    if found := find_leaks(content, Secrets.of_machine()):
        raise PushError(
            f"{name} holds {found[0]}, which is nobody else's business. Take it out, e.g. "
            "dataclasses.replace(plan, source_model=None), then push again. Nothing was sent."
        )
    return commit_files(repo_id, {name: content}, message="Add a pruning plan", **target)


def _download(repo_id: str, name: str, revision: str | None, token: str | bool | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        GatedRepoError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f" at revision '{revision}'" if revision else ""
    try:
        return Path(hf_hub_download(repo_id, name, revision=revision, token=token))
    except RemoteEntryNotFoundError as error:
        raise FileNotFoundError(
            f"No {name} at '{repo_id}': the Hub has that repository{at}, but no plan in it. Pass one that hf_mpruner "
            "pushed, or the revision that has the plan."
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"No {name} at '{repo_id}': the repository has no revision '{revision}'. Pass a branch, tag or commit of it."
        ) from error
    except RepositoryNotFoundError as error:
        if isinstance(error, GatedRepoError):
            raise PermissionError(explain(error, repo_id, f"read {name} of '{repo_id}'", writing=False)) from error
        raise FileNotFoundError(
            f"No {name} at '{repo_id}': there is no such folder here, and no such repository on the Hub, or it is "
            "private. Check the name; for a private one log in with `hf auth login` or set HF_TOKEN."
        ) from error
    except OSError as error:  # among them: not cached, and the Hub did not say whether it has it
        kind = PermissionError if status_of(error) in (401, 403) else ConnectionError
        raise kind(explain(error, repo_id, f"read {name} of '{repo_id}'", writing=False)) from error
