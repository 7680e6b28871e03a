"""The Trainer that `prune` recovers and judges with."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import Subset
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
)

from hf_mpruner.config import PruningConfig, resolve_protected
from hf_mpruner.criteria import Quota
from hf_mpruner.metric import choose_metric, strip_prefix
from hf_mpruner.runtime import keep_rng_state
from hf_mpruner.search import LayerSearch

from .arguments import read_training
from .inputs import Inputs
from .measure import chosen_stacks
from .output import say
from .parser import UsageError
from .processes import rank, world_size

# Rounds that the default number of epochs leaves room for; a run ends earlier once no layers are alike.
ROUNDS = 10
# Examples of the rehearsal.
REHEARSED = 16


def make_trainer(
    args: argparse.Namespace,
    config: PruningConfig,
    inputs: Inputs,
    *,
    train: Any,
    judge: Any,
    folder: str,
) -> Trainer:
    """A Trainer that saves nothing and says nothing but what `Talk` says.

    Args:
        args: of the command.
        config (`PruningConfig`): how many epochs a round takes.
        inputs (`Inputs`): the model, and the task with its Trainer, collator and metrics.
        train (*optional*): model-ready examples to train on.
        judge: model-ready examples to evaluate on.
        folder (`str`): a temporary folder.
    """
    task, model, processing_class = inputs.task, inputs.model, inputs.processing_class
    rounds = most_rounds(model, config) if config.searches else config.max_rounds or ROUNDS
    epochs = args.num_train_epochs or config.start_epoch + config.recovery_epochs * rounds
    trainer_class, arguments_class = task.trainer_classes()
    options: dict[str, Any] = {
        "output_dir": folder,
        "num_train_epochs": epochs,
        "learning_rate": args.learning_rate,
        "lr_scheduler_type": args.lr_scheduler_type,
        "weight_decay": args.weight_decay,
        "per_device_train_batch_size": args.batch_size,
        "per_device_eval_batch_size": args.batch_size,
        "seed": config.seed,
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": not sys.stderr.isatty() or args.format == "quiet" or rank() != 0,
        "dataloader_pin_memory": torch.accelerator.is_available(),
    }
    options |= task.training_options(inputs.settings, inputs.metrics)
    arguments = arguments_class(**{**options, **read_training(args.training)})
    trainer = trainer_class(
        model,
        arguments,
        train_dataset=train,
        eval_dataset=judge,
        processing_class=processing_class,
        data_collator=task.make_collator(model, processing_class),
        compute_metrics=task.make_scorer(model, processing_class, judge, inputs.metrics),
        **task.trainer_options(inputs.metrics),
    )
    for printer in (PrinterCallback, ProgressCallback):  # both print logs to stdout, which is for data
        trainer.remove_callback(printer)
    if not arguments.disable_tqdm:
        trainer.add_callback(Bars())
    trainer.add_callback(Talk(lambda text: say(args, text)))
    return trainer


def most_rounds(model: Any, config: PruningConfig) -> int:
    """How many candidates a search through the layers of a model trains at most."""
    stacks = chosen_stacks(model, config)
    depths = {stack.path: stack.depth for stack in stacks}
    quota, held = Quota(config, depths), resolve_protected(config.protect, depths)
    return LayerSearch.begin(quota, stacks, held, config.max_rounds).bounds.most_recoveries


def rehearse(trainer: Trainer, config: PruningConfig, inputs: Inputs) -> PruningConfig:
    """Let metrics that were loaded judge a few examples, so that what they cannot do ends no training.

    Returns:
        `PruningConfig`: with the metric that decides.

    Raises:
        UsageError: if that cannot be known, or the one that was asked for is not among what they gave.
    """
    if not inputs.metrics or world_size() > 1:
        return config
    judge: Any = trainer.eval_dataset
    with keep_rng_state():
        values = strip_prefix(trainer.evaluate(Subset(judge, range(min(REHEARSED, len(judge))))), "eval")
    try:
        chosen = choose_metric(values, config.metric, config.greater_is_better)
    except ValueError as error:
        raise UsageError(
            f"{error} On the command line: --metric NAME, --greater_is_better or --no_greater_is_better."
        ) from error
    return dataclasses.replace(config, metric=chosen.name)


class Bars(ProgressCallback):
    """Progress bars without the logs between them."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Leave the logs to `Talk`."""


class Talk(TrainerCallback):
    """A line for each cut and each verdict.

    Args:
        say: prints a line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Say what the pruning callback logged."""
        logs = logs or {}
        if "mpruner_round" not in logs:
            return
        if "mpruner_refused" in logs:
            self.say(f"Round {logs['mpruner_round']}: refused, nothing was cut.")
            return
        size = f"{logs['mpruner_layers']} layers, {logs['mpruner_parameters']:,} parameters"
        if "mpruner_accepted" not in logs:
            self.say(f"Round {logs['mpruner_round']}: cut to {size}.")
            return
        drop = f" (metric drop {logs['mpruner_drop']:+.4f}" if "mpruner_drop" in logs else ""
        drop += f", at most {logs['mpruner_drop_at_most']:+.4f}" if "mpruner_drop_at_most" in logs else ""
        drop += ")" if drop else ""
        verdict = "accepted" if logs["mpruner_accepted"] else "rejected, back to the model before"
        self.say(f"Round {logs['mpruner_round']}: {verdict}{drop}.")
