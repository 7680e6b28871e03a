"""Prune a fine-tuned model without training it, and put it on the Hub: weights, plan, report and card in one commit.

    python examples/push_to_hub.py --repo_id you/smaller-sst2 --private
    python examples/push_to_hub.py --repo_id somebody/their-model --create_pr
    python examples/push_to_hub.py                      # all of it but the push; says the command that would push

It needs `hf auth login`, or HF_TOKEN. What is pushed is checked before, and loaded back and compared after. A README.md
that is there keeps what others wrote. Offline a small BERT is trained first; nothing is pushed unless a --repo_id is given:

    python examples/push_to_hub.py --offline
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
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    logging,
    set_seed,
)

from hf_mpruner import PruningConfig, prune_, push_pruned_model
from hf_mpruner.artifacts import write_artifacts

OFFLINE = {"threshold": 0.98}


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """Options; `--offline` changes what the others are by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--offline", action="store_true", help="small model and data, nothing is downloaded")
    parser.add_argument("--model", default="textattack/bert-base-uncased-SST-2", help="a fine-tuned one (%(default)s)")
    parser.add_argument("--dataset", default="stanfordnlp/sst2", help="what it was fine-tuned on (%(default)s)")
    parser.add_argument("--text_column", default="sentence", help="%(default)s")
    parser.add_argument("--repo_id", help="where to push to, e.g. you/smaller-model (default: nowhere)")
    parser.add_argument("--private", action="store_true", default=None, help="if the repository is new")
    parser.add_argument("--revision", help="a branch instead of main")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead")
    parser.add_argument("--output_dir", default="push-to-hub-out", type=Path)
    parser.add_argument("--threshold", default=0.98, type=float, help="CKA from which layers are alike (%(default)s)")
    parser.add_argument("--max_metric_drop", default=0.03, type=float, help="largest drop of accuracy (%(default)s)")
    parser.add_argument(
        "--epochs", default=10, type=int, help="of the small model that --offline trains (%(default)s)"
    )
    parser.add_argument("--max_examples", type=int, help="of each part (default: all)")
    if "--offline" in (sys.argv[1:] if argv is None else argv):
        parser.set_defaults(**OFFLINE)
    return parser.parse_args(argv)


def accuracy(prediction) -> dict[str, float]:
    """Share of texts whose most likely label is the right one."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main(argv: list[str] | None = None) -> None:
    """Prune, write the folder, push it."""
    options = parse_options(argv)
    set_seed(0)
    logging.set_verbosity_error()
    if options.offline:
        from text_classification import offline_model_and_data

        torch.set_num_threads(1)  # tensors this small lose more by waiting for each other than they gain
        model, tokenizer, data = offline_model_and_data()
    else:
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        model = AutoModelForSequenceClassification.from_pretrained(options.model)
        data = (
            load_dataset(options.dataset).rename_column(options.text_column, "text").select_columns(["text", "label"])
        )
    if options.max_examples:
        data = DatasetDict(
            {name: part.select(range(min(options.max_examples, len(part)))) for name, part in data.items()}
        )
    data = data.map(lambda rows: tokenizer(rows["text"], truncation=True), batched=True, remove_columns="text")

    args = TrainingArguments(
        output_dir=str(options.output_dir / "training"),
        num_train_epochs=options.epochs,
        learning_rate=1e-3,
        warmup_steps=0.1,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        save_strategy="no",
        report_to="none",
        seed=0,
        dataloader_pin_memory=torch.accelerator.is_available(),
    )
    if options.offline:
        Trainer(model, args, train_dataset=data["train"], processing_class=tokenizer).train()

    def evaluate(model: PreTrainedModel) -> dict[str, float]:
        trainer = Trainer(
            model, args, eval_dataset=data["validation"], processing_class=tokenizer, compute_metrics=accuracy
        )
        return {"accuracy": trainer.evaluate()["eval_accuracy"]}

    # Cut, judge, keep or go back, until no round is left; nothing is trained.
    config = PruningConfig(threshold=options.threshold, max_metric_drop=options.max_metric_drop)
    report = prune_(
        model,
        config,
        calibration=data["train"],
        processing_class=tokenizer,
        evaluate=evaluate,
        eval_dataset=data["validation"],  # so that report and card know what judged
    )
    print(f"\n{report}\n\n{report.plan}\n")

    # The folder is complete before anything is sent, and stays whatever comes of the push.
    folder = write_artifacts(
        options.output_dir / "model",
        model=model,
        processing_class=tokenizer,
        report=report,
        config=config,
        overwrite=True,
    )
    if options.repo_id is None:
        print(f"Nothing was pushed. This does it:\nhf-mpruner push {folder} you/smaller-model --private")
        return
    pushed = push_pruned_model(
        folder, options.repo_id, private=options.private, revision=options.revision, create_pr=options.create_pr
    )
    print(pushed.pull_request_url or pushed.url)


if __name__ == "__main__":
    main()
