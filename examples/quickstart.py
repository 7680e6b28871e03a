"""Train an image classifier, let hf_mpruner remove the layers it does not need, and keep an ordinary checkpoint.

Offline, on real data that ships with scikit-learn (1,797 handwritten digits), a few minutes on two cores:

    python examples/quickstart.py

The same with a model and a data set of the Hub, or of your own folders:

    python examples/quickstart.py --model google/vit-base-patch16-224-in21k --dataset beans --epochs 3 --learning_rate 5e-5
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from datasets import DatasetDict
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    logging,
    set_seed,
)

from hf_mpruner import LayerPruningCallback, PruningConfig
from hf_mpruner.artifacts import write_artifacts
from hf_mpruner.data import find_columns, load_data, preprocess


def digits_model_and_data():
    """A 12-layer ViT with random weights, its image processor, and the digits in three parts that share no image."""
    from offline_data import digits
    from transformers import ViTImageProcessor  # here, since it speaks up on import where torchvision is missing

    data = digits()
    config = ViTConfig(
        num_hidden_layers=12, hidden_size=48, num_attention_heads=4, intermediate_size=96,
        image_size=8, patch_size=2, num_channels=1, num_labels=10,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    processor = ViTImageProcessor(
        size={"height": 8, "width": 8}, do_resize=False, do_normalize=False, rescale_factor=1 / 16
    )
    return ViTForImageClassification(config), processor, data


def hub_model_and_data(model_name: str, dataset_name: str):
    """A pretrained image classifier, its processor and a data set with train, validation and test parts."""
    raw = load_data(dataset_name)
    columns = find_columns(raw["train"], "image")
    labels = raw["train"].features[columns.label].names
    processor = AutoImageProcessor.from_pretrained(model_name)
    model = AutoModelForImageClassification.from_pretrained(
        model_name,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        ignore_mismatched_sizes=True,
    )
    missing = {"train", "validation", "test"} - set(raw)
    if missing:
        raise SystemExit(f"{dataset_name} has no split {', '.join(sorted(missing))}: it has {', '.join(raw)}.")
    return model, processor, DatasetDict({name: preprocess(raw[name], processor, columns, model) for name in raw})


def accuracy(prediction) -> dict[str, float]:
    """The metric that decides: fraction of images whose most likely class is the right one."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """Options; `--model` and `--dataset` are both given, or neither."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", help="a Hub id or folder of an image classifier (default: a small ViT from scratch)"
    )
    parser.add_argument("--dataset", help="a Hub id or folder of labelled images (default: scikit-learn's digits)")
    parser.add_argument("--output_dir", default="quickstart-out", type=Path)
    parser.add_argument("--threshold", type=float, default=0.98)
    parser.add_argument("--max_metric_drop", type=float, default=0.02)
    parser.add_argument("--epochs", type=int, default=60, help="ordinary training before pruning")
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--recovery_epochs", type=int, default=4)
    options = parser.parse_args(argv)
    if (options.model is None) != (options.dataset is None):
        parser.error("--model and --dataset go together")
    return options


def main(argv: list[str] | None = None) -> None:
    """Fine-tune, prune, measure on images that neither saw, save."""
    options = parse_options(argv)
    started = time.perf_counter()
    set_seed(0)
    logging.set_verbosity_error()
    if options.model is None:
        torch.set_num_threads(1)  # tensors this small lose more by waiting for each other than they gain
        model, processor, data = digits_model_and_data()
    else:
        model, processor, data = hub_model_and_data(options.model, options.dataset)

    def training(epochs: int, learning_rate: float, schedule: str) -> TrainingArguments:
        return TrainingArguments(
            output_dir=str(options.output_dir / "training"),
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            lr_scheduler_type=schedule,
            weight_decay=0.05,
            per_device_train_batch_size=64,
            per_device_eval_batch_size=64,
            eval_strategy="no",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            seed=0,
            disable_tqdm=not sys.stderr.isatty(),
            dataloader_pin_memory=torch.accelerator.is_available(),
        )

    common = {"train_dataset": data["train"], "eval_dataset": data["validation"], "compute_metrics": accuracy}

    # 1. A script that already works.
    trainer = Trainer(model, training(options.epochs, options.learning_rate, "linear"), **common)
    trainer.train()
    before = trainer.predict(data["test"]).metrics

    # 2. The same script with one more line. Layers are chosen on training images and judged on validation images.
    trainer = Trainer(model, training(10 * options.recovery_epochs, options.learning_rate / 4, "constant"), **common)
    config = PruningConfig(
        threshold=options.threshold,
        max_metric_drop=options.max_metric_drop,
        recovery_epochs=options.recovery_epochs,
        stop_when_done=True,
    )
    callback = LayerPruningCallback(trainer, config, calibration=data["train"])
    trainer.add_callback(callback)
    trainer.train()
    after = trainer.predict(data["test"]).metrics

    # 3. What came of it: an ordinary checkpoint, and the evidence.
    folder = write_artifacts(
        options.output_dir / "model",
        model=model,
        processing_class=processor,
        report=callback.report,
        config=config,
        overwrite=True,
    )
    reloaded = AutoModelForImageClassification.from_pretrained(folder)
    again = Trainer(reloaded, trainer.args, compute_metrics=accuracy).predict(data["test"]).metrics
    print(callback.report)
    print(f"\n{callback.plan}")
    print(
        f"\naccuracy on {len(data['test'])} test images that neither training nor pruning saw: "
        f"{before['test_accuracy']:.4f} before, {after['test_accuracy']:.4f} after, "
        f"{again['test_accuracy']:.4f} after loading {folder}"
    )
    print(f"{time.perf_counter() - started:.0f} s in all; model, heat maps, plan and report are in {folder}")


if __name__ == "__main__":
    main()
