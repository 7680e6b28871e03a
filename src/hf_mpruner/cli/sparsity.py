"""Set weights to zero at several sparsities, in a model and in its pruned version, and compare. No model is written.

For each sparsity: the metric with its interval, the time of the evaluation, and how many weights are zero in fact (the
paper's Tables 7 and 9). Zeros alone make nothing faster; fewer layers do.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .flags import add_data_flags
from .output import add_format, say, show
from .parser import UsageError

if TYPE_CHECKING:
    from hf_mpruner.config import PruningConfig

EXAMPLES = """examples:
  hf-mpruner sparsity MODEL --pruned smaller --dataset DATA --output_dir sweep
  hf-mpruner sparsity MODEL --dataset DATA --eval_split test --method magnitude --sparsities 0.3 0.5 0.7
  hf-mpruner sparsity MODEL --pruned smaller --dataset DATA --pattern 2:4"""
USAGE = "hf-mpruner sparsity MODEL --dataset DATASET [--pruned FOLDER] [--output_dir DIR] ..."
# Of the paper's Tables 7 and 9.
SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `hf-mpruner sparsity`."""
    add_data_flags(parser)
    parser.add_argument("--pruned", metavar="FOLDER", help="the same model with fewer layers, folder or Hub id")
    group = parser.add_argument_group("zeros")
    group.add_argument(
        "--sparsities", nargs="+", type=float, metavar="FRACTION",
        help="fractions of weights in 0..1 (default: 0.1 0.2 0.3 0.4 0.5; of an n:m pattern its own); the dense model is "
        "always measured",
    )  # fmt: skip
    group.add_argument("--method", default="wanda", help="wanda or magnitude (default: wanda)")
    group.add_argument(
        "--pattern", default="unstructured", help="unstructured, or n:m such as 2:4 (default: unstructured)"
    )
    group.add_argument(
        "--skip", nargs="+", metavar="NAME", default=[], help="layers to leave dense, by the end of their names"
    )
    judging = parser.add_argument_group("what judges, and what the norms are measured on")
    judging.add_argument("--eval_split", default="validation", help="judges (default: validation)")
    judging.add_argument("--calibration_split", default="train", help="a sample of it is Wanda's (default: train)")
    judging.add_argument("--calibration_samples", type=int, default=128, help="default: 128")
    judging.add_argument("--batch_size", type=int, default=16, help="examples a device and step (default: 16)")
    judging.add_argument("--seed", type=int, default=0, help="draws the sample (default: 0)")
    judging.add_argument(
        "--metrics", nargs="+", metavar="NAME", help="metrics of evaluate instead of the task's own, as for prune"
    )
    judging.add_argument("--metric", help="which of the measured values is shown first (default: the task's)")
    parser.add_argument(
        "--output_dir",
        help="each finished cell is kept here as JSON, and not measured again; table and plot come beside them",
    )
    add_format(parser)
    parser.add_argument("--config", metavar="FILE", help="YAML or JSON whose keys are names of flags")


def run(args: argparse.Namespace) -> int:
    """Check, load, measure each cell that is not there yet, show."""
    sparsities = _check(args)
    config = _config(args)

    from .sweep import Sweep
    from .sweeptable import draw, markdown, table

    sweep = Sweep(args, config, sparsities)
    cells = sweep.run()
    values = {
        "model": args.model, "pruned": args.pruned, "dataset": args.dataset, "eval_split": args.eval_split,
        "method": args.method, "pattern": args.pattern, "cells": cells,
    }  # fmt: skip
    if args.output_dir is not None:
        from hf_mpruner.storage import write_json, write_text

        folder = Path(args.output_dir).expanduser()
        write_json(folder / "sparsity.json", values)
        write_text(folder / "sparsity.md", markdown(values))
        drawn = draw(values, folder / "sparsity.png")
        say(args, f"Wrote sparsity.json, sparsity.md{' and sparsity.png' if drawn else ''} to {args.output_dir}.")
    show(args, table=table(values), values=values, quiet=args.output_dir or markdown(values))
    return 0


def _check(args: argparse.Namespace) -> list[float]:
    """Refuse what cannot work before anything is loaded.

    Returns:
        `list[float]`: the sparsities, ascending, without the dense 0.
    """
    from hf_mpruner.sparsity import METHODS, Pattern

    if args.method not in METHODS:
        raise UsageError(f"--method {args.method} is not known: pass one of {', '.join(METHODS)}.")
    try:
        pattern = Pattern.named(args.pattern)
        wanted = args.sparsities
        if wanted is None:
            wanted = SPARSITIES if pattern.size is None or pattern.kept is None else [1 - pattern.kept / pattern.size]
        for sparsity in wanted:
            if sparsity:
                pattern.check_sparsity(sparsity)
    except ValueError as error:
        raise UsageError(f"--pattern {args.pattern} --sparsities: {error}") from error
    for flag in ("calibration_samples", "batch_size"):
        if getattr(args, flag) < 1:
            raise UsageError(f"--{flag} {getattr(args, flag)} is below 1.")
    if args.output_dir is not None:
        from hf_mpruner.storage import find_model_files

        folder = Path(args.output_dir).expanduser()
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--output_dir {args.output_dir} is a file. Pass a folder.")
        if found := find_model_files(folder):
            raise UsageError(f"--output_dir {args.output_dir} holds a model ('{found[0]}'). Pass another folder.")
    return sorted({sparsity for sparsity in wanted if sparsity})


def _config(args: argparse.Namespace) -> PruningConfig:
    from hf_mpruner.config import PruningConfig

    try:
        return PruningConfig(metric=args.metric, recovery_epochs=0, seed=args.seed)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
