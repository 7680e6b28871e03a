"""Finding stacks, pinning layers, rewriting configs and refusing: what the family tests do not reach."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    DeepseekV3Config,
    DeepseekV3Model,
    Dinov2Backbone,
    Dinov2Config,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    ImageGPTConfig,
    ImageGPTModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    MistralModel,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3Model,
    Qwen3MoeConfig,
    Qwen3MoeModel,
    SwinConfig,
    SwinModel,
    T5Config,
    T5EncoderModel,
    WhisperConfig,
    WhisperForAudioClassification,
)

from hf_mpruner.architectures import BlockStack, ConfigField, check_kept, examine, find_block_stacks, prove_cut
from hf_mpruner.architectures.reference import ABSENT, build_reference, config_nodes, plain, reload_config
from hf_mpruner.architectures.rewrite import diff_configs, read_field, shorten_config
from hf_mpruner.errors import PlanMismatchError, UnsupportedArchitectureError
from hf_mpruner.surgery import ModelEdit

TINY = {"num_hidden_layers": 5, "hidden_size": 16, "num_attention_heads": 4, "vocab_size": 9, "intermediate_size": 24}
TINY_WHISPER = {
    "encoder_layers": 3,
    "decoder_layers": 2,
    "d_model": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "vocab_size": 9,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
TINY_GPT2 = {"n_layer": 5, "n_embd": 16, "n_head": 4, "n_positions": 12, "vocab_size": 9}


def on_meta(model_class, config):
    with torch.device("meta"):
        return model_class(config)


def prove(model, kept):
    return prove_cut(model, examine(model), kept)


class ToyConfig(PreTrainedConfig):
    model_type = "toy"
    num_layers: int = 4
    num_heads: int = 4
    kind: str = "plain"
    layer_types: list[str] | None = None
    frequencies: list[int] | None = None
    out_indices: list[int] | None = None


class ToyBlock(nn.Module):
    def __init__(self, config, number):
        super().__init__()
        self.layer_idx = number
        self.weight = nn.Parameter(torch.ones(2))
        if config.kind == "depth scaled":
            self.scale = config.num_layers**-0.5
        if config.kind == "first is special" and number == 0:
            self.bias = nn.Parameter(torch.ones(2))


class ToyModel(PreTrainedModel):
    config_class = ToyConfig

    def __init__(self, config):
        super().__init__(config)
        self.depth = config.num_layers
        self.rates = config.frequencies
        if config.kind == "at least four" and config.num_layers < 4:
            raise ValueError("needs four layers")
        length = {"pairs": config.num_layers // 2 * 2, "list": len(config.layer_types or ())}.get(
            config.kind, self.depth
        )
        self.blocks = nn.ModuleList(ToyBlock(config, number) for number in range(length))
        if config.kind == "nested":
            self.blocks[0].inner = nn.ModuleList(ToyBlock(config, number) for number in range(config.num_heads))
        if config.kind == "two lists":
            self.norms = nn.ModuleList(nn.LayerNorm(2) for _ in range(config.num_layers))
        if config.kind == "layer axis":
            self.mix = nn.Parameter(torch.ones(config.num_layers))
        if config.kind == "shared":
            self.head = nn.Linear(2, 1, bias=False)
            self.head.weight = self.blocks[1].weight
        self.post_init()


def toy(**config):
    return ToyModel(ToyConfig(**config))


# finding


def test_equal_numbers_prove_nothing():
    found = find_block_stacks(toy(num_layers=4, num_heads=4))
    assert [(stack.path, stack.count, stack.pinned) for stack in found] == [("blocks", ConfigField("num_layers"), {})]


def test_nothing_about_the_model_or_the_process_is_changed(weight_digest):
    model = toy()
    before = weight_digest(model), model.config.to_dict(), torch.get_rng_state()
    find_block_stacks(model)
    assert (weight_digest(model), model.config.to_dict()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_twelve_layers_take_less_than_a_second():
    model = on_meta(BertModel, BertConfig())
    examine(model)
    started = time.process_time()
    prove(model, {"encoder.layer": [0, 4, 11]})
    assert time.process_time() - started < 1


def test_per_layer_lists_belong_to_the_stack():
    config = Qwen3Config(**TINY, num_key_value_heads=2, head_dim=4)
    (stack,) = find_block_stacks(on_meta(Qwen3Model, config))
    assert stack.per_layer == (ConfigField("layer_types"),)
    assert str(stack.count) == "num_hidden_layers"


REFUSED = {
    "scaled by depth": (
        lambda: toy(kind="depth scaled"),
        r"scale of layer 1 depends on the layer's position or on their number \(0\.5 now, 0\.57",
    ),
    "layer axis": (
        lambda: toy(kind="layer axis"),
        r"layer 0 cannot be removed: without it shape of 'mix' is \(4,\) and would be \(3,\)",
    ),
    "pairs": (
        lambda: toy(kind="pairs", num_heads=1),
        r"'blocks' goes from 4 to 2 entries when config\.num_layers goes from 4 to 3",
    ),
    "cannot be lowered": (
        lambda: toy(kind="at least four"),
        r"config\.num_layers = 4 cannot be lowered by one: needs four layers",
    ),
    "unknown list": (
        lambda: toy(frequencies=[1, 2, 3, 4]),
        r"config\.frequencies has one entry for each of the 4 layers",
    ),
    "albert": (
        lambda: AlbertModel(AlbertConfig(**TINY, embedding_size=8)),
        r"config\.num_hidden_layers = 5, but no list has 5 entries",
    ),
    "imagegpt scaled by position": (
        lambda: ImageGPTModel(ImageGPTConfig(**TINY_GPT2, scale_attn_by_inverse_layer_idx=True)),
        r"'h': the model computes with .*: ImageGPTAttention\._attn: attn_weights / float\(self\.layer_idx \+ 1\)",
    ),
    "whisper weighted sum": (
        lambda: WhisperForAudioClassification(WhisperConfig(**TINY_WHISPER, use_weighted_layer_sum=True)),
        r"without it shape of 'layer_weights' is \(4,\) and would be \(3,\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_without_a_stack_is_refused_with_the_reasons(case):
    make, reason = REFUSED[case]
    with pytest.raises(UnsupportedArchitectureError, match=rf"(?s)\(model_type '\w+'\) has no block stack.*{reason}"):
        find_block_stacks(make())


def test_a_model_with_a_single_block_says_so():
    with pytest.raises(UnsupportedArchitectureError, match="it has no list of two or more blocks"):
        find_block_stacks(toy(num_layers=1))


def short_config(model, kept):
    found = examine(model)
    return found, shorten_config(found.blueprint.config, found.stacks, kept)


def test_layer_numbers_in_a_config_are_renumbered():
    config = Qwen3MoeConfig(
        **TINY, moe_intermediate_size=8, num_experts=2, num_key_value_heads=2, head_dim=4, mlp_only_layers=[1, 3]
    )
    _, short = short_config(on_meta(Qwen3MoeModel, config), {"layers": [0, 2, 3]})
    assert (short.num_hidden_layers, short.mlp_only_layers) == (3, [2])


def test_settings_of_single_layers_keep_their_layer():
    model = on_meta(MistralModel, MistralConfig(**TINY, per_layer_config={1: {"sliding_window": 8}}))
    _, short = short_config(model, {"layers": [1, 3]})
    assert [layer.sliding_window for layer in short.per_layer_config] == [8, 4096]


def test_a_list_of_layers_may_be_the_count():
    (stack,) = find_block_stacks(toy(kind="list", layer_types=list("abcd")))
    assert (str(stack.count), stack.depth, stack.prunable) == ("layer_types", 4, (0, 1, 2, 3))
    model = toy(kind="list", layer_types=list("abcd"), num_layers=3)
    _, short = short_config(model, {"blocks": [0, 3]})
    assert (short.layer_types, short.num_layers) == (["a", "d"], 3)


def test_a_tap_of_the_parent_keeps_the_hidden_state_that_it_reads():
    vision = {"model_type": "clip_vision_model", **TINY, "image_size": 8, "patch_size": 4}
    text = {"model_type": "llama", **TINY}
    config = LlavaConfig(vision_config=vision, text_config=text, vision_feature_layer=-2)  # the output of layer 3
    model = on_meta(LlavaForConditionalGeneration, config)
    found = examine(model)
    assert {stack.path for stack in found.stacks} == {
        "model.language_model.layers",
        "model.vision_tower.encoder.layers",
    }
    vision = next(stack for stack in found.stacks if "vision" in stack.path)
    assert list(vision.pinned) == [4]
    assert "would be the last hidden state, which many models normalise" in vision.pinned[4]
    _, short = short_config(model, {"model.vision_tower.encoder.layers": [0, 2, 4]})
    assert short.vision_feature_layer == -2  # layer 3 is gone: the output of layer 2, which it would have been given


def test_a_backbone_keeps_its_taps_by_name_and_number():
    model = on_meta(
        Dinov2Backbone, Dinov2Config(**TINY, image_size=8, patch_size=4, out_features=["stage2", "stage5"])
    )
    (stack,) = examine(model).stacks
    _, short = short_config(model, {stack.path: [0, 1, 4]})
    assert short.stage_names == ["stem", "stage1", "stage2", "stage3"]
    assert (short._out_features, short._out_indices) == (["stage2", "stage3"], [2, 3])
    with pytest.raises(UnsupportedArchitectureError, match=r"without layers \[2, 3, 4\].* would tap a layer twice"):
        short_config(model, {stack.path: [0, 1]})


def test_lists_that_follow_are_cut_alike():
    (stack,) = find_block_stacks(toy(kind="two lists"))
    assert (stack.path, [follower.path for follower in stack.followers]) == ("blocks", ["norms"])
    model = toy(kind="two lists")
    norms = list(model.norms)
    edit = ModelEdit(model, {"blocks": [0, 3]})
    edit.apply()
    assert list(model.norms) == [norms[0], norms[3]]
    assert {id(p) for p in norms[1].parameters()} <= {id(p) for p in edit.removed_parameters}
    edit.undo()
    assert list(model.norms) == norms


def test_constants_that_count_from_the_front_leave_only_the_end_to_go():
    (stack,) = find_block_stacks(GPT2Model(GPT2Config(**TINY_GPT2, scale_attn_by_inverse_layer_idx=True)))
    assert (stack.period, stack.prunable) == (5, (1, 2, 3, 4))
    assert stack.removable([1, 2]) == ()
    assert stack.removable([1, 3, 4]) == (3, 4)
    assert "attn.scaling of layer 1 depends on the layer's position" in stack.period_reason


def test_blocks_that_alternate_go_in_pairs():
    config = SwinConfig(image_size=32, patch_size=2, embed_dim=8, depths=[2, 6], num_heads=[2, 2], window_size=2)
    shallow, deep = find_block_stacks(on_meta(SwinModel, config))
    assert (shallow.period, shallow.prunable) == (1, (1,))
    assert (deep.period, deep.prunable) == (2, (1, 2, 3, 4, 5))
    assert "shift_size" in deep.period_reason
    assert deep.removable([0, 1, 2, 3]) == (1, 2)


def test_stochastic_depth_follows_the_new_schedule():
    model = SwinModel(
        SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[2, 4], num_heads=[2, 2], window_size=8)
    )
    edit = ModelEdit(model, {"encoder.layers.1.blocks": [0, 1]})
    before = [block.drop_path for stage in model.encoder.layers for block in stage.blocks]
    edit.apply()
    after = [block.drop_path for stage in model.encoder.layers for block in stage.blocks]
    built = SwinModel(model.config)
    assert [vars(d).get("drop_prob") for d in after] == [
        vars(block.drop_path).get("drop_prob") for stage in built.encoder.layers for block in stage.blocks
    ]
    edit.undo()
    assert [block.drop_path for stage in model.encoder.layers for block in stage.blocks] == before


def test_equal_counts_in_two_towers_stay_apart():
    vision = {**TINY, "image_size": 8, "patch_size": 4}
    config = CLIPConfig(text_config=TINY, vision_config=vision, projection_dim=8)
    found = {stack.path: str(stack.count) for stack in find_block_stacks(on_meta(CLIPModel, config))}
    assert found == {
        "text_model.encoder.layers": "text_config.num_hidden_layers",
        "vision_model.encoder.layers": "vision_config.num_hidden_layers",
    }


def test_a_stack_inside_a_block_is_left_alone():
    found = examine(toy(kind="nested", num_heads=3))
    assert [stack.path for stack in found.stacks] == ["blocks"]
    assert "'blocks.0.inner' lies inside a block of another stack" in found.refusals


# pins


def test_the_bias_of_t5_moves_to_the_new_first_block():
    config = T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=4, num_heads=2, vocab_size=9)
    (stack,) = find_block_stacks(on_meta(T5EncoderModel, config))
    assert stack.prunable == (0, 1, 2, 3)
    proof = prove(on_meta(T5EncoderModel, config), {"encoder.block": [1, 3]})
    bias = "layer.0.SelfAttention.relative_attention_bias"
    assert [(move.source, move.target) for move in proof.moves] == [
        (f"encoder.block.0.{bias}", f"encoder.block.1.{bias}")
    ]
    assert ("encoder.block.1.layer.0.SelfAttention", "has_relative_attention_bias", False, True) in {
        (edit.path, edit.name, edit.old, edit.new) for edit in proof.values
    }


def test_dense_layers_at_the_front_are_counted_again():
    config = DeepseekV3Config(**TINY, first_k_dense_replace=2, n_routed_experts=4, n_group=2, topk_group=1)
    model = on_meta(DeepseekV3Model, config)
    (stack,) = find_block_stacks(model)
    assert stack.prunable == (0, 1, 2, 3, 4)
    _, short = short_config(model, {"layers": [1, 3]})
    assert short.first_k_dense_replace == 1


def test_a_count_copy_outside_the_blocks_follows():
    proof = prove(toy(), {"blocks": [0, 3]})
    assert {(edit.path, edit.name, edit.old, edit.new) for edit in proof.values} == {
        ("", "depth", 4, 2),
        ("blocks.3", "layer_idx", 3, 1),
    }
    assert [(edit.name, edit.old, edit.new) for edit in proof.configs] == [("num_layers", 4, 2)]


def test_a_shared_block_is_not_removed():
    with pytest.raises(UnsupportedArchitectureError, match=r"'blocks\.1\.weight' share a parameter or do not"):
        prove(toy(kind="shared"), {"blocks": [0, 2]})
    prove(toy(kind="shared"), {"blocks": [0, 1]})
    model = toy()
    model.blocks[2].weight = model.blocks[1].weight  # by hand: no config knows
    with pytest.raises(UnsupportedArchitectureError, match=r"'blocks\.1\.weight', 'blocks\.2\.weight' share"):
        prove(model, {"blocks": [0, 1, 3]})


def test_an_unprovable_cut_names_model_stack_layer_and_attribute():
    message = (
        r"ToyModel \(model_type 'toy'\): cutting 'blocks' to layers \[1, 2\] cannot be proved right: the shortened config "
        r"expects 'bias' in layer 1, which has none"
    )
    with pytest.raises(UnsupportedArchitectureError, match=message):
        prove(toy(kind="first is special"), {"blocks": [1, 2]})


# the selection of layers


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"encoder": [0]}, r"has no block stack 'encoder'\. Its stacks are: 'blocks' \(4 layers\)"),
        ({"blocks": []}, r"No layer of 'blocks' would be left\. A stack keeps at least one of its 4 layers"),
        (
            {"blocks": [1, 0]},
            r"Kept layers \[1, 0\] of 'blocks' are not valid: expected ascending layer numbers from 0 to 3",
        ),
        ({"blocks": [1, 1]}, r"Kept layers \[1, 1\]"),
        ({"blocks": [3, 4]}, r"Kept layers \[3, 4\]"),
        ({"blocks": [-1, 2]}, r"Kept layers \[-1, 2\]"),
    ],
)
def test_a_selection_that_fits_no_stack_is_refused(kept, message):
    with pytest.raises(PlanMismatchError, match=message):
        check_kept([BlockStack("blocks", "ToyBlock", 4, ConfigField("num_layers"))], kept)


def test_a_model_without_stacks_is_named_in_the_refusal_of_a_selection():
    with pytest.raises(PlanMismatchError, match="Its stacks are: none"):
        check_kept([], {"blocks": [0]})


# the live model


def test_a_model_that_was_cut_by_hand_is_refused():
    model = toy()
    del model.blocks[1]
    with pytest.raises(
        UnsupportedArchitectureError, match=r"disagree\. .*the model has no 'blocks\.3\.weight'\. Was it cut"
    ):
        find_block_stacks(model)
    model.config.num_layers = 3  # lengths agree, positions do not: the cache would be addressed wrongly
    with pytest.raises(
        UnsupportedArchitectureError, match=r"numbers differently 'blocks\.1\.layer_idx', 'blocks\.2\.layer_"
    ):
        find_block_stacks(model)


def test_additional_and_misshapen_parameters_are_named():
    model = toy()
    model.extra = nn.ModuleList(nn.Linear(1, 1) for _ in range(3))
    model.blocks[0].weight = nn.Parameter(torch.ones(3))
    message = r"has in addition 'extra\.0\.bias', .* \(and 3 more\); has another shape of 'blocks\.0\.weight'"
    with pytest.raises(UnsupportedArchitectureError, match=message):
        find_block_stacks(model)


def test_a_tied_output_layer_is_no_disagreement():
    model = GPT2LMHeadModel(GPT2Config(**TINY_GPT2))
    assert model.lm_head.weight is model.transformer.wte.weight
    assert find_block_stacks(model)[0].path == "transformer.h"


def test_what_is_no_transformers_model_is_refused_with_what_to_do():
    with pytest.raises(
        UnsupportedArchitectureError, match=r"Linear is not a transformers PreTrainedModel.*Pass a transform"
    ):
        find_block_stacks(nn.Linear(1, 1))
    with pytest.raises(
        UnsupportedArchitectureError, match=r"DataParallel .* It wraps another module: .* model\.module"
    ):
        find_block_stacks(nn.DataParallel(toy()))


# rebuilding and describing


def test_a_class_that_needs_more_than_its_config_is_refused():
    class Demanding(ToyModel):
        def __init__(self, config, width):
            super().__init__(config)

    with pytest.raises(
        UnsupportedArchitectureError, match=r"Demanding \(model_type 'toy'\) could not be rebuilt.*'width'"
    ):
        build_reference(Demanding, ToyConfig())


def test_a_config_that_cannot_be_saved_is_refused():
    config = BertConfig()
    config.hook = object()
    with pytest.raises(
        UnsupportedArchitectureError, match=r"BertConfig .* does not survive being saved and read back: Type"
    ):
        reload_config(config)


def test_reloading_a_config_leaves_it_alone():
    config = CLIPConfig()
    before = copy.deepcopy(vars(config))
    reloaded = reload_config(config)
    assert vars(config).keys() == before.keys()
    assert list(config_nodes(reloaded)) == ["", "text_config", "vision_config"]
    assert not list(diff_configs(reloaded, reload_config(reloaded)))


def test_stage_counts_are_single_entries_of_a_list():
    config = ToyConfig(frequencies=[3, 4])
    stacks = [BlockStack(f"stages.{n}", "Block", d, ConfigField("frequencies", index=n)) for n, d in enumerate([3, 4])]
    short = shorten_config(config, stacks, {"stages.1": [0, 3]})
    assert read_field(short, stacks[1].count) == 2
    assert (config.frequencies, short.frequencies) == ([3, 4], [3, 2])
    assert str(stacks[1].count) == "frequencies[1]"


def test_attributes_are_compared_by_content():
    assert plain([1, (2.0, float("nan"))]) == (1, (2.0, "nan"))
    assert plain({"a": {1, 2}}) == {"a": frozenset({1, 2})}
    assert plain(torch.tensor([1, 2])) == ("tensor", (2,), torch.int64, (1, 2))
    assert plain(torch.ones(2, device="meta"))[3] is None
    assert plain(nn.ReLU()) == "ReLU"
    assert plain(torch.nn.functional.gelu) == "gelu"
    assert repr(ABSENT) == "absent"
