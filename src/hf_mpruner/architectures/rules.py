"""What is known about names, as data: each entry carries its reason. No code here decides what is right.

The proof in `proof.py` decides. These tables say which differences a renumbering explains (`POSITION_ATTRIBUTES`),
which config lists are cut together with the blocks (`PER_LAYER_LISTS`), which are not (`UNRELATED_LISTS`), and where
the proof cannot look, because a value is read while the model runs, so that a cut is refused (`INDEX_LISTS`, `TAPS`).
"""

from __future__ import annotations

from collections.abc import Mapping

POSITION_ATTRIBUTES: Mapping[str, str] = {
    "layer_idx": "address of the layer in the key-value cache and in config.layer_types",
    "layer_id": "address of the layer in the key-value cache",
    "layer_number": "address of the layer in the key-value cache",
    "layer_index": "address of the layer in the key-value cache",
    "block_idx": "number of the block, used for naming",
}
"""Attributes that hold where a module is: renumbered after a cut, never a reason to refuse it."""

PER_LAYER_LISTS: Mapping[str, str] = {
    "layer_types": "kind of attention or mixer of each layer; its length is validated against the count",
    "mlp_layer_types": "dense or sparse feed-forward of each layer; its length is validated against the count",
    "layers_block_type": "kind of mixer of each layer",
    "indexer_types": "kind of sparse-attention indexer of each layer",
    "layer_rope_theta": "rotary base of each layer",
    "no_rope_layers": "0 or 1 a layer: rotary embedding off or on",
    "rope_scaling_layers": "rotary scaling of each layer",
    "attention_window": "local attention window of each layer (longformer, led)",
    "activation_sparsity_pattern": "activation sparsity of each layer",
    "num_attention_heads_per_layer": "attention heads of each layer",
    "num_key_value_heads_per_layer": "key-value heads of each layer",
    "attn_layers": "kind of attention of each layer (reformer)",
}
"""Config lists with one entry a layer, in the config node that holds the count: cut with the blocks."""

UNRELATED_LISTS: Mapping[str, str] = {
    "architectures": "class names",
    "depths": "one entry a stage",
    "num_block_repeats": "one entry a stage",
    "hidden_sizes": "one entry a stage",
    "embed_dims": "one entry a stage",
    "stage_names": "names of what a backbone can put out",
    "image_size": "height and width",
    "patch_size": "height and width",
    "suppress_tokens": "token ids",
    "begin_suppress_tokens": "token ids",
    "eos_token_id": "token ids",
    "embedding_size": "widths of a stem",
    "task_specific_params": "settings of tasks",
}
"""Config lists whose length has nothing to do with the number of blocks, even where the two are equal."""

INDEX_LISTS: Mapping[str, str] = {
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
    "kv_source_layers": "layer indices whose keys later layers reuse",
    "deepstack_visual_indexes": "layer indices whose output is tapped",
    "backbone_out_indices": "layer indices whose output is tapped",
    "intermediate_hidden_state_indices": "layer indices whose output is tapped",
    "intermediate_layers_indices": "layer indices whose output is tapped",
    "extract_layers": "layer indices whose output is tapped",
    "_out_indices": "layer indices whose output a backbone puts out",
    "out_indices": "layer indices whose output a backbone puts out",
    "_out_features": "layers, by name, whose output a backbone puts out",
    "out_features": "layers, by name, whose output a backbone puts out",
}
"""Config values that name layers by number. Not empty in the count's node: the stack is refused by name.

Where the count is one entry of a list (`depths[2]`) these number stages, not blocks, and a cut leaves them alone.
"""

TAPS: Mapping[str, tuple[str, str]] = {
    "vision_feature_layer": ("vision", "the hidden state of the vision tower that the projector reads"),
    "vision_feature_select_layer": ("vision", "the hidden state of the vision tower that the projector reads"),
    "vision_aspect_layer": ("vision", "the hidden state of the vision tower that the projector reads"),
    "audio_feature_layer": ("audio", "the hidden state of the audio tower that the projector reads"),
}
"""Values of an enclosing config that point into a tower, as (part of the tower's node path, reason)."""

GENERATION_PAIRS: Mapping[str, tuple[str, str]] = {
    "alignment_heads": ("decoder_layers", "[layer, head] pairs whose cross-attention gives Whisper's word timestamps"),
}
"""Fields of the generation config that hold [layer, ...] entries, as (name of the stack's count, reason)."""

REVIEWED_CODE: Mapping[str, tuple[str, str]] = {
    "DebertaV2Encoder.forward: i == 0": (
        "conv_kernel_size",
        "a convolution over the output of the first layer, whichever it is, where the config asks for one",
    ),
    "DebertaV2Encoder.forward: i + 1": ("", "index into inputs given as a list, which no class of the family does"),
    "DebertaV2Encoder.forward: i + 1 < len(self.layer)": ("", "guard of the index above"),
    "ImageGPTAttention._attn: attn_weights / float(self.layer_idx + 1)": (
        "scale_attn_by_inverse_layer_idx",
        "attention scores divided by the layer's number, where the config asks for it",
    ),
    "ImageGPTAttention._upcast_and_reordered_attn: self.layer_idx + 1": (
        "scale_attn_by_inverse_layer_idx",
        "attention scores divided by the layer's number, where the config asks for it",
    ),
    "RwkvBlock.forward: self.layer_id == 0": ("", "the first block has a norm of its own, and is pinned by it"),
    "RwkvModel.forward: (idx + 1) % self.config.rescale_every == 0": (
        "rescale_every",
        "hidden states halved every few layers, and weights with them, where the config asks for it",
    ),
}
"""Code that computes with a layer's number and was read: (config switch that makes it matter, "" for none; reason)."""
