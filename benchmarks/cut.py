"""Seconds from a live Trainer to its next training step with fewer layers: edited in place, against built anew.

Run: `python benchmarks/cut.py`. A BERT of base size with AdamW's state on the CPU loses half of its layers. Every round makes a
live Trainer for each way, outside of the time; the ways take turns:

- `in place`: model and optimizer are edited, as the callback does it: the proof on the meta device, the cut, the parameters
  and moments of deleted layers out of the optimizer, and the check that both fit.
- `in place, can go back`: also the snapshot that a rejected round needs.
- `built anew`: layers deleted by hand, `save_pretrained`, `from_pretrained`, a new Trainer with a new optimizer and scheduler, as one
  would do it otherwise. AdamW's moments are lost.

The last includes one small training step, the first two as well; its seconds alone are in the table.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measure import Results, ratio
from models import add_size, bert_config
from transformers import BertForSequenceClassification, Trainer, TrainingArguments
from transformers.utils import logging as transformers_logging

from hf_mpruner.optimizer import OptimizerEdit, check_optimizer_matches
from hf_mpruner.snapshot import Snapshot
from hf_mpruner.surgery import ModelEdit

STACK = "bert.encoder.layer"
IN_PLACE, CAN_GO_BACK, ANEW = "in place", "in place, can go back", "built anew"


def new_trainer(model: BertForSequenceClassification, folder: Path) -> Trainer:
    """A Trainer with its optimizer and scheduler."""
    arguments = TrainingArguments(str(folder / "out"), report_to="none", use_cpu=True, disable_tqdm=True)
    trainer = Trainer(model, arguments)
    trainer.create_optimizer_and_scheduler(num_training_steps=100)
    return trainer


def step(trainer: Trainer, batch: dict[str, torch.Tensor]) -> None:
    """One training step."""
    trainer.model.train()
    trainer.model(**batch).loss.backward()
    trainer.optimizer.step()
    trainer.lr_scheduler.step()
    trainer.optimizer.zero_grad()


def in_place(trainer: Trainer, kept: list[int], snapshot: bool) -> Trainer:
    """The same Trainer, with fewer layers in its model and in its optimizer."""
    model, optimizer = trainer.model, trainer.optimizer
    edit = ModelEdit(model, {STACK: kept})
    optimizer_edit = OptimizerEdit(optimizer, trainer.lr_scheduler, edit.removed_parameters, edit.trims, model)
    if snapshot:
        Snapshot.take(model, optimizer, removed=edit.removed_parameters, where="cpu")
    edit.apply()
    optimizer_edit.apply()
    check_optimizer_matches(model, optimizer)
    return trainer


def anew(trainer: Trainer, kept: list[int], folder: Path) -> Trainer:
    """Another Trainer, from a checkpoint with fewer layers."""
    model: Any = trainer.model
    layers = model.bert.encoder.layer
    model.bert.encoder.layer = torch.nn.ModuleList([layers[i] for i in kept])
    model.config.num_hidden_layers = len(kept)
    model.save_pretrained(folder / "cut")
    return new_trainer(BertForSequenceClassification.from_pretrained(folder / "cut"), folder)


def main() -> None:
    """Print seconds and ratios."""
    parser = argparse.ArgumentParser()
    add_size(parser, batch=2, length=16)
    parser.add_argument("--runs", type=int, default=5)
    results = Results(__doc__, parser)
    args = results.args
    transformers_logging.disable_progress_bar()
    kept = list(range(0, args.layers, 2))
    batch = {
        "input_ids": torch.randint(1000, (args.batch, args.length)),
        "labels": torch.zeros(args.batch, dtype=torch.long),
    }
    seconds: dict[str, list[float]] = {name: [] for name in (IN_PLACE, CAN_GO_BACK, ANEW)}
    steps: list[float] = []
    names = list(seconds)
    for number in range(args.runs + 1):
        for name in names[number % 3 :] + names[: number % 3]:
            with tempfile.TemporaryDirectory() as where:
                folder = Path(where)
                torch.manual_seed(number)
                trainer = new_trainer(BertForSequenceClassification(bert_config(args)), folder)
                step(trainer, batch)
                started = time.perf_counter()
                trainer = anew(trainer, kept, folder) if name == ANEW else in_place(trainer, kept, name == CAN_GO_BACK)
                ready = time.perf_counter()
                step(trainer, batch)
                if number:  # the first round warms up
                    seconds[name].append(time.perf_counter() - started)
                    steps.append(time.perf_counter() - ready)
                if len(trainer.model.bert.encoder.layer) != len(kept):
                    raise SystemExit(f"{name}: {len(trainer.model.bert.encoder.layer)} layers, not {len(kept)}")
    rows = [{"way": name, "s": statistics.median(taken)} for name, taken in seconds.items()]
    results.table(
        f"{args.layers} -> {len(kept)} layers, to the end of the next step",
        [*rows, {"way": "the step alone", "s": statistics.median(steps)}],
    )
    for name in (IN_PLACE, CAN_GO_BACK):
        results.ratio(f"{name} / {ANEW}", ratio(seconds[name], seconds[ANEW]), at_most=1.0)
    results.finish()


if __name__ == "__main__":
    sys.exit(main())
