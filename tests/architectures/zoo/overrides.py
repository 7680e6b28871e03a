"""What the general rules of `sizes` and `inputs` cannot guess, one entry per model type."""

from __future__ import annotations

from typing import Any

AXES = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
"""Rotary sections of the tiny heads: what the models assume where none are given fits heads of 128."""

EFFICIENT = {
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
    "in_channels": [32, 16, 16, 24, 24, 32, 32],
    "out_channels": [16, 16, 24, 24, 32, 32, 40],
    "num_block_repeats": [1, 2, 2, 2, 2, 4, 1],
    "expand_ratios": [1, 2, 2, 2, 2, 2, 2],
}
"""The first width is fixed in the code, each output is the next input."""

CODEBOOKS = {"num_codebooks": 4}
SERIES = {"prediction_length": 4, "context_length": 10, "lags_sequence": [1, 2, 3]}
MIXED_6 = ["linear_attention", "full_attention"]

CONFIGS: dict[str, dict[str, Any]] = {
    **{
        name: {"rope_parameters": AXES}
        for name in (
            "glm4v_text",
            "glm_image_text",
            "glm_ocr_text",
            "paddleocr_vl_text",
            "qwen2_5_omni_talker",
            "qwen2_5_omni_text",
            "qwen2_5_vl_text",
            "qwen2_vl_text",
            "hunyuan_vl_text",
        )
    },
    "glm4v_moe_text": {"rope_parameters": AXES, "head_dim": 16},
    "align_vision_model": EFFICIENT,
    "efficientnet": EFFICIENT,
    "bit": {"embedding_size": 32, "hidden_sizes": [32, 32, 64, 64], "num_groups": 4},
    "bridgetower_vision_model": {"hidden_size": 64},
    "bridgetower": {"vision_config": {"hidden_size": 64}},
    "bros": {"dim_bbox": 8, "hidden_size": 32},
    "clap_audio_model": {"spec_size": 32, "num_mel_bins": 16, "patch_embeds_hidden_size": 32, "hidden_size": 256},
    "audio-spectrogram-transformer": {"max_length": 40, "num_mel_bins": 24},
    "clvp_encoder": {"hidden_size": 32},
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "cohere_compass_text": {"num_hidden_layers": 6},
    "deepseek_ocr2_text": {
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "mlp_layer_types": ["dense", *["sparse"] * 4],
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "emu3_vqgan": {"base_channels": 32, "channel_multiplier": [1, 1], "embed_dim": 4, "hidden_size": 32},
    "janus_vqgan": {"base_channels": 32, "channel_multiplier": [1, 1], "latent_channels": 32, "num_patches": 4},
    "ernie4_5_vl_moe_text": {"moe_intermediate_size": [16, 16]},
    "esm": {"vocab_size": 33, "mask_token_id": 32, "pad_token_id": 1},
    "hgnet_v2": {
        "stem_channels": [3, 8, 8],
        "stage_in_channels": [8, 16, 16, 32],
        "stage_mid_channels": [8, 8, 8, 8],
        "stage_out_channels": [16, 16, 32, 32],
        "stage_num_blocks": [1, 1, 4, 1],
        "stage_numb_of_layers": [2, 2, 2, 2],
        "hidden_sizes": [16, 16, 32, 32],
        "depths": [1, 1, 4, 1],
        "embedding_size": 8,
    },
    "mobilevitv2": {
        "image_size": 64,
        "base_attn_unit_dims": [16, 16, 16],
        "n_attn_blocks": [2, 4, 3],
        "output_stride": 16,
    },
    "mobilevit": {"hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 8, 16, 16, 32], "image_size": 64},
    "levit": {"hidden_sizes": [16, 32, 48], "num_attention_heads": [2, 4, 6], "key_dim": [8, 8, 8], "image_size": 64},
    "lilt": {"hidden_size": 48, "channel_shrink_ratio": 2, "num_attention_heads": 4},
    "llama4_vision_model": {
        "projector_input_dim": 32,
        "projector_output_dim": 32,
        "vision_output_dim": 32,
        "intermediate_size": 128,
    },
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 2},
    "pix2struct_text_model": {},
    "qwen4_exp_text": {},
    "reformer": {"axial_pos_shape": [4, 8], "axial_pos_embds_dim": [16, 16], "num_buckets": 2},
    "sam2_hiera_det_model": {
        "hidden_size": 16,
        "image_size": [64, 64],
        "embed_dim_per_stage": [16, 32, 64, 128],
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "blocks_per_stage": [1, 2, 4, 2],
        "window_size_per_stage": [4, 2, 4, 2],
        "window_positional_embedding_background_size": [4, 4],
        "global_attention_blocks": [5],
    },
    "textnet": {
        "stem_num_channels": 3,
        "stem_out_channels": 8,
        "hidden_sizes": [8, 8, 8, 16, 16],
        "image_size": [64, 64],
        "conv_layer_kernel_sizes": [[[3, 3]] * 2, [[3, 3]] * 4, [[3, 3]] * 2, [[3, 3]] * 2],
        "conv_layer_strides": [[1, 2], [2, 1, 1, 1], [2, 1], [2, 1]],
    },
    "xlstm": {"hidden_size": 32, "num_heads": 4, "chunk_size": 8, "qk_dim_factor": 0.5, "v_dim_factor": 1.0},
    "zamba": {},
    "vipllava": {"vision_feature_layer": [-2, -3, 1]},
    "aria": {"projector_patch_to_query_dict": {"16": 4}},
    "granite_speech5_encoder": {"num_mel_bins": 16},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2, "state_size": 8, "hidden_size": 32},
    "gpt_neo": {"attention_types": [[["global", "local"], 3]], "num_layers": 6, "window_size": 4},
    "lw_detr_vit": {"num_windows": 4, "image_size": 32, "pretrain_image_size": 32},
    "seggpt": {"image_size": [64, 32], "merge_index": 1, "intermediate_hidden_state_indices": [2, 3, 4, 5]},
    "autoformer": {**SERIES, "label_length": 4, "moving_average": 3},
    "informer": SERIES,
    "time_series_transformer": SERIES,
    "glm5_next_text": {"index_kpool": 2},
    "molmo2_vision": {"image_size": [32, 32], "num_position_embeddings": 16},
    "molmo2": {"adapter_config": {"vision_feature_layer": [-1, -3]}},
    "molmo2_adapter": {"vision_feature_layer": [-1, -3]},
    "dots3_note_audio_encoder": {"adapter_input_size": 32, "adapter_out_dim": 32, "downsample_hidden_size": 16},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 8}},
    "gradium_phonon_tts": {"flow_head_config": {"condition_dim": 32}},
    "pocket_tts": {"flow_head_config": {"condition_dim": 32}},
    "sapiens2": {
        "num_key_value_attention_heads": 2,
        "num_first_full_attention_layers": 2,
        "num_last_full_attention_layers": 2,
    },
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8, "input_size": 32},
    "moshi_depth": {"num_codebooks": 10, "max_position_embeddings": 10},
    "bamba": {"attn_layer_indices": [2]},
    "granitemoehybrid": {"layer_types": ["mamba", "mamba", "attention", "mamba", "attention"]},
    "musicgen_decoder": CODEBOOKS,
    "kosmos-2": {"latent_query_num": 4},
    "inkling2_vision": {"patch_size": 8},
}
"""Model type -> config values that replace the ones guessed, wherever a config of that type occurs, nested as it is.
`_base` holds what the class must be given before its usual sizes can be read."""

CLASSES: dict[str, str] = {}
"""Model type -> class, where not the first of the Auto classes."""

PAIR = {"pixel_values": (1, 2, 3, 32, 32)}
VIDEO = {"pixel_values": (2, 4, 3, 32, 32)}
CODED = {"latents": (2, 32, 9)}
BANDS = {"input_features": (2, 64, 16)}
SPEECH = {"input_values": (2, 1, 960)}
SERIES_INPUT = {
    "past_values": (2, 13),
    "past_time_features": (2, 13, 1),
    "past_observed_mask": lambda maker: (maker.noise(2, 13) > -9).float(),
    "future_values": (2, 4),
    "future_time_features": (2, 4, 1),
}

INPUTS: dict[str, Any] = {
    "lightglue": PAIR,
    "superglue": PAIR,
    "audio-spectrogram-transformer": {"input_values": (2, 40, 24)},
    "clap_audio_model": {"input_features": (2, 1, 33, 16), "is_longer": None},
    "clap": {"input_features": (2, 1, 33, 16), "is_longer": None},
    "patchtst": {"only": True, "past_values": (2, 16, 2)},
    "patchtsmixer": {"only": True, "past_values": (2, 16, 2)},
    "mimi_decoder": CODED,
    "timesfm": {"only": True},
    "decision_transformer": {
        "states": (2, 5, 17),
        "actions": (2, 5, 4),
        "rewards": (2, 5, 1),
        "returns_to_go": (2, 5, 1),
        "timesteps": lambda maker: maker.numbers(0, 9, 2, 5),
    },
    "speecht5_hifigan": {"spectrogram": (2, 12, 80)},
    "fastspeech2_conformer_hifigan": {"spectrogram": (2, 12, 80)},
    "lxmert": {"visual_feats": (2, 5, 32), "visual_pos": (2, 5, 4)},
}
"""Model type -> inputs that replace the ones guessed: a list is a tensor's value, a tuple its shape, None leaves out."""

TIMM = "needs package timm"
NOT_BUILDABLE: dict[str, str] = {
    "timm_backbone": TIMM,
    "timm_wrapper": TIMM,
    "gemma3n_vision": TIMM,
    "layoutlmv2": "needs package detectron2",
    "dinat": "needs package natten",
    "bark": "no plain forward",
    "qwen2_5_omni": "no plain forward",
    "qwen3_omni_moe": "no plain forward",
    "voxtral_realtime_text": "no model class of its own",
}
"""Model type -> why no specimen can be built."""
