"""Random models and batches of the sizes that the benchmarks ask for: weights change no cost."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from transformers import AutoModel, BertConfig, BertModel, LlamaConfig, PreTrainedModel

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


def llama_config(args: argparse.Namespace) -> LlamaConfig:
    """A Llama-shaped decoder: gated feed-forward half of 8/3 of the width, one key head for four query heads."""
    heads = max(1, args.hidden // 64)
    return LlamaConfig(
        num_hidden_layers=args.layers,
        hidden_size=args.hidden,
        intermediate_size=8 * args.hidden // 3 // 8 * 8,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4),
        max_position_embeddings=max(2048, args.length),
        vocab_size=30522,
    )


CONFIGS = {"bert": bert_config, "llama": llama_config}
STACKS = {"bert": ("encoder.layer", "BertLayer"), "llama": ("layers", "LlamaDecoderLayer")}


def add_model(parser: argparse.ArgumentParser) -> None:
    """The flags that say which kind of model, where, and in which numbers."""
    parser.add_argument("--model", choices=CONFIGS, default="bert", help="the kind of blocks (default: bert)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="of the weights")


def model_of(args: argparse.Namespace) -> tuple[PreTrainedModel, BlockStack]:
    """The model that the flags ask for, with random weights, in eval mode; and its blocks, without looking for them."""
    torch.manual_seed(0)
    with torch.device(args.device):
        model = AutoModel.from_config(CONFIGS[args.model](args), dtype=getattr(torch, args.dtype))
    path, block = STACKS[args.model]
    return model.eval(), BlockStack(path, block, args.layers, ConfigField("num_hidden_layers"))


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
