"""Train a causal language model on, then remove decoder layers that it does not need: loss or perplexity decides.

    python examples/causal_lm.py                     # SmolLM2-135M on WikiText-2; downloads both, use a GPU
    python examples/causal_lm.py --lora              # recovery trains LoRA adapters, merged into the cut that is kept

Offline a small Llama learns the source code of Python's standard library; a minute or two on two cores:

    python examples/causal_lm.py --offline
"""

from __future__ import annotations

import argparse
import math
import sys
from itertools import chain
from pathlib import Path

import torch
from datasets import DatasetDict, load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    default_data_collator,
    logging,
    set_seed,
)

from hf_mpruner import LayerPruningCallback, PruningConfig
from hf_mpruner.artifacts import write_artifacts

OFFLINE = {
    "epochs": 6,
    "recovery_epochs": 1,
    "learning_rate": 2e-3,
    "threshold": 0.98,
    "block_size": 64,
    "max_examples": 1200,
}


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """Options; `--offline` changes what the others are by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--offline", action="store_true", help="small model and data, nothing is downloaded")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M", help="Hub id or folder (%(default)s)")
    parser.add_argument("--dataset", default="Salesforce/wikitext", help="with a column text (%(default)s)")
    parser.add_argument("--dataset_config", default="wikitext-2-raw-v1", help="'' if it has none (%(default)s)")
    parser.add_argument("--output_dir", default="causal-lm-out", type=Path)
    parser.add_argument("--epochs", default=1, type=int, help="of fine-tuning, before anything is cut (%(default)s)")
    parser.add_argument("--recovery_epochs", default=1, type=int, help="between a cut and its verdict (%(default)s)")
    parser.add_argument("--learning_rate", default=1e-4, type=float, help="%(default)s")
    parser.add_argument("--threshold", default=0.98, type=float, help="CKA from which layers are alike (%(default)s)")
    parser.add_argument("--metric", default="loss", choices=["loss", "perplexity"], help="what decides (%(default)s)")
    parser.add_argument("--max_metric_drop", default=0.1, type=float, help="largest rise of it (%(default)s)")
    parser.add_argument("--lora", action="store_true", help="recover with LoRA adapters (needs peft)")
    parser.add_argument("--block_size", default=512, type=int, help="tokens of an example (%(default)s)")
    parser.add_argument("--max_examples", type=int, help="of each part (default: all)")
    if "--offline" in (sys.argv[1:] if argv is None else argv):
        parser.set_defaults(**OFFLINE)
    return parser.parse_args(argv)


def offline_model_and_data() -> tuple[PreTrainedModel, PreTrainedTokenizerBase, DatasetDict]:
    """A Llama of 8 small layers with random weights, its tokenizer, and Python source."""
    from offline_data import source_code, train_tokenizer

    data = source_code()
    tokenizer = train_tokenizer(data["train"]["text"], vocab_size=1000, form="$A [EOS]")
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_hidden_layers=8, hidden_size=64, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=64, tie_word_embeddings=True, bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config), tokenizer, data


def blocks_of_tokens(data: DatasetDict, tokenizer: PreTrainedTokenizerBase, size: int) -> DatasetDict:
    """All texts one after the other, cut into examples of `size` tokens; a rest is dropped."""

    def cut(rows) -> dict[str, list]:
        tokens = list(chain.from_iterable(tokenizer(rows["text"])["input_ids"]))
        blocks = [tokens[start : start + size] for start in range(0, len(tokens) - size + 1, size)]
        return {"input_ids": blocks, "labels": blocks}

    return data.map(cut, batched=True, remove_columns=data["train"].column_names).shuffle(seed=0)


def main(argv: list[str] | None = None) -> None:
    """Train, prune, measure on texts that neither saw, save."""
    options = parse_options(argv)
    set_seed(0)
    logging.set_verbosity_error()
    if options.offline:
        torch.set_num_threads(1)  # tensors this small lose more by waiting for each other than they gain
        model, tokenizer, data = offline_model_and_data()
    else:
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        model = AutoModelForCausalLM.from_pretrained(options.model)
        data = load_dataset(options.dataset, options.dataset_config or None)
    data = blocks_of_tokens(data, tokenizer, options.block_size)
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
            per_device_train_batch_size=8,
            per_device_eval_batch_size=32,
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
            data_collator=default_data_collator,  # blocks have one length, and labels
        )

    # 1. A script that already works.
    trainer = make_trainer(options.epochs)
    trainer.train()
    before = trainer.predict(data["test"]).metrics["test_loss"]

    # 2. The same with one line more. Lower is better, for a loss as for a perplexity.
    trainer = make_trainer(10 * options.recovery_epochs)  # ten rounds at most
    config = PruningConfig(
        threshold=options.threshold,
        metric=options.metric,
        max_metric_drop=options.max_metric_drop,
        recovery="lora" if options.lora else "full",
        recovery_epochs=options.recovery_epochs,
        # Adapters learn at about ten times the model's rate.
        recovery_learning_rate=10 * options.learning_rate if options.lora else None,
        learning_rate_policy="restart",
        stop_when_done=True,
    )
    callback = LayerPruningCallback(trainer, config, calibration=data["train"])
    trainer.add_callback(callback)
    trainer.train()
    after = trainer.predict(data["test"]).metrics["test_loss"]

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
    print(f"loss on {len(data['test'])} test blocks: {before:.4f} before, {after:.4f} after")
    print(f"perplexity: {math.exp(before):.2f} before, {math.exp(after):.2f} after")
    print(f"AutoModelForCausalLM.from_pretrained('{folder}') loads it; plan and report lie beside it")


if __name__ == "__main__":
    main()
