"""What `prune` works on: the model with its task's head, and the data that trains, chooses and judges."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from hf_mpruner.config import PruningConfig
from hf_mpruner.data import Columns, column_types, size_parts, split_parts
from hf_mpruner.record import PruningRecord
from hf_mpruner.scoring import LoadedMetric, load_metrics
from hf_mpruner.tasks import Purpose, Settings, Task

from .loading import choose_columns, choose_task, load_split, read_settings, take
from .models import load_config, load_for_task, load_processor
from .parser import UsageError, closest
from .scores import needs_labels, proposes_apart

_WEIGHTS_SHOWN = 3
_TRAIN_HEAD = "Pass --start_epoch N to train it for N epochs before the first cut, or fine-tune it first."


class Inputs(NamedTuple):
    """Everything that was loaded, before anything is measured or trained.

    Layers are measured on `calibration`, a sample of the split `measured_split`; `drawn_from` is the number of examples of
    the evaluation split if it was split into that and `judge`. A criterion that chooses among proposals makes them on
    `proposing`, where sets are kept apart.
    """

    task: Task
    model: PreTrainedModel
    processing_class: Any
    columns: Columns
    settings: Settings
    metrics: list[LoadedMetric]
    train: Any
    judge: Any
    calibration: Any
    measured_split: str = ""
    drawn_from: int | None = None
    proposing: Any = None

    def prepare(self, data: Any, purpose: Purpose) -> Any:
        """Raw rows as the task's model inputs."""
        return self.task.prepare(data, self.columns, self.model, self.processing_class, self.settings, purpose)


def load_inputs(args: argparse.Namespace, config: PruningConfig, untrained: str = _TRAIN_HEAD) -> Inputs:
    """Load in the order in which mistakes are cheapest: config, data, columns, processor, weights.

    Args:
        args: of the command.
        config (`PruningConfig`): whether anything trains.
        untrained (`str`): what to do about a head that is new, in a sentence.

    Raises:
        UsageError: if the task, a split or a column cannot be found, or the head would have to be trained first.
    """
    trains = config.recovery_epochs > 0
    model_config = load_config(args.model, args.revision, args.trust_remote_code)
    task = choose_task(args, model_config)
    metrics = read_metrics(args)
    train, judge = load_split(args, "train_split"), load_split(args, "eval_split")
    flag = measured_flag(args, config)
    measured_split = getattr(args, flag)
    calibration = train if flag == "train_split" else judge if flag == "eval_split" else load_split(args, flag)
    refuse_unused_labels(args, train, task)
    columns = choose_columns(args, train, task, need_label=True)
    train, judge, calibration = (take(args, data, columns, task) for data in (train, judge, calibration))
    drawn_from, proposing = None, None
    if config.keeps_sets_apart and measured_split == args.eval_split:
        drawn_from = len(judge)
        proposing, calibration, judge = split_evaluation(judge, config)
    elif proposes_apart(config) and len(calibration) > 1:
        half = len(calibration) // 2
        proposing, calibration, _ = split_parts(
            calibration, seed=config.seed, calibration=half, choosing=len(calibration) - half
        )
    options = task.processor_options(model_config)
    processor = load_processor(args.model, task.kind, args.revision, args.trust_remote_code, **options)
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
            f"'{args.model}' has no trained head for {task.name}: {len(new)} weights are new ({shown}). {untrained}"
        )
    if task.kind == "text" and getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = processor.pad_token_id
    settings = read_settings(args, config.seed)
    data = (train, judge, calibration, measured_split, drawn_from, proposing)
    return Inputs(task, model, processor, columns, settings, metrics, *data)


def measured_flag(args: argparse.Namespace, config: PruningConfig) -> str:
    """Name of the flag whose split layers are measured on.

    By default that is the train split; with a promise or a search, a criterion that reads labels is measured on a part of
    the evaluation split, since the model knows the train split by heart.

    Raises:
        UsageError: for `--choosing_split` where nothing chooses by it.
    """
    labels = needs_labels(config)
    if getattr(args, "choosing_split", None) is not None:
        if not config.keeps_sets_apart or not labels:
            why = (
                f"--criterion {config.criterion} reads no labels"
                if config.keeps_sets_apart
                else "nothing is kept apart"
            )
            raise UsageError(
                f"--choosing_split {args.choosing_split}: {why}. Name the data that layers are measured on by --calibration_split, or "
                "pass --confidence 0.95 and a criterion that reads labels, e.g. loss."
            )
        return "choosing_split"
    if args.calibration_split is not None:
        return "calibration_split"
    return "eval_split" if config.keeps_sets_apart and labels else "train_split"


def split_evaluation(data: Any, config: PruningConfig) -> tuple[Any, Any, Any]:
    """Raw rows of the evaluation split: those that cuts are proposed on, if any, that layers are measured on, that judge.

    Raises:
        UsageError: if there are too few.
    """
    apart = proposes_apart(config)
    sizes = size_parts(len(data), config.calibration_samples, calibration=apart, choosing=True, judging=True)
    if sum(sizes) >= len(data):
        raise UsageError(f"--eval_split has {len(data)} examples, too few to measure on some and judge by others.")
    return split_parts(data, seed=config.seed, calibration=sizes[0], choosing=sizes[1])


def read_metrics(args: argparse.Namespace) -> list[LoadedMetric]:
    """The metrics of evaluate that the user named, loaded now.

    Raises:
        UsageError: if one cannot be loaded.
    """
    if not args.metrics:
        return []
    try:
        return load_metrics(args.metrics)
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(f"--metrics: {error}") from error


def choose_metric_name(config: PruningConfig, inputs: Inputs) -> PruningConfig:
    """The config with the metric that decides, if that can be known before an evaluation.

    Raises:
        UsageError: if the one that was asked for is not measured.
    """
    if inputs.metrics:
        return config
    own = inputs.task.own_metrics(inputs.model.config)
    known = (*own, "loss", *([] if own else ["perplexity"]))
    if config.metric is None:
        return dataclasses.replace(config, metric=known[0])
    if config.metric not in known:
        raise UsageError(
            f"--metric {config.metric} is not measured here{closest(config.metric, known)}: pass one of "
            f"{', '.join(known)}, or load it from evaluate: --metrics {config.metric}."
        )
    return config


def name_data(args: argparse.Namespace, record: PruningRecord, inputs: Inputs) -> None:
    """Write into the record what the flags say of the data and the task, where the data does not say it itself."""
    tag = inputs.task.pipeline_tag
    record.pipeline_tag = None if tag == inputs.task.head.pipeline_tag else tag
    measured = "choosing" if "choosing" in record.data else "calibration"
    splits = {"training": args.train_split, "judging": args.eval_split, measured: inputs.measured_split}
    if inputs.proposing is not None:
        splits["calibration"] = inputs.measured_split
    named = {} if Path(args.dataset).exists() else {"dataset": args.dataset, "config": args.dataset_config}
    for role, split in splits.items():
        if role in record.data:
            said = {key: value for key, value in {**named, "split": split}.items() if value is not None}
            record.data[role] = {**record.data[role], **said}
            if inputs.drawn_from is not None and role != "training":
                seed = record.config["seed"]
                drawn = {"source": "part of the evaluation set", "drawn_from": inputs.drawn_from, "seed": seed}
                record.data[role].update(drawn)


def refuse_unused_labels(args: argparse.Namespace, data: Any, task: Task) -> None:
    """Ask, where a language model that nobody fine-tuned meets data with classes: both tasks may be meant."""
    if args.task is not None or task.name not in ("fill-mask", "text-generation"):
        return
    labels = [name for name, kind in column_types(data).items() if kind == "class" or name in ("label", "labels")]
    if labels:
        raise UsageError(
            f"'{args.model}' has a head for {task.name}, and the data has labels ('{labels[0]}'): say which task is meant, "
            f"--task {task.name} or --task text-classification."
        )
