"""Prune in several processes: nothing in the script says so, `accelerate launch` or `torchrun` starts it.

    accelerate launch --multi_gpu --num_processes 2 examples/multi_gpu.py
    torchrun --nproc_per_node 2 examples/multi_gpu.py

Each process measures its share of the calibration batches; the main process's plan and verdict hold for all. This script
also shows the form with one Trainer: the first epochs train the uncut model, then layers go. Offline, in two
processes on a CPU:

    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 examples/multi_gpu.py --offline
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from datasets import DatasetDict, load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    logging,
    set_seed,
)

from hf_mpruner import LayerPruningCallback, PruningConfig
from hf_mpruner.artifacts import write_artifacts

OFFLINE = {"epochs": 10, "recovery_epochs": 2, "learning_rate": 1e-3, "threshold": 0.95, "max_metric_drop": 0.02}


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """Options; `--offline` changes what the others are by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--offline", action="store_true", help="small model and data, nothing is downloaded")
    parser.add_argument("--model", default="google-bert/bert-base-uncased", help="Hub id or folder")
    parser.add_argument(
        "--dataset", default="dair-ai/emotion", help="with columns text and label, and a validation part"
    )
    parser.add_argument("--output_dir", default="multi-gpu-out", type=Path)
    parser.add_argument("--epochs", default=3, type=int, help="before the first cut (%(default)s)")
    parser.add_argument("--recovery_epochs", default=3, type=int, help="between a cut and its verdict (%(default)s)")
    parser.add_argument("--learning_rate", default=5e-5, type=float, help="%(default)s")
    parser.add_argument("--threshold", default=0.98, type=float, help="CKA from which layers are alike (%(default)s)")
    parser.add_argument("--max_metric_drop", default=0.01, type=float, help="largest drop of accuracy (%(default)s)")
    parser.add_argument("--max_examples", type=int, help="of each part (default: all)")
    if "--offline" in (sys.argv[1:] if argv is None else argv):
        parser.set_defaults(**OFFLINE)
    return parser.parse_args(argv)


def offline_model_and_data() -> tuple[PreTrainedModel, PreTrainedTokenizerBase, DatasetDict]:
    """A BERT of 6 small layers with random weights, its tokenizer, and docstrings; the same in every process."""
    from offline_data import docstrings, train_tokenizer

    data = docstrings()
    tokenizer = train_tokenizer(data["train"]["text"], vocab_size=2000)
    tokenizer.model_max_length = 32
    config = BertConfig(
        vocab_size=len(tokenizer), num_hidden_layers=6, hidden_size=64, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=32, pad_token_id=tokenizer.pad_token_id,
        num_labels=data["train"].features["label"].num_classes,
    )  # fmt: skip
    return BertForSequenceClassification(config), tokenizer, data


def accuracy(prediction) -> dict[str, float]:
    """The metric that decides: share of texts whose most likely label is the right one."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main(argv: list[str] | None = None) -> None:
    """Train and prune in every process, write in one."""
    options = parse_options(argv)
    set_seed(0)
    logging.set_verbosity_error()
    args = TrainingArguments(
        output_dir=str(options.output_dir / "training"),
        num_train_epochs=options.epochs + 10 * options.recovery_epochs,  # ten rounds at most
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=50,
        per_device_train_batch_size=16,  # in each process
        per_device_eval_batch_size=64,
        ddp_find_unused_parameters=False,
        save_strategy="no",
        report_to="none",
        seed=0,
        dataloader_pin_memory=torch.accelerator.is_available(),
    )
    if options.offline:
        torch.set_num_threads(1)  # tensors this small lose more by waiting for each other than they gain
        model, tokenizer, data = offline_model_and_data()
    else:
        with args.main_process_first(desc="download"):
            tokenizer = AutoTokenizer.from_pretrained(options.model)
            data = load_dataset(options.dataset)
            num_labels = data["train"].features["label"].num_classes
            model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=num_labels)
    if options.max_examples:
        data = DatasetDict(
            {name: part.select(range(min(options.max_examples, len(part)))) for name, part in data.items()}
        )
    with args.main_process_first(desc="tokenize"):
        data = data.map(lambda rows: tokenizer(rows["text"], truncation=True), batched=True, remove_columns="text")

    trainer = Trainer(
        model,
        args,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
        compute_metrics=accuracy,
    )
    config = PruningConfig(
        threshold=options.threshold,
        max_metric_drop=options.max_metric_drop,
        start_epoch=options.epochs,
        recovery_epochs=options.recovery_epochs,
        stop_when_done=True,
    )
    callback = LayerPruningCallback(trainer, config, calibration=data["train"])
    trainer.add_callback(callback)
    trainer.train()

    test = trainer.predict(data["test"]).metrics  # every process takes part
    if trainer.is_world_process_zero():
        folder = write_artifacts(
            options.output_dir / "model",
            model=trainer.model,
            processing_class=tokenizer,
            report=callback.report,
            config=config,
            overwrite=True,
        )
        print(f"\n{callback.report}\n\n{callback.plan}\n")
        print(
            f"accuracy on {len(data['test'])} test texts, in {args.world_size} processes: {test['test_accuracy']:.4f}"
        )
        print(
            f"AutoModelForSequenceClassification.from_pretrained('{folder}') loads it; plan and report lie beside it"
        )


if __name__ == "__main__":
    main()
