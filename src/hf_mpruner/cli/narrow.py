"""Take feed-forward neurons or attention heads out of every layer, and save the narrower model. Nothing is trained.

Which ones is measured on data, or stands in a plan that was made before (`--plan`).
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from .flags import COLUMNS, add_data_flags
from .output import add_format, command_line, say, show
from .parser import UsageError, same_trust

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from hf_mpruner.narrowing import NarrowingReport
    from hf_mpruner.plan import WidthPlan

EXAMPLES = """examples:
  hf-mpruner narrow MODEL --dataset DATA --fraction 0.25 --output_dir narrower
  hf-mpruner narrow MODEL --dataset DATA --fraction 0.5 --criterion l1 --multiple_of 8 --dry_run
  hf-mpruner narrow MODEL --plan narrower --output_dir narrower-again"""
USAGE = "hf-mpruner narrow MODEL (--dataset DATASET --fraction FRACTION | --plan PLAN) --output_dir DIR ..."
# What a plan says, or makes needless.
_NOT_WITH_PLAN = (
    "dataset", "dataset_config", *COLUMNS, "task", "max_length", "max_target_length", "source_prefix", "fraction", "what",
    "criterion", "fields", "multiple_of", "split", "calibration_samples", "calibration_batch_size", "seed",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `hf-mpruner narrow`."""
    add_data_flags(parser, required=False)
    parser.add_argument(
        "--plan", help="file, folder or Hub id with a width_plan.json: what it names goes, and nothing is measured"
    )
    parser.add_argument("--plan_revision", help="branch, tag or commit of a plan from the Hub")
    group = parser.add_argument_group("what goes")
    group.add_argument(
        "--fraction",
        type=float,
        help="how many of each layer, above 0 and below 1 (default: as --criterion mipp decides)",
    )
    group.add_argument("--what", choices=("neurons", "heads"), default="neurons", help="default: neurons")
    group.add_argument(
        "--criterion",
        default="cka",
        help="which first: cka, cka_one_shot, mipp, mipp_neural, l1, random (default: cka)",
    )
    group.add_argument(
        "--fields",
        nargs="+",
        metavar="NAME",
        help="config values whose layers are narrowed (default: all that count such)",
    )
    group.add_argument("--multiple_of", type=int, default=1, help="what stays is a multiple of this (default: 1)")
    measuring = parser.add_argument_group("what activations are measured on")
    measuring.add_argument("--split", default="train", help="a sample of it (default: train)")
    measuring.add_argument("--calibration_samples", type=int, default=256, help="default: 256")
    measuring.add_argument("--calibration_batch_size", type=int, default=16, help="default: 16")
    measuring.add_argument("--seed", type=int, default=0, help="draws the sample (default: 0)")
    parser.add_argument("--output_dir", help="new folder for the narrower model")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that lies there")
    parser.add_argument("--dry_run", action="store_true", help="measure and show what would go, write nothing")
    add_format(parser)
    parser.set_defaults(defaults={name: parser.get_default(name) for name in _NOT_WITH_PLAN})


def run(args: argparse.Namespace) -> int:
    """Check what can be checked before weights and data are read; then measure or read the plan, narrow, and write."""
    _check_words(args)

    from hf_mpruner.artifacts import write_narrowed
    from hf_mpruner.storage import check_output_dir

    from .models import load_config

    if args.output_dir is not None:
        try:
            check_output_dir(args.output_dir, source=args.model, overwrite=args.overwrite)
        except (ValueError, OSError) as error:
            raise UsageError(str(error)) from error
    plan = _read_plan(args)
    config = load_config(args.model, args.revision, args.trust_remote_code)
    model, processor, report = _measure(args, config) if plan is None else _replay(args, config, plan)
    if not args.dry_run:
        write_narrowed(
            args.output_dir,
            model=model,
            processing_class=processor,
            report=report,
            source=args.model,
            overwrite=args.overwrite,
        )
    show(
        args,
        table=str(report),
        values={"output_dir": args.output_dir, **report.to_dict()},
        quiet=str(report.plan) if args.dry_run else str(args.output_dir),
    )
    if args.dry_run:
        say(args, "Dry run: nothing was written. Leave --dry_run out to write the narrower model.")
        return 0
    say(
        args,
        f"Wrote {args.output_dir}. Nothing was trained: fine-tune it, or prune_width_in_rounds does both in turn.",
    )
    say(args, f"Next: {command_line('inspect', args.output_dir, *same_trust(args))}")
    return 0


def _check_words(args: argparse.Namespace) -> None:
    """What cannot be meant, known without any library.

    Raises:
        UsageError: for flags that are missing, or that contradict each other.
    """
    if args.output_dir is None and not args.dry_run:
        raise UsageError("--output_dir is missing: name a new folder for the narrower model, or pass --dry_run.")
    if args.plan is None:
        if args.plan_revision is not None:
            raise UsageError("--plan_revision is of a plan from the Hub: name the plan with --plan.")
        if args.dataset is None:
            raise UsageError(
                "--dataset is missing: name data to measure on, or pass a plan that was made before, --plan."
            )
        return
    if given := [name for name in _NOT_WITH_PLAN if getattr(args, name) != args.defaults[name]]:
        raise UsageError(f"--{given[0]} is for measuring, and --plan says what goes: leave one of the two out.")


def _read_plan(args: argparse.Namespace) -> WidthPlan | None:
    """The plan that was named.

    Raises:
        UsageError: if what was named is a plan of layers.
    """
    if args.plan is None:
        return None
    from hf_mpruner.plan import PruningPlan, WidthPlan

    def read(kind: Any) -> Any:
        return kind.from_pretrained(args.plan, revision=args.plan_revision)

    try:
        return read(WidthPlan)
    except (FileNotFoundError, ValueError):
        try:
            read(PruningPlan)
        except (OSError, ValueError):
            pass
        else:
            apply = command_line(
                "apply", args.model, "--plan", args.plan, "--output_dir", args.output_dir or "smaller"
            )
            raise UsageError(f"'{args.plan}' holds a plan of layers, which apply takes: {apply}") from None
        raise


def _replay(
    args: argparse.Namespace, config: PreTrainedConfig, plan: WidthPlan
) -> tuple[PreTrainedModel, Any, NarrowingReport]:
    """Apply a plan; one that does not fit is refused before any weight is read."""
    from hf_mpruner.environment import describe_device, library_versions
    from hf_mpruner.narrowing import NarrowingReport
    from hf_mpruner.surgery import apply_width_plan_

    from .apply import find_processor, load_whole
    from .models import build_empty

    empty = build_empty(config, args.trust_remote_code)
    preview = plan.preview(empty)
    apply_width_plan_(empty, plan)
    if args.dry_run:
        return empty, None, NarrowingReport(plan, preview)
    model = load_whole(args, config)
    report = NarrowingReport(
        plan, plan.preview(model), versions=library_versions(), device=describe_device(model.device)
    )
    apply_width_plan_(model, plan)
    return model, find_processor(args), report


def _measure(args: argparse.Namespace, config: PreTrainedConfig) -> tuple[PreTrainedModel, Any, NarrowingReport]:
    """Choose on data; what can be refused without it is refused before it is read."""
    from hf_mpruner.errors import UnsupportedArchitectureError
    from hf_mpruner.narrowing import check_width

    from .models import build_empty

    choice = {name: getattr(args, name) for name in ("criterion", "what", "fields", "multiple_of")}
    try:
        check_width(build_empty(config, args.trust_remote_code), args.fraction, **choice)
    except UnsupportedArchitectureError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error
    return _narrow(args, config, choice)


def _narrow(
    args: argparse.Namespace, config: PreTrainedConfig, choice: dict[str, Any]
) -> tuple[PreTrainedModel, Any, NarrowingReport]:
    import torch

    from hf_mpruner.data import describe_data, draw_sample
    from hf_mpruner.narrowing import prune_width_

    from .analyze import choose_reader
    from .apply import load_whole
    from .loading import choose_columns, load_split, read_settings, take
    from .models import load_processor

    task = choose_reader(args, config)
    data = load_split(args, "split")
    columns = choose_columns(args, data, task, need_label=False)
    data = take(args, data, columns, task)
    options = task.processor_options(config)
    processor = load_processor(args.model, task.kind, args.revision, args.trust_remote_code, **options)
    model = load_whole(args, config)
    model.to(torch.accelerator.current_accelerator() or "cpu")  # type: ignore[arg-type]
    sample = draw_sample(data, args.calibration_samples, args.seed)
    rows = task.prepare(sample, columns, model, processor, read_settings(args, args.seed), "calibration")
    report = prune_width_(
        model,
        args.fraction,
        calibration=rows,
        processing_class=processor,
        calibration_samples=args.calibration_samples,
        calibration_batch_size=args.calibration_batch_size,
        seed=args.seed,
        **choice,
    )
    facts = {**describe_data(data, f"sample of the split {args.split}"), "num_examples": len(sample)}
    return model, processor, dataclasses.replace(report, data={"calibration": facts})
