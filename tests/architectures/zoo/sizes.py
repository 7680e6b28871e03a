"""Tiny configs: each field of a config class is shrunk by what its name says, sub-configs included.

The configs are built from keyword arguments, never by changing a built one, so that the constructors derive the fields
that follow from others. All widths come out equal, so the towers of a composite fit together; all depths too, which is
the hard case for whoever must tell the stacks apart.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from zoo.overrides_configs import CONFIGS

DEPTH = 5
DECODER_DEPTH = 4
WIDTH = 32
FEED_FORWARD = 48
HEADS = 4
HEAD_WIDTH = 8
VOCABULARY = 128
FIRST_TEXT_TOKEN = 64  # all below are special
IMAGE = 32
STAGED_IMAGE = 64
LABELS = 3


def matches(pattern: str) -> Callable[[str], bool]:
    return re.compile(pattern).search  # type: ignore[return-value]


is_token = matches(
    r"(_token_(id|index|idx)|^(bos|eos|pad|unk|mask)_(index|id)|^im_\w+_id|_(bos|eos|pad)_id|image_patch_id)$"
)
is_token_list = matches(r"_token_ids$")
is_vocabulary = matches(r"(vocab\w*_size|codebook_size|vocab_size\w*|_vocab|num_embeddings|num_embeds|num_centroids)$")
is_top_k = matches(
    r"^(num_experts_per_tok\w*|moe_top_?k|moe_k|top_k_experts|num_selected_experts|topk|index_topk_blocks)$"
)
is_experts = matches(r"^(num_(local_|routed_)?experts|n_routed_experts|moe_num_experts|zero_expert_num)$")
is_depth = matches(
    r"^((num|n)_(hidden_|encoder_|decoder_|spatial_|temporal_|attention_)?(layers?|blocks)|(depth|layers)"
    r"|\w*(encoder|decoder|attention|hidden|dec|resampler|coda|prompt|conf|pred|mit|tower|memory_fuser|auxiliary|temporal|detr"
    r"|text_encoder)_(num_|hidden_)*(layers|depth|blocks)|[lxr]_layers|num_mel_attn_blocks|resampler_depth|n_layer)$"
)
is_no_depth = matches(
    r"^(num_(sparse|conv|lstm|feat|mtp|adapter|kv|dense|fov|first|last|global|pooler|timestamp|resnet|t2u_sparse|encoder_blocks)\w*|\w*(predictor|postnet|prenet|wavenet|proj)_\w*layers)$"
)
is_kv_heads = matches(r"(key_value_heads|kv_heads|num_key_value_attention_heads|multi_query_group_num)$")
is_head_width = matches(
    r"(head_dim|head_size|^d_kv|^dim_head|^d_head|_dim_head|kv_channels|v_head_dim|index_head_dim|attention_head_size)$"
)
is_heads = matches(r"(attention_heads|_heads|^n_heads?|attn_heads|^encoder_attn_heads|_n_head|num_heads)$")
is_rank = matches(r"(lora_rank|_rank|rope_head_dim|nope_head_dim|_lowrank)$")
is_feed_forward = matches(
    r"(intermediate_(size|dim)|ffn_\w*(dim|size)|ffn_dim|^d_ff|^dff|^dim_ff|^mlp_dim|^n_inner|inner_dim|^d_inner|feedforward\w*(dim|size)?|feed_forward\w*size|mlp_hidden_size|ff_dim|linear_units|_mlp_dim|intermediate_size\w*)$"
)
is_width = matches(
    r"(hidden_(size|dim)\w*|^d_model|^n_embd|^dim|^embed_dim|emb_dim|embed_dim|embedding_(size|dim)|^width|encoder_width|model_dim|projection_(dim|size)"
    r"|output_dim|bottleneck_size|hidden_channels|project_dim|latent_dim|fpn_\w*(size|dim|channels)|output_channels|_hidden_dim"
    r"|mask_dim|codebook_dim|d_latents|vit_dim|proj_size|_embed_dims?|output_size|feature_size|text_hidden_size|quantization_dim|adapter_in_dim|adapter_out_dim|feat_dim|fusion_dim|projection_in_dim|projection_out_dim|channels_size|output_embedding_size|input_embedding_size|pooler_output_size|prediction_head_size|descriptor_dim|x4_feat_dim|reduce_dim|codevector_dim)$"
)
is_positions = matches(
    r"(max_\w*position\w*|n_positions|max_(source|target)_positions|^n_ctx|max_seq_len|max_pos_emb|max_sequence_length|context_size|max_speech_positions|max_text_positions|\w*max_position\w*|num_position_embeddings|max_text_len(gth)?|seq_len)$"
)
is_image = matches(r"^(image_size|input_size|pretrain_image_size|img_size|crop_size)$")
is_drop = matches(r"(drop|layerdrop|stochastic_depth)")
is_index_list = matches(
    r"^(mlp_only_layers|attn_layer_indices|\w*attn_ind(ex|ic)es|fullatt_block_indexes|window_block_ind(ices|exes)|cross_attention_layers"
    r"|hybrid_layer_ids|moe_layers|subsample_layers|deepstack_\w*indexes|\w*out_indices|intermediate_hidden_state_indices|intermediate_layers_indices"
    r"|extract_layers|vision_feature_layer|residual_block_indices|intermediate_hook_ids)$"
)
is_tap = matches(r"(^deepstack_|out_indices$|^intermediate_|^extract_layers$|^vision_feature_layer$)")
is_no_layer_list = matches(r"^(conv_|tdnn_|upsample|resblock|kernel|dilat|quantiles|langs|ssm_multipliers)")


class TokenIds:
    """Special token ids: the same name gets the same id everywhere in a config, no two names share one."""

    def __init__(self) -> None:
        self.known = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

    def __call__(self, name: str) -> int:
        name = name.replace("_token_index", "_token_id").replace("_token_idx", "_token_id")
        return self.known.setdefault(name, len(self.known) + 2)


def at_most(limit: int) -> Callable[[int], int]:
    return lambda value: min(value, limit)


RULES: tuple[tuple[Callable[[str], Any], Callable[[int], int]], ...] = (
    (matches(r"type_vocab_size$"), at_most(4)),
    (is_vocabulary, at_most(VOCABULARY)),
    (is_top_k, at_most(2)),
    (is_experts, at_most(4)),
    (matches(r"^(n_group|topk_group|num_expert_group|o_groups)$"), lambda value: 1),
    (matches(r"shared_experts?$|^n_shared"), at_most(1)),
    (is_kv_heads, at_most(2)),
    (is_head_width, at_most(HEAD_WIDTH)),
    (is_heads, at_most(HEADS)),
    (is_rank, at_most(HEAD_WIDTH)),
    (is_feed_forward, at_most(FEED_FORWARD)),
    (matches(r"^max_source_positions$"), at_most(16)),
    (is_positions, at_most(128)),
    (is_width, at_most(WIDTH)),
    (matches(r"^window_size$"), lambda value: 16 if value > 32 else min(value, 2)),
    (matches(r"^patch_size$"), at_most(8)),
    (matches(r"^(d_state|ssm_state_size|state_size|mamba_d_state)$"), at_most(8)),
    (matches(r"^(mamba_)?(chunk_size)$"), at_most(8)),
    (matches(r"^num_mel_bins$|^n_mels$|^num_mel_bins"), at_most(16)),
    (matches(r"^(sliding_window\w*|attention_window|local_attention)$"), at_most(8)),
    (matches(r"^(num_queries|num_query_tokens|num_detection_tokens|num_latents)$"), at_most(6)),
    (matches(r"^(mm_tokens_per_image)$"), at_most(4)),
    (matches(r"^(num_frames|frames_per_clip)$"), at_most(4)),
    (matches(r"^(first_k_dense_replace|num_dense_layers)$"), lambda value: 1),
    (matches(r"^num_kv_shared_layers$"), at_most(2)),
    (matches(r"^num_filters$"), at_most(4)),
    (matches(r"^base_channels$|^num_pos_feats$"), at_most(16)),
    (matches(r"^num_conv_pos_embeddings$"), at_most(8)),
    (matches(r"^num_conv_pos_embedding_groups$"), at_most(2)),
    (matches(r"^index_topk$"), at_most(4)),
    (
        matches(r"^(upsample_initial_channel|speech_decoder_postnet_units|speech_decoder_prenet_units)$"),
        at_most(WIDTH),
    ),
    (matches(r"^upsample_groups$"), at_most(WIDTH)),
    (matches(r"_channels$|channels_\w+$"), at_most(WIDTH)),
)
"""What the name of an int field says -> its tiny value; the first that fits counts."""


def shrink_number(name: str, value: int, tokens: TokenIds, big_image: bool) -> int:
    """What the int field `name` becomes; what no rule knows stays."""
    if is_token(name):
        return tokens(name)
    if is_depth(name) and not is_no_depth(name):
        return shrink_depth(name, value)
    if is_image(name):
        return image_side(value, big_image)
    return next((shrink(value) for fits, shrink in RULES if fits(name)), value)


def shrink_depth(name: str, value: int) -> int:
    if value < 2:
        return value
    return DECODER_DEPTH if "decoder" in name or name.startswith("dec_") else DEPTH


def image_side(value: int, big_image: bool) -> int:
    return min(value, STAGED_IMAGE if big_image else IMAGE)


def shrink_stages(depths: Sequence[int]) -> list[int]:
    """One stage of at least four blocks, two in the others where there were that many."""
    longest = max(range(len(depths)), key=lambda stage: (depths[stage], stage))
    return [4 if stage == longest else min(count, 2) for stage, count in enumerate(depths)]


def shrink_widths(widths: Sequence[int], smallest: int = 8) -> list[int]:
    """All divided by the same power of two, so that whatever divided them still does."""
    step = 1
    while all(width % (2 * step) == 0 for width in widths) and min(widths) // (2 * step) >= smallest:
        step *= 2
    return [width // step for width in widths]


def choose_layers(rows: Sequence[tuple[Any, ...]], count: int) -> list[int]:
    """Layers whose kinds stand for all: the first and the last, one of each kind, then the earliest."""
    kinds = [repr(row) for row in rows]
    chosen = [0, len(rows) - 1]
    chosen += [kinds.index(kind) for kind in dict.fromkeys(kinds) if kind not in (kinds[0], kinds[-1])]
    for layer in range(len(rows)):
        if len(dict.fromkeys(chosen)) >= count:
            break
        chosen.append(layer)
    return sorted(dict.fromkeys(chosen))


def thin_out(indices: Sequence[int], old: int, new: int) -> list[int]:
    """As large a share of a shorter stack, two at least, so that layers of both kinds remain."""
    count = min(max(round(len(indices) * new / old), 2), len(indices), new - 1)
    return [indices[place * len(indices) // count] for place in range(count)]


def move_indices(indices: Sequence[int], old: int, new: int) -> list[int]:
    """The same places in a shorter stack, each its own."""
    moved: list[int] = []
    for index in indices:
        place = round(index * (new - 1) / max(old - 1, 1)) if index >= 0 else index
        while place in moved and place >= 0:
            place += 1
        moved.append(place)
    overshoot = max([place - (new - 1) for place in moved] + [0])
    return [place - overshoot if place >= overshoot else place for place in moved]


def field_defaults(config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """What each field of the class itself holds when nothing is given."""
    skipped = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    found = {}
    for field in dataclasses.fields(config_class):
        if field.name in skipped:
            continue
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
        else:
            found[field.name] = None
    return found


def find_depth(built: PreTrainedConfig) -> int | None:
    for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "encoder_layers"):
        value = vars(built).get(name)
        if isinstance(value, int) and value > 1:
            return value
    return None


def is_plain(value: Any) -> bool:
    return isinstance(value, (int, float, str)) or (
        isinstance(value, (list, tuple)) and all(isinstance(item, (int, float, str)) for item in value)
    )


def tiny_arguments(
    built: PreTrainedConfig, tokens: TokenIds, overrides: dict[str, Any] | None = None, fresh: bool = True
) -> dict[str, Any]:
    """Keyword arguments that build a tiny config of the class of `built`, a config with the usual sizes.

    Args:
        built: Config of the usual sizes.
        tokens: Where special token ids come from.
        overrides: What the rules cannot guess, nested as the config is.
        fresh: Whether `built` holds only defaults of its class; a parent may have given a sub-config others.
    """
    config_class = type(built)
    overrides = merge(CONFIGS.get(config_class.model_type, {}), overrides or {})
    given = field_defaults(config_class)
    arguments: dict[str, Any] = {}
    if not fresh:
        usual = usual_config(config_class)
        for name in given:
            if name.startswith("_"):
                continue
            value = vars(built).get(name)
            if usual is not None and is_plain(value) and value != vars(usual).get(name):
                given[name] = arguments[name] = value
        for name, value in vars(built).items():  # what the parent added that is no field of the class
            if name not in given and not name.startswith("_") and is_plain(value) and not hasattr(usual, name):
                given[name] = arguments[name] = value
    big_image = any(isinstance(given.get(name), (list, tuple)) for name in ("depths", "hidden_sizes", "embed_dims"))
    for name, value in given.items():
        new = shrink_field(name, value, tokens, big_image)
        if new is not None:
            arguments[name] = new
    arguments.update(fit_heads(built, given, arguments))
    if "kv_lora_rank" in given and "num_key_value_heads" in arguments:  # latent attention has no grouped heads
        arguments["num_key_value_heads"] = arguments["num_attention_heads"]
    arguments.update(shrink_layers(built, given, arguments, overrides))
    for name in sub_config_names(built):
        sub = getattr(built, name)
        if sub.model_type in ("timm_backbone", "timm_wrapper"):
            arguments.update(replace_timm(sub, tokens))
            continue
        arguments[name] = tiny_arguments(sub, tokens, overrides.get(name), fresh=False)
        if sub.model_type:
            arguments[name]["model_type"] = sub.model_type
    if "num_labels" not in given and built.num_labels is not None:
        arguments["num_labels"] = LABELS
    for name, value in overrides.items():
        if not (isinstance(value, dict) and name in sub_config_names(built)):
            arguments[name] = copy.deepcopy(value)
    return arguments


def replace_timm(backbone: PreTrainedConfig, tokens: TokenIds) -> dict[str, Any]:
    """A backbone of transformers itself in place of one that needs timm."""
    taps = getattr(backbone, "_out_indices", None) or [1, 2, 3, 4]
    count = min(len(taps), 4)
    arguments = tiny_arguments(CONFIG_MAPPING["resnet"](), tokens)
    arguments.update(model_type="resnet", out_indices=list(range(5 - count, 5)))
    return {
        "backbone_config": arguments,
        "use_timm_backbone": False,
        "backbone": None,
        "use_pretrained_backbone": False,
    }


def fit_heads(built: PreTrainedConfig, given: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Head counts and widths that fit one another."""
    heads, found = given.get("num_heads"), {}
    if isinstance(heads, (list, tuple)) and isinstance(given.get("embed_dim"), int):
        found["embed_dim"] = HEAD_WIDTH // 2 * heads[0]
    if "num_attention_heads" in arguments and isinstance(arguments.get("hidden_size"), int):
        for name, value in (("head_dim", HEAD_WIDTH), ("num_key_value_heads", arguments["num_attention_heads"])):
            if name in given and vars(built).get(name) is None:
                found[name] = value
    if "vocab_size" in given and built.vocab_size is None:
        found["vocab_size"] = VOCABULARY
    if "depths" in given and "num_hidden_layers" in given:  # counts stages
        found["num_hidden_layers"] = given["num_hidden_layers"]
    return found


def merge(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Both, nested; where both hold a value, the second's."""
    merged = {name: value for name, value in first.items() if name != "_base"}
    for name, value in second.items():
        both = isinstance(merged.get(name), dict) and isinstance(value, dict)
        merged[name] = merge(merged[name], value) if both else value
    return merged


def sub_config_names(built: PreTrainedConfig) -> list[str]:
    return [name for name, value in vars(built).items() if isinstance(value, PreTrainedConfig)]


def usual_config(config_class: type[PreTrainedConfig]) -> PreTrainedConfig | None:
    try:
        return config_class()
    except (TypeError, ValueError, AttributeError):
        return None


def shrink_field(name: str, value: Any, tokens: TokenIds, big_image: bool) -> Any:
    """The small value of one field, None where it stays what it is."""
    if isinstance(value, bool) or value is None:
        return None
    if is_drop(name) and isinstance(value, (int, float)):
        return type(value)(0)
    if is_drop(name) and isinstance(value, (list, tuple)) and all(isinstance(item, float) for item in value):
        return [0.0] * len(value)
    if isinstance(value, int):
        return shrink_number(name, value, tokens, big_image)
    if isinstance(value, (list, tuple)) and value and all(type(item) is int for item in value):
        return shrink_numbers(name, value, tokens, big_image)
    return None


def shrink_numbers(name: str, value: Sequence[int], tokens: TokenIds, big_image: bool) -> list[int] | None:
    if is_token(name):
        return [tokens(name)]
    if is_token_list(name):
        return [tokens(f"{name}_{place}") for place in range(len(value))]
    if matches(r"^(depths|block_sizes|num_block_repeats|stage_num_blocks|num_blocks|n_attn_blocks|layers)$")(name):
        return shrink_stages(value)
    if is_image(name):
        return [image_side(side, big_image) for side in value]
    if name == "patch_size":
        return [8 if side > 8 else side for side in value]
    if matches(r"(hidden_sizes|embed_dims?|neck_hidden_sizes|\w*_channels|conv_dim|tdnn_dim|hidden_size)$")(name):
        return shrink_widths(value)
    if matches(r"^sliding_window")(name):
        return [min(side, 8) for side in value]
    return None


def shrink_layers(
    built: PreTrainedConfig, given: dict[str, Any], arguments: dict[str, Any], overrides: dict[str, Any]
) -> dict[str, Any]:
    """The fields that hold one value per layer, or layer indices: all with the same chosen layers."""
    depth = find_depth(built)
    if depth is None:
        return shrink_taps(built, given, overrides, None, None)
    held = {name: vars(built).get(name) for name in given if name not in overrides}
    lists = {
        name: value
        for name, value in held.items()
        if isinstance(value, (list, tuple))
        and len(value) == depth
        and depth > DEPTH
        and not is_no_layer_list(name)
        and not is_index_list(name)
        and not isinstance(given[name], int)  # one number for all layers, spread out when built
        and not (all(type(item) is int for item in value) and len(set(value)) == len(value))  # layer numbers
    }
    names = [name for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth") if name in given]
    new = arguments.get(names[0], DEPTH) if names else DEPTH
    if names and names[0] in overrides:
        new = overrides[names[0]]
    found: dict[str, Any] = {}
    if lists and isinstance(new, int):
        kept = choose_layers(list(zip(*lists.values(), strict=True)), new)
        found = {name: [value[layer] for layer in kept] for name, value in lists.items()}
        if names:
            found[names[0]] = len(kept)
            new = len(kept)
    for name, value in held.items():
        if is_index_list(name) and isinstance(value, (list, tuple)) and value and all(type(v) is int for v in value):
            found[name] = move_indices(value if is_tap(name) else thin_out(value, depth, new), depth, new)
        elif name == "rope_parameters" and isinstance(value, dict):
            found.update(shrink_rope(value, built))
    found.update(shrink_taps(built, given, overrides, depth, new))
    return found


def shrink_taps(
    built: PreTrainedConfig, given: dict[str, Any], overrides: dict[str, Any], old: int | None, new: int | None
) -> dict[str, Any]:
    """Stages that a backbone hands out, where it was told which."""
    taps, stages = vars(built).get("_out_indices"), getattr(built, "stage_names", None)
    if not taps or not stages or "out_indices" in overrides or "out_features" in overrides:
        return {}
    if old is not None and new is not None and len(stages) == old + 1 and "depths" not in given:
        return {"out_indices": move_indices(list(taps), old + 1, new + 1)}
    return {"out_indices": list(taps)} if list(taps) != [len(stages) - 1] else {}


def shrink_rope(rope: dict[str, Any], built: PreTrainedConfig) -> dict[str, Any]:
    """Rotary sections for heads of the tiny width; nothing where there are no sections."""
    small = copy.deepcopy(rope)
    changed = False
    for part in [small, *[value for value in small.values() if isinstance(value, dict)]]:
        section = part.get("mrope_section")
        if section:
            factor = float(part.get("partial_rotary_factor", 1.0) or 1.0)
            pairs = max(int(HEAD_WIDTH * factor) // 2, 1)
            small_section = [pairs // len(section)] * len(section)
            small_section[0] += pairs - sum(small_section)
            part["mrope_section"] = small_section
            changed = True
        for name in ("short_factor", "long_factor"):
            if name in part:
                part[name] = list(part[name])[: HEAD_WIDTH // 2]
                changed = True
    return {"rope_parameters": small} if changed else {}


def tiny_config(config_class: type[PreTrainedConfig]) -> PreTrainedConfig:
    """A config of the class with the sizes of a toy."""
    base = CONFIGS.get(config_class.model_type, {}).get("_base", {})
    built = config_class(**copy.deepcopy(base))
    arguments = tiny_arguments(built, TokenIds())
    return config_class(**{**{name: value for name, value in base.items() if name not in arguments}, **arguments})
