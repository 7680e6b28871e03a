"""Inputs that the general rules of `inputs` cannot guess, one entry per model type."""

from __future__ import annotations

from typing import Any

PAIR = {"pixel_values": (1, 2, 3, 32, 32)}
CODED = {"latents": (2, 32, 9)}
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
    **dict.fromkeys(("autoformer", "informer", "time_series_transformer"), SERIES_INPUT),
    "EvollaModel": {"protein_input_ids": whole(20, 2, 9), "protein_attention_mask": ones(2, 9)},
    "audio-spectrogram-transformer": {"input_values": (2, 40, 24)},
    "blt": {"use_cache": lambda maker: False},
    "bridgetower_vision_model": {"image": (2, 3, 32, 32)},
    "bros": {"bbox": (2, 9, 8)},
    "clap": {"input_features": (2, 1, 100, 32), "is_longer": None},
    "clap_audio_model": {"input_features": (2, 1, 100, 32), "is_longer": None},
    "clvp": {"input_features": (2, 32, 32)},
    "colmodernvbert": {"image": {"pixel_values": (2, 1, 3, 32, 32)}},
    "colqwen2": {"pixel_values": (2, 16, 384), "image_grid_thw": [[1, 4, 4]] * 2},
    "csm": {"notes": "codec and depth decoder unused"},
    "decision_transformer": {
        "states": (2, 5, 17),
        "actions": (2, 5, 4),
        "rewards": (2, 5, 1),
        "returns_to_go": (2, 5, 1),
        "timesteps": lambda maker: maker.numbers(0, 9, 2, 5),
    },
    "deepseek_ocr2": {"image": {"pixel_values": (2, 3, 32, 32)}},
    "deepseek_ocr2_encoder": {"inputs_embeds": (2, 8, 32), "num_patches": lambda maker: 4},
    "deepseek_vl_hybrid": {"image": {"pixel_values": (2, 3, 32, 32), "high_res_pixel_values": (2, 3, 32, 32)}},
    "depth_pro": {"pixel_values": (2, 3, 32, 32)},
    "dia_decoder": {"input_ids": whole(100, 2, 9, 9), "attention_mask": None, "encoder_hidden_states": (2, 9, 32)},
    "diffusion_gemma": {
        "decoder_input_ids": whole(100, 2, 8),
        "image": {"pixel_values": (2, 36, 192), "image_position_ids": lambda maker: maker.places(6)},
    },
    "dots3_note": {"audio": {"input_features": (2, 32, 32), "chunk_sample_lengths": [5120, 5120]}},
    "dots3_note_audio_encoder": {"input_features": (2, 32, 32), "chunk_sample_lengths": [5120, 5120]},
    "efficientloftr": {"pixel_values": (1, 2, 3, 64, 64)},
    "embedding_gemma2": {
        "image": {"pixel_values": (2, 36, 192), "image_position_ids": lambda maker: maker.places(6)},
        "audio": {"input_features": (2, 64, 32), "input_features_mask": true(2, 64)},
    },
    "emu3": {
        "image": {"pixel_values": (2, 3, 32, 32), "image_sizes": [[32, 32]] * 2},
        "notes": "no generated pictures",
    },
    "evolla": {"protein_input_ids": whole(20, 2, 9), "protein_attention_mask": ones(2, 9)},
    "fastspeech2_conformer_hifigan": {"spectrogram": (2, 12, 80)},
    "florence_vision": {"hidden_states": (2, 3, 64, 64)},
    "fun_asr_nano": {"audio": {"input_features": (2, 30, 112), "input_features_mask": ones(2, 30)}},
    "fun_asr_nano_encoder": {"input_features": (2, 30, 112), "input_features_mask": ones(2, 30)},
    "fuyu": {"image": {"pixel_values": (2, 4, 192)}},
    "gemma3n_audio": {"audio_mel": (2, 32, 128), "audio_mel_mask": lambda maker: ~maker.numbers(1, 2, 2, 32).bool()},
    "gemma4": {
        "image": {"pixel_values": (2, 36, 192), "image_position_ids": lambda maker: maker.places(6)},
        "audio": {"input_features": (2, 64, 32), "input_features_mask": true(2, 64)},
    },
    "gemma4_audio": {"input_features": (2, 64, 32), "attention_mask": true(2, 64)},
    "gemma4_unified": {
        "image": {"pixel_values": (2, 4, 1728), "image_position_ids": lambda maker: maker.places(2)},
        "audio": {"input_features": (2, 4, 32), "input_features_mask": true(2, 4)},
    },
    "gemma4_vision": {"pixel_values": (2, 36, 192), "pixel_position_ids": lambda maker: maker.places(6)},
    "glm_image": {"image": {}, "notes": "no pixels"},
    "glmasr": {"audio": {"input_features": (2, 16, 64), "input_features_mask": ones(2, 64)}},
    "glmasr_encoder": {"input_features": (2, 16, 64)},
    "gradium_phonon_tts": {"notes": "flow head unused"},
    "granite4_vision": TILES,
    "granite_docling": {"image": {"pixel_values": (2, 1, 3, 32, 32), "pixel_attention_mask": true(2, 1)}},
    "granite_speech": {"audio": {"input_features": (2, 20, 160)}, "input_features_mask": None},
    "granite_speech5_ctc": {"input_features": (2, 32, 64)},
    "granite_speech5_encoder": {"input_features": (2, 32, 64)},
    "granite_speech_encoder": {"hidden_states": (2, 20, 160)},
    "granite_speech_plus": {"audio": {"input_features": (2, 20, 160)}, "input_features_mask": None},
    "granite_speech_plus_encoder": {"hidden_states": (2, 20, 160)},
    "idefics": {"image": {"pixel_values": (2, 1, 3, 32, 32)}, "image_attention_mask": ones(2, 9, 1)},
    "idefics2_perceiver": {"context": (2, 16, 32), "attention_mask": ones(2, 16)},
    "inkling2": {"image": {**FOLDED, "image_grid_thw": [[1, 2, 2]] * 2}},
    "inkling2_vision": {**FOLDED, "image_grid_thw": [[1, 2, 2]] * 2},
    "inkling_audio": {"audio_input_ids": whole(16, 2, 5, 80)},
    "inkling_mm_model": {"image": {"pixel_values": (2, 2, 16, 16, 3)}},
    "inkling_vision": {"pixel_values": (2, 2, 16, 16, 3)},
    "instructblip": {"image": {"pixel_values": (2, 3, 32, 32), "qformer_input_ids": lambda maker: maker.ids()}},
    "instructblipvideo": {"pixel_values": (2, 4, 3, 32, 32), "qformer_input_ids": lambda maker: maker.ids()},
    "janus": {"notes": "no generated pictures"},
    "janus_vqgan": {"pixel_values": (2, 3, 32, 32)},
    "kimi_k25": {"image": PATCHES},
    "kimi_k25_vision": {"pixel_values": (32, 3, 8, 8), "grid_thw": [[1, 4, 4]] * 2},
    "kosmos-2": {"image_embeds_position_mask": [[False, True, True, True, True] + [False] * 4] * 2},
    "kosmos-2.5": {"flattened_patches": flat_patches, "image_embeds_position_mask": [[0, 1, 1, 1, 1, 0, 0, 0, 0]] * 2},
    "kosmos_2_5_vision_model": {
        "flattened_patches": flat_patches,
        "hidden_states": None,
        "attention_mask": ones(2, 16),
    },
    "kyutai_speech_to_text": {"input_ids": whole(100, 2, 9, 5), "notes": "codec unused"},
    "lightglue": PAIR,
    "llava_next": TILES,
    "llava_next_video": TILES,
    "llava_onevision": TILES,
    "lxmert": {"visual_feats": (2, 5, 32), "visual_pos": (2, 5, 4)},
    "mimi_decoder": CODED,
    "minicpm_ocr": {"image": GRIDS},
    "minicpm_ocr_vision": GRIDS,
    "minicpmv4_6": {"image": GRIDS},
    "minicpmv4_6_vision": GRIDS,
    "minicpmv4_7": {"image": GRIDS},
    "minicpmv4_7_vision": GRIDS,
    "mllama": {
        "image": {},
        "pixel_values": (2, 1, 4, 3, 32, 32),
        "aspect_ratio_ids": [[1], [1]],
        "aspect_ratio_mask": ones(2, 1, 4),
        "cross_attention_mask": ones(2, 9, 1, 4),
    },
    "mllama_vision_model": {
        "pixel_values": (2, 1, 4, 3, 32, 32),
        "aspect_ratio_ids": [[1], [1]],
        "aspect_ratio_mask": ones(2, 1, 4),
    },
    "molmo2": {
        "image": {
            "pixel_values": (2, 16, 192),
            "image_token_pooling": whole(16, 8, 4),
            "image_grids": [[1, 2, 1, 2]] * 2,
            "image_num_crops": [1, 1],
        }
    },
    "molmo2_adapter": {"image_features": (2, 16, 64), "pooled_patches_idx": whole(16, 8, 4)},
    "molmo2_vision": {"pixel_values": (2, 16, 192)},
    "moshi_depth": {"input_ids": whole(100, 2, 9), "attention_mask": None, "last_hidden_state": (2, 1, 32)},
    "moss_transcribe_diarize": {"audio": {}, "notes": "no sound"},
    "muse_glimmer_assistant": {"noise_embeds": (2, 4, 32), "context_hidden_states": (2, 9, 160)},
    "muse_spark": {"audio": {"input_values": (2, 3840)}},
    "muse_spark_audio": {"input_values": (2, 3840)},
    "musicflamingo": {"audio": {}, "notes": "no sound"},
    "musicgen": {"decoder_input_ids": whole(100, 8, 9), "notes": "codec unused"},
    "musicgen_decoder": {"input_ids": whole(100, 8, 9), "attention_mask": None},
    "musicgen_melody": {"decoder_input_ids": whole(100, 8, 9), "notes": "codec unused"},
    "musicgen_melody_decoder": {"input_ids": whole(100, 8, 9), "attention_mask": None},
    "nemo_speechlm": {"notes": "word timestamps unused"},
    "neomme": {"image": {"pixel_values": (8, 192)}},
    "neucodec": TWO_FORMS,
    "oneformer": {"task_inputs": whole(100, 2, 8)},
    "paddleocr_vl": {"image": PATCHES},
    "paddleocr_vl_vision": {"pixel_values": (1, 32, 3, 8, 8), "grid_thw": [[1, 4, 4]] * 2},
    "patchtsmixer": {"only": True, "past_values": (2, 32, 1)},
    "patchtst": {"only": True, "past_values": (2, 32, 1)},
    "pe_audio": {"input_values": (2, 1, 640)},
    "pe_audio_encoder": {"input_values": (2, 1, 640)},
    "perceiver": {"image": {"pixel_values": lambda maker: maker.image()}},
    "phi4_multimodal": {"notes": "no pixels, no sound"},
    "phi4_multimodal_audio": {"hidden_states": (2, 64, 32), "mask": true(2, 64)},
    "pi0": {
        "state": (2, 32),
        "noise": (2, 4, 32),
        "timestep": lambda maker: maker.noise(2).sigmoid(),
        "pixel_values": (2, 1, 3, 32, 32),
        "pixel_attention_mask": true(2, 1),
        "tokens": {"image": 16},
    },
    "pix2struct": {"flattened_patches": flat_patches, "attention_mask": ones(2, 16)},
    "pix2struct_vision_model": {"flattened_patches": flat_patches, "attention_mask": ones(2, 16)},
    "pocket_tts": {"notes": "flow head unused"},
    "pocket_tts_audio_tokenizer_decoder": {"latents": (2, 32, 9)},
    "pp_ocrv5_mobile_rec": {"pixel_values": (2, 3, 96, 64)},
    "pp_ocrv5_server_rec": {"pixel_values": (2, 3, 96, 64)},
    "qwen2_5_omni_audio_encoder": LENGTHS,
    "qwen2_5_omni_bigvgan": {"mel_spectrogram": (2, 80, 12)},
    "qwen2_audio": {"input_features": (2, 16, 32), "feature_attention_mask": ones(2, 32), "tokens": {"audio": 8}},
    "qwen3_asr": {"audio": {"input_features": (2, 16, 100), "input_features_mask": ones(2, 100)}},
    "qwen3_asr_encoder": {"input_features": (2, 16, 100), "input_features_mask": ones(2, 100)},
    "qwen3_omni_moe_audio_encoder": {"input_features": (16, 200), "feature_lens": [100, 100]},
    "qwen3_omni_moe_talker_code_predictor": {"input_ids": None, "attention_mask": None, "inputs_embeds": (2, 5, 32)},
    "qwen3_omni_moe_talker_text": {"input_ids": None, "inputs_embeds": (2, 9, 32)},
    "qwen3_omni_moe_thinker": {"audio": {"input_features": (2, 16, 100), "feature_attention_mask": ones(2, 100)}},
    "rag": {
        "context_input_ids": lambda maker: maker.ids(batch=4),
        "context_attention_mask": ones(4, 9),
        "doc_scores": (2, 2),
        "notes": "question encoder unused",
    },
    "sam3": {"notes": "geometry encoder unused"},
    "sam3_detr_decoder": DECODED,
    "sam3_detr_encoder": DETECTED,
    "sam3_lite_text": {"notes": "geometry encoder unused"},
    "sam3_lite_text_detr_decoder": DECODED,
    "sam3_lite_text_detr_encoder": DETECTED,
    "sam3_lite_text_mask_decoder": MASKED,
    "sam3_mask_decoder": MASKED,
    "seggpt": {"pixel_values": (2, 3, 32, 32), "prompt_pixel_values": (2, 3, 32, 32), "prompt_masks": (2, 3, 32, 32)},
    "speech-encoder-decoder": {"input_values": (2, 1200)},
    "speecht5_hifigan": {"spectrogram": (2, 12, 80)},
    "superglue": PAIR,
    "t5gemma2_decoder": {"encoder_hidden_states": (2, 9, 32)},
    "timesfm": {"past_values": (2, 64), "freq": [0, 1]},
    "timesfm2_5": {"past_values": (2, 64)},
    "tvp": {"input_ids": whole(100, 1, 9), "attention_mask": ones(1, 9), "pixel_values": (1, 4, 3, 64, 64)},
    "univnet": {"input_features": (2, 6, 16), "noise_sequence": (2, 6, 32)},
    "unlimited_ocr_vision_encoder": {"patch_embeds": (2, 32, 4, 4)},
    "vibevoice": {
        "audio": {"input_values": (2, 1, 3200), "padding_mask": ones(2, 3200)},
        "notes": "decoders of sound unused",
    },
    "vibevoice_acoustic_tokenizer": {"input_values": (2, 1, 3200)},
    "vibevoice_acoustic_tokenizer_decoder": {"hidden_states": (2, 32, 2)},
    "vibevoice_acoustic_tokenizer_encoder": {"hidden_states": (2, 1, 3200)},
    "vibevoice_asr": {"audio": {"input_values": (2, 1, 3200), "padding_mask": ones(2, 3200)}},
    "video_llama_3": {"image": {**PATCHES, "pixel_values": (32, 192), "image_merge_sizes": [2, 2]}},
    "video_llama_3_vision": {"pixel_values": (32, 192), "grid_thw": [[1, 4, 4]] * 2, "merge_sizes": [2, 2]},
    "video_llava": {"pixel_values_videos": (2, 8, 3, 32, 32), "tokens": {"video": 136}},
    "vilt": {"pixel_values": (2, 3, 8, 8)},
    "vit_mae": {"noise": (2, 16)},
    "vits": {"notes": "duration predictor unused in part"},
    "voxtral_realtime": {"input_features": (2, 16, 72)},
    "voxtral_realtime_encoder": {"input_features": (2, 16, 64)},
    "xclip_vision_model": {"pixel_values": (8, 3, 32, 32)},
    "xcodec": {"input_values": (2, 1, 1280)},
    "xcodec2": TWO_FORMS,
}
"""Model type -> inputs that replace the ones guessed: a list is a tensor's value, a tuple its shape, None leaves out."""
