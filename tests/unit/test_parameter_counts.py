"""Published parameter counts, reproduced on the meta device: the models are never in memory."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_mpruner.architectures import count_parameters, find_block_stacks, parameters_after
from hf_mpruner.surgery import ModelEdit

T5_BASE = {"d_model": 768, "d_ff": 3072, "num_heads": 12, "num_layers": 12, "num_decoder_layers": 12}
RESNET_BLOCKS = (70_400, 280_064, 1_117_184, 4_462_592)


def cut(model, kept):
    """Cut, after checking that the preview says the same."""
    parameters, size = parameters_after(model, kept)
    ModelEdit(model, kept).apply()
    assert count_parameters(model) == parameters == size // 4
    return parameters


@pytest.mark.parametrize(
    ("layers", "parameters"), [(12, 109_486_854), (10, 95_311_110), (8, 81_135_366), (6, 66_959_622)]
)
def test_bert_base_with_six_labels(layers, parameters):
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig(num_labels=6))
    assert cut(model, {"bert.encoder.layer": range(layers)}) == parameters


@pytest.mark.parametrize(
    ("encoder", "decoder", "parameters"),
    [(12, 12, 222_903_552), (9, 5, 135_588_864), (8, 3, 109_630_464), (7, 3, 102_551_040)],
)
def test_t5_base(encoder, decoder, parameters):
    with torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config(**T5_BASE))
    assert cut(model, {"encoder.block": range(encoder), "decoder.block": range(decoder)}) == parameters


@pytest.mark.parametrize(("depths", "parameters"), [((3, 4, 6, 3), 25_557_032), ((3, 8, 36, 3), 60_192_808)])
def test_resnet_loses_the_blocks_that_open_no_stage(depths, parameters):
    with torch.device("meta"):
        model = ResNetForImageClassification(ResNetConfig(depths=list(depths), num_labels=1000))
    assert count_parameters(model) == parameters
    stacks = find_block_stacks(model)
    for stack, size in zip(stacks, RESNET_BLOCKS, strict=True):
        assert tuple(stack.pinned) == (0,)
        going = size * (stack.depth - 1)
        assert count_parameters(model) - parameters_after(model, {stack.path: [0]})[0] == going
        parameters -= going
    assert cut(model, {stack.path: [0] for stack in stacks}) == parameters
    assert model.config.depths == [1, 1, 1, 1]


def test_a_tied_parameter_counts_once():
    lower, upper = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    upper.weight = lower.weight
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([lower, upper])}).to(torch.float16)
    assert count_parameters(model) == 16 + 4 + 4
    assert parameters_after(model, {"layers": [0]}) == (20, 40)
