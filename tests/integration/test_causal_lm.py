"""Causal language models: the loss or the perplexity decides, lower is better."""

from __future__ import annotations

import inspect
import math
import textwrap

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from hf_mpruner import LayerPruningCallback, PruningConfig

WIDTH = 24


def rows():
    """The docstring of `textwrap`, by characters."""
    text = inspect.getdoc(textwrap.TextWrapper)
    ids = torch.tensor([ord(letter) % 128 for letter in text])
    pieces = ids[: len(ids) // WIDTH * WIDTH].view(-1, WIDTH)
    return [{"input_ids": piece, "labels": piece.clone()} for piece in pieces[:32]]


def train(folder, learning_rate=3e-3, **config):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=128, num_hidden_layers=4, max_position_embeddings=32, **sizes))
    arguments = TrainingArguments(
        str(folder), num_train_epochs=6, per_device_train_batch_size=8, learning_rate=learning_rate, report_to="none",
        use_cpu=True, disable_tqdm=True, save_strategy="no", logging_strategy="no", seed=1,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows(), eval_dataset=rows())
    settings = {"threshold": 0.0, "start_epoch": 3, "calibration_samples": 16, "max_rounds": 1, **config}
    callback = LayerPruningCallback(trainer, PruningConfig(**settings), calibration=rows())
    trainer.add_callback(callback)
    trainer.train()
    (round_,) = callback.record.rounds
    return trainer, callback.record.baseline.metric, round_


@pytest.mark.parametrize("metric", ["loss", "perplexity"])
def test_a_model_that_got_better_is_kept(metric, tmp_path):
    trainer, baseline, round_ = train(tmp_path, metric=metric, max_metric_drop=0.5, recovery_epochs=3)
    assert round_.verdict == "accepted"
    assert round_.drop == pytest.approx(round_.after.metric - baseline)
    assert trainer.model.config.num_hidden_layers == 1
    loss = trainer.evaluate()["eval_loss"]
    assert round_.after.metric == pytest.approx(loss if metric == "loss" else math.exp(loss))
    trainer.save_model(str(tmp_path / "saved"))
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "saved").eval()
    start = rows()[0]["input_ids"][None, :5]
    asked = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    live = trainer.model.eval().generate(start, **asked)
    assert torch.equal(live, loaded.generate(start, **asked))
    assert torch.equal(live, loaded.generate(start, use_cache=False, **asked))


@pytest.mark.parametrize("metric", ["loss", "perplexity"])
def test_a_model_that_got_worse_is_taken_back(metric, tmp_path):
    # a rate of 2 ruins the weights at once: of the perplexity nothing is left but that it is far above the baseline
    trainer, baseline, round_ = train(
        tmp_path, learning_rate=2.0, metric=metric, max_metric_drop=0.1, start_epoch=0, recovery_epochs=1
    )
    assert round_.verdict == "rejected"
    assert round_.after.metric is None or round_.after.metric > baseline
    assert trainer.model.config.num_hidden_layers == 4
