"""How the ways of recovery compare at the same depth: accuracy, seconds and peak memory, each in a process of its own.

    python reproduce/recovery.py MODEL_DIR DATA_DIR

MODEL_DIR is an encoder (its head is not used), DATA_DIR holds `train`, `validation` and `test` as parquet with `text` and
`label`. A classifier is trained first, uncut. Then every second layer goes, and what is left recovers for
`--recovery_epochs` on the same examples, judged on `test`. Seconds are of recovery with its evaluation left out; memory
is the process's highest resident size.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars, load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging as chatter

from hf_mpruner import LayerPruningCallback, PruningConfig
from hf_mpruner.architectures import find_block_stacks

KINDS: dict[str, dict[str, Any]] = {
    "full": {},  # the first one: the others are compared with it
    "none": {"recovery_epochs": 0},
    "freeze_untouched": {"freeze_untouched": True},
    "lora": {"recovery": "lora", "lora_rank": 16, "lora_alpha": 32},
    "full + distillation": {"distillation_weight": 0.5},
    "full + distillation, hidden states": {"distillation_weight": 0.5, "distillation_hidden_weight": 1.0},
    "lora + distillation": {"recovery": "lora", "lora_rank": 16, "lora_alpha": 32, "distillation_weight": 0.5},
}
# Adapters learn at about ten times the rate of the model.
LORA_RATE = 10


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of right answers."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def build(model: PreTrainedModel, folder: str, epochs: int, args: argparse.Namespace) -> tuple[Trainer, Any]:
    """A Trainer for the task, and a calibration set that it does not judge by. No epochs: one step, at a rate of 0."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)

    def read(split: str, number: int) -> Any:
        rows = load_dataset("parquet", data_files=str(Path(args.data) / f"{split}.parquet"))["train"].shuffle(seed=0)
        return rows.select(range(min(number, len(rows)))).map(
            lambda some: tokenizer(some["text"], truncation=True, max_length=args.max_length), batched=True
        )

    settings = TrainingArguments(
        folder, num_train_epochs=epochs, max_steps=-1 if epochs else 1, learning_rate=args.learning_rate if epochs else 0.0,
        per_device_train_batch_size=32, per_device_eval_batch_size=64, warmup_steps=0.1, seed=0, report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
    trainer = Trainer(
        model, settings, train_dataset=read("train", args.train), eval_dataset=read("test", args.test),
        processing_class=tokenizer, compute_metrics=accuracy,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer, read("validation", 256)


def run(kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """Recover in one way; called in a process of its own."""
    model = AutoModelForSequenceClassification.from_pretrained(args.trained)
    stack = find_block_stacks(model)[0]
    config = {
        "threshold": 0.0, "protect": [f"{stack.path}:{layer}" for layer in range(0, stack.depth, 2)], "max_rounds": 1,
        "max_metric_drop": 1.0, "recovery_epochs": args.recovery_epochs, **KINDS[kind],
    }  # fmt: skip
    if config.get("recovery") == "lora":
        config["recovery_learning_rate"] = LORA_RATE * args.learning_rate
    with tempfile.TemporaryDirectory() as folder:
        trainer, calibration = build(model, folder, config["recovery_epochs"], args)
        callback = LayerPruningCallback(trainer, PruningConfig(**config), calibration=calibration)
        trainer.add_callback(callback)
        trainer.train()
    (round_,) = callback.record.rounds
    baseline = callback.record.baseline
    return {
        "kept": round_.kept, "baseline": baseline and baseline.metric, "accuracy": round_.after.metric,
        "seconds": round_.recovery_seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "parameters": round_.after.parameters,
    }  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--train", type=int, default=2100, help="training examples")
    parser.add_argument("--test", type=int, default=2100, help="examples to judge by")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of the uncut classifier")
    parser.add_argument("--recovery_epochs", type=int, default=1)
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    parser.add_argument("--max_length", type=int, default=96)
    parser.add_argument("--trained", help="a classifier that was trained before, or where to keep it")
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    disable_progress_bars()
    if args.kind:
        print(json.dumps(run(args.kind, args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        args.trained = args.trained or f"{folder}/trained"
        if not Path(args.trained).is_dir():
            labels = load_dataset("parquet", data_files=str(Path(args.data) / "train.parquet"))["train"].unique(
                "label"
            )
            model = AutoModelForSequenceClassification.from_pretrained(
                args.model, num_labels=len(labels), dtype=torch.float32
            )
            trainer, _ = build(model, folder, args.epochs, args)
            trainer.train()
            trainer.save_model(args.trained)
        print(
            f"{'recovery':36} {'accuracy':>8} {'of uncut':>8} {'seconds':>8} {'of full':>8} {'peak MB':>8} {'of full':>8}"
        )
        full = None
        for kind in KINDS:
            row = child(kind, args)
            full = full or row
            if row["kept"] != full["kept"]:
                sys.exit(f"'{kind}' was not compared at the same depth: {row['kept']}, not {full['kept']}.")
            print(
                f"{kind:36} {row['accuracy']:8.4f} {row['accuracy'] / row['baseline']:8.3f} {row['seconds']:8.1f} "
                f"{row['seconds'] / full['seconds']:8.2f} {row['peak'] / 1e6:8.0f} {row['peak'] / full['peak']:8.2f}",
                flush=True,
            )
        if full is not None:
            print(f"uncut: {full['baseline']:.4f}; kept: {full['kept']}; {full['parameters']:,} parameters")


def child(kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """`run` in a new process, so that its memory is its own."""
    words = [sys.executable, __file__, args.model, args.data, "--kind", kind, "--trained", args.trained]
    for name in ("train", "test", "recovery_epochs", "learning_rate", "max_length"):
        words += [f"--{name}", str(getattr(args, name))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
