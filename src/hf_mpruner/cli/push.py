"""Put a pruned model on the Hub: its folder checked, pushed in one commit, loaded back and compared."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from .output import add_format, align, command_line, say, show
from .parser import UsageError

if TYPE_CHECKING:
    from hf_mpruner.hub import Pushed
    from hf_mpruner.publish import PushPreview, Target

EXAMPLES = """examples:
  hf-mpruner push smaller ann/bert-pruned --private
  hf-mpruner push smaller ann/bert --create_pr
  hf-mpruner push smaller ann/bert-pruned --revision k2 --dry_run"""
USAGE = "hf-mpruner push FOLDER REPO_ID ..."
_DIFF_LINES = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `hf-mpruner push`."""
    parser.add_argument("folder", metavar="FOLDER", help="the pruned model, as prune or apply wrote it")
    parser.add_argument("repo_id", metavar="REPO_ID", help="NAMESPACE/NAME; without NAMESPACE, your own")
    parser.add_argument(
        "--revision", metavar="BRANCH", help="branch to push to, made if there is none (default: main)"
    )
    _add_target_flags(parser)
    parser.add_argument(
        "--overwrite", action="store_true", help="replace another model on main (default: it is refused)"
    )
    parser.add_argument("--no_check", action="store_true", help="do not load it back from the Hub to compare")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the Python code that lies in the folder")
    parser.add_argument("--dry_run", action="store_true", help="show what would be sent, send nothing")
    add_format(parser)


def add_push_flags(group: Any) -> None:
    """Flags of `prune` for a push that follows."""
    group.add_argument("--push_to_hub", metavar="REPO_ID", help="then push it to this repository of the Hub")
    _add_target_flags(group)


def run(args: argparse.Namespace) -> int:
    """Push, or show what would be pushed."""
    from hf_mpruner.publish import Target, preview_push

    target = Target(
        private=True if args.private else None,
        revision=args.revision,
        create_pr=args.create_pr,
        overwrite=args.overwrite,
        check=not args.no_check,
        trust_remote_code=args.trust_remote_code,
    )
    _check_words(args.repo_id, target)
    if not args.dry_run:
        return push(args, args.folder, args.repo_id, target)
    preview = preview_push(args.folder, args.repo_id, target)
    values = {**dataclasses.asdict(preview), "bytes": preview.num_bytes}
    show(args, table=_preview_table(preview), values=values, quiet="\n".join(preview.files))
    say(args, "Dry run: nothing was sent. Leave --dry_run out to push.")
    return 0


def push(args: argparse.Namespace, folder: str, repo_id: str, target: Target, *, shown: bool = True) -> int:
    """Push a folder and say where it is; 1 if the card could not be written.

    Args:
        args: of the command.
        folder (`str`): the pruned model.
        repo_id (`str`): where it goes.
        target (`Target`): how.
        shown (`bool`): whether the result is what the command prints to stdout.
    """
    from hf_mpruner.publish import push_pruned_model

    pushed = push_pruned_model(folder, repo_id, **dataclasses.asdict(target))
    if shown:
        show(args, table=_table(pushed), values=dataclasses.asdict(pushed), quiet=pushed.url)
    if pushed.commit is None:
        say(args, f"Everything was on the Hub already: {pushed.url}")
    elif pushed.pull_request_url is not None:
        say(args, f"Opened {pushed.url}. Next: look at it there, then merge it.")
    else:
        say(args, f"Pushed {pushed.url}")
    if target.check:
        say(args, "Loaded back from the Hub and compared with the folder: equal, bit for bit.")
    if pushed.pull_request_url is None:
        say(args, f"Next: {command_line('inspect', pushed.repo_id, *_same_revision(pushed))}")
    return 0 if pushed.card not in ("unknown", "refused") else 1


def check_ahead(args: argparse.Namespace) -> None:
    """Before hours of work: whether what comes out of `prune` may be pushed where it was asked for.

    Raises:
        UsageError: for a name that is none, or flags without `--push_to_hub`.
        PushError: if the push would be refused.
    """
    if args.push_to_hub is None:
        if wrong := [flag for flag in ("private", "create_pr") if getattr(args, flag)]:
            raise UsageError(f"--{wrong[0]} is about a push: name the repository with --push_to_hub REPO_ID.")
        return
    from pathlib import Path

    from hf_mpruner.publish import check_destination

    from .models import load_config

    target = _target_of(args)
    _check_words(args.push_to_hub, target)
    check_destination(
        args.push_to_hub,
        model_type=load_config(args.model, args.revision, args.trust_remote_code).model_type,
        source_model=None if Path(args.model).exists() else args.model,
        private=target.private,
        create_pr=target.create_pr,
    )


def push_written(args: argparse.Namespace, num_removed: int) -> int:
    """The push that `prune` ends with, if one was asked for; the exit code."""
    if args.push_to_hub is None:
        return 0
    from hf_mpruner.publish import push_command

    target = _target_of(args)
    if not num_removed:
        say(
            args,
            f"So nothing was pushed. To push it as it is: {push_command(args.output_dir, args.push_to_hub, target)}",
        )
        return 1
    return push(args, args.output_dir, args.push_to_hub, target, shown=False)


def _add_target_flags(group: Any) -> None:
    group.add_argument(
        "--private", action="store_true", help="make the repository a private one; one that is public is refused"
    )
    group.add_argument("--create_pr", action="store_true", help="open a pull request instead of committing to main")


def _target_of(args: argparse.Namespace) -> Target:
    from hf_mpruner.publish import Target

    return Target(
        private=True if args.private else None, create_pr=args.create_pr, trust_remote_code=args.trust_remote_code
    )


def _check_words(repo_id: str, target: Target) -> None:
    """What cannot be meant is wrong use, known without the Hub."""
    from hf_mpruner.hub import check_repo_id, check_target

    try:
        check_repo_id(repo_id)
        check_target(target.revision, target.create_pr)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _table(pushed: Pushed) -> str:
    rows = [
        ["repository", pushed.repo_id],
        ["revision", pushed.revision],
        ["commit", pushed.commit or f"none was needed, {pushed.head} has everything"],
        ["page", pushed.url],
        ["card", f"{pushed.card}: {pushed.card_reason}" if pushed.card_reason else pushed.card],
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _preview_table(preview: PushPreview) -> str:
    rows = [[name, f"{size:,}"] for name, size in preview.files.items()]
    rows.append(["all", f"{preview.num_bytes:,}"])
    lines = [f"to {preview.repo_id}:", "", align(["file", "bytes"], rows, right=[1])]
    lines += ["", *(f"goes: {name}" for name in preview.removed)] if preview.removed else []
    diff = preview.card_diff
    if diff:
        lines += ["", f"README.md ({preview.card}):", *diff[:_DIFF_LINES]]
    if len(diff) > _DIFF_LINES:
        lines.append(f"... and {len(diff) - _DIFF_LINES} more lines (--format json has all)")
    return "\n".join(lines)


def _same_revision(pushed: Pushed) -> list[str]:
    return [] if pushed.revision == "main" else ["--revision", pushed.revision]
