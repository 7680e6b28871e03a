"""The Hub's errors in words: what happened, and what to do about it."""

from __future__ import annotations

import errno

from huggingface_hub.errors import (
    GatedRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

from .account import LOG_IN
from .retry import TRIES, XET_FAILURE, brief, causes, is_transient, retry_after, server_message, status_of, time_limit

_STATUS_PAGE = "https://status.huggingface.co"


def explain(error: BaseException, repo_id: str, doing: str, *, writing: bool = True) -> str:
    """One or two sentences on an error of the Hub, of the way to it, or of the files that were read.

    Args:
        error: as the Hub's client raised it.
        repo_id (`str`): the repository.
        doing (`str`): what was tried, as the object of "cannot", e.g. `"push to 'ann/bert'"`.
        writing (`bool`): whether it was to change the repository.
    """
    status = status_of(error)
    return f"Cannot {doing}: {_answered(error, repo_id, status, writing) if status else _unanswered(error)}"


def _answered(error: BaseException, repo_id: str, status: int, writing: bool) -> str:
    said = server_message(error)
    quoted = f"{status}: {said}" if said else str(status)
    if "BadDigest" in said or "IncompleteBody" in said:
        return f"a file changed while it was sent ({quoted}). Wait until nothing writes to it, then try again."
    if any(isinstance(found, GatedRepoError) for found in causes(error)):
        return (
            f"'{repo_id}' is gated ({quoted}). Ask for access on its page, and use a token of the account that has it."
        )
    if any(isinstance(found, RevisionNotFoundError) for found in causes(error)):
        return f"'{repo_id}' has no such revision ({quoted}). Look at its branches, or leave the revision out."
    if any(isinstance(found, RepositoryNotFoundError) for found in causes(error)):
        return (
            f"there is no '{repo_id}', or not for this token ({quoted}). Check the name. If it is private: {LOG_IN}."
        )
    if status == 401:
        return f"the Hub does not know the token ({quoted}). {LOG_IN}; HF_TOKEN wins over a login."
    if status == 403 and not writing:
        return f"the token may not read '{repo_id}' ({quoted}). Use one of an account that may: {LOG_IN}."
    if status == 403:
        return (
            f"the token may not do that in '{repo_id}' ({quoted}). Use a token with write permission for it, push to "
            "a repository of your own, or propose the change with --create_pr (create_pr=True)."
        )
    if status == 412:
        return f"others commit to '{repo_id}' faster than this ({quoted}). Try again, or with --create_pr (create_pr=True)."
    if status == 429:
        asked = retry_after(error)
        when = f"in {asked:g} seconds" if asked is not None else "in some minutes"
        return f"the Hub had too many requests of this account ({quoted}). Try again {when}."
    if status >= 500:
        return f"the Hub answers {quoted}, at the last of {TRIES} tries too. Try again later; {_STATUS_PAGE} shows its state."
    return f"the Hub refuses it ({quoted}). Change what it names, then try again."


def _unanswered(error: BaseException) -> str:
    if any(isinstance(found, OfflineModeIsEnabled) for found in causes(error)):
        return "offline mode is on. Unset HF_HUB_OFFLINE (and TRANSFORMERS_OFFLINE), then try again."
    if any(isinstance(found, httpx.TimeoutException) for found in causes(error)):
        return (
            f"the Hub did not answer within {time_limit():g} seconds, at the last of {TRIES} tries too. Try "
            f"again later; {_STATUS_PAGE} shows its state."
        )
    text = brief(error)
    if XET_FAILURE in text:
        return f"the Hub's storage failed ({text}). Try again; HF_HUB_DISABLE_XET=1 in front of it sends files another way."
    if type(error).__name__ == "XetAuthenticationError":
        return f"the Hub's storage does not take the token ({text}). {LOG_IN}."
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full ({text}). Make room, then try again."
    if isinstance(error, FileNotFoundError):
        return f"a file went away while it was read ({text}). Put it back, then try again."
    if is_transient(error):
        return f"the Hub cannot be reached ({text}). Check the network, and the proxy if there is one, then try again."
    return f"{text}. Set HF_MPRUNER_DEBUG=1 for the whole trace."
