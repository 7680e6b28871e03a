"""Halves of blocks: found by experiment in many families, and measured as by hand."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    Blip2QFormerConfig,
    Blip2QFormerModel,
    BloomConfig,
    BloomModel,
    CohereConfig,
    CohereModel,
    Dinov2Config,
    Dinov2Model,
    FalconConfig,
    FalconModel,
    Gemma2Config,
    Gemma2Model,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteModel,
    InternVLVisionConfig,
    InternVLVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaModel,
    MixtralConfig,
    MixtralModel,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from custom_kit import CustomBlock, CustomModel, make_custom
from hf_mpruner import find_block_stacks
from hf_mpruner.errors import CalibrationError
from hf_mpruner.halves import HalvesReport, measure_halves

IDS = torch.randint(3, 60, (3, 7), generator=torch.Generator().manual_seed(1))
MASK = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 6 + [0]])
TEXT = {"input_ids": IDS, "attention_mask": MASK}
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 64,
}
T5 = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
PAIR = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
PAIR |= {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "vocab_size": 64, "d_model": 16, "pad_token_id": 1}
TOKENS = {"bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}
SOUND = {"num_mel_bins": 8, "max_source_positions": 10, "suppress_tokens": None, "begin_suppress_tokens": None}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
VISION |= {"image_size": 16, "patch_size": 4}


def images(size):
    return {"pixel_values": torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(2))}


def make_scaled():
    """Branches times a weight that no module applies."""
    model = InternVLVisionModel(InternVLVisionConfig(**VISION))
    for name, weight in model.named_parameters():
        if "lambda" in name:
            weight.data.uniform_(0.2, 1)
    return model


CROSS = ("attention", "cross_attention", "feed_forward")
# model, inputs, {stack: (layout, module of each half)}
FAMILIES = {
    "bert": (
        lambda: BertModel(BertConfig(**SMALL)), TEXT,
        {"encoder.layer": ("post-norm", ("attention.output.dropout", "output.dropout"))},
    ),
    "llama": (
        lambda: LlamaForCausalLM(LlamaConfig(**SMALL)), TEXT, {"model.layers": ("pre-norm", ("self_attn", "mlp"))},
    ),
    "gpt2": (
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2)), TEXT,
        {"transformer.h": ("pre-norm", ("attn", "mlp"))},
    ),
    "t5": (
        lambda: T5ForConditionalGeneration(T5Config(**T5, decoder_start_token_id=0)), {**TEXT, "labels": IDS},
        {
            "encoder.block": ("pre-norm", ("layer.0.dropout", "layer.1.dropout")),
            "decoder.block": ("pre-norm", ("layer.0.dropout", "layer.1.dropout", "layer.2.dropout")),
        },
    ),
    "bart": (
        lambda: BartForConditionalGeneration(BartConfig(**PAIR, **TOKENS, forced_eos_token_id=3)),
        {**TEXT, "labels": IDS},
        {
            "model.encoder.layers": ("post-norm", ("self_attn", "fc2")),
            "model.decoder.layers": ("post-norm", ("self_attn", "encoder_attn", "fc2")),
        },
    ),
    "whisper": (
        lambda: WhisperForConditionalGeneration(WhisperConfig(**PAIR, **TOKENS, **SOUND)),
        {"input_features": torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(3)), "labels": IDS},
        {
            "model.encoder.layers": ("pre-norm", ("self_attn", "fc2")),
            "model.decoder.layers": ("pre-norm", ("self_attn", "encoder_attn", "fc2")),
        },
    ),
    "vit": (lambda: ViTModel(ViTConfig(**VISION)), images(16), {"layers": ("pre-norm", ("attention", "mlp"))}),
    "swin": (
        lambda: SwinModel(SwinConfig(image_size=16, embed_dim=8, num_heads=[2], window_size=2, depths=[3])), images(16),
        {"encoder.layers.0.blocks": ("pre-norm", ("drop_path", "mlp"))},
    ),
    "a factor for each feature": (
        lambda: Dinov2Model(Dinov2Config(**VISION)), images(16),
        {"encoder.layer": ("pre-norm", ("layer_scale1", "layer_scale2"))},
    ),
    "a factor for each feature, no module": (
        lambda: make_scaled(), images(16), {"encoder.layer": ("pre-norm", ("attention", "dropout"))},
    ),
    "one factor": (
        lambda: GraniteModel(GraniteConfig(**SMALL, residual_multiplier=0.22)), TEXT,
        {"layers": ("pre-norm", ("self_attn", "mlp"))},
    ),
    "norms on both sides": (
        lambda: Gemma2Model(Gemma2Config(**SMALL, num_key_value_heads=1, head_dim=8)), TEXT,
        {"layers": ("pre-norm", ("post_attention_layernorm", "post_feedforward_layernorm"))},
    ),
    "experts": (
        lambda: MixtralModel(MixtralConfig(**SMALL, num_key_value_heads=1, num_local_experts=2)), TEXT,
        {"layers": ("pre-norm", ("self_attn", "mlp"))},
    ),
    "both at once": (
        lambda: CohereModel(CohereConfig(**SMALL)), TEXT, {"layers": ("parallel", ("self_attn", "mlp"))},
    ),
    "both at once, in place": (
        lambda: FalconModel(FalconConfig(**{**SMALL, "intermediate_size": None})), TEXT,
        {"h": ("parallel", ("self_attention", "mlp"))},
    ),
    "sums inside of modules": (
        lambda: BloomModel(BloomConfig(vocab_size=64, hidden_size=16, n_layer=2, n_head=2)), TEXT,
        {"h": ("pre-norm", ("self_attention.dense", "mlp.dense_4h_to_h"))},
    ),
}  # fmt: skip


def made(make):
    torch.manual_seed(0)
    return make().eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_halves_are_found_in_every_way_to_build_a_block(name):
    make, batch, wanted = FAMILIES[name]
    report = measure_halves(made(make), [batch])
    assert report.stacks.keys() == wanted.keys()
    for path, (layout, modules) in wanted.items():
        stack = report.stacks[path]
        assert stack.layout == layout
        kinds = CROSS if len(modules) == 3 else ("attention", "feed_forward")
        for layer in stack.layers:
            assert tuple(layer) == kinds
            assert tuple(half.module for half in layer.values()) == modules
            assert all(0 < half.influence < 2 and 0 < half.output_change < 1 for half in layer.values())
    assert HalvesReport.from_dict(report.to_dict()) == report


def test_no_installed_model_leaves_out_a_half_yet():
    """If this fails, a version of transformers honours `skip`: the tables of docs/criteria.md say otherwise."""
    for name in ("bert", "llama", "vit"):
        make, batch, _ = FAMILIES[name]
        for stack in measure_halves(made(make), [batch]).stacks.values():
            assert stack.skips == {}
            assert stack.note.startswith("Measured, not done: transformers ")


# -- against the arithmetic by hand -----------------------------------------------------------------------------------


def influence(before, after, real):
    return float((1 - nn.functional.cosine_similarity(before, after, dim=-1))[real].mean())


def angle(one, other, real):
    cosines = nn.functional.cosine_similarity(one[real].double(), other[real].double(), dim=-1)
    return float((cosines.acos() / math.pi).mean())


def test_a_pre_norm_block_by_hand():
    """Llama's block, written out: x + attention(norm(x)), then y + mlp(norm(y))."""
    model, real = made(FAMILIES["llama"][0]), MASK.bool()
    layer = measure_halves(model, [TEXT]).stacks["model.layers"].layers[1]
    block, kept = model.model.layers[1], {}
    block.self_attn.register_forward_hook(lambda module, args, output: kept.update(attention=output[0]))
    block.register_forward_pre_hook(lambda module, args: kept.update(given=args[0]))
    with torch.no_grad():
        whole = model(**TEXT)
        x, attention = kept["given"], kept["attention"]
        y = x + attention
        z = y + block.mlp(block.post_attention_layernorm(y))
        assert layer["attention"].influence == pytest.approx(influence(x, y, real), rel=1e-4)
        assert layer["feed_forward"].influence == pytest.approx(influence(y, z, real), rel=1e-4)
        without = {
            "attention": x + block.mlp(block.post_attention_layernorm(x)),
            "feed_forward": y,
        }
        for kind, hidden in without.items():  # the last block: what comes after it is norm and head
            logits = model.lm_head(model.model.norm(hidden))
            assert layer[kind].output_change == pytest.approx(angle(whole.logits, logits, real), rel=1e-3)


def test_a_post_norm_block_by_hand():
    """BERT's block, written out: norm(x + attention(x)), then norm(y + mlp(y)). Without a half its norm is still applied."""
    model, real = made(FAMILIES["bert"][0]), MASK.bool()
    layer = measure_halves(model, [TEXT]).stacks["encoder.layer"].layers[1]
    block, kept = model.encoder.layer[1], {}
    block.attention.output.dense.register_forward_hook(lambda module, args, output: kept.update(attention=output))
    block.register_forward_pre_hook(lambda module, args: kept.update(given=args[0]))
    with torch.no_grad():
        whole = model(**TEXT).last_hidden_state
        x, attention = kept["given"], kept["attention"]

        def forward(y):
            return block.output.LayerNorm(y + block.output.dense(block.intermediate(y)))

        y = block.attention.output.LayerNorm(x + attention)
        assert torch.allclose(forward(y), whole, atol=1e-6)
        assert layer["attention"].influence == pytest.approx(influence(x, y, real), rel=1e-4)
        assert layer["feed_forward"].influence == pytest.approx(influence(y, whole, real), rel=1e-4)
        bare = forward(block.attention.output.LayerNorm(x)), block.output.LayerNorm(y)
    for kind, hidden in zip(("attention", "feed_forward"), bare, strict=True):
        assert layer[kind].output_change == pytest.approx(angle(whole, hidden, real), rel=1e-3)


def test_parallel_halves_both_start_from_the_blocks_input():
    model, real = made(FAMILIES["both at once"][0]), MASK.bool()
    layer = measure_halves(model, [TEXT]).stacks["layers"].layers[0]
    block, kept = model.layers[0], {}
    block.self_attn.register_forward_hook(lambda module, args, output: kept.update(attention=output[0]))
    block.register_forward_pre_hook(lambda module, args: kept.update(given=args[0]))
    with torch.no_grad():
        model(**TEXT)
        x = kept["given"]
        mlp = block.mlp(block.input_layernorm(x))
    assert layer["attention"].influence == pytest.approx(influence(x, x + kept["attention"], real), rel=1e-4)
    assert layer["feed_forward"].influence == pytest.approx(influence(x, x + mlp, real), rel=1e-4)


def test_a_report_goes_through_a_file(tmp_path):
    report = measure_halves(made(FAMILIES["t5"][0]), [FAMILIES["t5"][1]])
    report.save(str(tmp_path / "halves.json"))
    assert HalvesReport.from_dict(json.loads((tmp_path / "halves.json").read_text())) == report
    assert [line for line in str(report).splitlines() if line.startswith("decoder.block")] == [
        "decoder.block (pre-norm blocks)"
    ]


def test_a_half_that_adds_nothing_matters_nothing():
    model = made(FAMILIES["llama"][0])
    model.model.layers[0].mlp.down_proj.weight.data.mul_(1e-3)  # found, but tiny
    layers = measure_halves(model, [TEXT]).stacks["model.layers"].layers
    assert layers[0]["feed_forward"].influence < 1e-4 < layers[1]["feed_forward"].influence
    assert layers[0]["feed_forward"].output_change < layers[1]["feed_forward"].output_change / 10


def test_batches_are_averaged_by_their_positions_and_cost_what_is_said():
    model = made(FAMILIES["llama"][0])
    whole = measure_halves(model, [TEXT]).stacks["model.layers"]
    split = measure_halves(
        model, [{name: value[:2] for name, value in TEXT.items()}, {name: value[2:] for name, value in TEXT.items()}]
    )
    for one, other in zip(whole.layers, split.stacks["model.layers"].layers, strict=True):
        for kind, half in one.items():
            assert other[kind].influence == pytest.approx(half.influence, rel=1e-4)
            assert other[kind].output_change == pytest.approx(half.output_change, rel=1e-4)
    # 1 + 4 halves on 2 batches; 2 on the first batch to find the halves and what the model puts out
    assert split.forward_passes == (2 * 5 + 2) / 2


# -- what cannot be measured ------------------------------------------------------------------------------------------


class Twice(CustomBlock):
    """Adds the same branch twice, with something in between that no module is."""

    def forward(self, hidden_states):
        return torch.tanh(super().forward(hidden_states))


class Squashed(CustomModel):
    """Its blocks are no sums."""

    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.ModuleList(Twice(config.hidden_size) for _ in range(config.num_hidden_layers))


@pytest.mark.parametrize(
    ("make", "batch", "reason"),
    [
        (lambda: MambaModel(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2)), {"input_ids": IDS},
         "its residual branches are mixer"),
        (lambda: make_custom(Squashed), {"input_ids": IDS}, "not its input plus outputs of its modules"),
        (FAMILIES["llama"][0], {"input_ids": IDS[:, :1]}, "has one position"),
        (lambda: ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[3])), images(16),
         r"no hidden states of shape \(batch, positions, features\)"),
    ],
)  # fmt: skip
def test_blocks_that_are_not_understood_are_reported_with_the_reason(make, batch, reason):
    report = measure_halves(made(make), [batch])
    (stack,) = report.stacks.values()
    assert stack.layers == ()
    assert re.search(reason, stack.note), stack.note
    assert "not measured. The halves of block 0 cannot be told apart" in str(report)


def test_layers_of_one_stack_may_have_other_halves():
    sizes = {**SMALL, "encoder_hidden_size": 16, "cross_attention_frequency": 2}
    model = made(lambda: Blip2QFormerModel(Blip2QFormerConfig(**sizes)))
    given = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(4))
    batch = {"query_embeds": given, "encoder_hidden_states": given.flip(1).contiguous()}
    (stack,) = measure_halves(model, [batch]).stacks.values()
    assert [tuple(layer) for layer in stack.layers] == [CROSS, ("attention", "feed_forward")]
    lines = str(HalvesReport({stack.path: stack})).splitlines()
    assert [line.split().count("-") for line in lines[2:4]] == [0, 2]


def test_a_half_that_is_silent_from_the_start_is_not_guessed():
    model = made(FAMILIES["llama"][0])
    model.model.layers[1].mlp.down_proj.weight.data.zero_()
    assert "block 1 cannot be told apart" in measure_halves(model, [TEXT]).stacks["model.layers"].note


def test_no_data_and_values_that_are_not_finite():
    model = made(FAMILIES["llama"][0])
    with pytest.raises(CalibrationError, match="gave no batch"):
        measure_halves(model, [])
    later = model.model.embed_tokens.weight.data
    later[50:] = math.nan
    with pytest.raises(CalibrationError, match=r"model.layers.0 puts out values that are not finite"):
        measure_halves(
            model, [{"input_ids": torch.tensor([[4, 5, 6, 7], [7, 6, 5, 9]])}, {"input_ids": torch.full((2, 4), 55)}]
        )
    later[:] = math.nan
    assert "values that are not finite" in measure_halves(model, [TEXT]).stacks["model.layers"].note


def test_one_number_as_output_leaves_the_influence(make_bert):
    layers = measure_halves(make_bert(num_labels=1), [TEXT]).stacks["bert.encoder.layer"].layers
    assert all(half.output_change is None and half.influence > 0 for layer in layers for half in layer.values())


def test_the_model_is_left_as_it_was(make_bert):
    model = make_bert().train()
    state = [
        (name, module.training, sorted(vars(module)), len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    ]
    weights, drawn = [weight.clone() for weight in model.parameters()], torch.get_rng_state()
    measure_halves(model, [TEXT], find_block_stacks(model))
    assert state == [
        (name, module.training, sorted(vars(module)), len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    ]
    assert all(torch.equal(one, other) for one, other in zip(weights, model.parameters(), strict=True))
    assert torch.equal(drawn, torch.get_rng_state())


def test_16_bits():
    model = made(FAMILIES["llama"][0])
    wanted = measure_halves(model, [TEXT]).stacks["model.layers"].layers
    found = measure_halves(model.bfloat16(), [TEXT]).stacks["model.layers"].layers
    for one, other in zip(wanted, found, strict=True):
        for kind, half in one.items():
            assert other[kind].influence == pytest.approx(half.influence, rel=0.2, abs=0.01)
