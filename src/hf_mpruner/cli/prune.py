"""Remove layers of a model, round by round: measure, cut, recover, judge, keep or go back. Then save it."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from .flags import add_config_flags, add_data_flags, read_config
from .output import add_format, command_line, say, show
from .parser import UsageError, same_trust
from .processes import check_one_process, main_process_first, rank, shared_temporary_folder
from .push import add_push_flags, check_ahead, push_written

if TYPE_CHECKING:
    from hf_mpruner.config import PruningConfig
    from hf_mpruner.report import PruningReport

    from .inputs import Inputs

EXAMPLES = """examples:
  hf-mpruner prune MODEL --dataset dair-ai/emotion --max_metric_drop 0.01 --output_dir smaller
  hf-mpruner prune MODEL --dataset images/ --recovery_epochs 2 --learning_rate 2e-5 --output_dir smaller
  hf-mpruner prune MODEL --dataset rows.csv --train_split 'train[:80%]' --eval_split 'train[80%:]' \\
      --recovery_epochs 0 --output_dir smaller
  hf-mpruner prune MODEL --dataset dair-ai/emotion --criterion greedy_loss --target_num_layers 2 --output_dir smaller
  hf-mpruner prune MODEL --dataset dair-ai/emotion --dry_run"""

USAGE = "hf-mpruner prune MODEL --dataset DATASET --output_dir DIR ..."
# What this command takes instead of PruningConfig's own defaults.
DEFAULTS: dict[str, Any] = {"stop_when_done": True}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `hf-mpruner prune`."""
    add_data_flags(parser)
    data = parser.add_argument_group("what trains, chooses and judges")
    data.add_argument("--train_split", default="train", help="trains between the rounds (default: train)")
    data.add_argument("--eval_split", default="validation", help="judges every round (default: validation)")
    data.add_argument(
        "--calibration_split",
        help="layers are chosen on a sample of it (default: the train split; with --confidence or --threshold auto and a "
        "criterion that reads labels, a part of the eval split, which then judges nothing)",
    )
    data.add_argument("--choosing_split", help="with these, the same for a criterion that reads labels")
    training = parser.add_argument_group("recovery training", "names and meaning as in TrainingArguments")
    training.add_argument("--learning_rate", type=float, default=5e-5, help="default: 5e-5")
    training.add_argument("--batch_size", type=int, default=16, help="examples a device and step (default: 16)")
    training.add_argument(
        "--num_train_epochs",
        type=int,
        help="all epochs together (default: enough for 10 rounds, or for the whole search of --threshold auto)",
    )
    training.add_argument("--weight_decay", type=float, default=0.0, help="default: 0")
    training.add_argument(
        "--lr_scheduler_type", default="constant", help="default: constant, so that every round recovers alike"
    )
    training.add_argument(
        "--training", nargs="+", metavar="KEY=VALUE", default=[], help="any other field of TrainingArguments"
    )
    judging = parser.add_argument_group("judging")
    judging.add_argument(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help="metrics of the evaluate library, or folders with one, instead of what the task measures itself; "
        "'f1:average=macro' passes arguments, 'glue:mrpc' a configuration; --metric says which decides",
    )
    out = parser.add_argument_group("output")
    out.add_argument("--output_dir", help="new folder for the model, the plan, the report and the heat maps")
    out.add_argument("--overwrite", action="store_true", help="replace a model that lies there")
    out.add_argument("--dry_run", action="store_true", help="measure and show the first cut, write nothing")
    add_push_flags(out)
    add_format(parser)
    add_config_flags(parser, **DEFAULTS)


def run(args: argparse.Namespace) -> int:
    """Check, load, prune, write; in this order, so that no work is lost."""
    config = read_config(args, **DEFAULTS)
    _check(args, config)
    if rank() == 0:
        check_ahead(args)

    from transformers import set_seed

    from .inputs import choose_metric_name, load_inputs

    set_seed(config.seed)
    inputs = load_inputs(args, config)
    config = choose_metric_name(config, inputs)
    if args.dry_run:
        return _dry_run(args, config, inputs)
    report = _prune(args, config, inputs)
    if rank() == 0:
        _write(args, config, inputs, report)
        return push_written(args, report.plan.num_removed)
    return 0


def _write(args: argparse.Namespace, config: PruningConfig, inputs: Inputs, report: PruningReport) -> None:
    from hf_mpruner.artifacts import write_artifacts

    from .inputs import name_data

    name_data(args, report.record, inputs)
    folder = write_artifacts(
        args.output_dir,
        model=inputs.model,
        processing_class=inputs.processing_class,
        report=report,
        config=config,
        source=args.model,
        overwrite=args.overwrite,
    )
    show(
        args,
        table=f"{report}\n\n{report.plan}",
        values={"output_dir": args.output_dir, "plan": report.plan.to_dict(), "report": report.to_dict()},
        quiet=args.output_dir,
    )
    if not report.plan.num_removed:
        say(args, f"No layer was removed: {report.record.stopped}. Try {_instead(config, report)}.")
    say(args, f"Wrote {folder}. Load it: {inputs.task.auto_class}.from_pretrained({args.output_dir!r})")
    say(args, f"Next: {command_line('inspect', args.output_dir, *same_trust(args))}")


def _instead(config: PruningConfig, report: PruningReport) -> str:
    """What may remove layers where this run removed none."""
    ways = ["a lower --threshold"] if config.plans_by_threshold else []
    ways += ["another --criterion"] if config.searches else []
    ways.append("a larger --max_metric_drop")
    bounds = [round_.bound for round_ in report.rounds if round_.bound]
    needed = [bound["needed"] for bound in bounds if bound["needed"] and bound["drop"] <= bound["max_drop"]]
    if needed:  # the measured drop was small enough, and what it shows is not
        ways.append(f"about {min(needed):,} judging examples (--eval_split)")
    return " or ".join(ways)


def _check(args: argparse.Namespace, config: PruningConfig) -> None:
    """Refuse what cannot work before anything is loaded."""
    if args.output_dir is None and not args.dry_run:
        raise UsageError("--output_dir is missing: name a new folder for the smaller model, or pass --dry_run.")
    from .arguments import read_training

    read_training(args.training)
    if config.recovery_epochs == 0 and config.start_epoch > 0:
        raise UsageError(
            f"--start_epoch {config.start_epoch} trains but --recovery_epochs 0 does not: pass --recovery_epochs 1 or "
            "more, or leave --start_epoch out."
        )
    if args.dry_run:
        check_one_process("hf-mpruner prune --dry_run")
    if config.recovery_epochs == 0:
        check_one_process("hf-mpruner prune --recovery_epochs 0", "Or pass --recovery_epochs 1 or more.")
    needed = config.start_epoch + config.recovery_epochs
    if args.num_train_epochs is not None and args.num_train_epochs < needed:
        raise UsageError(
            f"--num_train_epochs {args.num_train_epochs} is too few for one round: --start_epoch {config.start_epoch} "
            f"and --recovery_epochs {config.recovery_epochs} need {needed}."
        )
    if args.output_dir is not None:
        from hf_mpruner.storage import check_output_dir

        try:
            check_output_dir(args.output_dir, source=args.model, overwrite=args.overwrite)
        except (ValueError, OSError) as error:
            raise UsageError(str(error)) from error


def _dry_run(args: argparse.Namespace, config: PruningConfig, inputs: Inputs) -> int:
    from . import scores
    from .measure import Rows, chosen_stacks, measure, suggest

    model = inputs.model
    stacks = chosen_stacks(model, config)
    rows = Rows(model, inputs.calibration, inputs.processing_class, inputs.columns, inputs.task, inputs.settings)
    if config.plans_by_threshold:
        matrices = measure(rows, config, stacks)
        plan = suggest(args.model, model, matrices, stacks, config)
    else:
        scores.check_alone(config, "Leave --dry_run out.")
        plan = scores.score(args.model, rows, config, stacks).plan
    preview = plan.preview(model)
    values = {"plan": plan.to_dict(), "preview": dataclasses.asdict(preview)}
    show(args, table=str(preview), values=values, quiet=str(plan))
    say(args, "Dry run: nothing was changed and nothing written. Leave --dry_run out to prune.")
    return 0


def _prune(args: argparse.Namespace, config: PruningConfig, inputs: Inputs) -> PruningReport:
    from hf_mpruner.callback import LayerPruningCallback
    from hf_mpruner.data import draw_sample
    from hf_mpruner.oneshot import prune_
    from hf_mpruner.watching import TrainerEvaluation

    from .scores import purpose_of
    from .training import make_trainer, rehearse

    trains = config.recovery_epochs > 0
    with main_process_first():
        judge = inputs.prepare(inputs.judge, "judge")
        train = inputs.prepare(inputs.train, "train") if trains else None
        sample = draw_sample(inputs.calibration, config.calibration_samples, config.seed)
        calibration = inputs.prepare(sample, purpose_of(config))
        proposing = None
        if inputs.proposing is not None:
            sample = draw_sample(inputs.proposing, config.calibration_samples, config.seed)
            proposing = inputs.prepare(sample, purpose_of(config))
    sets = {"calibration": calibration} if proposing is None else {"calibration": proposing, "choosing": calibration}
    how = "similarity is measured" if config.plans_by_threshold else f"layers are scored by {config.criterion}"
    own = [] if proposing is None else [f"cuts are proposed on {len(proposing):,} examples"]
    parts = [*own, f"{how} on {len(calibration):,} examples", f"{len(judge):,} judge"]
    say(args, ", ".join([*([] if train is None else [f"{len(train):,} train"]), *parts]) + ".")
    chose = None if inputs.drawn_from else inputs.measured_split
    if args.eval_split in (args.train_split if trains else None, chose):
        say(
            args,
            f"Warning: '{args.eval_split}' judges and is also used before. For an unbiased verdict name another part "
            "with --eval_split.",
        )
    with shared_temporary_folder() as folder:
        trainer = make_trainer(args, config, inputs, train=train, judge=judge, folder=folder)
        config = rehearse(trainer, config, inputs)
        if not trains:
            report = prune_(
                inputs.model,
                config,
                **sets,
                processing_class=inputs.processing_class,
                evaluate=TrainerEvaluation(trainer, keeps=config.confidence is not None),
                eval_dataset=judge,
            )
            report.record.metric_sources = getattr(trainer.compute_metrics, "sources", {})
        else:
            judging = judge if config.keeps_sets_apart else None
            callback = LayerPruningCallback(trainer, config, **sets, judging=judging)
            trainer.add_callback(callback)
            trainer.train()
            report = callback.report
    for measured in (report.record.baseline, *(round_.after for round_ in report.record.rounds)):
        if measured is not None and measured.num_examples is not None:
            measured.num_examples = inputs.task.count_examples(judge)
    return report
