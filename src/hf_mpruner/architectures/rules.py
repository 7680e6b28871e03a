"""What is known about names, as data: each entry carries its reason. No code here decides what is right.

The proof in `proof.py` decides. These tables say how config values follow a cut (`FOLLOWS`, `TAPS`), which differences
between two builds a renumbering explains (`POSITION_ATTRIBUTES`, `STOCHASTIC_DEPTH`), what moves with the layers
(`FIRST_BLOCK_MODULES`, `LAYER_AXES`), and which code that computes with layer numbers was read (`REVIEWED_CODE`).
`register_architecture` adds entries for one model type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Follow(NamedTuple):
    """How a config value follows a cut: a name of `rewrite.REWRITES`, what it says, the counts that it goes with."""

    kind: str
    reason: str
    counts: tuple[str, ...] = ()


class Tap(NamedTuple):
    """A value of another config that points into a tower: part of the tower's node path, kind, what it says."""

    tower: str
    kind: str
    reason: str


ALL = -1
"""Every layer, in `Reviewed.pins`."""


class Reviewed(NamedTuple):
    """Code that was read: what it does, and what that means for a cut.

    `switch` names the config value that makes it matter (always, if empty). `pins` is how many layers at the front must
    stay then: a number, the name of a config value that holds or lists as many, or `ALL`, which refuses the stack.
    """

    reason: str
    switch: str = ""
    pins: int | str = 0


_ENTRIES = {
    "layer_types": "kind of attention or mixer of each layer; its length is validated against the count",
    "mlp_layer_types": "dense or sparse feed-forward of each layer; its length is validated against the count",
    "mtp_layer_types": "kind of attention of each prediction layer",
    "layers_block_type": "kind of mixer of each layer",
    "layer_rope_theta": "rotary base of each layer",
    "no_rope_layers": "0 or 1 a layer: rotary embedding off or on",
    "sliding_windows": "local attention window of each layer",
    "no_rope_layer": "0 or 1 a layer: rotary embedding off or on",
    "rope_scaling_layers": "rotary scaling of each layer",
    "activation_sparsity_pattern": "activation sparsity of each layer",
    "num_attention_heads_per_layer": "attention heads of each layer",
    "num_key_value_heads_per_layer": "key-value heads of each layer",
    "intermediate_size": "feed-forward width of each layer, where it is a list",
    "attn_layers": "kind of attention of each layer (reformer)",
    "attention_layers": "kind of attention of each layer (gpt_neo, derived from attention_types)",
}
_INDICES = {
    "mlp_only_layers": "layer indices with a dense feed-forward",
    "attn_layer_indices": "layer indices with attention",
    "full_attn_idxs": "layer indices with attention",
    "global_attn_indexes": "layer indices with global attention",
    "fullatt_block_indexes": "layer indices with global attention",
    "window_block_indices": "layer indices with windowed attention",
    "window_block_indexes": "layer indices with windowed attention",
    "cross_attention_layers": "layer indices with cross-attention",
    "hybrid_layer_ids": "layer indices that use the shared blocks",
    "moe_layers": "layer indices with experts",
    "subsample_layers": "layer indices that subsample",
    "residual_attention_block_indices": "layer indices with a residual block",
}
_OUTPUTS = {
    "deepstack_visual_indexes": "layer indices whose output is tapped",
    "extract_layers": "layer indices whose output is tapped",
    "intermediate_layers_indices": "layer indices whose output is tapped",
    "intermediate_hidden_state_indices": "layer indices whose output is tapped",
    "backbone_out_indices": "layer indices whose output is tapped",
}
_PREFIXES = {
    "first_k_dense_replace": "number of dense layers at the front",
    "num_dense_layers": "number of dense layers at the front",
    "moe_layer_start_index": "number of dense layers at the front",
    "num_hash_layers": "number of hash-routed layers at the front",
}
FOLLOWS: Mapping[str, Follow] = {
    **{name: Follow("entries", reason) for name, reason in _ENTRIES.items()},
    **{name: Follow("indices", reason) for name, reason in _INDICES.items()},
    **{name: Follow("outputs", reason) for name, reason in _OUTPUTS.items()},
    **{name: Follow("prefix", reason) for name, reason in _PREFIXES.items()},
    "attention_window": Follow(
        "entries", "local attention window of each layer (longformer, led)", ("encoder_layers", "num_hidden_layers")
    ),
    "block_types": Follow("cycle", "kind of mixer of each layer, repeated over the layers"),
    "attention_types": Follow("patterns", "runs of kinds of attention (gpt_neo): [[kinds, repeats], ...]"),
    "insert_layer_id": Follow("outputs", "layer after which the tokens are merged"),
    "merge_index": Follow("layer", "layer before which prompt and image are merged (seggpt)"),
    "out_indices": Follow("inputs", "hidden states that a segmentation head reads, counted from one"),
    "indexer_types": Follow("producers", "kind of sparse-attention indexer of each layer, or that it shares one"),
    "kv_source_layers": Follow("sources", "for each layer, the layer whose keys it uses"),
    "stage_names": Follow("backbone", "names of what a backbone can put out, one a layer"),
    "_heterogeneity_spec": Follow("per_layer_config", "settings of single layers, by layer number"),
    "num_kv_shared_layers": Follow("suffix", "number of layers at the end that reuse keys of earlier ones"),
    "decoder_sparse_step": Follow("sparse_step", "every how many layers have experts"),
    "scale_depth": Follow("sqrt_depth", "residual branches are scaled by this over the root of the number of layers"),
}
"""Config values in the node that holds the count, by name."""

TAPS: Mapping[str, Tap] = {
    "vision_feature_layer": Tap("vision", "hidden_states", "the hidden state of the vision tower that is read"),
    "vision_feature_select_layer": Tap("vision", "hidden_states", "the hidden state of the vision tower that is read"),
    "vision_aspect_layer": Tap("vision", "hidden_states", "the hidden state of the vision tower that is read"),
    "vision_feature_layers": Tap("vision", "hidden_states", "the hidden states of the vision tower that are read"),
    "audio_feature_layer": Tap("audio", "hidden_states", "the hidden state of the audio tower that is read"),
    "extract_layers": Tap("vision", "outputs", "layers of the vision tower whose output is read"),
    "insert_layer_id": Tap("vision", "outputs", "layer of the vision tower after which the tokens are merged"),
    "intermediate_hook_ids": Tap("patch_model_config", "outputs", "layers of the patch encoder whose output is read"),
    "spatial_target_layers": Tap("text", "targets", "layers of the text model into which image features are fed"),
    "deepstack_layer_map": Tap("", "layer_map", "[hidden state of the vision tower, layer of the text model] pairs"),
}
"""Values of an enclosing or neighbouring config that point into a tower."""

STAGE_LISTS: Mapping[str, str] = dict.fromkeys(
    ("depths", "num_block_repeats", "hidden_sizes", "embed_dims", "block_sizes", "stage_num_blocks", "num_blocks"),
    "one entry a stage",
)
"""Config lists beside which a count counts stages: stages change width or resolution and all stay."""

TYPE_FOLLOWS: Mapping[str, Mapping[str, Follow]] = {
    "sam_hq_vision_model": {
        "global_attn_indexes": Follow("targets", "layers with global attention, of which the first is also read")
    },
    "deepseek_vl_hybrid": {
        "global_attn_indexes": Follow("targets", "layers with global attention, of which the first is also read")
    },
}
"""Rules of single model types, where a name means more there than elsewhere."""

TYPE_REFUSALS: Mapping[str, str] = {
    "pi0": "each layer of the action expert reads the keys of the language model's layer of the same number",
}
"""Model types in which layers depend on each other in a way that neither builds nor code show."""

UNRELATED_LISTS: Mapping[str, str] = {
    **STAGE_LISTS,
    "architectures": "class names",
    "stage_names": "names of what a backbone can put out",
    "image_size": "height and width",
    "patch_size": "height and width",
    "suppress_tokens": "token ids",
    "begin_suppress_tokens": "token ids",
    "eos_token_id": "token ids",
    "embedding_size": "widths of a stem",
    "task_specific_params": "settings of tasks",
    "target_layer_ids": "layers of another model (muse_glimmer_assistant)",
    "scale_factor_list": "scale of each level of a pyramid",
    "ssm_multipliers": "one factor for each part of a mixer (falcon_h1)",
    "mlp_multipliers": "one factor for each part of a feed-forward (falcon_h1)",
}
"""Config lists whose length has nothing to do with the number of blocks, even where the two are equal."""

POSITION_ATTRIBUTES: Mapping[str, str] = {
    "layer_idx": "address of the layer in the key-value cache and in config.layer_types",
    "layer_id": "address of the layer in the key-value cache",
    "layer_number": "address of the layer in the key-value cache",
    "layer_index": "address of the layer in the key-value cache",
    "block_idx": "number of the block, used for naming",
    "cache_key": "address of the block in the padding cache of streaming convolutions",
    "layer_dic": "which adapters of a shared block a layer uses, by layer number (zamba2)",
    "_keys_to_ignore_on_load_unexpected": "names of weights that only other layers have, with their numbers (gemma3n)",
    "all_tied_weights_keys": "names of tied weights, with the layers' numbers in them",
    "_tied_weights_keys": "names of tied weights, with the layers' numbers in them (zamba2)",
    "first_kv_shared_layer_idx": "where the layers begin that reuse keys (gemma3n, gemma4)",
    "layer_num": "address of the layer in the key-value cache (blip)",
}
"""Attributes that hold where a module is: renumbered after a cut, never a reason to refuse it."""

BLOCK_COUNTS: Mapping[str, str] = dict.fromkeys(
    ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "depth", "total_layers"),
    "copy of the number of layers in a block; code that computes with it as it runs is found, buffers made of it too",
)
"""Attributes of blocks that may hold the number of layers."""

NO_BLOCKS: Mapping[str, str] = {
    "num_upscale_blocks": "each doubles the resolution",
    "intraclass_block_number": "one for each level of a pyramid, side by side",
    "group_detr": "groups of queries",
    "num_res_blocks": "residual blocks at every resolution of an image tokenizer, on the way down and up",
}
"""Counts of things that are no blocks in a row, though each has a list of its own."""

LAYER_OUTPUTS: Mapping[str, str] = {
    "layer_norm2": "last of the parallel lists that make up a layer of Flaubert and XLM: gives the hidden state",
}
"""Of lists that are cut together, the one whose entries put out what the next layer is given, by the end of its path."""

LAYER_REFERENCES: Mapping[str, str] = {
    "kv_shared_layer_index": "number of the layer whose keys and values this one uses",
}
"""Attributes of a block that name another block, which must stay."""

LAYER_STORES: Mapping[str, tuple[str, str]] = {
    "store_full_length_kv": (
        "is_kv_shared_layer",
        "which layers put their keys and values out; in transformers 5.24 also where no layer but another model reads them",
    ),
}
"""Attributes of a block that mean nothing unless a layer reads what is stored: (flag of such a layer, reason)."""

STOCHASTIC_DEPTH: Mapping[str, str] = {
    "drop_path": "probability of skipping the block in training, a schedule over the depth",
    "drop_path1": "probability of skipping the block in training, a schedule over the depth",
    "drop_path2": "probability of skipping the block in training, a schedule over the depth",
    "drop_path_rate": "probability of skipping the block in training, a schedule over the depth",
    "drop_prob": "probability of skipping the block in training, a schedule over the depth",
    "drop_path_prob": "probability of skipping the block in training, a schedule over the depth",
    "seed": "of the random attention of a training step (big_bird); evaluation draws nothing",
}
"""Names of attributes and parameterless modules that act in training only: they become what the new config builds."""

FIRST_BLOCK_MODULES: Mapping[str, tuple[str, str]] = {
    "relative_attention_bias": (
        "has_relative_attention_bias",
        "position bias computed in the first block and handed on to the others: it moves to the new first block",
    ),
}
"""Modules that only the first block owns, and that serve all: (flag beside the module, reason)."""

LAYER_AXES: Mapping[str, tuple[int, str]] = {
    "embed_tokens_per_layer.weight": (1, "one slice of columns a layer"),
    "per_layer_model_projection.weight": (0, "one slice of rows a layer"),
    "contact_head.regression.weight": (1, "one column for each head of each layer"),
}
"""Parameters outside the stack with room for every layer: end of the name -> (axis, layer by layer; reason)."""

GENERATION_PAIRS: Mapping[str, tuple[str, str]] = {
    "alignment_heads": ("decoder_layers", "[layer, head] pairs whose cross-attention gives Whisper's word timestamps"),
}
"""Fields of the generation config that hold [layer, ...] entries, as (name of the stack's count, reason)."""

REVIEWED_CODE: Mapping[str, Reviewed] = {
    "DebertaV2Encoder.forward: i == 0": Reviewed(
        "a convolution over the output of the first layer, where the config asks for one", "conv_kernel_size", 1
    ),
    "BridgeTowerModel.forward: len(self.text_model.encoder.layer) - self.config.num_hidden_layers + 1": Reviewed(
        "the last layers of both towers feed the layers that join them, one each", "", ALL
    ),
    "*.forward: layer_index == insert_layer_id": Reviewed("a tap, which follows"),
    "*.forward: len(past_buckets_states) > self.layer_idx": Reviewed(
        "whether the cache has an entry for the layer yet"
    ),
    **{
        f"ReformerAttention.forward: len(past_buckets_states.{cache}) <= self.layer_id": Reviewed(
            "whether the cache has an entry for the layer yet"
        )
        for cache in ("states_cache", "buckets_cache")
    },
    "SEWDTransformerEncoder.forward: i + 1": Reviewed("index into inputs given as a list, which no class does"),
    "SEWDTransformerEncoder.forward: i + 1 < len(self.layer)": Reviewed("guard of the index above"),
    "DebertaV2Encoder.forward: i + 1": Reviewed(
        "index into inputs given as a list, which no class of the family does"
    ),
    "DebertaV2Encoder.forward: i + 1 < len(self.layer)": Reviewed("guard of the index above"),
    "ImageGPTAttention._attn: attn_weights / float(self.layer_idx + 1)": Reviewed(
        "attention scores divided by the layer's number, where the config asks for it",
        "scale_attn_by_inverse_layer_idx",
        ALL,
    ),
    "ImageGPTAttention._upcast_and_reordered_attn: self.layer_idx + 1": Reviewed(
        "attention scores divided by the layer's number, where the config asks for it",
        "scale_attn_by_inverse_layer_idx",
        ALL,
    ),
    "RwkvModel.forward: (idx + 1) % self.config.rescale_every == 0": Reviewed(
        "hidden states halved every few layers, and weights with them, where the config asks for it",
        "rescale_every",
        ALL,
    ),
    **{
        f"{owner}.forward: i == self.first_kv_shared_layer_idx": Reviewed(
            "where the layers begin that reuse keys, which follows num_kv_shared_layers"
        )
        for owner in ("Gemma4TextModel", "Gemma4UnifiedTextModel")
    },
    "Granite4VisionTextModel.forward: layer_idx in deepstack_features": Reviewed(
        "features of the vision tower are added where deepstack_layer_map says, which follows"
    ),
    "*.forward: layer_idx < len(deepstack_visual_embeds)": Reviewed(
        "features of the vision tower are added after the first layers", "", "deepstack_visual_indexes"
    ),
    "*.forward: layer_idx in range(len(deepstack_visual_embeds))": Reviewed(
        "features of the vision tower are added after the first layers", "", "deepstack_visual_indexes"
    ),
}
"""Code that computes with a layer's number and was read by a person; `*` stands for any class."""
