"""Random models and batches of the sizes that the benchmarks ask for: weights change no cost."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from hf_mpruner.architectures.stack import BlockStack, ConfigField

Batch = dict[str, Tensor]


def add_size(parser: argparse.ArgumentParser, layers: int = 12, batch: int = 32, length: int = 128) -> None:
    """The flags that say how large."""
    parser.add_argument("--layers", type=int, default=layers)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--batch", type=int, default=batch, help="examples in a batch")
    parser.add_argument("--length", type=int, default=length, help="tokens of the longest example")


def bert_config(args: argparse.Namespace) -> BertConfig:
    """A BERT of the size asked for, with heads of 64 features."""
    return BertConfig(
        num_hidden_layers=args.layers,
        hidden_size=args.hidden,
        intermediate_size=4 * args.hidden,
        num_attention_heads=max(1, args.hidden // 64),
        max_position_embeddings=max(512, args.length),
    )


def bert(args: argparse.Namespace) -> BertModel:
    """That BERT with random weights, in eval mode."""
    torch.manual_seed(0)
    return BertModel(bert_config(args)).eval()


def bert_stack(layers: int) -> BlockStack:
    """Its blocks, without looking for them."""
    return BlockStack("encoder.layer", "BertLayer", layers, ConfigField("num_hidden_layers"))


def batches_of(args: argparse.Namespace, count: int, padding: float = 0.0) -> list[Batch]:
    """Random tokens; with `padding` p lengths are uniform between (1 - p) and all of the length."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(count):
        ids = torch.randint(1000, 30000, (args.batch, args.length), generator=generator)
        shortest = max(4, round((1 - padding) * args.length))
        lengths = torch.randint(shortest, args.length + 1, (args.batch, 1), generator=generator)
        lengths[0] = args.length
        batches.append({"input_ids": ids, "attention_mask": (torch.arange(args.length) < lengths).long()})
    return batches
