"""What the tests of trl's `SFTTrainer` share: a tiny Llama that learns lines of a docstring, with trl's own defaults."""

from __future__ import annotations

import torch
import trl
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from hf_mpruner import LayerPruningCallback, PruningConfig
from text_kit import lines

STACK = "model.layers"


def texts():
    return Dataset.from_list([{"text": line} for line in lines()])


def completions():
    """The first two words are the prompt; the loss is of the others."""
    halves = [(line.split()[:2], line.split()[2:]) for line in lines()]
    return Dataset.from_list([{"prompt": " ".join(a), "completion": " " + " ".join(b)} for a, b in halves])


def build(tokenizer, folder, data=None, peft_config=None, **arguments):
    """Four epochs of five steps over 40 lines, with trl's own defaults for everything that is not a matter of size."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=4, max_position_embeddings=64, **sizes)
    settings = {
        "output_dir": str(folder), "num_train_epochs": 4, "per_device_train_batch_size": 8, "learning_rate": 3e-3,
        "per_device_eval_batch_size": 8, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
        "save_strategy": "no", "eval_strategy": "no", "logging_steps": 2, "seed": 1, **arguments,
    }  # fmt: skip
    return trl.SFTTrainer(
        LlamaForCausalLM(config), trl.SFTConfig(**settings), train_dataset=texts() if data is None else data,
        eval_dataset=texts() if data is None else data, processing_class=tokenizer, peft_config=peft_config,
    )  # fmt: skip


def add(trainer, **config):
    settings = {"threshold": 0.0, "max_metric_drop": 1.0, "calibration_samples": 16, "max_rounds": 1, **config}
    callback = LayerPruningCallback(trainer, PruningConfig(**settings), calibration=trainer.train_dataset)
    trainer.add_callback(callback)
    return callback
