"""What the tests of `prune_in_cycles` share: a saved model, and a script's function that makes Trainers for it."""

from __future__ import annotations

import contextlib
import os

import torch
from transformers import BertConfig, BertForSequenceClassification

from hf_mpruner import PruningConfig, prune_in_cycles
from hf_mpruner.storage import new_folder
from resume_kit import BY_DEPTH
from trainer_kit import EVERYTHING_ALIKE, STACK, Rows, build_trainer


def save_bert(folder, layers=4, seed=7, **config):
    """Write a tiny BERT with dropout; returns the folder as text."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 99}
    config = {"num_labels": 2, "max_position_embeddings": 32, **sizes, **config}
    BertForSequenceClassification(BertConfig(num_hidden_layers=layers, **config)).save_pretrained(folder)
    return str(folder)


class Maker:
    """A `make_trainer`. `metric(depth)` is the accuracy; keywords go to `build_trainer`."""

    def __init__(self, folder, metric=BY_DEPTH.__getitem__, **arguments):
        self.folder, self.metric, self.arguments = folder, metric, arguments
        self.paths, self.trainers, self.wrappers = [], [], []

    def load(self, path):
        return BertForSequenceClassification.from_pretrained(path)

    def __call__(self, path):
        model = self.load(path)

        def measure(prediction):
            return {"accuracy": self.metric(len(model.get_submodule(STACK)))}

        trainer = build_trainer(model, self.folder, **{"compute_metrics": measure, **self.arguments})
        evaluate = trainer.evaluate

        def look(*args, **kwargs):
            self.wrappers.append(type(trainer.model_wrapped).__name__)
            return evaluate(*args, **kwargs)

        trainer.evaluate = look
        self.paths.append(path)
        self.trainers.append(trainer)
        return trainer


def prune(maker, source, output_dir, *, calibration=None, **config):
    """Run it with every layer alike: of 4 layers k = 1 keeps [0], k = 2 keeps [0, 2]."""
    settings = {"threshold": EVERYTHING_ALIKE, "max_metric_drop": 0.05, "calibration_samples": 16, **config}
    calibration = Rows(16, 2) if calibration is None else calibration
    return prune_in_cycles(maker, source, PruningConfig(**settings), output_dir=output_dir, calibration=calibration)


def rounds_of(record):
    return [(round_.verdict, round_.kept[STACK], round_.granularity) for round_ in record.rounds]


# -- several processes -------------------------------------------------------------------------------------------------

# Rounds must not depend on the number of processes: dropout and the metric would.
CYCLES_LIKE_ONE = {
    "max_metric_drop": 1.0,
    "granularity": 3,
    "calibration_batch_size": 6,
    "start_epoch": 1,
    "max_rounds": 2,
}


def source_of(folder):
    """A BERT of six layers without dropout, written by whoever comes first; whole or not at all."""
    source = folder / "source"
    if not source.is_dir():
        with new_folder(folder / f"source-{os.getpid()}") as draft:
            save_bert(draft, 6, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        with contextlib.suppress(OSError):
            (folder / f"source-{os.getpid()}").rename(source)
    return str(source)


def facts(report):
    """What must be equal on all processes, and equal to a run of one."""
    rounds = report.record.rounds
    return {
        "rounds": rounds_of(report.record),
        "steps": [(round_.started_at_step, round_.decided_at_step) for round_ in rounds],
        "similarity": [round_.similarity[STACK]["values"] for round_ in rounds],
        "metrics": [report.before.metric, *(round_.after.metric for round_ in rounds)],
        "stopped": report.record.stopped,
    }
