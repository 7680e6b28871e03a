"""`push_pruned_model`: a model in memory or in a folder, checked, pushed in one commit, loaded back and compared."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from transformers import PreTrainedModel

from hf_mpruner.artifacts import write_artifacts, write_narrowed
from hf_mpruner.config import PruningConfig
from hf_mpruner.errors import MPrunerError, PushError
from hf_mpruner.hub import Pushed, Secrets, check_repo_id, check_target, commit_files
from hf_mpruner.narrowing import NarrowingReport
from hf_mpruner.plan import PruningPlan

from .compare import compare_pushed
from .destination import MAIN, check_destination, check_not_taken
from .fits import Plan, Report, check_fits
from .folder import CARD, ModelFolder, read_folder
from .readme import make_card

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """Where a push goes, and how: what the command line has flags for."""

    private: bool | None = None
    revision: str | None = None
    create_pr: bool = False
    overwrite: bool = False
    check: bool = True
    trust_remote_code: bool = False


def push_pruned_model(
    model_or_folder: PreTrainedModel | str | os.PathLike[str],
    repo_id: str,
    *,
    report: Report | None = None,
    config: PruningConfig | None = None,
    processing_class: Any = None,
    output_dir: str | os.PathLike[str] | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    overwrite: bool = False,
    check: bool = True,
    inputs: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    token: str | bool | None = None,
) -> Pushed:
    """Put a pruned or narrowed model on the Hub: weights, processor, plan, report and card, in one commit.

    A folder is checked first: it loads, its plan fits the weights, plan and report are of one run, and no token and no
    local path is in it. A README.md that others wrote is kept: only the section of hf_mpruner is replaced. What was
    pushed is loaded back from the Hub, and compared with the folder bit for bit.

    Another model on main is not replaced: a repository may be pushed to if it holds no model, or one that hf_mpruner
    pushed (a plan beside its report) of the same type and, as far as both say, made from the same original. Otherwise
    push to a branch, open a pull request, or pass `overwrite=True`.

    Args:
        model_or_folder (`PreTrainedModel` or path): a pruned model in memory, or a folder that holds one.
        repo_id (`str`): the repository; it is made if there is none. Without a namespace, the user's own.
        report (`PruningReport` or `NarrowingReport`, *optional*): how it was pruned; a model in memory needs it.
        config (`PruningConfig`, *optional*): what was asked for; by default what the report says.
        processing_class (*optional*): tokenizer or processor that is saved beside a model in memory.
        output_dir (path, *optional*): where a model in memory is written. By default a folder in `HF_HOME` that is
            deleted once it is on the Hub, and stays if it is not.
        private (`bool`, *optional*): for a repository that is made here.
        revision (`str`, *optional*): a branch, which is made if there is none; by default `"main"`.
        create_pr (`bool`): open a pull request instead.
        overwrite (`bool`): put it in the place of another model on main.
        check (`bool`): load it back and compare. False saves a download as large as the model.
        inputs (`dict`, *optional*): arguments of `forward` to compare outputs on; by default some that fit.
        trust_remote_code (`bool`): whether Python code in the folder may be run to load it.
        token (`str` or `bool`, *optional*): by default the one of `HF_TOKEN` or of `hf auth login`.

    Returns:
        `Pushed`: the commit, its page, and what became of the card.

    Raises:
        PushError: if something did not get there. The folder is complete, and the text has the command that finishes it.
        ValueError, PlanMismatchError: for a name, a folder, a plan or a report that cannot be meant; nothing was sent.
    """
    target = Target(private, revision, create_pr, overwrite, check, trust_remote_code)
    if isinstance(model_or_folder, str | os.PathLike):
        _check_alone(report=report, config=config, processing_class=processing_class, output_dir=output_dir)
        return _push_folder(Path(model_or_folder), repo_id, target, inputs, token)
    check_repo_id(repo_id)
    check_target(revision, create_pr)
    if report is None:
        raise ValueError(
            f"report=None: a {type(model_or_folder).__name__} in memory does not know how it was pruned. Pass "
            "report=callback.report, or what prune_ returned; or push the folder that holds it."
        )
    check_fits(model_or_folder, report.plan)
    full = _check_destination(repo_id, target, model_or_folder.config.model_type, report.plan.source_model, token)
    folder, stays = _staging(full, output_dir)
    _write(folder, model_or_folder, processing_class, report, config)
    pushed = _push_folder(folder, full, target, inputs, token)
    if not stays and pushed.card not in ("unknown", "refused"):
        shutil.rmtree(folder, ignore_errors=True)
    return pushed


def _check_alone(**beside: Any) -> None:
    if given := [name for name, value in beside.items() if value is not None]:
        raise ValueError(
            f"{given[0]} is for a model in memory; of a folder, what lies in it is pushed. Leave {given[0]} out, or pass "
            "the model."
        )


def push_command(folder: str | os.PathLike[str], repo_id: str, target: Target) -> str:
    """The command that does the same push again, for the shell.

    Example:
        >>> push_command("my runs/out", "ann/bert", Target(private=True, create_pr=True))
        "hf-mpruner push 'my runs/out' ann/bert --private --create_pr"
    """
    words = ["hf-mpruner", "push", os.fspath(folder), repo_id]
    words += ["--private"] if target.private else []
    words += ["--revision", target.revision] if target.revision is not None else []
    words += [f"--{name}" for name in ("create_pr", "overwrite", "trust_remote_code") if getattr(target, name)]
    words += [] if target.check else ["--no_check"]
    return shlex.join(words)


def _write(
    folder: Path, model: PreTrainedModel, processing_class: Any, report: Report, config: PruningConfig | None
) -> None:
    """Everything of a model in memory, whole or not at all."""
    try:
        if isinstance(report, NarrowingReport):
            write_narrowed(folder, model=model, processing_class=processing_class, report=report)
        else:
            settings = config or (PruningConfig.from_dict(report.record.config) if report.record.config else None)
            write_artifacts(folder, model=model, processing_class=processing_class, report=report, config=settings)
    except Exception as error:
        if isinstance(error, MPrunerError | ValueError):
            raise
        raise PushError(
            f"The model cannot be written to '{folder}' before it is pushed: {' '.join(str(error).split())}. "
            f"{_free(folder)}Make room there, or pass output_dir on another disk. The model in memory is as it was, and "
            "nothing was sent."
        ) from error


def _push_folder(
    folder: Path, repo_id: str, target: Target, inputs: Mapping[str, Any] | None, token: str | bool | None
) -> Pushed:
    check_repo_id(repo_id)
    check_target(target.revision, target.create_pr)
    found = read_folder(folder, trust_remote_code=target.trust_remote_code)
    try:
        full = check_target_of(found, repo_id, target, token)
        found.check_weights()
        secrets = secrets_for(folder, token)
        contents = found.contents(secrets)
        pushed = commit_files(
            full,
            contents,
            message=_message(found.model_class.__name__, found.plan),
            private=target.private,
            revision=target.revision,
            create_pr=target.create_pr,
            token=token,
            card=make_card(found, full, secrets),
            replaces=found.replaces,
            check=_allowed(found, target),
        )
    except PushError as error:
        raise PushError(f"{error} {_finish(folder, repo_id, target)}") from error
    # from here on it is on the Hub: another pull request would be a second one
    again = replace(target, create_pr=False, revision=pushed.revision) if pushed.pull_request_url else target
    if pushed.card in ("unknown", "refused"):
        logger.warning(
            "%s of '%s' was not written (%s): the rest is there, %s. %s",
            CARD, pushed.repo_id, pushed.card_reason, pushed.url, _finish(folder, pushed.repo_id, again),
        )  # fmt: skip
    if target.check:
        try:
            compared = compare_pushed(found, pushed, inputs, token)
        except PushError as error:
            raise PushError(f"{error} {_finish(folder, pushed.repo_id, again)}") from error
        if not compared:
            logger.info("%s: weights were compared, outputs not, as no inputs are known.", pushed.repo_id)
    return pushed


def _message(name: str, plan: Plan) -> str:
    if isinstance(plan, PruningPlan):
        return f"{name} without {plan.num_removed} layers, pruned with hf_mpruner"
    what = " and ".join(sorted({unit.what for unit in plan.units.values()})) or "neurons"
    return f"{name} without {plan.num_removed} {what}, narrowed with hf_mpruner"


def secrets_for(folder: str | os.PathLike[str], token: str | bool | None) -> Secrets:
    """What must not be in a folder that is pushed with a token."""
    return Secrets.of_machine(extra_paths=[folder], extra_tokens=[token if isinstance(token, str) else None])


def check_target_of(found: ModelFolder, repo_id: str, target: Target, token: str | bool | None) -> str:
    """Ask whether a folder may go there; the repository's name with its namespace."""
    return _check_destination(repo_id, target, found.config.model_type, found.plan.source_model, token)


def _check_destination(
    repo_id: str, target: Target, model_type: str | None, source_model: str | None, token: str | bool | None
) -> str:
    return check_destination(
        repo_id,
        model_type=model_type,
        source_model=source_model,
        private=target.private,
        revision=target.revision,
        create_pr=target.create_pr,
        overwrite=target.overwrite,
        token=token,
    )


def _allowed(found: ModelFolder, target: Target) -> Callable[[Any], None] | None:
    if target.create_pr or target.overwrite or target.revision not in (None, MAIN):
        return None
    return check_not_taken(found.config.model_type, found.plan.source_model)


def _finish(folder: Path, repo_id: str, target: Target) -> str:
    return f"The complete folder is '{folder}'. To finish: {push_command(folder, repo_id, target)}"


def _staging(repo_id: str, output_dir: str | os.PathLike[str] | None) -> tuple[Path, bool]:
    """Where a model in memory is written, and whether that was asked for."""
    if output_dir is not None:
        return Path(output_dir).expanduser().absolute(), True
    name = f"{repo_id.replace('/', '--')}-{uuid.uuid4().hex[:8]}"
    return Path(constants.HF_HOME) / "hf_mpruner" / name, False


def _free(folder: Path) -> str:
    ancestor = next(parent for parent in folder.parents if parent.exists())
    return f"{shutil.disk_usage(ancestor).free:,} bytes are free there. "
