"""Configs that the general rules of `sizes` cannot guess, one entry per model type."""

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
    **{
        name: {"prompt_encoder_config": {"image_size": 64, "patch_size": 16}}
        for name in ("sam2", "sam2_video", "edgetam_video")
    },
    "align_vision_model": EFFICIENT,
    "aria": {"projector_patch_to_query_dict": {"16": 4}},
    "audio-spectrogram-transformer": {"max_length": 40, "num_mel_bins": 24},
    "autoformer": {**SERIES, "label_length": 4, "moving_average": 3},
    "bamba": {"attn_layer_indices": [2]},
    "bit": {"embedding_size": 32, "hidden_sizes": [32, 32, 64, 64], "num_groups": 4},
    "blip-2": {"image_token_index": 10},
    "bridgetower": {"vision_config": {"hidden_size": 64}},
    "bridgetower_vision_model": {"hidden_size": 64},
    "bros": {"hidden_size": 64},
    "chameleon": {
        "vocabulary_map": {"<image>": 10, **{f"IMGIMG{letters(code)}Z": 64 + code for code in range(64)}},
        "vq_config": {"num_embeddings": 64},
    },
    "chameleon_vqgan": {"base_channels": 32, "channel_multiplier": [1, 1], "resolution": 32},
    "chmv2": {"post_process_channels": [8, 16, 32, 32]},
    "clap_audio_model": {"spec_size": 64, "num_mel_bins": 32, "patch_embeds_hidden_size": 32, "hidden_size": 256},
    "clvp_encoder": {"hidden_size": 64, "num_attention_heads": 2, "projection_dim": 32},
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {"rope_parameters": {"sliding_attention": AXES, "full_attention": None}},
    "d_fine": DETECTOR,
    "dac": {"encoder_hidden_size": 8},
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 32},
    },
    "deepseek_ocr2_sam_vision_model": {"downsample_channels": [16, 32]},
    "deepseek_ocr2_text": {
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "mlp_layer_types": ["dense", *["sparse"] * 4],
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    "deimv2": DETECTOR,
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
    "diffusion_gemma": {"canvas_length": 8},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
    "dinov3_convnext": {"hidden_sizes": [8, 16, 32, 32], "depths": [2, 2, 4, 2]},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "dots3_note_audio_encoder": {"adapter_input_size": 32, "adapter_out_dim": 32, "downsample_hidden_size": 16},
    "dots3_note_text": {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 8,
        "swa_kv_lora_rank": 8,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 8,
    },
    "efficientloftr": {
        "stage_num_blocks": [1, 2, 4, 2],
        "out_features": [16, 16, 16, 32],
        "num_attention_layers": 4,
        "num_attention_heads": 8,
    },
    "efficientnet": EFFICIENT,
    "embedding_gemma2": {"_base": {"vision_config": {}, "audio_config": {}}},
    "emu3": {
        "vocabulary_map": {
            "<image>": 10,
            "<|extra_200|>": 11,
            **{f"<|visual token {code:06}|>": 64 + code for code in range(64)},
        },
        "vq_config": {"codebook_size": 64},
    },
    "emu3_vqgan": {"base_channels": 32, "channel_multiplier": [1, 1], "embed_dim": 4, "hidden_size": 32},
    "eomt": {"num_blocks": 2},
    "eomt_dinov3": {"num_blocks": 2},
    "ernie4_5_vl_moe_text": {
        "rope_parameters": {**AXES, "mrope_section": [1, 1, 2]},
        "moe_intermediate_size": [16, 16],
    },
    "esm": {"vocab_size": 33, "mask_token_id": 32, "pad_token_id": 1},
    "fastspeech2_conformer_with_hifigan": {"vocoder_config": {"model_in_dim": 16}},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 8}},
    "gemma3n_text": SHARING,
    "gemma4": {"_base": {"vision_config": {}, "audio_config": {}}},
    "gemma4_text": {**SHARING, "hidden_size_per_layer_input": 8},
    "gemma4_unified": {"_base": {"vision_config": {}, "audio_config": {}}},
    "gemma4_unified_audio": {"output_proj_dims": 32},
    "gemma4_unified_text": SHARING,
    "gemma4_unified_vision": {"output_proj_dims": 32},
    "glm4v_moe_text": {"rope_parameters": AXES, "head_dim": 16},
    "glm5_next_text": {"index_kpool": 2},
    "glmasr_encoder": {"intermediate_size": 128},
    "gpt_neo": {"attention_types": [[["global", "local"], 3]], "num_layers": 6, "window_size": 4},
    "gptj": {"rotary_dim": 4},
    "gradium_phonon_tts": {"flow_head_config": {"condition_dim": 32}},
    "granite4_vision": {
        **PIN_POINTS,
        "downsample_rate": "1/2",
        "deepstack_layer_map": [[-3, 1], [-1, 3]],
        "spatial_target_layers": [0, 1, 2, 4],
        "text_config": {"hidden_size": 64},
        "vision_config": {"hidden_size": 64},
    },
    "granite_speech": {"window_size": 10},
    "granite_speech5_encoder": {"num_mel_bins": 16},
    "granite_speech_plus": {"window_size": 10},
    "granitemoehybrid": {"layer_types": ["mamba", "mamba", "attention", "mamba", "attention"]},
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
    "informer": SERIES,
    "inkling2_vision": {"patch_size": 8},
    "inkling_vision": {"patch_size": 16},
    "instructblip": {"image_token_index": 10},
    "instructblipvideo": {"video_token_index": 10},
    "janus_vqgan": {"base_channels": 32, "channel_multiplier": [1, 1], "latent_channels": 32, "num_patches": 16},
    "kosmos-2": {"latent_query_num": 4},
    "kosmos-2.5": {"latent_query_num": 4},
    "kyutai_speech_to_text": {"num_codebooks": 4},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8, "input_size": 32},
    "levit": {
        "hidden_sizes": [16, 32, 48],
        "num_attention_heads": [2, 4, 6],
        "key_dim": [8, 8, 8],
        "image_size": 64,
        "patch_size": 16,
    },
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv", "full_attention"]},
    "lilt": {"hidden_size": 48, "channel_shrink_ratio": 2, "num_attention_heads": 4},
    "llama4_vision_model": {
        "projector_input_dim": 32,
        "projector_output_dim": 32,
        "vision_output_dim": 32,
        "intermediate_size": 128,
    },
    "llava_next": PIN_POINTS,
    "llava_next_video": PIN_POINTS,
    "llava_onevision": PIN_POINTS,
    "lw_detr": {"projector_scale_factors": [1.0]},
    "lw_detr_vit": {"num_windows": 4, "image_size": 32, "pretrain_image_size": 32},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2, "state_size": 8, "hidden_size": 32},
    "mgp-str": {"num_bpe_labels": 40, "num_wordpiece_labels": 40},
    "minicpm_ocr": {"insert_layer_id": 2, "image_token_id": 20},
    "minicpm_ocr_vision": {"insert_layer_id": 2},
    "minicpmv4_6": {"insert_layer_id": 2, "image_token_id": 20},
    "minicpmv4_6_vision": {"insert_layer_id": 2},
    "minicpmv4_7": {"insert_layer_id": 2, "image_token_id": 20},
    "minicpmv4_7_vision": {"insert_layer_id": 2},
    "mistral_large4_text": {"num_hidden_layers": 6, "kv_source_layers": [0, 1, 2, 3, 2, 3]},
    "mllama_vision_model": {"vision_output_dim": 192},
    "mobilevit": {"hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 8, 16, 16, 32], "image_size": 64},
    "mobilevitv2": {
        "image_size": 64,
        "base_attn_unit_dims": [16, 16, 16],
        "n_attn_blocks": [2, 4, 3],
        "output_stride": 16,
    },
    "molmo2": {"adapter_config": {"vision_feature_layer": [-1, -3]}},
    "molmo2_adapter": {"vision_feature_layer": [-1, -3]},
    "molmo2_vision": {"image_size": [32, 32], "num_position_embeddings": 16},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "moshi_depth": {"num_codebooks": 10, "max_position_embeddings": 10},
    "muse_glimmer": {"out_hidden_size": 128},
    "muse_spark": {"out_hidden_size": 128},
    "musicgen_decoder": {"num_codebooks": 4},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 2},
    "nemotron_h_omni": {
        "_base": {"audio_config": {}},
        "audio_config": {"projection_hidden_size": 32, "projection_bias": False},
        "image_token_id": 20,
        "video_token_id": 21,
        "audio_token_id": 22,
    },
    "neomme": {"head_dim": 16},
    "neucodec": {"quantization_dim": 64, "num_key_value_heads": 4},
    "nllb-moe": {"encoder_sparse_step": 2, "decoder_sparse_step": 2},
    "oneformer": {"task_seq_len": 8, "conv_dim": 32, "mask_dim": 32},
    "pe_audio_encoder": {"dac_config": {"downsampling_ratios": [2, 2, 4, 4], "encoder_hidden_size": 8}},
    "pegasus_x": {"block_size": 4, "num_global_tokens": 4},
    "phi4_multimodal_audio": {"ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32},
    "pi0": {"chunk_size": 4},
    "pix2struct_text_model": {"initializer_range": 0.02},
    "pocket_tts": {"flow_head_config": {"condition_dim": 32}},
    "pp_doclayout_v2": {
        **DETECTOR,
        "class_thresholds": [0.5] * 3,
        "class_order": [0, 1, 2],
        "reading_order_config": {"start_token_id": 0, "pad_token_id": 1, "end_token_id": 2, "pred_token_id": 3},
    },
    "pp_doclayout_v3": {**DETECTOR, "x4_feat_dim": 16},
    "pp_doclayout_v4": DETECTOR,
    "pp_ocrv5_server_det": SEGMENTS,
    "pp_ocrv6_medium_det": {**SEGMENTS, "backbone_config": HALVING},
    "pp_ocrv6_small_det": {"backbone_config": HALVING, "layer_list_out_channels": [16, 16, 24, 32]},
    "qwen2_5_omni_audio_encoder": {"n_window": 4},
    "qwen2_5_omni_bigvgan": {"upsample_initial_channel": 128},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 20},
    "qwen3_omni_moe_talker_text": {"mlp_only_layers": [1], "shared_expert_intermediate_size": 16},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 20},
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
    "rag": {
        "_base": {"question_encoder": {"model_type": "dpr"}, "generator": {"model_type": "bart"}},
        "n_docs": 2,
        "retrieval_vector_size": 32,
    },
    "reformer": {"axial_pos_shape": [4, 8], "axial_pos_embds_dim": [16, 16], "num_buckets": 2},
    "rt_detr": {**DETECTOR, "encoder_in_channels": [16, 32, 64]},
    "rt_detr_v2": {**DETECTOR, "encoder_in_channels": [16, 32, 64]},
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
    "sam2_vision_model": {
        "backbone_channel_list": [128, 64, 32, 16],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    },
    "sam3_tracker": {
        "vision_config": {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]},
        "prompt_encoder_config": {"image_size": 32, "patch_size": 8},
    },
    "sam3_vision_model": {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]},
    "sapiens2": {
        "num_key_value_attention_heads": 2,
        "num_first_full_attention_layers": 1,
        "num_last_full_attention_layers": 2,
        "num_key_value_heads_per_layer": [4] * 5,
    },
    "sapiens2_head": {
        "upsample_out_channels": [16],
        "upsample_kernel_sizes": [4],
        "conv_out_channels": [16],
        "conv_kernel_sizes": [1],
        "use_pixel_shuffle": False,
    },
    "seggpt": {"image_size": [64, 32], "merge_index": 1, "intermediate_hidden_state_indices": [1, 2, 4]},
    "slanet": {"max_text_length": 5},
    "slanext": {"max_text_length": 5},
    "step3p5": {"sliding_window": 8},
    "superglue": {"keypoint_encoder_sizes": [32, 32], "gnn_layers_types": ["self", "cross"] * 3},
    "superpoint": {"descriptor_decoder_dim": 32, "encoder_hidden_sizes": [8, 8, 16, 16], "max_keypoints": 12},
    "swin2sr": {"image_size": 16, "depths": [4, 2, 2, 2], "num_heads": [6, 6, 6, 6]},
    "switch_transformers": {"num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2},
    "t5gemma2_decoder": {"dropout_rate": 0.0},
    "t5gemma2_text": {"dropout_rate": 0.0},
    "textnet": {
        "stem_num_channels": 3,
        "stem_out_channels": 8,
        "hidden_sizes": [8, 8, 8, 16, 16],
        "image_size": [64, 64],
        "conv_layer_kernel_sizes": [[[3, 3]] * 2, [[3, 3]] * 4, [[3, 3]] * 2, [[3, 3]] * 2],
        "conv_layer_strides": [[1, 2], [2, 1, 1, 1], [2, 1], [2, 1]],
    },
    "time_series_transformer": SERIES,
    "timesfm": {"context_length": 64, "patch_length": 8, "horizon_length": 8},
    "timesfm2_5": {"context_length": 64, "patch_length": 8, "horizon_length": 8, "output_quantile_len": 16},
    "tipsv2_dpt": {"neck_hidden_sizes": [8, 16, 32, 32]},
    "tvp": {"max_img_size": 64, "visual_prompt_size": 8},
    "unlimited_ocr_sam_vision_model": {"downsample_channels": [16, 32]},
    "uvdoc": {
        "backbone_config": {"out_indices": [1, 2, 3, 4, 5, 6]},
        "bridge_connector": [32, 32],
        "out_point_positions2D": [[32, 8], [8, 2]],
    },
    "uvdoc_backbone": UNWARP,
    "vibevoice_acoustic_tokenizer": {"num_filters": 2, "vae_std": 0.0},
    "vibevoice_acoustic_tokenizer_decoder": {"num_filters": 2},
    "vibevoice_acoustic_tokenizer_encoder": {"num_filters": 2, "vae_std": 0.0},
    "videomt": {"num_blocks": 2},
    "videoprism_vision_model": {"image_size": 36, "num_frames": 4},
    "vipllava": {"vision_feature_layer": [-2, -3, 1]},
    "vitmatte": {"backbone_config": {"patch_size": 16, "image_size": 64, "pretrain_image_size": 64}},
    "vits": {"noise_scale": 0.0, "noise_scale_duration": 0.0},
    "voxtral": {"audio_token_id": 20},
    "voxtral_encoder": {"intermediate_size": 128},
    "xcodec2": {"quantization_dim": 64, "num_key_value_heads": 4},
    "xlstm": {"hidden_size": 128, "num_heads": 4, "chunk_size": 8, "qk_dim_factor": 0.5, "v_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
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
    "zoedepth": {"bottleneck_features": 32},
}
"""Model type -> config values that replace the ones guessed, wherever a config of that type occurs, nested as it is.
`_base` holds what the class must be given before its usual sizes can be read."""
