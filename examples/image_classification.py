"""Fine-tune a ResNet on images, then remove blocks of its stages: each stage is a stack of its own.

The paper's ResNet50 (arXiv 2408.13482) has thresholds of 0.95 and 0.98, a learning rate of 2e-4 and 3 epochs of recovery.
`--dataset` is a Hub id or an ImageNet-style folder (`train/LABEL/*.jpg`, `validation/...`). It downloads; use a GPU:

    python examples/image_classification.py
    python examples/image_classification.py --model microsoft/resnet-152 --dataset path/to/imagenet

Offline a small ResNet learns handwritten digits; a minute or two on two cores:

    python examples/image_classification.py --offline
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from datasets import ClassLabel, DatasetDict, Image, load_dataset
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
    logging,
    set_seed,
)

from hf_mpruner import LayerPruningCallback, PruningConfig
from hf_mpruner.artifacts import write_artifacts

OFFLINE = {"epochs": 20, "recovery_epochs": 4, "learning_rate": 2e-3, "max_metric_drop": 0.02}


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """Options; `--offline` changes what the others are by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--offline", action="store_true", help="small model and data, nothing is downloaded")
    parser.add_argument("--model", default="microsoft/resnet-50", help="Hub id or folder (%(default)s)")
    parser.add_argument("--dataset", default="AI-Lab-Makerere/beans", help="Hub id or folder of images (%(default)s)")
    parser.add_argument("--output_dir", default="image-classification-out", type=Path)
    parser.add_argument("--epochs", default=3, type=int, help="of fine-tuning, before anything is cut (%(default)s)")
    parser.add_argument("--recovery_epochs", default=3, type=int, help="between a cut and its verdict (%(default)s)")
    parser.add_argument("--learning_rate", default=2e-4, type=float, help="%(default)s")
    parser.add_argument("--threshold", default=0.95, type=float, help="CKA from which blocks are alike (%(default)s)")
    parser.add_argument("--max_metric_drop", default=0.01, type=float, help="largest drop of accuracy (%(default)s)")
    parser.add_argument("--max_examples", type=int, help="of each part (default: all)")
    if "--offline" in (sys.argv[1:] if argv is None else argv):
        parser.set_defaults(**OFFLINE)
    return parser.parse_args(argv)


def offline_model_and_data():
    """A ResNet of 8 + 8 small blocks with random weights, its image processor, and handwritten digits."""
    from offline_data import digits
    from transformers import ViTImageProcessor  # here, since it speaks up on import where torchvision is missing

    data = digits(size=32)
    config = ResNetConfig(
        num_channels=1, embedding_size=16, hidden_sizes=[16, 32], depths=[8, 8], layer_type="basic", num_labels=10
    )
    processor = ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False, rescale_factor=1 / 16)
    return ResNetForImageClassification(config), processor, data


def hub_model_and_data(model_name: str, dataset_name: str):
    """A pretrained ResNet with a new head, its image processor, and images in three parts."""
    if Path(dataset_name).is_dir():
        data = load_dataset("imagefolder", data_dir=dataset_name)
    else:
        data = load_dataset(dataset_name)
    if "test" not in data:
        halves = data["validation"].train_test_split(test_size=0.5, seed=0)
        data = DatasetDict({"train": data["train"], "validation": halves["train"], "test": halves["test"]})
    features = data["train"].features
    image = next(name for name, feature in features.items() if isinstance(feature, Image))
    label = next(name for name, feature in features.items() if isinstance(feature, ClassLabel))
    processor = AutoImageProcessor.from_pretrained(model_name)

    def encode(rows) -> dict:
        pictures = [picture.convert("RGB") for picture in rows[image]]
        return {"pixel_values": processor(pictures, return_tensors="pt")["pixel_values"], "labels": rows[label]}

    names = features[label].names
    model = AutoModelForImageClassification.from_pretrained(
        model_name,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
        ignore_mismatched_sizes=True,
    )
    return model, processor, data.with_transform(encode)


def accuracy(prediction) -> dict[str, float]:
    """The metric that decides: share of images whose most likely label is the right one."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main(argv: list[str] | None = None) -> None:
    """Fine-tune, prune, measure on images that neither saw, save."""
    options = parse_options(argv)
    set_seed(0)
    logging.set_verbosity_error()
    model: PreTrainedModel
    if options.offline:
        torch.set_num_threads(1)  # tensors this small lose more by waiting for each other than they gain
        model, processor, data = offline_model_and_data()
    else:
        model, processor, data = hub_model_and_data(options.model, options.dataset)
    if options.max_examples:
        data = DatasetDict(
            {name: part.select(range(min(options.max_examples, len(part)))) for name, part in data.items()}
        )

    def make_trainer(epochs: int) -> Trainer:
        args = TrainingArguments(
            output_dir=str(options.output_dir / "training"),
            num_train_epochs=epochs,
            learning_rate=options.learning_rate,
            warmup_steps=0.1,
            per_device_train_batch_size=64,
            per_device_eval_batch_size=64,
            remove_unused_columns=False,  # the transform makes the columns
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
            processing_class=processor,
            compute_metrics=accuracy,
        )

    # 1. A script that already works.
    trainer = make_trainer(options.epochs)
    trainer.train()
    before = trainer.predict(data["test"]).metrics["test_accuracy"]

    # 2. The same with one line more. The first block of a stage stays: it changes the width and the resolution.
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
        processing_class=processor,
        report=callback.report,
        config=config,
        overwrite=True,
    )
    print(f"\n{callback.report}\n\n{callback.plan}\n")
    print(f"accuracy on {len(data['test'])} test images: {before:.4f} before, {after:.4f} after")
    print(f"AutoModelForImageClassification.from_pretrained('{folder}') loads it; plan and report lie beside it")


if __name__ == "__main__":
    main()
