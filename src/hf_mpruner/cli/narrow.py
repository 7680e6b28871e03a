"""Take feed-forward neurons or attention heads out of every layer, and save the narrower model. Nothing is trained."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .flags import add_data_flags
from .output import add_format, command_line, say, show
from .parser import UsageError, same_trust

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedConfig, PreTrainedModel

    from hf_mpruner.narrowing import NarrowingReport

EXAMPLES = """examples:
  hf-mpruner narrow MODEL --dataset DATA --fraction 0.25 --output_dir narrower
  hf-mpruner narrow MODEL --dataset DATA --fraction 0.5 --criterion l1 --multiple_of 8 --dry_run"""
USAGE = "hf-mpruner narrow MODEL --dataset DATASET --fraction FRACTION --output_dir DIR ..."
REPORT_NAME = "narrowing_report.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `hf-mpruner narrow`."""
    add_data_flags(parser)
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


def run(args: argparse.Namespace) -> int:
    """Check what can be checked before weights and data are read; then measure, narrow, and write."""
    if args.output_dir is None and not args.dry_run:
        raise UsageError("--output_dir is missing: name a new folder for the narrower model, or pass --dry_run.")

    from hf_mpruner.artifacts import check_output_dir
    from hf_mpruner.errors import UnsupportedArchitectureError
    from hf_mpruner.narrowing import check_width

    from .models import build_empty, load_config

    if args.output_dir is not None:
        try:
            check_output_dir(args.output_dir, source=args.model, overwrite=args.overwrite)
        except (ValueError, OSError) as error:
            raise UsageError(str(error)) from error
    config = load_config(args.model, args.revision, args.trust_remote_code)
    choice = {name: getattr(args, name) for name in ("criterion", "what", "fields", "multiple_of")}
    try:
        check_width(build_empty(config, args.trust_remote_code), args.fraction, **choice)
    except UnsupportedArchitectureError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error
    model, processor, report = _narrow(args, config, choice)
    folder = None if args.dry_run else _write(args, model, processor, report)
    show(
        args,
        table=str(report),
        values={"output_dir": args.output_dir, **report.to_dict()},
        quiet=str(report.plan) if args.dry_run else str(args.output_dir),
    )
    if folder is None:
        say(args, "Dry run: nothing was written. Leave --dry_run out to write the narrower model.")
        return 0
    say(args, f"Wrote {folder}. Nothing was trained: fine-tune it, or prune_width_in_rounds does both in turn.")
    say(args, f"Next: {command_line('inspect', args.output_dir, *same_trust(args))}")
    return 0


def _narrow(
    args: argparse.Namespace, config: PreTrainedConfig, choice: dict[str, Any]
) -> tuple[PreTrainedModel, Any, NarrowingReport]:
    import torch

    from hf_mpruner.data import draw_sample
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
    return model, processor, report


def _write(args: argparse.Namespace, model: PreTrainedModel, processor: Any, report: NarrowingReport) -> Path:
    """The folder appears whole, with a model that was loaded back and compared, or not at all."""
    from hf_mpruner.artifacts import check_output_dir, check_saved_model
    from hf_mpruner.storage import new_folder, write_json

    folder = check_output_dir(args.output_dir, source=args.model, overwrite=args.overwrite)
    with new_folder(folder) as draft:
        model.save_pretrained(draft)
        processor.save_pretrained(draft)
        check_saved_model(model, draft)
        report.plan.save_pretrained(draft)
        write_json(draft / REPORT_NAME, report.to_dict())
    return folder
