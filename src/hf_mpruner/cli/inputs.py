"""What `prune` works on: the model with its task's head, and the data that trains, chooses and judges."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from hf_mpruner.config import PruningConfig
from hf_mpruner.data import Columns
from hf_mpruner.tasks import Purpose, Settings, Task

from .loading import choose_columns, choose_task, load_split, read_settings
from .models import load_config, load_for_task, load_processor
from .parser import UsageError, closest

_WEIGHTS_SHOWN = 3


class Inputs(NamedTuple):
    """Everything that was loaded, before anything is measured or trained."""

    task: Task
    model: PreTrainedModel
    processing_class: Any
    columns: Columns
    settings: Settings
    train: Any
    judge: Any
    calibration: Any

    def prepare(self, data: Any, purpose: Purpose) -> Any:
        """Raw rows as the task's model inputs."""
        return self.task.prepare(data, self.columns, self.model, self.processing_class, self.settings, purpose)


def load_inputs(args: argparse.Namespace, config: PruningConfig) -> Inputs:
    """Load in the order in which mistakes are cheapest: config, data, columns, processor, weights.

    Raises:
        UsageError: if the task, a split or a column cannot be found, or the head would have to be trained first.
    """
    trains = config.recovery_epochs > 0
    task = choose_task(args, load_config(args.model, args.revision, args.trust_remote_code))
    train, judge = load_split(args, "train_split"), load_split(args, "eval_split")
    calibration = train if args.calibration_split is None else load_split(args, "calibration_split")
    columns = choose_columns(args, train, task, need_label=True)
    processor = load_processor(args.model, task.kind, args.revision, args.trust_remote_code)
    model, new = load_for_task(
        args.model,
        task,
        label_names=task.find_label_names(train, columns),
        revision=args.revision,
        dtype=torch.float32 if trains else "auto",
        trust_remote_code=args.trust_remote_code,
    )
    if new and config.start_epoch == 0 and not args.dry_run:
        shown = ", ".join(new[:_WEIGHTS_SHOWN])
        raise UsageError(
            f"'{args.model}' has no trained head for {task.name}: {len(new)} weights are new ({shown}). Pass "
            "--start_epoch N to train it for N epochs before the first cut, or fine-tune it first."
        )
    if task.kind == "text" and getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = processor.pad_token_id
    return Inputs(task, model, processor, columns, read_settings(args, config.seed), train, judge, calibration)


def choose_metric_name(config: PruningConfig, inputs: Inputs) -> PruningConfig:
    """The config with the metric that decides.

    Raises:
        UsageError: if the one that was asked for is not measured.
    """
    task = inputs.task
    if config.metric is None:
        return dataclasses.replace(config, metric=task.default_metric(inputs.model.config))
    known = (*task.metrics, "loss")
    if config.metric not in known:
        raise UsageError(
            f"--metric {config.metric} is not measured here{closest(config.metric, known)}: pass one of "
            f"{', '.join(known)}."
        )
    return config
