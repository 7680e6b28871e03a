"""What the tests of sentence-transformers' Trainers share: a tiny model around a BERT, its data and its evaluators."""

from __future__ import annotations

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss, SoftmaxLoss
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import BertConfig, BertModel

from hf_mpruner import LayerPruningCallback, PruningConfig
from text_kit import lines, make_tokenizer

STACK = "encoder.layer"


def save_bert(folder):
    """A BERT of four layers in a folder, as a script would load it from the Hub."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(pairs=True)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "max_position_embeddings": 32}
    BertModel(BertConfig(vocab_size=len(tokenizer), num_hidden_layers=4, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_model(bert):
    """Transformer, Pooling and a Dense layer that trains beside them."""
    torch.manual_seed(0)
    transformer = Transformer(bert)
    return SentenceTransformer(modules=[transformer, Pooling(16), Dense(16, 8)], device="cpu")


def pairs():
    """The start of each line and its end belong together; 32 of 40."""
    halves = [(line.split()[: len(line.split()) // 2], line.split()[len(line.split()) // 2 :]) for line in lines()]
    return Dataset.from_list([{"anchor": " ".join(a), "positive": " ".join(b)} for a, b in halves[:32]])


def scored(rows=16):
    """Each line with the one after it; the score is the share of words that they have in common."""
    words = [set(line.split()) for line in lines()]
    both = [
        (a, b, len(words[i] & words[i + 1]) / 5) for i, (a, b) in enumerate(zip(lines(), lines()[1:], strict=False))
    ]
    return Dataset.from_list([{"sentence1": a, "sentence2": b, "score": score} for a, b, score in both[:rows]])


class Scripted(BaseEvaluator):
    """Returns given values in turn: baseline first, then a value a verdict; notes what it is called with."""

    def __init__(self, *values):
        super().__init__()
        self.values, self.folders = list(values), []
        self.primary_metric = "quality"

    def __call__(self, model, output_path=None, epoch=-1, steps=-1):
        self.folders.append(output_path)
        metrics = {"quality": self.values.pop(0), "other": 0.0}
        self.store_metrics_in_model_card_data(model, metrics, epoch, steps)
        return metrics


def build(
    model, folder, *, loss=MultipleNegativesRankingLoss, train=None, evaluator=None, eval_dataset=None, **arguments
):
    """Four epochs of four steps, quiet, on the CPU."""
    settings = {
        "output_dir": str(folder), "num_train_epochs": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-3,
        "per_device_eval_batch_size": 8, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
        "save_strategy": "no", "eval_strategy": "no", "logging_strategy": "epoch", "seed": 1, **arguments,
    }  # fmt: skip
    return SentenceTransformerTrainer(
        model, SentenceTransformerTrainingArguments(**settings), train_dataset=pairs() if train is None else train,
        eval_dataset=eval_dataset, loss=loss(model), evaluator=evaluator,
    )  # fmt: skip


def add(trainer, calibration=None, **config):
    settings = {"threshold": 0.0, "max_metric_drop": 0.05, "calibration_samples": 16, "max_rounds": 1, **config}
    callback = LayerPruningCallback(trainer, PruningConfig(**settings), calibration=calibration)
    trainer.add_callback(callback)
    return callback


def softmax(model):
    """A loss with weights of its own."""
    return SoftmaxLoss(model, sentence_embedding_dimension=8, num_labels=2)


def labelled():
    """Pairs of lines with a label, for `softmax`."""
    both = zip(lines()[:32], lines()[1:33], strict=True)
    return Dataset.from_list([{"a": a, "b": b, "label": i % 2} for i, (a, b) in enumerate(both)])
