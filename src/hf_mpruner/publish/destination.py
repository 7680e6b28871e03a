"""Whether a pruned model may go to a repository: known before any work is done, and looked at again before the commit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hf_mpruner.errors import MPrunerError, PushError
from hf_mpruner.hub import Remote, check_repo_id, check_target, explain, find_account, find_remote, patiently
from hf_mpruner.narrowing import NARROWING_REPORT_NAME
from hf_mpruner.plan import PLAN_NAME, WIDTH_PLAN_NAME
from hf_mpruner.record import RECORD_NAME
from hf_mpruner.report import REPORT_NAME

MAIN = "main"
# A plan, and what must lie beside one of them so that hf_mpruner has pushed it.
_OURS = {PLAN_NAME: {REPORT_NAME, RECORD_NAME}, WIDTH_PLAN_NAME: {NARROWING_REPORT_NAME}}


def check_destination(
    repo_id: str,
    *,
    model_type: str | None = None,
    source_model: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    overwrite: bool = False,
    token: str | bool | None = None,
) -> str:
    """Ask the Hub whether a push would be allowed, without sending anything.

    Args:
        repo_id (`str`): the repository; without a namespace, the user's own.
        model_type (`str`, *optional*): `config.model_type` of what is to be pushed.
        source_model (`str`, *optional*): the model that it was made from.
        private (`bool`, *optional*): whether it must be private.
        revision (`str`, *optional*): a branch; what lies on main is not looked at then.
        create_pr (`bool`): it will be a pull request, which needs no right and replaces nothing.
        overwrite (`bool`): another model may be replaced.
        token (`str` or `bool`, *optional*): by default the one of `HF_TOKEN` or of `hf auth login`.

    Returns:
        `str`: the name with its namespace.

    Raises:
        ValueError: for a name that is none, or a `revision` beside `create_pr`.
        PushError: for a token that is missing, unknown or only reads, for a repository of somebody else, for one that is
            public where a private one was asked for, or that holds another model; and if the Hub cannot say.
    """
    check_repo_id(repo_id)
    check_target(revision, create_pr)

    def ask() -> str:
        account = find_account(token)
        full = account.complete(repo_id)
        account.check(full, create_pr=create_pr)
        remote = find_remote(full, None, token)
        if remote is None:
            account.check_may_make(full)
        else:
            remote.check_private(private)
            if not (create_pr or overwrite or revision not in (None, MAIN)):
                check_not_taken(model_type, source_model)(remote)
        return full

    try:
        return patiently(ask, f"Asking about '{repo_id}'")
    except MPrunerError:
        raise
    except Exception as error:
        text = explain(error, repo_id, f"push to '{repo_id}'")
        raise PushError(f"{text} Nothing was sent.") from error


def check_not_taken(model_type: str | None, source_model: str | None) -> Callable[[Remote], None]:
    """A check for `commit_files`: what lies on main may be replaced.

    Allowed are a repository without a model, and one with a pruned model that hf_mpruner pushed (a plan beside its
    report) for the same type and, as far as both say, the same original. Everything else is somebody's model: it is
    replaced only if that is asked for, and can be proposed or put on a branch.
    """

    def check(remote: Remote) -> None:
        holds = _find_other(remote, model_type, source_model)
        if holds:
            name = f"{remote.repo_id}-pruned"
            raise PushError(
                f"'{remote.repo_id}' holds {holds}. A push would put another model in its place: push to a new name, e.g. "
                f"'{name}', to a branch (--revision pruned), propose it (--create_pr), or replace it with --overwrite "
                "(overwrite=True). Nothing was sent."
            )

    return check


def _find_other(remote: Remote, model_type: str | None, source_model: str | None) -> str:
    """Whose model it is, in words; empty if it is none, or ours."""
    theirs = remote.model_type
    if not remote.weights and (theirs is None or theirs == model_type):
        return ""
    kind = f"a model of type '{theirs}'" if theirs else "a model"
    if theirs is not None and model_type is not None and theirs != model_type:
        return f"{kind}, and this one is of type '{model_type}'"
    files = set(remote.files)
    name = next((plan for plan, beside in _OURS.items() if plan in files and beside & files), None)
    if name is None:
        return f"{kind} that hf_mpruner did not push ('{remote.weights[0]}' without a plan and a report)"
    plan: Any = remote.read_json(name) or {}
    source = plan.get("source_model")
    if source and source_model and source != source_model:
        return f"a pruned '{source}', and this one was made from '{source_model}'"
    return ""
