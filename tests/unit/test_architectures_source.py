"""Code that computes with layer numbers while a model runs is found, and what only indexes with them is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    DebertaV2Config,
    DebertaV2Model,
    FunnelConfig,
    FunnelModel,
    GraniteSpeechConfig,
    GraniteSpeechForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    SamConfig,
    SamModel,
)

from hf_mpruner.architectures import examine, find_block_stacks
from hf_mpruner.architectures.rules import REVIEWED_CODE
from hf_mpruner.errors import UnsupportedArchitectureError
from hf_mpruner.surgery import ModelEdit


class LoopConfig(PreTrainedConfig):
    model_type = "loop"
    num_hidden_layers: int = 4
    tap: int = 1


class LoopBlock(nn.Module):
    def __init__(self, number):
        super().__init__()
        self.layer_idx = number
        self.linear = nn.Linear(2, 2)

    def forward(self, x):
        return self.linear(x)


class ParityBlock(LoopBlock):
    def forward(self, x):
        return self.shift(self.linear(x))

    def shift(self, x):
        return x if self.layer_idx % 2 else x.flip(0)


class LoopModel(PreTrainedModel):
    config_class = LoopConfig
    block = LoopBlock

    def __init__(self, config):
        super().__init__(config)
        self.depth = config.num_hidden_layers
        self.others = [1.0, 2.0]
        self.layers = nn.ModuleList(self.block(number) for number in range(config.num_hidden_layers))
        self.post_init()

    def forward(self, x):
        for layer in self.layers[: self.config.num_hidden_layers]:
            x = layer(x)
        return x


class Harmless(LoopModel):
    """Indexing, unrelated loops, allocation: all common, none of it a computation with a layer's number."""

    def forward(self, x, past=None):
        past = past or [None] * len(self.layers)
        seen = ()
        for number, (layer, _) in enumerate(zip(self.layers, past, strict=True)):
            x = layer(x) if past[number] is None else x
            seen = (*seen, x)
        for number, scale in enumerate(self.others):
            x = x * (number + scale)
        for number in range(self.config.num_hidden_layers):
            x = x + seen[number]
        return x


class Branches(LoopModel):
    def forward(self, x):
        return sum(layer(x) for layer in self.layers)


class Levels(LoopModel):
    def forward(self, *features):
        return [layer(feature) for layer, feature in zip(self.layers, features, strict=True)]


class Zipped(LoopModel):
    def forward(self, x, *extra):
        for layer, other in zip(self.layers, extra, strict=True):
            x = layer(x + other)
        return x


class Sum(LoopModel):
    def forward(self, x):
        total = 0
        for _, layer in enumerate(self.layers[: self.config.num_hidden_layers]):
            branch = layer(x)
            total = total + branch
        return total


class Midpoint(LoopModel):
    def forward(self, x):
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number == self.depth // 2:
                x = x + 1
        return x


class ScaledByCount(LoopModel):
    def forward(self, x):
        return super().forward(x) / self.depth


class ScaledByLength(LoopModel):
    def forward(self, x):
        return super().forward(x) * len(self.layers)


class ScaledByConfig(LoopModel):
    def forward(self, x):
        return x**self.config.num_hidden_layers


class Range(LoopModel):
    def forward(self, x):
        for number in range(len(self.layers)):
            x = self.layers[number](x) if number in (0, self.config.tap) else x
        return x


class Helper(LoopModel):
    def forward(self, x):
        return self.run(x)

    def run(self, x):
        for number, layer in enumerate(self.layers):
            x = layer(x) if number % 2 else x
        return x


class First(LoopModel):
    def forward(self, x):
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if not number:
                x = x + 1
        return x


class Last(LoopModel):
    def forward(self, x):
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number == len(self.layers) - 1:
                x = x + 1
        return x


class Parity(LoopModel):
    block = ParityBlock


@pytest.mark.parametrize("model_class", [LoopModel, Harmless, Zipped])
def test_indexing_is_no_computation(model_class):
    assert [stack.path for stack in find_block_stacks(model_class(LoopConfig()))] == ["layers"]


@pytest.mark.parametrize(
    ("model_class", "code"),
    [
        (ScaledByCount, r"ScaledByCount\.forward: super\(\)\.forward\(x\) / self\.depth"),
        (ScaledByLength, r"ScaledByLength\.forward: super\(\)\.forward\(x\) \* len\(self\.layers\)"),
        (ScaledByConfig, r"ScaledByConfig\.forward: x \*\* self\.config\.num_hidden_layers"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_computation_with_layer_numbers_refuses_the_stack(model_class, code):
    message = rf"'layers': the model computes with a layer's number, or with how many there are, as it runs: {code}"
    with pytest.raises(UnsupportedArchitectureError, match=message):
        find_block_stacks(model_class(LoopConfig()))


@pytest.mark.parametrize("model_class", [Branches, Levels, Sum])
def test_branches_are_no_stack(model_class):
    message = (
        rf"'layers': its entries run side by side, not one after the other: {model_class.__name__}\.forward: layer"
    )
    with pytest.raises(UnsupportedArchitectureError, match=message):
        find_block_stacks(model_class(LoopConfig()))


@pytest.mark.parametrize(
    ("model_class", "prunable", "period", "code"),
    [
        (Midpoint, (0, 1), 1, "Midpoint.forward: number == self.depth // 2"),
        (Range, (2, 3), 1, "Range.forward: number in (0, self.config.tap)"),
        (Helper, (0, 1, 2, 3), 2, "Helper.run: number % 2"),
        (Parity, (0, 1, 2, 3), 2, "ParityBlock.shift: self.layer_idx % 2"),
        (First, (1, 2, 3), 1, "First.forward: not number"),
        (Last, (0, 1, 2), 1, "Last.forward: number == len(self.layers) - 1"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_code_does_to_a_layer_does_not_change(model_class, prunable, period, code):
    torch.manual_seed(0)
    model = model_class(LoopConfig()).eval()
    (stack,) = find_block_stacks(model)
    assert (stack.prunable, stack.period) == (prunable, period)
    assert [find.text for find in stack.code] == [code]
    assert any(code in reason for reason in [*stack.pinned.values(), stack.period_reason])
    removed = stack.removable(prunable[:period])
    assert removed
    x = torch.randn(3, 2)
    keep = dict(enumerate(model.layers))
    for layer in removed:
        keep[layer].forward = lambda x: x
    expected = model(x)
    for layer in removed:
        del keep[layer].forward
    ModelEdit(model, {"layers": [layer for layer in range(4) if layer not in removed]}).apply()
    assert torch.equal(model(x), expected)


def test_a_cut_that_moves_what_code_does_is_refused():
    message = r"gives True instead of False for layer 1: Midpoint\.forward: number == self\.depth // 2"
    with pytest.raises(UnsupportedArchitectureError, match=message):
        ModelEdit(Midpoint(LoopConfig()), {"layers": [0, 1, 2]})
    with pytest.raises(UnsupportedArchitectureError, match=r"run for layer 2 would be run no more: Midpoint"):
        ModelEdit(Midpoint(LoopConfig()), {"layers": [0]})


class Numbered(LoopBlock):
    def __init__(self, number):
        super().__init__(number)
        self.register_buffer("decay", torch.tensor(0.5**number), persistent=False)


def test_a_buffer_of_the_layers_number_that_no_checkpoint_holds_is_refused():
    class Decaying(LoopModel):
        block = Numbered

    message = "'layers': decay differs from layer to layer, and no checkpoint holds it"
    with pytest.raises(UnsupportedArchitectureError, match=message):
        find_block_stacks(Decaying(LoopConfig()))


def test_reviewed_code_is_harmless_until_the_config_switches_it_on():
    sizes = {
        "num_hidden_layers": 3,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    assert find_block_stacks(DebertaV2Model(DebertaV2Config(**sizes)))[0].depth == 3
    assert find_block_stacks(DebertaV2Model(DebertaV2Config(**sizes)))[0].pinned == {}
    pinned = find_block_stacks(DebertaV2Model(DebertaV2Config(**sizes, conv_kernel_size=3)))[0].pinned
    assert pinned == {0: "a convolution over the output of the first layer, where the config asks for one"}


def test_every_review_states_its_reason():
    assert all(reason and ": " in code for code, (reason, _, _) in REVIEWED_CODE.items())


def test_the_middle_of_an_encoder_does_not_move():
    with torch.device("meta"):
        model = GraniteSpeechForConditionalGeneration(GraniteSpeechConfig())
    stack = next(stack for stack in examine(model).stacks if stack.path == "model.encoder.layers")
    assert (stack.depth, stack.prunable) == (10, (0, 1, 2, 3))  # the middle, the fifth of 10, is the fourth of 9
    assert "GraniteSpeechCTCEncoder.forward: idx == self.num_layers // 2" in stack.pinned[6]


def test_the_first_block_of_a_stage_stays():
    config = FunnelConfig(
        block_sizes=[2, 3], d_model=16, n_head=2, d_head=8, d_inner=16, vocab_size=9, num_decoder_layers=1
    )
    stacks = {stack.path: stack.pinned for stack in find_block_stacks(FunnelModel(config))}
    reason = {0: "it opens a stage, where the width, the resolution or the attention may change"}
    assert stacks == {"encoder.blocks.0": reason, "encoder.blocks.1": reason}


def test_a_list_of_embeddings_is_no_stack():
    with torch.device("meta"):
        found = examine(SamModel(SamConfig()))
    assert "'prompt_encoder.point_embed' is a list of plain Embedding modules, not of blocks" in found.refusals
