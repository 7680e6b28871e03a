"""What the general rules of `sizes` and `inputs` cannot guess, one entry per model type."""

from __future__ import annotations

from typing import Any

AXES = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
"""Rotary sections of the tiny heads: what the models assume where none are given fits heads of 128."""

EFFICIENT = {
    "hidden_dim": 1280,
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
    "in_channels": [32, 16, 16, 24, 24, 32, 32],
    "out_channels": [16, 16, 24, 24, 32, 32, 32],
    "num_block_repeats": [1, 2, 2, 2, 2, 4, 1],
    "expand_ratios": [1, 2, 2, 2, 2, 2, 2],
}
"""The first width is fixed in the code, each output is the next input."""

CODEBOOKS = {"num_codebooks": 4}
SERIES = {"num_time_features": 1, "prediction_length": 4, "context_length": 10, "lags_sequence": [1, 2, 3]}
SHARING = {
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "num_kv_shared_layers": 2,
}
"""The last two layers take keys and values from the two before them."""

UNWARP = {
    "resnet_head": [[3, 8], [8, 8]],
    "resnet_configs": [
        [[8, 8, 1, False], [8, 8, 3, False]],
        [[8, 16, 1, True], [16, 16, 3, False]],
        [[16, 32, 1, True], [32, 32, 3, False]],
    ],
    "stage_configs": [
        [[32, 1]],
        [[32, 2]],
        [[32, 5]],
        [[32, 8], [32, 3], [32, 2]],
        [[32, 12], [32, 7]],
        [[32, 18], [32, 6]],
    ],
}


INTRACLASS = {
    "reduce_channel": [1, 1, 0],
    "return_channel": [1, 1, 0],
    **{
        f"{kind}_{size}ratio": [
            [high if tall else 1, high if wide else 1],
            [1, 1],
            [high // 2 * tall, high // 2 * wide],
        ]
        for kind, tall, wide in (
            ("vertical_long_to_small_conv", 1, 0),
            ("horizontal_small_to_long_conv", 0, 1),
            ("symmetric_conv_long", 1, 1),
        )
        for size, high in (("long", 7), ("mid", 5), ("short", 3))
    },
}

HALVING = {
    "out_indices": [1, 2, 3, 4],
    "stem_channels": [3, 8, 16],
    "block_configs": [
        [[3, 16, 16, 1, True]],
        [[3, 16, 16, 2, False], [3, 16, 16, 1, False]],
        [[3, 16, 24, 2, False], *[[3, 24, 24, 1, True]] * 3],
        [[3, 24, 32, 2, False], [3, 32, 32, 1, True]],
    ],
}
SEGMENTS = {"intraclass_block_config": INTRACLASS, "kernel_list": [3, 2, 2], "scale_factor_list": [1, 2, 4, 8]}
DETECTOR = {"encoder_layers": 5, "encoder_in_channels": [16, 32, 32], "decoder_in_channels": [32, 32, 32]}
PIN_POINTS = {"image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]]}


def letters(number: int) -> str:
    """The number in the letters that stand for digits in names of image tokens."""
    return "".join(chr(ord("A") + int(digit)) for digit in str(number))


CONFIGS: dict[str, dict[str, Any]] = {
    "nemotron_h_omni": {
        "_base": {"audio_config": {}},
        "audio_config": {"projection_hidden_size": 32, "projection_bias": False},
        "image_token_id": 20,
        "video_token_id": 21,
        "audio_token_id": 22,
    },
    "pp_ocrv6_medium_det": {**SEGMENTS, "backbone_config": HALVING},
    "pp_ocrv6_small_det": {"backbone_config": HALVING, "layer_list_out_channels": [16, 16, 24, 32]},
    "xcodec2": {"quantization_dim": 64, "num_key_value_heads": 4},
    "neucodec": {"quantization_dim": 64, "num_key_value_heads": 4},
    "pi0": {"chunk_size": 4},
    "pp_doclayout_v4": DETECTOR,
    "deimv2": DETECTOR,
    "d_fine": DETECTOR,
    "rt_detr_v2": {**DETECTOR, "encoder_in_channels": [16, 32, 64]},
    "rt_detr": {**DETECTOR, "encoder_in_channels": [16, 32, 64]},
    "pp_ocrv5_server_det": SEGMENTS,
    "vibevoice_acoustic_tokenizer_encoder": {"num_filters": 2, "vae_std": 0.0},
    "dots3_note_text": {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 8,
        "swa_kv_lora_rank": 8,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 8,
    },
    "sapiens2": {
        "num_key_value_attention_heads": 2,
        "num_first_full_attention_layers": 1,
        "num_last_full_attention_layers": 2,
        "num_key_value_heads_per_layer": [4] * 5,
    },
    "pp_doclayout_v2": {
        **DETECTOR,
        "class_thresholds": [0.5] * 3,
        "class_order": [0, 1, 2],
        "reading_order_config": {"start_token_id": 0, "pad_token_id": 1, "end_token_id": 2, "pred_token_id": 3},
    },
    "phi4_multimodal_audio": {"ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32},
    "mllama_vision_model": {"vision_output_dim": 192},
    "glmasr_encoder": {"intermediate_size": 128},
    "granite4_vision": {
        **PIN_POINTS,
        "downsample_rate": "1/2",
        "deepstack_layer_map": [[-3, 1], [-1, 3]],
        "spatial_target_layers": [0, 1, 2, 4],
        "text_config": {"hidden_size": 64},
        "vision_config": {"hidden_size": 64},
    },
    "granite_speech_plus": {"window_size": 10},
    "granite_speech": {"window_size": 10},
    "gemma4_unified_audio": {"output_proj_dims": 32},
    "gemma4_unified_vision": {"output_proj_dims": 32},
    "efficientloftr": {
        "stage_num_blocks": [1, 2, 4, 2],
        "out_features": [16, 16, 16, 32],
        "num_attention_layers": 4,
        "num_attention_heads": 8,
    },
    "kosmos-2": {"latent_query_num": 4},
    "vibevoice_acoustic_tokenizer_decoder": {"num_filters": 2},
    "vibevoice_acoustic_tokenizer": {"num_filters": 2, "vae_std": 0.0},
    "nllb-moe": {"encoder_sparse_step": 2, "decoder_sparse_step": 2},
    "switch_transformers": {"num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2},
    "diffusion_gemma": {"canvas_length": 8},
    "swin2sr": {"image_size": 16, "depths": [4, 2, 2, 2], "num_heads": [6, 6, 6, 6]},
    "slanext": {"max_text_length": 5},
    "slanet": {"max_text_length": 5},
    "pegasus_x": {"block_size": 4, "num_global_tokens": 4},
    "mistral_large4_text": {"num_hidden_layers": 6, "kv_source_layers": [0, 1, 2, 3, 2, 3]},
    "mgp-str": {"num_bpe_labels": 40, "num_wordpiece_labels": 40},
    "dac": {"encoder_hidden_size": 8},
    "pe_audio_encoder": {"dac_config": {"downsampling_ratios": [2, 2, 4, 4], "encoder_hidden_size": 8}},
    "uvdoc": {
        "backbone_config": {"out_indices": [1, 2, 3, 4, 5, 6]},
        "bridge_connector": [32, 32],
        "out_point_positions2D": [[32, 8], [8, 2]],
    },
    "uvdoc_backbone": UNWARP,
    "inkling_vision": {"patch_size": 16},
    "tipsv2_dpt": {"neck_hidden_sizes": [8, 16, 32, 32]},
    "chmv2": {"post_process_channels": [8, 16, 32, 32]},
    "dinov3_convnext": {"hidden_sizes": [8, 16, 32, 32], "depths": [2, 2, 4, 2]},
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
    **{
        name: {"mlp_only_layers": [1]}
        for name in (
            "qwen2_moe",
            "qwen3_moe",
            "qwen3_next",
            "qwen3_omni_moe_text",
            "qwen3_vl_moe_text",
        )
    },
    "glm4v_moe_text": {"rope_parameters": AXES, "head_dim": 16},
    "align_vision_model": EFFICIENT,
    "efficientnet": EFFICIENT,
    "bit": {"embedding_size": 32, "hidden_sizes": [32, 32, 64, 64], "num_groups": 4},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
        "ple_layer_ids": [1],
        "eos_token_id": 2,
        "heads_per_ngram": 2,
        "ngram_vocab_size_base": 50,
        "make_ngram_vocab_size_divisible_by": 8,
        "split_ngram_parts": 1,
    },
    "muse_glimmer": {"out_hidden_size": 128},
    "muse_spark": {"out_hidden_size": 128},
    "pp_doclayout_v3": {**DETECTOR, "x4_feat_dim": 16},
    "qwen2_5_omni_bigvgan": {"upsample_initial_channel": 128},
    "zoedepth": {"bottleneck_features": 32},
    "sapiens2_head": {
        "upsample_out_channels": [16],
        "upsample_kernel_sizes": [4],
        "conv_out_channels": [16],
        "conv_kernel_sizes": [1],
        "use_pixel_shuffle": False,
    },
    "vits": {"noise_scale": 0.0, "noise_scale_duration": 0.0},
    "gemma3n_text": SHARING,
    "gemma4_text": {**SHARING, "hidden_size_per_layer_input": 8},
    "gemma4_unified_text": SHARING,
    "gemma4": {"_base": {"vision_config": {}, "audio_config": {}}},
    "gemma4_unified": {"_base": {"vision_config": {}, "audio_config": {}}},
    "embedding_gemma2": {"_base": {"vision_config": {}, "audio_config": {}}},
    "blip-2": {"image_token_index": 10},
    "instructblip": {"image_token_index": 10},
    "instructblipvideo": {"video_token_index": 10},
    "deepseek_ocr2_sam_vision_model": {"downsample_channels": [16, 32]},
    "unlimited_ocr_sam_vision_model": {"downsample_channels": [16, 32]},
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 32},
    },
    "depth_pro": {
        "intermediate_hook_ids": [4, 2],
        "patch_size": 16,
        "scaled_images_ratios": [0.5, 1.0],
        "scaled_images_overlap_ratios": [0.0, 0.2],
        "scaled_images_feature_dims": [12, 12],
        "intermediate_feature_dims": [12, 12],
        "fusion_hidden_size": 16,
        "image_model_config": {"image_size": 16, "patch_size": 4},
        "patch_model_config": {"image_size": 16, "patch_size": 4},
        "fov_model_config": {"image_size": 16, "patch_size": 4},
    },
    "chameleon": {
        "vocabulary_map": {"<image>": 10, **{f"IMGIMG{letters(code)}Z": 64 + code for code in range(64)}},
        "vq_config": {"num_embeddings": 64},
    },
    "chameleon_vqgan": {"base_channels": 32, "channel_multiplier": [1, 1], "resolution": 32},
    "emu3": {
        "vocabulary_map": {
            "<image>": 10,
            "<|extra_200|>": 11,
            **{f"<|visual token {code:06}|>": 64 + code for code in range(64)},
        },
        "vq_config": {"codebook_size": 64},
    },
    "fastspeech2_conformer_with_hifigan": {"vocoder_config": {"model_in_dim": 16}},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv", "full_attention"]},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "t5gemma2_text": {"dropout_rate": 0.0},
    "t5gemma2_decoder": {"dropout_rate": 0.0},
    "pix2struct_text_model": {"initializer_range": 0.02},
    "qwen3_omni_moe_talker_text": {"mlp_only_layers": [1], "shared_expert_intermediate_size": 16},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 20},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 20},
    "step3p5": {"sliding_window": 8},
    "neomme": {"head_dim": 16},
    "cohere_compass_text": {"rope_parameters": {"sliding_attention": AXES, "full_attention": None}},
    "ernie4_5_vl_moe_text": {
        "rope_parameters": {**AXES, "mrope_section": [1, 1, 2]},
        "moe_intermediate_size": [16, 16],
    },
    "llava_next": PIN_POINTS,
    "llava_next_video": PIN_POINTS,
    "llava_onevision": PIN_POINTS,
    "lw_detr": {"projector_scale_factors": [1.0]},
    "videoprism_vision_model": {"image_size": 36, "num_frames": 4},
    "vitmatte": {"backbone_config": {"patch_size": 16, "image_size": 64, "pretrain_image_size": 64}},
    "sam2_vision_model": {
        "backbone_channel_list": [128, 64, 32, 16],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    },
    **{
        name: {"prompt_encoder_config": {"image_size": 64, "patch_size": 16}}
        for name in ("sam2", "sam2_video", "edgetam_video")
    },
    "sam3_vision_model": {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]},
    "sam3_tracker": {
        "vision_config": {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]},
        "prompt_encoder_config": {"image_size": 32, "patch_size": 8},
    },
    "superglue": {"keypoint_encoder_sizes": [32, 32], "gnn_layers_types": ["self", "cross"] * 3},
    "superpoint": {"descriptor_decoder_dim": 32, "encoder_hidden_sizes": [8, 8, 16, 16], "max_keypoints": 12},
    "oneformer": {"task_seq_len": 8, "conv_dim": 32, "mask_dim": 32},
    "qwen2_5_omni_audio_encoder": {"n_window": 4},
    "rag": {
        "_base": {"question_encoder": {"model_type": "dpr"}, "generator": {"model_type": "bart"}},
        "n_docs": 2,
        "retrieval_vector_size": 32,
    },
    "tvp": {"max_img_size": 64, "visual_prompt_size": 8},
    "xmod": {"default_language": "en_XX"},
    "timesfm": {"context_length": 64, "patch_length": 8, "horizon_length": 8},
    "timesfm2_5": {"context_length": 64, "patch_length": 8, "horizon_length": 8, "output_quantile_len": 16},
    "kyutai_speech_to_text": {"num_codebooks": 4},
    "bridgetower_vision_model": {"hidden_size": 64},
    "bridgetower": {"vision_config": {"hidden_size": 64}},
    "bros": {"hidden_size": 64},
    "clap_audio_model": {"spec_size": 64, "num_mel_bins": 32, "patch_embeds_hidden_size": 32, "hidden_size": 256},
    "audio-spectrogram-transformer": {"max_length": 40, "num_mel_bins": 24},
    "clvp_encoder": {"hidden_size": 64, "num_attention_heads": 2, "projection_dim": 32},
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
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
    "janus_vqgan": {"base_channels": 32, "channel_multiplier": [1, 1], "latent_channels": 32, "num_patches": 16},
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
    "levit": {
        "hidden_sizes": [16, 32, 48],
        "num_attention_heads": [2, 4, 6],
        "key_dim": [8, 8, 8],
        "image_size": 64,
        "patch_size": 16,
    },
    "lilt": {"hidden_size": 48, "channel_shrink_ratio": 2, "num_attention_heads": 4},
    "llama4_vision_model": {
        "projector_input_dim": 32,
        "projector_output_dim": 32,
        "vision_output_dim": 32,
        "intermediate_size": 128,
    },
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 2},
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
    "xlstm": {"hidden_size": 128, "num_heads": 4, "chunk_size": 8, "qk_dim_factor": 0.5, "v_dim_factor": 1.0},
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
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8, "input_size": 32},
    "zamba": {
        "num_hidden_layers": 6,
        "layers_block_type": [
            "linear_attention",
            "linear_attention",
            "hybrid",
            "linear_attention",
            "linear_attention",
            "hybrid",
        ],
    },
    "moshi_depth": {"num_codebooks": 10, "max_position_embeddings": 10},
    "bamba": {"attn_layer_indices": [2]},
    "granitemoehybrid": {"layer_types": ["mamba", "mamba", "attention", "mamba", "attention"]},
    "musicgen_decoder": CODEBOOKS,
    "inkling2_vision": {"patch_size": 8},
}
"""Model type -> config values that replace the ones guessed, wherever a config of that type occurs, nested as it is.
`_base` holds what the class must be given before its usual sizes can be read."""

CLASSES: dict[str, str] = {
    "csm_depth_decoder_model": "CsmDepthDecoderModel",
    "musicgen": "MusicgenForConditionalGeneration",
    "musicgen_melody": "MusicgenMelodyForConditionalGeneration",
}
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

TILES = {"image": {"pixel_values": (2, 3, 3, 32, 32), "image_sizes": [[32, 32]] * 2}}
PATCHES = {"pixel_values": (32, 3, 8, 8), "image_grid_thw": [[1, 4, 4]] * 2}
GRIDS = {"pixel_values": (1, 3, 8, 256), "target_sizes": [[4, 4]] * 2}
FOLDED = {"pixel_values": (8, 16, 16, 3), "image_grid_thw": [[1, 4, 4]] * 2}


def ones(*shape: int) -> Any:
    return lambda maker: maker.numbers(1, 2, *shape)


def true(*shape: int) -> Any:
    return lambda maker: maker.numbers(1, 2, *shape).bool()


def whole(high: int, *shape: int) -> Any:
    return lambda maker: maker.numbers(0, high, *shape)


def maps(*shapes: tuple[int, ...]) -> Any:
    return lambda maker: [maker.noise(*shape) for shape in shapes]


def flat_patches(maker: Any) -> Any:
    """Row and column before the pixels of each patch."""
    patches = maker.noise(2, 16, 34)
    patches[..., :2] = maker.numbers(1, 5, 2, 16, 2)
    return patches


LENGTHS = {"input_features": (16, 32), "feature_lens": [16, 16]}
DETECTED = {
    "vision_features": maps((2, 32, 4, 4)),
    "text_features": (2, 5, 32),
    "vision_pos_embeds": maps((2, 32, 4, 4)),
}
DECODED = {
    "vision_features": (2, 16, 32),
    "text_features": (2, 5, 32),
    "vision_pos_encoding": (2, 16, 32),
    "spatial_shapes": [[4, 4]],
}
MASKED = {
    "decoder_queries": (2, 6, 32),
    "backbone_features": maps((2, 32, 16, 16), (2, 32, 8, 8), (2, 32, 4, 4)),
    "encoder_hidden_states": (2, 16, 32),
}
TWO_FORMS = {"input_values": (2, 1, 1280), "input_features": (2, 4, 160), "input_features_mask": ones(2, 4)}

INPUTS: dict[str, Any] = {
    "dots3_note": {"audio": {"input_features": (2, 32, 32), "chunk_sample_lengths": [5120, 5120]}},
    "dots3_note_audio_encoder": {"input_features": (2, 32, 32), "chunk_sample_lengths": [5120, 5120]},
    "efficientloftr": {"pixel_values": (1, 2, 3, 64, 64)},
    "gemma4_unified": {
        "image": {"pixel_values": (2, 4, 1728), "image_position_ids": lambda maker: maker.places(2)},
        "audio": {"input_features": (2, 4, 32), "input_features_mask": true(2, 4)},
    },
    "pi0": {
        "state": (2, 32),
        "noise": (2, 4, 32),
        "timestep": lambda maker: maker.noise(2).sigmoid(),
        "pixel_values": (2, 1, 3, 32, 32),
        "pixel_attention_mask": true(2, 1),
        "tokens": {"image": 16},
    },
    "molmo2": {
        "image": {
            "pixel_values": (2, 16, 192),
            "image_token_pooling": whole(16, 8, 4),
            "image_grids": [[1, 2, 1, 2]] * 2,
            "image_num_crops": [1, 1],
        }
    },
    "qwen3_omni_moe_talker_text": {"input_ids": None, "inputs_embeds": (2, 9, 32)},
    "inkling_audio": {"audio_input_ids": whole(16, 2, 5, 80)},
    "instructblipvideo": {"pixel_values": (2, 4, 3, 32, 32), "qformer_input_ids": lambda maker: maker.ids()},
    "muse_spark": {"audio": {"input_values": (2, 3840)}},
    "blt": {"use_cache": lambda maker: False},
    "univnet": {"input_features": (2, 6, 16), "noise_sequence": (2, 6, 32)},
    "vilt": {"pixel_values": (2, 3, 8, 8)},
    "mllama": {
        "image": {},
        "pixel_values": (2, 1, 4, 3, 32, 32),
        "aspect_ratio_ids": [[1], [1]],
        "aspect_ratio_mask": ones(2, 1, 4),
        "cross_attention_mask": ones(2, 9, 1, 4),
    },
    "perceiver": {"image": {"pixel_values": lambda maker: maker.image()}},
    "qwen2_audio": {"input_features": (2, 16, 32), "feature_attention_mask": ones(2, 32), "tokens": {"audio": 8}},
    "qwen3_asr": {"audio": {"input_features": (2, 16, 100), "input_features_mask": ones(2, 100)}},
    "vibevoice_asr": {"audio": {"input_values": (2, 1, 3200), "padding_mask": ones(2, 3200)}},
    "vibevoice": {"audio": {"input_values": (2, 1, 3200), "padding_mask": ones(2, 3200)}},
    "musicflamingo": {"audio": {}, "notes": "no sound"},
    "moss_transcribe_diarize": {"audio": {}, "notes": "no sound"},
    "granite_speech_plus": {"audio": {"input_features": (2, 20, 160)}, "input_features_mask": None},
    "granite_speech": {"audio": {"input_features": (2, 20, 160)}, "input_features_mask": None},
    "glmasr": {"audio": {"input_features": (2, 16, 64), "input_features_mask": ones(2, 64)}},
    "fun_asr_nano": {"audio": {"input_features": (2, 30, 112), "input_features_mask": ones(2, 30)}},
    "diffusion_gemma": {"decoder_input_ids": whole(100, 2, 8)},
    "pe_audio_encoder": {"input_values": (2, 1, 640)},
    "pe_audio": {"input_values": (2, 1, 640)},
    "inkling_mm_model": {"image": {"pixel_values": (2, 2, 16, 16, 3)}},
    "inkling_vision": {"pixel_values": (2, 2, 16, 16, 3)},
    "kosmos_2_5_vision_model": {
        "flattened_patches": flat_patches,
        "hidden_states": None,
        "attention_mask": ones(2, 16),
    },
    "granite4_vision": TILES,
    "vit_mae": {"noise": (2, 16)},
    "molmo2_adapter": {"image_features": (2, 16, 64), "pooled_patches_idx": whole(16, 8, 4)},
    "moshi_depth": {"input_ids": whole(100, 2, 9), "attention_mask": None, "last_hidden_state": (2, 1, 32)},
    "voxtral_realtime": {"input_features": (2, 16, 72)},
    "qwen3_asr_encoder": {"input_features": (2, 16, 100), "input_features_mask": ones(2, 100)},
    "qwen3_omni_moe_thinker": {"audio": {"input_features": (2, 16, 100), "feature_attention_mask": ones(2, 100)}},
    "qwen3_omni_moe_audio_encoder": {"input_features": (16, 200), "feature_lens": [100, 100]},
    "xcodec2": TWO_FORMS,
    "neucodec": TWO_FORMS,
    "tvp": {"input_ids": whole(100, 1, 9), "attention_mask": ones(1, 9), "pixel_values": (1, 4, 3, 64, 64)},
    "kosmos-2": {"image_embeds_position_mask": [[False, True, True, True, True] + [False] * 4] * 2},
    "pp_ocrv5_server_rec": {"pixel_values": (2, 3, 96, 64)},
    "pp_ocrv5_mobile_rec": {"pixel_values": (2, 3, 96, 64)},
    "phi4_multimodal_audio": {"hidden_states": (2, 64, 32), "mask": true(2, 64)},
    "muse_glimmer_assistant": {"noise_embeds": (2, 4, 32), "context_hidden_states": (2, 9, 160)},
    "inkling2_vision": {**FOLDED, "image_grid_thw": [[1, 2, 2]] * 2},
    "inkling2": {"image": {**FOLDED, "image_grid_thw": [[1, 2, 2]] * 2}},
    "depth_pro": {"pixel_values": (2, 3, 32, 32)},
    "instructblip": {"image": {"pixel_values": (2, 3, 32, 32), "qformer_input_ids": lambda maker: maker.ids()}},
    "emu3": {"image": {"pixel_values": (2, 3, 32, 32), "image_sizes": [[32, 32]] * 2}},
    "neomme": {"image": {"pixel_values": (8, 192)}},
    "colmodernvbert": {"image": {"pixel_values": (2, 1, 3, 32, 32)}},
    "clvp": {"input_features": (2, 32, 32)},
    "t5gemma2_decoder": {"encoder_hidden_states": (2, 9, 32)},
    "dia_decoder": {"input_ids": whole(100, 2, 9, 9), "attention_mask": None, "encoder_hidden_states": (2, 9, 32)},
    "embedding_gemma2": {
        "image": {"pixel_values": (2, 36, 192), "image_position_ids": lambda maker: maker.places(6)},
        "audio": {"input_features": (2, 64, 32), "input_features_mask": true(2, 64)},
    },
    "llava_next": TILES,
    "llava_next_video": TILES,
    "llava_onevision": TILES,
    "paddleocr_vl": {"image": PATCHES},
    "paddleocr_vl_vision": {"pixel_values": (1, 32, 3, 8, 8), "grid_thw": [[1, 4, 4]] * 2},
    "kimi_k25": {"image": PATCHES},
    "kimi_k25_vision": {"pixel_values": (32, 3, 8, 8), "grid_thw": [[1, 4, 4]] * 2},
    "minicpm_ocr_vision": GRIDS,
    "minicpmv4_6_vision": GRIDS,
    "minicpmv4_7_vision": GRIDS,
    "video_llama_3": {"image": {**PATCHES, "pixel_values": (32, 192), "image_merge_sizes": [2, 2]}},
    "video_llama_3_vision": {"pixel_values": (32, 192), "grid_thw": [[1, 4, 4]] * 2, "merge_sizes": [2, 2]},
    "granite_docling": {"image": {"pixel_values": (2, 1, 3, 32, 32), "pixel_attention_mask": true(2, 1)}},
    "idefics": {"image": {"pixel_values": (2, 1, 3, 32, 32)}, "image_attention_mask": ones(2, 9, 1)},
    "idefics2_perceiver": {"context": (2, 16, 32), "attention_mask": ones(2, 16)},
    "fuyu": {"image": {"pixel_values": (2, 4, 192)}},
    "bros": {"bbox": (2, 9, 8)},
    "mllama_vision_model": {
        "pixel_values": (2, 1, 4, 3, 32, 32),
        "aspect_ratio_ids": [[1], [1]],
        "aspect_ratio_mask": ones(2, 1, 4),
    },
    "sam3_detr_encoder": DETECTED,
    "sam3_lite_text_detr_encoder": DETECTED,
    "sam3_detr_decoder": DECODED,
    "sam3_lite_text_detr_decoder": DECODED,
    "sam3_mask_decoder": MASKED,
    "sam3_lite_text_mask_decoder": MASKED,
    "muse_spark_audio": {"input_values": (2, 3840)},
    "xcodec": {"input_values": (2, 1, 1280)},
    "qwen2_5_omni_bigvgan": {"mel_spectrogram": (2, 80, 12)},
    "qwen2_5_omni_audio_encoder": LENGTHS,
    "gemma3n_audio": {"audio_mel": (2, 32, 128), "audio_mel_mask": lambda maker: ~maker.numbers(1, 2, 2, 32).bool()},
    "gemma4_audio": {"input_features": (2, 64, 32), "attention_mask": true(2, 64)},
    "granite_speech_encoder": {"hidden_states": (2, 20, 160)},
    "granite_speech_plus_encoder": {"hidden_states": (2, 20, 160)},
    "granite_speech5_encoder": {"input_features": (2, 32, 64)},
    "granite_speech5_ctc": {"input_features": (2, 32, 64)},
    "glmasr_encoder": {"input_features": (2, 16, 64)},
    "voxtral_realtime_encoder": {"input_features": (2, 16, 64)},
    "fun_asr_nano_encoder": {"input_features": (2, 30, 112), "input_features_mask": ones(2, 30)},
    "speech-encoder-decoder": {"input_values": (2, 1200)},
    "vibevoice_acoustic_tokenizer": {"input_values": (2, 1, 3200)},
    "vibevoice_acoustic_tokenizer_encoder": {"hidden_states": (2, 1, 3200)},
    "vibevoice_acoustic_tokenizer_decoder": {"hidden_states": (2, 32, 2)},
    "pocket_tts_audio_tokenizer_decoder": {"latents": (2, 32, 9)},
    "musicgen_decoder": {"input_ids": whole(100, 8, 9), "attention_mask": None},
    "musicgen_melody_decoder": {"input_ids": whole(100, 8, 9), "attention_mask": None},
    "musicgen": {"decoder_input_ids": whole(100, 8, 9)},
    "musicgen_melody": {"decoder_input_ids": whole(100, 8, 9)},
    "kyutai_speech_to_text": {"input_ids": whole(100, 2, 9, 5)},
    "qwen3_omni_moe_talker_code_predictor": {"input_ids": None, "attention_mask": None, "inputs_embeds": (2, 5, 32)},
    "rag": {
        "context_input_ids": lambda maker: maker.ids(batch=4),
        "context_attention_mask": ones(4, 9),
        "doc_scores": (2, 2),
    },
    "pix2struct_vision_model": {"flattened_patches": flat_patches, "attention_mask": ones(2, 16)},
    "pix2struct": {"flattened_patches": flat_patches, "attention_mask": ones(2, 16)},
    "florence_vision": {"hidden_states": (2, 3, 64, 64)},
    "xclip_vision_model": {"pixel_values": (8, 3, 32, 32)},
    "bridgetower_vision_model": {"image": (2, 3, 32, 32)},
    "unlimited_ocr_vision_encoder": {"patch_embeds": (2, 32, 4, 4)},
    "molmo2_vision": {"pixel_values": (2, 16, 192)},
    "deepseek_ocr2_encoder": {"inputs_embeds": (2, 8, 32), "num_patches": lambda maker: 4},
    "oneformer": {"task_inputs": whole(100, 2, 8)},
    "seggpt": {"pixel_values": (2, 3, 32, 32), "prompt_pixel_values": (2, 3, 32, 32), "prompt_masks": (2, 3, 32, 32)},
    "janus_vqgan": {"pixel_values": (2, 3, 32, 32)},
    "timesfm": {"past_values": (2, 64), "freq": [0, 1]},
    "timesfm2_5": {"past_values": (2, 64)},
    "colqwen2": {"pixel_values": (2, 16, 384), "image_grid_thw": [[1, 4, 4]] * 2},
    "deepseek_vl_hybrid": {"image": {"pixel_values": (2, 3, 32, 32), "high_res_pixel_values": (2, 3, 32, 32)}},
    "glm_image": {"image": {}, "notes": "no pixels"},
    "deepseek_ocr2": {"image": {"pixel_values": (2, 3, 32, 32)}},
    "gemma4_vision": {"pixel_values": (2, 36, 192), "pixel_position_ids": lambda maker: maker.places(6)},
    "gemma4": {
        "image": {"pixel_values": (2, 36, 192), "image_position_ids": lambda maker: maker.places(6)},
        "audio": {"input_features": (2, 64, 32), "input_features_mask": true(2, 64)},
    },
    **dict.fromkeys(("autoformer", "informer", "time_series_transformer"), SERIES_INPUT),
    "lightglue": PAIR,
    "superglue": PAIR,
    "audio-spectrogram-transformer": {"input_values": (2, 40, 24)},
    "clap_audio_model": {"input_features": (2, 1, 100, 32), "is_longer": None},
    "clap": {"input_features": (2, 1, 100, 32), "is_longer": None},
    "patchtst": {"only": True, "past_values": (2, 32, 1)},
    "patchtsmixer": {"only": True, "past_values": (2, 32, 1)},
    "mimi_decoder": CODED,
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
    **dict.fromkeys(
        (
            "edgetam",
            "edgetam_vision_model",
            "fast_vlm",
            "omdet-turbo",
            "gemma3n",
            "perception_lm",
            "pe_video",
            "pe_video_encoder",
            "pe_audio_video",
            "pe_audio_video_encoder",
        ),
        TIMM,
    ),
    **dict.fromkeys(
        ("sam3_tracker_video", "sam3_video", "sam2_video", "edgetam_video"), "special inputs: a video session"
    ),
    "esmfold2": "special inputs: a protein's atoms",
    "jev": "special inputs: marks of questions in the text",
    "qwen2_5_omni_dit": "special inputs: the states of three models",
    "gemma4_assistant": "its config validators contradict each other",
    "gemma4_unified_assistant": "its config validators contradict each other",
    "blt_local_encoder": "special inputs: bytes grouped by another model",
    "blt_local_decoder": "special inputs: bytes grouped by another model",
    "qwen2_5_omni_token2wav": "special inputs: the states of three models",
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
