"""Fine-tune BERT on a text classification, then remove the encoder layers that it does not need.

This is the first experiment of the paper (arXiv 2408.13482): BERT-base on dair-ai/emotion, threshold 0.98 (it also has
0.99), 3 epochs of recovery a round at a learning rate of 5e-5. Here layers are chosen on training texts, rounds are
judged on validation texts, and the last number is of test texts that neither saw. It downloads both; use a GPU:

    python examples/text_classification.py

Offline a small BERT learns which package of Python's standard library a docstring is from; a minute or two on two cores:

    python examples/text_classification.py --offline
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

OFFLINE = {"epochs": 12, "recovery_epochs": 2, "learning_rate": 1e-3, "threshold": 0.95, "max_metric_drop": 0.02}


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """Options; `--offline` changes what the others are by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--offline", action="store_true", help="small model and data, nothing is downloaded")
    parser.add_argument("--model", default="google-bert/bert-base-uncased", help="Hub id or folder")
    parser.add_argument("--dataset", default="dair-ai/emotion", help="with columns text and label, in three parts")
    parser.add_argument("--output_dir", default="text-classification-out", type=Path)
    parser.add_argument("--epochs", default=3, type=int, help="of fine-tuning, before anything is cut (%(default)s)")
    parser.add_argument("--recovery_epochs", default=3, type=int, help="between a cut and its verdict (%(default)s)")
    parser.add_argument("--learning_rate", default=5e-5, type=float, help="%(default)s")
    parser.add_argument("--threshold", default=0.98, type=float, help="CKA from which layers are alike (%(default)s)")
    parser.add_argument("--max_metric_drop", default=0.01, type=float, help="largest drop of accuracy (%(default)s)")
    parser.add_argument("--max_examples", type=int, help="of each part (default: all)")
    if "--offline" in (sys.argv[1:] if argv is None else argv):
        parser.set_defaults(**OFFLINE)
    return parser.parse_args(argv)


def offline_model_and_data() -> tuple[PreTrainedModel, PreTrainedTokenizerBase, DatasetDict]:
    """A BERT of 8 small layers with random weights, its tokenizer, and docstrings."""
    from offline_data import docstrings, train_tokenizer

    data = docstrings()
    tokenizer = train_tokenizer(data["train"]["text"], vocab_size=2000)
    tokenizer.model_max_length = 32
    config = BertConfig(
        vocab_size=len(tokenizer), num_hidden_layers=8, hidden_size=64, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=32, pad_token_id=tokenizer.pad_token_id, **label_names(data),
    )  # fmt: skip
    return BertForSequenceClassification(config), tokenizer, data


def hub_model_and_data(
    model_name: str, dataset_name: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, DatasetDict]:
    """A pretrained encoder with a new head, its tokenizer, and a data set with train, validation and test parts."""
    data = load_dataset(dataset_name)
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    return AutoModelForSequenceClassification.from_pretrained(model_name, **label_names(data)), tokenizer, data


def label_names(data: DatasetDict) -> dict[str, dict]:
    """What a config says about the labels."""
    names = data["train"].features["label"].names
    return {"id2label": dict(enumerate(names)), "label2id": {name: label for label, name in enumerate(names)}}


def accuracy(prediction) -> dict[str, float]:
    """The metric that decides: share of texts whose most likely label is the right one."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main(argv: list[str] | None = None) -> None:
    """Fine-tune, prune, measure on texts that neither saw, save."""
    options = parse_options(argv)
    set_seed(0)
    logging.set_verbosity_error()
    if options.offline:
        torch.set_num_threads(1)  # tensors this small lose more by waiting for each other than they gain
        model, tokenizer, data = offline_model_and_data()
    else:
        model, tokenizer, data = hub_model_and_data(options.model, options.dataset)
    if options.max_examples:
        data = DatasetDict(
            {name: part.select(range(min(options.max_examples, len(part)))) for name, part in data.items()}
        )
    data = data.map(lambda rows: tokenizer(rows["text"], truncation=True), batched=True, remove_columns="text")

    def make_trainer(epochs: int) -> Trainer:
        args = TrainingArguments(
            output_dir=str(options.output_dir / "training"),
            num_train_epochs=epochs,
            learning_rate=options.learning_rate,
            warmup_steps=0.1,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            save_strategy="no",
            report_to="none",
            seed=0,
            dataloader_pin_memory=torch.accelerator.is_available(),
        )
        return Trainer(
            model,
            args,
            train_dataset=data["train"],
            eval_dataset=data["validation"],
            processing_class=tokenizer,
            compute_metrics=accuracy,
        )

    # 1. A script that already works.
    trainer = make_trainer(options.epochs)
    trainer.train()
    before = trainer.predict(data["test"]).metrics["test_accuracy"]

    # 2. The same with one line more. As in the paper each round is a training of its own: it warms up and decays again.
    trainer = make_trainer(10 * options.recovery_epochs)  # ten rounds at most
    config = PruningConfig(
        threshold=options.threshold,
        max_metric_drop=options.max_metric_drop,
        recovery_epochs=options.recovery_epochs,
        learning_rate_policy="restart",
        stop_when_done=True,
    )
    callback = LayerPruningCallback(trainer, config, calibration=data["train"])
    trainer.add_callback(callback)
    trainer.train()
    after = trainer.predict(data["test"]).metrics["test_accuracy"]

    # 3. What came of it: an ordinary checkpoint, and the evidence.
    folder = write_artifacts(
        options.output_dir / "model",
        model=trainer.model,
        processing_class=tokenizer,
        report=callback.report,
        config=config,
        overwrite=True,
    )
    print(f"\n{callback.report}\n\n{callback.plan}\n")
    print(f"accuracy on {len(data['test'])} test texts: {before:.4f} before, {after:.4f} after")
    print(f"AutoModelForSequenceClassification.from_pretrained('{folder}') loads it; plan and report lie beside it")


if __name__ == "__main__":
    main()
