"""Compare criteria: which layers each removes, what that costs, what is left before and after the same recovery.

One model and one data set, several criteria, numbers of layers and seeds. The uncut model is judged and trained, too. Each
finished part is kept in the output folder: the same command goes on where it stopped, and criteria, numbers of layers and
seeds may be added.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .flags import COLUMNS, add_config_flags, add_data_flags, read_config
from .output import add_format, command_line, say, show
from .parser import UsageError, same_trust, same_words

if TYPE_CHECKING:
    from transformers import Trainer

    from hf_mpruner.comparison import Comparison
    from hf_mpruner.config import PruningConfig

    from .inputs import Inputs

EXAMPLES = """examples:
  hf-mpruner compare MODEL --dataset dair-ai/emotion --criteria cka tail --num_layers 3 --seeds 2 --output_dir compared
  hf-mpruner compare MODEL --dataset DATA --criteria block_influence loss --num_layers 3 2 --recovery_epochs 0 \\
      --output_dir compared"""

USAGE = "hf-mpruner compare MODEL --dataset DATASET --criteria NAME ... --num_layers N ... --output_dir DIR ..."
# The fields of PruningConfig that mean something here; a test compares them with `comparison.request.FIELDS`.
FIELDS = (
    "preset", "estimator", "rows", "token_groups", "average", "linkage", "calibration_samples", "calibration_batch_size",
    "protect", "stacks", "metric", "greater_is_better", "recovery_epochs",
)  # fmt: skip
TABLE = "comparison.md"
PLOTS = {"quality": "quality.png", "cost": "cost.png"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `hf-mpruner compare`."""
    add_data_flags(parser)
    asked = parser.add_argument_group("what is compared")
    asked.add_argument(
        "--criteria", nargs="+", required=True, metavar="NAME", help="names of criteria, or module:Class of your own"
    )
    asked.add_argument(
        "--num_layers", nargs="+", required=True, metavar="N",
        help="layers that are left: 8 in every stack, encoder.block:6 in one, several stacks with commas between them",
    )  # fmt: skip
    asked.add_argument("--seeds", type=int, default=3, metavar="COUNT", help="how many seeds (default: 3)")
    data = parser.add_argument_group("what trains, chooses and judges")
    data.add_argument("--train_split", default="train", help="recovery trains on it (default: train)")
    data.add_argument("--eval_split", default="validation", help="judges (default: validation)")
    data.add_argument("--calibration_split", help="criteria measure on samples of it (default: the train split)")
    training = parser.add_argument_group("recovery training", "names and meaning as in TrainingArguments")
    training.add_argument("--learning_rate", type=float, default=5e-5, help="default: 5e-5")
    training.add_argument("--batch_size", type=int, default=16, help="examples a device and step (default: 16)")
    training.add_argument("--max_steps", type=int, help="optimizer steps of a recovery, instead of --recovery_epochs")
    training.add_argument("--weight_decay", type=float, default=0.0, help="default: 0")
    training.add_argument("--lr_scheduler_type", default="linear", help="default: linear")
    training.add_argument(
        "--training", nargs="+", metavar="KEY=VALUE", default=[], help="any other field of TrainingArguments"
    )
    judging = parser.add_argument_group("judging")
    judging.add_argument(
        "--metrics", nargs="+", metavar="NAME", help="metrics of evaluate instead of the task's own, as for prune"
    )
    parser.add_argument("--output_dir", required=True, help="every finished part, the table and the plots go here")
    add_format(parser)
    add_config_flags(parser, only=FIELDS)
    parser.set_defaults(num_train_epochs=None, dry_run=False)  # what the parts that are shared with prune ask for


def run(args: argparse.Namespace) -> int:
    """Check, load, compare, write."""
    config = read_config(args)
    folder = _check(args)

    from transformers import set_seed

    from .inputs import choose_metric_name, load_inputs

    set_seed(0)
    inputs = load_inputs(args, config, untrained="Fine-tune it first.")
    _check_depths(args, config, inputs)
    config = choose_metric_name(config, inputs)
    comparison = _compare(args, config, inputs)
    written = _write(comparison, folder)
    show(args, table=str(comparison), values=comparison.to_dict(), quiet=args.output_dir)
    say(args, f"Wrote {', '.join(written)} to {args.output_dir}.")
    _say_next(args, comparison)
    return 0


def _check(args: argparse.Namespace) -> Path:
    """Refuse what cannot work before anything is loaded."""
    from hf_mpruner.criteria import find_criterion
    from hf_mpruner.storage import find_model_files

    from .arguments import read_training

    read_training(args.training)
    try:
        for name in args.criteria:
            find_criterion(name)
    except ValueError as error:
        raise UsageError(f"--criteria: {error}") from error
    for flag, least in (("seeds", 1), ("max_steps", 1)):
        value = getattr(args, flag)
        if value is not None and value < least:
            raise UsageError(f"--{flag} {value} is below {least}.")
    folder = Path(args.output_dir).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output_dir {args.output_dir} is a file. Pass a folder.")
    if found := find_model_files(folder):
        raise UsageError(f"--output_dir {args.output_dir} holds a model ('{found[0]}'). Pass another folder.")
    return folder


def _check_depths(args: argparse.Namespace, config: PruningConfig, inputs: Inputs) -> None:
    from hf_mpruner.architectures import find_block_stacks
    from hf_mpruner.comparison.request import Request

    try:
        request = Request.read(lambda path, seed: None, args.model, args.criteria, args.num_layers, args.seeds, config)
        request.choose_stacks(find_block_stacks(inputs.model))
    except ValueError as error:
        raise UsageError(str(error)) from error


def _compare(args: argparse.Namespace, config: PruningConfig, inputs: Inputs) -> Comparison:
    from hf_mpruner.comparison import compare_criteria

    from .models import load_for_task
    from .training import make_trainer, rehearse

    trains = config.recovery_epochs > 0
    judge = inputs.prepare(inputs.judge, "judge")
    train = inputs.prepare(inputs.train, "train") if trains else None
    answers = inputs.task.name == "question-answering"  # its windows that judge hold no answers to learn from
    calibration = inputs.prepare(inputs.calibration, "train" if answers else "judge")
    quiet = argparse.Namespace(**{**vars(args), "format": "quiet"})  # the comparison has bars of its own
    say(args, f"{len(calibration):,} examples to draw samples from, {len(judge):,} judge.")
    with tempfile.TemporaryDirectory(prefix="hf_mpruner-") as folder:

        def make(path: str, seed: int) -> Trainer:
            model, _ = load_for_task(
                path,
                inputs.task,
                label_names=None,
                revision=args.revision if path == args.model else None,
                dtype=inputs.model.dtype,
                trust_remote_code=args.trust_remote_code,
            )
            if (padding := getattr(inputs.model.config, "pad_token_id", None)) is not None:
                model.config.pad_token_id = padding
            own = dataclasses.replace(config, seed=seed)
            mine = inputs._replace(model=model)
            trainer = make_trainer(quiet, own, mine, train=train, judge=judge, folder=folder)
            trainer.args.max_steps = args.max_steps or -1
            return trainer

        if inputs.metrics:
            config = rehearse(make(args.model, 0), config, inputs)
        return compare_criteria(
            make,
            args.model,
            config,
            criteria=args.criteria,
            num_layers=args.num_layers,
            seeds=args.seeds,
            calibration=calibration,
            output_dir=Path(args.output_dir).expanduser(),
            evaluate_sample=_cannot_judge_answers if answers else None,
            show_progress=False if args.format == "quiet" else None,
        )


def _cannot_judge_answers(trainer: Any, sample: Any) -> dict[str, float]:
    from hf_mpruner.errors import CalibrationError

    raise CalibrationError(
        "Answers are read back from the examples that judge only, so no metric can be measured on the calibration data. "
        "Take a criterion that needs no metric, e.g. loss."
    )


def _write(comparison: Comparison, folder: Path) -> list[str]:
    """The table and the plots beside `comparison.json`; without matplotlib no plots."""
    from hf_mpruner.storage import write_text

    write_text(folder / TABLE, comparison.to_markdown() + "\n")
    names = ["comparison.json", TABLE]
    try:
        for kind, name in PLOTS.items():
            comparison.plot(folder / name, kind=kind)  # type: ignore[arg-type]
            names.append(name)
    except ImportError:
        names.append("no plots (pip install 'hf_mpruner[plots]')")
    return names


def _say_next(args: argparse.Namespace, comparison: Comparison) -> None:
    target = comparison.targets[0]
    best = comparison.at(target)[0]
    if best.failed:
        return
    words = ["prune", args.model, *same_words(args, ["revision", "dataset", "dataset_config", *COLUMNS, "task"])]
    words += ["--criterion", best.criterion, "--target_num_layers", *target.split(",")]
    say(args, f"Next: {command_line(*words, '--output_dir', 'smaller', *same_trust(args))}")
