"""Write card, plots and page of a pruned model again, from the report in its folder. Nothing is measured."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .output import add_format, command_line, say, show
from .parser import UsageError

if TYPE_CHECKING:
    from hf_mpruner.config import PruningConfig
    from hf_mpruner.narrowing import NarrowingReport
    from hf_mpruner.report import PruningReport

EXAMPLES = """examples:
  hf-mpruner card smaller
  hf-mpruner card smaller --repo_id ann/bert-emotion-small --license apache-2.0 --language en
  hf-mpruner card smaller --dry_run"""
USAGE = "hf-mpruner card FOLDER ..."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `hf-mpruner card`."""
    parser.add_argument("folder", metavar="FOLDER", help="of a pruned or narrowed model: config.json and its report")
    parser.add_argument(
        "--repo_id", help="where the card's code loads the model from (default: the folder it lies in)"
    )
    parser.add_argument("--base_model", help="Hub id of the model that was pruned, if the report does not know it")
    parser.add_argument("--license", help="the Hub's name of it, e.g. apache-2.0")
    parser.add_argument("--language", nargs="+", help="ISO 639 codes, e.g. en")
    parser.add_argument("--tags", nargs="+", metavar="TAG", help="beside those of hf_mpruner")
    parser.add_argument("--output", metavar="FILE", help="write the card there and nothing else")
    parser.add_argument("--dry_run", action="store_true", help="print the card and write nothing")
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="run the Python code that comes with the model (default: a model that needs it is refused)",
    )
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Check that report and model belong together, then write; what a person wrote in the card stays."""
    from hf_mpruner.artifacts import CARD_NAME, find_pictures, read_card, write_pages
    from hf_mpruner.card import ModelFacts, merge_card, render_card
    from hf_mpruner.narrowing import NarrowingReport, render_narrowing_card
    from hf_mpruner.storage import write_bytes

    folder = Path(args.folder)
    wanted = _metadata(args)
    report = _report(folder)
    model = ModelFacts.of_folder(folder)
    _check_same_model(folder, report, args.trust_remote_code)
    title = args.repo_id.rpartition("/")[2] if args.repo_id else folder.resolve().name
    made: dict[str, Any] = {"model": model, "title": title, "repo_id": args.repo_id, **wanted}
    present = read_card(folder)
    written: list[str] = []
    try:
        if isinstance(report, NarrowingReport):
            text = merge_card(present, render_narrowing_card(report, **made))
            if not (args.dry_run or args.output):
                written = [str(write_bytes(folder / CARD_NAME, text.encode("utf-8")))]
        elif args.dry_run or args.output:
            made["config"] = _config(folder)
            text = merge_card(present, render_card(report, pictures=find_pictures(folder), **made))
        else:
            made["config"] = _config(folder)
            written = [str(folder / name) for name in write_pages(folder, report, present=present, **made)]
            text = read_card(folder) or ""
    except ValueError as error:
        raise UsageError(str(error)) from error
    if args.output and not args.dry_run:
        written = [str(write_bytes(Path(args.output), text.encode("utf-8")))]
    shown = text if args.dry_run else "\n".join(written)
    show(args, table=shown, values={"written": written, "card": text}, quiet=shown)
    _say_more(args, text, wanted, CARD_NAME)
    return 0


def _metadata(args: argparse.Namespace) -> dict[str, Any]:
    """What was typed for the card's metadata.

    Raises:
        UsageError: for a name that the Hub does not take.
    """
    from hf_mpruner.card.check import is_hub_id
    from hf_mpruner.hub import check_repo_id

    if not Path(args.folder).is_dir():
        raise UsageError(f"'{args.folder}' is no folder. Name the one that hf-mpruner prune or apply wrote.")
    if args.repo_id is not None:
        try:
            check_repo_id(args.repo_id)
        except ValueError as error:
            raise UsageError(str(error)) from error
    if args.base_model is not None and not is_hub_id(args.base_model):
        raise UsageError(
            f"--base_model {args.base_model} is no model id of the Hub (OWNER/NAME). Leave it out for a model that is not "
            "there: the card then says so."
        )
    given = {name: getattr(args, name) for name in ("base_model", "license", "language", "tags")}
    return {name: value for name, value in given.items() if value is not None}


def _report(folder: Path) -> PruningReport | NarrowingReport:
    from hf_mpruner.narrowing import NARROWING_REPORT_NAME, NarrowingReport
    from hf_mpruner.record import RECORD_NAME, PruningRecord
    from hf_mpruner.report import REPORT_NAME, PruningReport

    try:
        if (folder / REPORT_NAME).is_file():
            return PruningReport.load(folder)
        if (folder / RECORD_NAME).is_file():
            return PruningReport(PruningRecord.load(folder))
        if (folder / NARROWING_REPORT_NAME).is_file():
            return NarrowingReport.load(folder)
    except (KeyError, TypeError) as error:
        raise UsageError(f"The report of '{folder}' is none of hf_mpruner's: {error!r} is missing in it.") from error
    raise UsageError(
        f"'{folder}' has no {REPORT_NAME} and no {RECORD_NAME}, and no {NARROWING_REPORT_NAME}: a card says only what was "
        "measured. Name a folder that hf-mpruner prune, apply or narrow wrote."
    )


def _config(folder: Path) -> PruningConfig | None:
    from hf_mpruner.config import CONFIG_NAME, PruningConfig

    return PruningConfig.from_pretrained(folder) if (folder / CONFIG_NAME).is_file() else None


def _check_same_model(folder: Path, report: PruningReport | NarrowingReport, trust_remote_code: bool) -> None:
    """Compare what the report and the plan leave with what the config has.

    Raises:
        PlanMismatchError: if they are of different models.
    """
    from hf_mpruner.narrowing import NarrowingReport

    if isinstance(report, NarrowingReport):
        _check_same_width(folder, report, trust_remote_code)
    else:
        _check_same_layers(folder, report, trust_remote_code)


def _check_same_width(folder: Path, report: NarrowingReport, trust_remote_code: bool) -> None:
    from hf_mpruner.errors import PlanMismatchError
    from hf_mpruner.plan import WIDTH_PLAN_NAME, WidthPlan
    from hf_mpruner.publish.fits import check_fits, check_one_run

    from .models import build_empty, load_config

    model = build_empty(load_config(str(folder), None, trust_remote_code), trust_remote_code)
    try:
        check_fits(model, report.plan)
    except PlanMismatchError as error:
        raise PlanMismatchError(f"The report in '{folder}' is not of the model there. {error}") from error
    if (folder / WIDTH_PLAN_NAME).is_file():
        check_one_run(folder, (), WidthPlan.from_pretrained(folder), report)


def _check_same_layers(folder: Path, report: PruningReport, trust_remote_code: bool) -> None:
    from hf_mpruner.card.prose import kept_now
    from hf_mpruner.errors import PlanMismatchError
    from hf_mpruner.plan import PLAN_NAME, PruningPlan

    from .models import build_empty, load_config

    kept = kept_now(report.record)
    model = build_empty(load_config(str(folder), None, trust_remote_code), trust_remote_code)
    modules = dict(model.named_modules())
    for path, layers in kept.items():
        blocks: Any = modules.get(path)
        found = f"{len(list(blocks.children()))} layers" if blocks is not None else "no such stack"
        if found != f"{len(layers)} layers":
            raise PlanMismatchError(
                f"The report in '{folder}' leaves {len(layers)} layers in '{path}', but the model there ({type(model).__name__}) "
                f"has {found}: they are not of one run. Put the report.json that belongs to this model beside it."
            )
    if (folder / PLAN_NAME).is_file():
        plan = PruningPlan.from_pretrained(folder).kept
        if {path: list(layers) for path, layers in plan.items()} != kept:
            raise PlanMismatchError(
                f"The {PLAN_NAME} in '{folder}' keeps {_shown(plan)}, but the report there keeps {_shown(kept)}: they are not "
                "of one run. Put the two files of one run there."
            )


def _shown(kept: Any) -> str:
    return ", ".join(f"{list(layers)} of '{path}'" for path, layers in kept.items())


def _say_more(args: argparse.Namespace, text: str, wanted: dict[str, Any], name: str) -> None:
    from hf_mpruner.card import check_card
    from hf_mpruner.card.front import read_metadata

    metadata = read_metadata(text)
    for key, value in wanted.items():
        if key != "tags" and metadata.get(key) not in (value, [value]):
            say(args, f"{name} already said {key}: {metadata.get(key)!r}, which was kept. Change it there by hand.")
    try:
        check_card(text)
    except ValueError as error:
        say(args, f"Warning: {error} It was there before; correct it by hand.")
    if args.dry_run:
        say(args, "Dry run: nothing was written. Leave --dry_run out to write it.")
    elif not args.output:
        say(args, f"Next: {command_line('push', args.folder, args.repo_id or 'NAMESPACE/NAME')}")
