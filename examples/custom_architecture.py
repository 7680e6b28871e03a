"""Prune a model class of your own: dilated convolutions over text, with a config list that has one entry a layer.

hf_mpruner finds the layers by experiment, as in any model of transformers, and proves each cut against a model built
from the new config. What it cannot find out is what a list of the config means that is as long as the stack: until
`register_architecture` says so, the stack is refused. Everything after that is as usual. On a Hub data set:

    python examples/custom_architecture.py

Offline it learns which package of Python's standard library a docstring is from; a minute on two cores:

    python examples/custom_architecture.py --offline
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from datasets import DatasetDict, load_dataset
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    logging,
    set_seed,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_mpruner import LayerPruningCallback, PruningConfig, register_architecture
from hf_mpruner.artifacts import write_artifacts

OFFLINE = {"epochs": 10, "max_length": 32}


class DilatedConfig(PreTrainedConfig):
    """`num_layers` blocks, each with a dilation of its own."""

    model_type = "dilated_text"

    def __init__(self, vocab_size=1000, hidden_size=64, num_layers=8, dilations=None, **kwargs):
        self.vocab_size, self.hidden_size, self.num_layers = vocab_size, hidden_size, num_layers
        self.dilations = dilations or [2 ** (layer % 4) for layer in range(num_layers)]
        super().__init__(**kwargs)


class DilatedBlock(nn.Module):
    """A convolution over the neighbours that are `dilation` tokens away, around which the input goes on."""

    def __init__(self, size: int, dilation: int):
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.convolution = nn.Conv1d(size, size, 3, padding=dilation, dilation=dilation)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Both of shape `(batch, tokens, size)`."""
        mixed = self.convolution(self.norm(hidden_states).transpose(1, 2)).transpose(1, 2)
        return hidden_states + nn.functional.gelu(mixed)


class DilatedForSequenceClassification(PreTrainedModel):
    """An embedding, the blocks, the mean over the tokens and a head."""

    config_class = DilatedConfig

    def __init__(self, config: DilatedConfig):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DilatedBlock(config.hidden_size, dilation) for dilation in config.dilations)
        self.head = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, labels=None, **kwargs) -> SequenceClassifierOutput:
        """The loss is `None` without labels."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden_states = self.embedding(input_ids)
        for layer in self.layers:
            hidden_states = layer(hidden_states * mask[..., None])
        mean = (hidden_states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        logits = self.head(mean)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


# So that the Auto classes know it, here and in whatever else imports this module.
AutoConfig.register("dilated_text", DilatedConfig)
AutoModelForSequenceClassification.register(DilatedConfig, DilatedForSequenceClassification)

# And so that hf_mpruner knows that an entry of `dilations` goes with its layer. It would keep the first layer, too, if
# `pinned={"num_layers": [0]}` said so.
register_architecture("dilated_text", per_layer_lists=["dilations"])


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """Options; `--offline` changes what the others are by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--offline", action="store_true", help="small data, nothing is downloaded")
    parser.add_argument("--tokenizer", default="google-bert/bert-base-uncased", help="Hub id or folder (%(default)s)")
    parser.add_argument("--dataset", default="dair-ai/emotion", help="with columns text and label (%(default)s)")
    parser.add_argument("--output_dir", default="custom-architecture-out", type=Path)
    parser.add_argument("--epochs", default=3, type=int, help="before the first cut (%(default)s)")
    parser.add_argument("--recovery_epochs", default=2, type=int, help="between a cut and its verdict (%(default)s)")
    parser.add_argument("--threshold", default=0.95, type=float, help="CKA from which layers are alike (%(default)s)")
    parser.add_argument("--max_metric_drop", default=0.02, type=float, help="largest drop of accuracy (%(default)s)")
    parser.add_argument("--max_length", default=64, type=int, help="tokens (%(default)s)")
    parser.add_argument("--max_examples", type=int, help="of each part (default: all)")
    if "--offline" in (sys.argv[1:] if argv is None else argv):
        parser.set_defaults(**OFFLINE)
    return parser.parse_args(argv)


def accuracy(prediction) -> dict[str, float]:
    """The metric that decides: share of texts whose most likely label is the right one."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main(argv: list[str] | None = None) -> None:
    """Train, prune, save, load by the Auto class."""
    options = parse_options(argv)
    set_seed(0)
    logging.set_verbosity_error()
    if options.offline:
        from offline_data import docstrings, train_tokenizer

        torch.set_num_threads(1)  # tensors this small lose more by waiting for each other than they gain
        data = docstrings()
        tokenizer = train_tokenizer(data["train"]["text"], vocab_size=2000)
    else:
        data = load_dataset(options.dataset)
        tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    if options.max_examples:
        data = DatasetDict(
            {name: part.select(range(min(options.max_examples, len(part)))) for name, part in data.items()}
        )
    tokenizer.model_max_length = options.max_length
    data = data.map(lambda rows: tokenizer(rows["text"], truncation=True), batched=True, remove_columns="text")

    names = data["train"].features["label"].names
    model = DilatedForSequenceClassification(
        DilatedConfig(
            vocab_size=len(tokenizer),
            id2label=dict(enumerate(names)),
            label2id={name: label for label, name in enumerate(names)},
        )
    )
    args = TrainingArguments(
        output_dir=str(options.output_dir / "training"),
        num_train_epochs=options.epochs + 10 * options.recovery_epochs,  # ten rounds at most
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        save_strategy="no",
        report_to="none",
        seed=0,
        dataloader_pin_memory=torch.accelerator.is_available(),
    )
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

    folder = write_artifacts(
        options.output_dir / "model",
        model=trainer.model,
        processing_class=tokenizer,
        report=callback.report,
        config=config,
        overwrite=True,
    )
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    test = Trainer(loaded, args, processing_class=tokenizer, compute_metrics=accuracy).predict(data["test"]).metrics
    print(f"\n{callback.report}\n\n{callback.plan}\n")
    print(f"dilations of the layers that stayed: {loaded.config.dilations}")
    print(f"accuracy on {len(data['test'])} test texts after loading {folder}: {test['test_accuracy']:.4f}")


if __name__ == "__main__":
    main()
