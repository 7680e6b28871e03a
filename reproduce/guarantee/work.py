"""What `auto.py` prunes: the ViT on digits in many variants, or a model and data of one's own, as `quality.py` reads them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import variants
from datasets import Dataset, disable_progress_bars
from torch import nn
from transformers import (
    EvalPrediction,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    ViTForImageClassification,
    set_seed,
)
from transformers.utils import logging as chatter

sys.path.insert(0, str(Path(__file__).parents[1]))

import quality

from hf_mpruner.storage import new_folder

MakeTrainer = Callable[[str, int, Any], Trainer]
STRENGTH = 0.5


@dataclass(frozen=True)
class Work:
    """A model, its data and how it trains.

    Args:
        name (`str`): of model and data.
        source (`Path`): folder of the uncut model.
        make_trainer (callable): gets a folder, a seed and the evaluation set, returns a Trainer for one epoch of recovery.
        train, judge, unseen: data sets: recovery trains on the first; the Trainer evaluates on the second, which is all that
            a run may look at; the third is for the figures alone.
        metric (`str`): `"accuracy"` or `"loss"`.
    """

    name: str
    source: Path
    make_trainer: MakeTrainer
    train: Dataset
    judge: Dataset
    unseen: Dataset
    metric: str

    def unseen_outcomes(self, model: nn.Module, seed: int) -> np.ndarray:
        """For each unseen example 1 for a right answer, else 0; or the loss of each block of text, `(n,)`."""
        trainer = self.make_trainer(str(self.source), seed, self.unseen)
        batches, found = trainer.get_eval_dataloader(), []
        model.eval()
        with torch.no_grad():
            for batch in batches:
                labels = batch["labels"]
                logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits.cpu()
                if self.metric == "accuracy":
                    found.append((logits.argmax(-1) == labels.cpu()).float())
                else:
                    losses = nn.functional.cross_entropy(
                        logits[:, :-1].transpose(1, 2), labels[:, 1:].cpu(), reduction="none"
                    )
                    found.append(losses.mean(1))
        return torch.cat(found).double().numpy()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subject, and its sizes; 0 or None: the default of the subject."""
    parser.add_argument("--digits", action="store_true", help="the ViT on handwritten digits; needs no folders")
    parser.add_argument("--model", help="folder of a model")
    parser.add_argument("--data", help="folder with train, validation and test as parquet: `text`, and `label`")
    parser.add_argument("--task", choices=quality.TASKS, default=quality.TASKS[0])
    parser.add_argument("--train", type=int, help="rows, or blocks of text, that one epoch of recovery trains on")
    parser.add_argument("--judge", type=int, help="rows, or blocks, of the evaluation set (validation)")
    parser.add_argument("--unseen", type=int, help="rows, or blocks, that no run sees (test)")
    parser.add_argument("--fit", type=int, default=4200, help="rows that the uncut classifier is trained on")
    parser.add_argument("--epochs", type=int, default=3, help="of that training")
    parser.add_argument("--steps", type=int, default=1500, help="of training the uncut ViT")
    parser.add_argument("--layers", type=int, default=12, help="of the ViT")
    parser.add_argument("--hidden", type=int, default=48, help="of the ViT")
    parser.add_argument("--max_length", type=int, help="tokens of a row, or of a block")
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--learning_rate", type=float, help="of a recovery")


def make_work(args: argparse.Namespace) -> Work:
    """The subject that the flags name; the libraries are quiet from here on, and the uncut model is trained if it is not there."""
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    disable_progress_bars()
    return _digits(args) if args.digits else _texts(args)


def _digits(args: argparse.Namespace) -> Work:
    """Variants of 900 images train; of the others, independent draws from one population judge and stay unseen."""
    _fill(args, {"train": 4000, "judge": 4000, "unseen": 10000, "learning_rate": 5e-4, "batch_size": 64})
    train, others = variants.load(900, max(args.train, 9000), args.judge + args.unseen, STRENGTH)
    folder = args.work / "uncut"
    if not folder.is_dir():
        set_seed(0)
        model = variants.build(args.layers, args.hidden)
        variants.fit(model, train, args.steps, 2e-3, 0)
        with new_folder(folder) as draft:
            model.save_pretrained(draft)

    def rows(of: variants.Images) -> Dataset:
        return Dataset.from_dict({"pixel_values": of.x.numpy(), "labels": of.y.numpy()}).with_format("torch")

    parts = train.part(slice(args.train)), others.part(slice(args.judge)), others.part(slice(args.judge, None))
    data = rows(parts[0]), rows(parts[1]), rows(parts[2])

    def make_trainer(path: str, seed: int, evaluate_on: Any) -> Trainer:
        settings = variants.settings(str(args.work / "trainer"), -1, args.learning_rate, seed, num_train_epochs=1)
        settings.per_device_train_batch_size = args.batch_size
        return _quiet(
            Trainer(
                ViTForImageClassification.from_pretrained(path), settings, train_dataset=data[0],
                eval_dataset=evaluate_on, compute_metrics=accuracy,
            )
        )  # fmt: skip

    return Work("ViT on digits", folder, make_trainer, *data, metric="accuracy")


def _texts(args: argparse.Namespace) -> Work:
    """An encoder that is first fine-tuned as a classifier, or a decoder as it is."""
    if args.model is None or args.data is None:
        sys.exit("Pass --digits, or --model and --data.")
    defaults = {
        name: quality.DEFAULTS[args.task][name] for name in ("max_length", "batch_size", "learning_rate", "train")
    }
    sizes = {"judge": 1260, "unseen": 2100} if args.task == quality.TASKS[0] else {"judge": 512, "unseen": 512}
    _fill(args, {**defaults, **sizes})
    args.max_steps = -1
    classifies = args.task == quality.TASKS[0]
    folder = args.work / "trained" if classifies else Path(args.model)
    train = quality.read_rows(args, "train", args.train)
    judge, unseen = quality.read_rows(args, "validation", args.judge), quality.read_rows(args, "test", args.unseen)
    quality.fine_tune(args, args.work / "trained")

    def make_trainer(path: str, seed: int, evaluate_on: Any) -> Trainer:
        return quality.make_maker(args, train, evaluate_on)(path, seed)

    name = f"{Path(args.model).name} on {Path(args.data).name}"
    return Work(name, folder, make_trainer, train, judge, unseen, "accuracy" if classifies else "loss")


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of right answers."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def _fill(args: argparse.Namespace, defaults: dict[str, Any]) -> None:
    for name, value in defaults.items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)


def _quiet(trainer: Trainer) -> Trainer:
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer
