"""Skipped blocks: what a model computes without them is what the really cut model computes, to the bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from custom_kit import CUSTOM_STACK, CustomBlock, CustomModel, make_custom
from hf_mpruner import PruningPlan, apply_plan_, find_block_stacks
from hf_mpruner.errors import PlanMismatchError, UnsupportedArchitectureError
from hf_mpruner.skipping import hand_on_blocks, skip_blocks

IDS = torch.randint(3, 60, (3, 7), generator=torch.Generator().manual_seed(1))
MASK = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 6 + [0]])
TEXT = {"input_ids": IDS, "attention_mask": MASK}
IMAGES = {"pixel_values": torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))}
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 64}


def make_gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=5, n_head=2))


def make_llama():
    config = LlamaConfig(**SMALL, num_key_value_heads=1, num_hidden_layers=5, bos_token_id=1, eos_token_id=2)
    return LlamaForCausalLM(config)


def make_t5(**more):
    sizes = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2}
    starts = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    return T5ForConditionalGeneration(T5Config(num_layers=4, num_decoder_layers=3, **{**sizes, **starts, **more}))


def make_resnet():
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [3, 3], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(**sizes, num_labels=3))


def make_swin():
    sizes = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "num_heads": [2, 2], "window_size": 2}
    return SwinForImageClassification(SwinConfig(**sizes, depths=[2, 6], num_labels=3))


def made(make, *args, **kwargs):
    torch.manual_seed(0)
    return make(*args, **kwargs).eval()


def logits_of(model, inputs, **more):
    with torch.no_grad():
        return model(**inputs, **more).logits


def kept_of(stacks, layers):
    depth = {stack.path: stack.depth for stack in stacks}
    return {path: [i for i in range(depth[path]) if i not in removed] for path, removed in layers.items()}


CASES = {
    "bert": (None, TEXT, [{"bert.encoder.layer": one} for one in ([0], [1, 2], [3], [0, 1, 3])]),
    "gpt2": (make_gpt2, {**TEXT, "use_cache": False}, [{"transformer.h": one} for one in ([0], [4], [1, 2, 3])]),
    "llama": (make_llama, {**TEXT, "use_cache": False}, [{"model.layers": one} for one in ([0], [2], [0, 1, 4])]),
    "llama, with a cache": (make_llama, {**TEXT, "use_cache": True}, [{"model.layers": [0, 3]}]),
    "t5": (
        make_t5,
        {**TEXT, "labels": IDS},
        [
            {"encoder.block": [0]},
            {"decoder.block": [0, 1]},
            {"encoder.block": [0, 3], "decoder.block": [2]},
            {"encoder.block": [1], "decoder.block": [0]},
        ],
    ),
    "vit": (None, {}, [{"vit.layers": one} for one in ([0], [1, 3])]),
    "resnet": (
        make_resnet,
        IMAGES,
        [
            {"resnet.encoder.stages.0.layers": [1]},
            {"resnet.encoder.stages.0.layers": [1, 2], "resnet.encoder.stages.1.layers": [1, 2]},
        ],
    ),
    "swin": (
        make_swin,
        IMAGES,
        [{"swin.encoder.layers.1.blocks": one} for one in ([1, 2], [2, 3, 4, 5], [5])],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_skipped_blocks_equal_a_cut_to_the_bit(name, make_bert, make_vit):
    make, inputs, cases = CASES[name]
    if name == "vit":
        inputs = {"pixel_values": torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(2))}
    model = made({"bert": make_bert, "vit": make_vit}.get(name, make))
    stacks = find_block_stacks(model)
    whole = logits_of(model, inputs)
    for layers in cases:
        cut = copy.deepcopy(model)
        apply_plan_(cut, PruningPlan.from_kept(kept_of(stacks, layers), stacks))
        wanted = logits_of(cut, inputs)
        assert not torch.equal(wanted, whole)
        with skip_blocks(model, layers, stacks=stacks) as skipped:
            for _ in range(3):  # the first call of a block is computed, the next ones are not
                assert torch.equal(logits_of(model, inputs), wanted), layers
        assert skipped.not_run == []
        assert torch.equal(logits_of(model, inputs), whole)


def test_blocks_that_put_out_one_tensor_are_computed_once(make_bert):
    model, calls = make_bert(), []
    model.bert.encoder.layer[1].attention.register_forward_hook(lambda *_: calls.append(1))
    with skip_blocks(model, {"bert.encoder.layer": [1]}):
        for rows in (3, 2, 3):
            logits_of(model, {"input_ids": IDS[:rows], "attention_mask": MASK[:rows]})
    assert calls == [1]


@pytest.mark.parametrize(
    ("make", "layers"),
    [
        (make_llama, {"model.layers": [0, 3]}),
        (make_gpt2, {"transformer.h": [0, 1]}),
        (make_t5, {"encoder.block": [2], "decoder.block": [0]}),
    ],
)
def test_generate_without_layers_is_that_of_the_cut_model(make, layers):
    """Also without the layer whose cache says how long the sequence is."""
    model = made(make)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)  # so that what is generated depends on the layers
    stacks = find_block_stacks(model)
    cut = copy.deepcopy(model)
    apply_plan_(cut, PruningPlan.from_kept(kept_of(stacks, layers), stacks))
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    wanted = cut.generate(IDS, **options)
    with skip_blocks(model, layers):
        assert torch.equal(model.generate(IDS, **options), wanted)
    assert not torch.equal(model.generate(IDS, **options), wanted)


def test_the_model_is_left_as_it_was_also_after_an_error(make_bert):
    model = make_bert()
    layers = model.bert.encoder.layer
    own = lambda *args, **kwargs: type(layers[2]).forward(layers[2], *args, **kwargs)  # noqa: E731
    layers[2].forward = own  # as accelerate and others do
    wanted = logits_of(model, TEXT)
    with pytest.raises(ValueError, match="input_ids"), skip_blocks(model, {"bert.encoder.layer": [1, 2]}):
        logits_of(model, {})
    assert "forward" not in vars(layers[1])
    assert layers[2].forward is own
    assert torch.equal(logits_of(model, TEXT), wanted)


def test_a_block_that_is_never_reached_is_named():
    model = made(make_t5)
    with skip_blocks(model, {"decoder.block": [1]}) as skipped, torch.no_grad():
        model.encoder(**TEXT)
    assert skipped.not_run == ["decoder.block.1"]


# -- refused ----------------------------------------------------------------------------------------------------------


class StreamBlock(CustomBlock):
    """Changes two streams of one shape."""

    def forward(self, hidden_states, other):
        return super().forward(hidden_states), other + 1


class Streams(CustomModel):
    """Hands both on."""

    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.ModuleList(StreamBlock(config.hidden_size) for _ in range(config.num_hidden_layers))

    def forward(self, input_ids, attention_mask=None, labels=None):
        hidden_states = other = self.embed(input_ids)
        for layer in self.layers:
            hidden_states, other = layer(hidden_states, other)
        return {"logits": self.head((hidden_states * other).mean(1))}


class Shared(CustomModel):
    """Runs one block again and again."""

    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.ModuleList([self.layers[0]] * config.num_hidden_layers)


@pytest.mark.parametrize(
    ("make", "layers", "error", "message"),
    [
        (make_resnet, {"resnet.encoder.stages.1.layers": [0]}, UnsupportedArchitectureError, r"turns \[3, 8, 8, 8\] into"),
        (lambda: make_custom(Streams), {CUSTOM_STACK: [1]}, UnsupportedArchitectureError, "which of them to hand on"),
        (lambda: make_custom(Shared), {CUSTOM_STACK: [1]}, UnsupportedArchitectureError, "same block runs"),
        (make_llama, {"model.layer": [0]}, PlanMismatchError, "no list of blocks at 'model.layer'"),
        (make_llama, {"model.norm": [0]}, PlanMismatchError, "no list of blocks at 'model.norm'"),
        (make_llama, {"model.layers": [5]}, PlanMismatchError, "layers 0 to 4, and no layer 5"),
        (make_llama, {"model.layers": [-1]}, PlanMismatchError, "no layer -1"),
    ],
)  # fmt: skip
def test_what_cannot_be_skipped_is_refused_and_leaves_no_trace(make, layers, error, message):
    model = made(make)
    inputs = IMAGES if "resnet" in next(iter(layers)) else {"input_ids": IDS}
    with pytest.raises(error, match=message), skip_blocks(model, layers):
        model(**inputs)
    assert not [name for name, module in model.named_modules() if "forward" in vars(module)]
    model(**inputs)


def test_pinned_layers_are_refused_with_their_reason():
    model = made(make_resnet)
    stacks = find_block_stacks(model)
    stack = next(stack for stack in stacks if 0 in stack.pinned)
    with pytest.raises(UnsupportedArchitectureError, match=r"Layer 0 of .* cannot be skipped: ") as caught:
        skip_blocks(model, {stack.path: [1, 0]}, stacks=stacks).__enter__()
    assert stack.pinned[0] in str(caught.value)


def test_two_streams_can_be_handed_on_where_the_caller_says_how():
    model = made(lambda: make_custom(Streams))
    cut = copy.deepcopy(model)
    del cut.layers[1:]
    blocks = {str(number): model.layers[number] for number in (1, 2, 3)}
    with torch.no_grad(), hand_on_blocks(blocks, streams=True) as skipped:
        assert torch.equal(model(IDS)["logits"], cut(IDS)["logits"])
    assert skipped.ambiguous
