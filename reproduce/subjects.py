"""What `mpruner.py` and `wanda.py` work on: a small ResNet on handwritten digits, and a text classifier.

The data is what Python and scikit-learn bring along (`examples/offline_data.py`), or folders of one's own: an encoder and a
data set with `text` and `label` in `train`, `validation` and `test`. Uncut models are trained once a seed and kept beside the
results, in `weights/`, which git ignores.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict, disable_progress_bars
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    EvalPrediction,
    PreTrainedModel,
    PrinterCallback,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging as chatter

from hf_mpruner.architectures import count_parameters, find_block_stacks
from hf_mpruner.data import calibration_loader, load_data
from hf_mpruner.features import measure_similarity
from hf_mpruner.similarity import SimilarityMatrix

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

ROUNDS = 3


@dataclass(frozen=True)
class Subject:
    """A model and its data.

    Args:
        name (`str`): of its folder.
        build (callable): gets a seed, returns the model before it was trained on the task.
        data (`DatasetDict`): model-ready; layers are chosen on `validation`, all figures are of `test`.
        processing_class: pads; None for images.
        settings (`dict`): what every figure depends on, plain values; `epochs`, `rate`, `recovery_rate`, `batch_size`
            among them.
    """

    name: str
    build: Callable[[int], PreTrainedModel]
    data: DatasetDict
    processing_class: Any
    settings: dict[str, Any]

    @cached_property
    def paths(self) -> list[str]:
        """Of the stacks of the uncut model."""
        return [stack.path for stack in find_block_stacks(self.build(0))]


def add_subject(parser: argparse.ArgumentParser) -> None:
    """Flags that choose a subject."""
    parser.add_argument("--subject", choices=("resnet", "text"), default="resnet")
    parser.add_argument("--layer_type", choices=("basic", "bottleneck"), default="basic", help="resnet: kind of block")
    parser.add_argument("--model", help="text: an encoder's folder or Hub id instead of a small BERT")
    parser.add_argument("--data", help="text: folder with train, validation and test of `text` and `label`")
    parser.add_argument("--train", type=int, help="training examples (default: all)")
    parser.add_argument("--test", type=int, help="examples of test and of validation, each (default: all)")
    parser.add_argument("--epochs", type=int, help="of the uncut model (default: 20 resnet, 12 text, 3 with --model)")
    parser.add_argument("--max_length", type=int, help="text: tokens of an example (default: 32, or 64 with --model)")


def make_subject(args: argparse.Namespace) -> Subject:
    """The subject that the flags name; the libraries are quiet from here on."""
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    disable_progress_bars()
    if args.subject == "resnet":
        return _resnet(args)
    return _text(args)


def train(model: PreTrainedModel, subject: Subject, epochs: int, rate: float, seed: int) -> dict[str, Any]:
    """Train, and judge after every epoch.

    Returns:
        `dict`: `accuracies` (an entry an epoch), `seconds` of training without the evaluations between.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(model, subject, folder, epochs, rate, seed, eval_strategy="epoch")
        result = trainer.train()
    logs = [log for log in trainer.state.log_history if "eval_accuracy" in log]
    seconds = result.metrics["train_runtime"] - sum(log["eval_runtime"] for log in logs)
    return {"accuracies": [log["eval_accuracy"] for log in logs], "seconds": seconds}


def evaluate(model: PreTrainedModel, subject: Subject) -> dict[str, Any]:
    """Accuracy and loss on `test`, seconds of its forward passes (the quickest of some rounds), and the size."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(model, subject, folder, 1, 0.0, 0)
        found = trainer.evaluate()
        batches = [dict(batch) for batch in trainer.get_eval_dataloader()]
    model.eval()
    rounds = []
    with torch.no_grad():
        for _ in range(ROUNDS):
            started = time.perf_counter()
            for batch in batches:
                model(**batch)
            rounds.append(time.perf_counter() - started)
    return {
        "accuracy": found["eval_accuracy"], "loss": found["eval_loss"], "eval_seconds": min(rounds),
        "parameters": count_parameters(model),
        # not found anew: a stack of one layer is none that could be cut
        "layers": {path: len(model.get_submodule(path)._modules) for path in subject.paths},
    }  # fmt: skip


def measure(model: PreTrainedModel, subject: Subject, preset: str, samples: int) -> dict[str, Any]:
    """Similarity matrices on a sample of `validation`, as plain values."""
    loader = calibration_loader(
        subject.data["validation"], num_samples=samples, batch_size=32, seed=0, processing_class=subject.processing_class,
        model=model,
    )  # fmt: skip
    started = time.perf_counter()
    found = measure_similarity(model, loader, protocol=preset)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "matrices": {path: matrix.to_dict() for path, matrix in found.items()}}


def matrices_of(values: dict[str, Any]) -> dict[str, SimilarityMatrix]:
    """What `measure` wrote down."""
    return {path: SimilarityMatrix.from_dict(one) for path, one in values["matrices"].items()}


def make_trainer(
    model: PreTrainedModel, subject: Subject, folder: str, epochs: int, rate: float, seed: int, **more: Any
) -> Trainer:
    """AdamW, a linear schedule, nothing saved or printed."""
    size = subject.settings["batch_size"]
    settings = TrainingArguments(
        folder, num_train_epochs=epochs, learning_rate=rate, per_device_train_batch_size=size, seed=seed,
        per_device_eval_batch_size=2 * size, warmup_steps=0.1, report_to="none", save_strategy="no",
        logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=torch.accelerator.is_available(), **more,
    )  # fmt: skip
    trainer = Trainer(
        model, settings, train_dataset=subject.data["train"], eval_dataset=subject.data["test"],
        processing_class=subject.processing_class, compute_metrics=accuracy,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


class Weights:
    """Trained models in a folder that git ignores; one that is missing is trained again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".gitignore").write_text("*\n")

    def save(self, name: str, model: PreTrainedModel) -> None:
        """Keep a model."""
        model.save_pretrained(self.folder / name)

    def load(self, name: str, kind: type[PreTrainedModel], make: Callable[[], Any]) -> PreTrainedModel:
        """A model that was kept; `make()` must keep it, if it is not there."""
        if not (self.folder / name / "config.json").exists():
            make()
        return kind.from_pretrained(self.folder / name)


def train_original(subject: Subject, seed: int, weights: Weights) -> dict[str, Any]:
    """Train the uncut model and keep it."""
    set_seed(seed)
    model = subject.build(seed)
    epochs, rate = subject.settings["epochs"], subject.settings["rate"]
    trained = train(model, subject, epochs, rate, seed)
    weights.save(f"s{seed}-o", model)
    return {**trained, **evaluate(model, subject)}


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of right answers."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def _few(data: DatasetDict, args: argparse.Namespace) -> DatasetDict:
    wanted = {"train": args.train, "validation": args.test, "test": args.test}
    return DatasetDict(
        {
            name: part if wanted[name] is None else part.shuffle(seed=0).select(range(min(wanted[name], len(part))))
            for name, part in data.items()
            if name in wanted
        }
    )


def _resnet(args: argparse.Namespace) -> Subject:
    """8 + 8 blocks of 16 and 32 channels (bottleneck: 32 and 64) on digits of 32 x 32 pixels; stage openers are pinned."""
    from offline_data import digits

    torch.set_num_threads(1)  # tensors this small lose more by waiting for each other than they gain
    widths = [16, 32] if args.layer_type == "basic" else [32, 64]
    options = {"embedding_size": 16, "hidden_sizes": widths, "depths": [8, 8], "layer_type": args.layer_type}

    def build(seed: int) -> PreTrainedModel:
        torch.manual_seed(seed)
        return ResNetForImageClassification(ResNetConfig(num_channels=1, num_labels=10, **options))

    data = _few(digits(size=32), args)
    settings = {"epochs": args.epochs or 20, "rate": 2e-3, "recovery_rate": 1e-3, "batch_size": 64}
    name = "resnet" if args.layer_type == "basic" else "resnet-bottleneck"
    return Subject(name, build, data, None, {"model": "ResNet", **options, **_sizes(data), **settings})


def _text(args: argparse.Namespace) -> Subject:
    """Docstrings by package, or what --model and --data name."""
    if bool(args.model) != bool(args.data):
        sys.exit("Pass --model and --data together, or neither.")
    args.max_length = args.max_length or (64 if args.model else 32)
    if args.model:
        loaded = load_data(args.data)
        raw = _few(DatasetDict(loaded), args)
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        number = len(set(raw["train"]["label"]))
        settings = {
            "model": Path(args.model).name,
            "data": Path(args.data).name,
            "epochs": args.epochs or 3,
            "rate": 2e-4,
        }

        def build(seed: int) -> PreTrainedModel:
            torch.manual_seed(seed)  # of the head
            return AutoModelForSequenceClassification.from_pretrained(
                args.model, num_labels=number, dtype=torch.float32
            )
    else:
        from offline_data import docstrings, train_tokenizer

        torch.set_num_threads(1)
        raw = _few(docstrings(), args)
        tokenizer = train_tokenizer(raw["train"]["text"], vocab_size=2000)
        options = {
            "num_hidden_layers": 8, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128,
        }  # fmt: skip
        settings = {"model": "BERT", **options, "data": "docstrings", "epochs": args.epochs or 12, "rate": 1e-3}

        def build(seed: int) -> PreTrainedModel:
            torch.manual_seed(seed)
            return BertForSequenceClassification(
                BertConfig(
                    vocab_size=len(tokenizer),
                    max_position_embeddings=args.max_length,
                    num_labels=8,
                    pad_token_id=tokenizer.pad_token_id,
                    **options,
                )
            )

    data = raw.map(
        lambda rows: tokenizer(rows["text"], truncation=True, max_length=args.max_length),
        batched=True,
        remove_columns=[name for name in raw["train"].column_names if name != "label"],
    )
    settings |= {
        "recovery_rate": settings["rate"] / 2,
        "batch_size": 32,
        "max_length": args.max_length,
        **_sizes(data),
    }
    name = f"text-{Path(args.model).name}" if args.model else "text"
    return Subject(name, build, data, tokenizer, settings)


def _sizes(data: DatasetDict) -> dict[str, Any]:
    return {f"{name}_examples": len(part) for name, part in data.items()}
