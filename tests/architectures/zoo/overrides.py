"""What the general rules cannot guess, one entry per model type: data, where the code of the models left no other way."""

from __future__ import annotations

from zoo.overrides_configs import CONFIGS
from zoo.overrides_inputs import INPUTS

__all__ = ["CLASSES", "CONFIGS", "INPUTS", "NOT_BUILDABLE"]

CLASSES: dict[str, str] = {
    "csm_depth_decoder_model": "CsmDepthDecoderModel",
    "musicgen": "MusicgenForConditionalGeneration",
    "musicgen_melody": "MusicgenMelodyForConditionalGeneration",
}
"""Model type -> class, where not the first of the Auto classes."""

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
    "bark": "no plain forward",
    "blt_local_decoder": "special inputs: bytes grouped by another model",
    "blt_local_encoder": "special inputs: bytes grouped by another model",
    "dinat": "needs package natten",
    "esmfold2": "special inputs: a protein's atoms",
    "gemma3n_vision": TIMM,
    "gemma4_assistant": "its config validators contradict each other",
    "gemma4_unified_assistant": "its config validators contradict each other",
    "jev": "special inputs: marks of questions in the text",
    "layoutlmv2": "needs package detectron2",
    "qwen2_5_omni": "no plain forward",
    "qwen2_5_omni_dit": "special inputs: the states of three models",
    "qwen2_5_omni_token2wav": "special inputs: the states of three models",
    "qwen3_omni_moe": "no plain forward",
    "timm_backbone": TIMM,
    "timm_wrapper": TIMM,
    "voxtral_realtime_text": "no model class of its own",
}
"""Model type -> why no specimen can be built."""
