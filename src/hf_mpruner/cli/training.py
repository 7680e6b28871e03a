"""The Trainer that `prune` recovers and judges with."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_mpruner.config import PruningConfig

from .output import say

# Rounds that the default number of epochs leaves room for; a run ends earlier once no layers are alike.
ROUNDS = 10


def make_trainer(
    args: argparse.Namespace,
    config: PruningConfig,
    model: PreTrainedModel,
    processing_class: Any,
    *,
    train: Any,
    judge: Any,
    folder: str,
) -> Trainer:
    """A Trainer that saves nothing and says nothing but what `Talk` says.

    Args:
        args: of the command.
        config (`PruningConfig`): how many epochs a round takes.
        model (`PreTrainedModel`): to train and judge.
        processing_class: its tokenizer (pads the batches) or image processor.
        train (*optional*): model-ready examples to train on.
        judge: model-ready examples to evaluate on.
        folder (`str`): a temporary folder.
    """
    epochs = args.num_train_epochs or config.start_epoch + config.recovery_epochs * (config.max_rounds or ROUNDS)
    arguments = TrainingArguments(
        output_dir=folder,
        num_train_epochs=epochs,
        learning_rate=args.learning_rate,
        lr_scheduler_type=args.lr_scheduler_type,
        weight_decay=args.weight_decay,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=args.batch_size,
        seed=config.seed,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=not sys.stderr.isatty() or args.format == "quiet",
        dataloader_pin_memory=torch.accelerator.is_available(),
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=train,
        eval_dataset=judge,
        processing_class=processing_class,
        compute_metrics=classification_metrics,
    )
    for printer in (PrinterCallback, ProgressCallback):  # both print logs to stdout, which is for data
        trainer.remove_callback(printer)
    if not arguments.disable_tqdm:
        trainer.add_callback(Bars())
    trainer.add_callback(Talk(lambda text: say(args, text)))
    return trainer


def classification_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy, and F1 averaged over the classes that occur.

    Example:
        >>> scores = np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0], [3.0, 1.0]])
        >>> classification_metrics(EvalPrediction(scores, np.array([0, 1, 1, 0])))
        {'accuracy': 0.75, 'f1_macro': 0.7333333333333334}
    """
    scores = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    guessed, labels = scores.argmax(-1), prediction.label_ids
    f1 = []
    for label in np.union1d(guessed, labels):
        hits = int(((guessed == label) & (labels == label)).sum())
        f1.append(2 * hits / int((guessed == label).sum() + (labels == label).sum()))
    return {"accuracy": float((guessed == labels).mean()), "f1_macro": float(np.mean(f1))}


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
        drop = f" (metric drop {logs['mpruner_drop']:+.4f})" if "mpruner_drop" in logs else ""
        verdict = "accepted" if logs["mpruner_accepted"] else "rejected, back to the model before"
        self.say(f"Round {logs['mpruner_round']}: {verdict}{drop}.")
