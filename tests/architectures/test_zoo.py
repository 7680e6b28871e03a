"""A sample of model types for every rule, as `make zoo` checks them all."""

from __future__ import annotations

from typing import Any

import pytest
from accelerate.utils import compare_versions
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from zoo.checks import check_type

RIGHT = {
    "one list, one number": ["electra", "modernbert", "deberta-v2", "gpt_neox", "falcon", "phi3", "opt"],
    "another name for the number": ["gpt2", "distilbert", "mpt"],
    "encoder and decoder": ["bart", "whisper"],
    "towers": ["clip", "gemma3", "qwen2_vl", "llava"],
    "stages": ["resnet", "convnext", "regnet", "pvt_v2"],
    "parity of shifted windows": ["swin", "donut-swin", "pegasus_x"],
    "per-layer lists": ["qwen3", "gemma2", "cohere2", "longformer", "olmo3"],
    "nested per-layer lists": ["gpt_neo"],
    "hybrids": ["bamba", "jamba", "zamba2", "recurrent_gemma", "qwen3_next"],
    "no attention": ["mamba2"],
    "prefix of dense layers": ["deepseek_v2", "deepseek_v3", "glm4_moe", "lfm2_moe"],
    "every n-th layer sparse": ["qwen2_moe", "qwen3_moe", "switch_transformers", "nllb-moe"],
    "index lists": ["llama4_text"],
    "taps on hidden states": ["dinov2", "beit", "qwen3_vl"],
    "every n-th layer crosses": ["blip-2", "instructblip_qformer"],
    "settings of single layers": ["embedding_gemma2_text"],
    "keys shared with a tail, a tensor with a layer axis": ["gemma3n_text", "gemma4_text"],
    "the first block owns something": ["t5", "umt5", "pix2struct_text_model"],
    "a constant of the total": ["minicpm3"],
    "the layer's number in the code": ["diffllama", "granite_speech_encoder"],
    "heads for each layer": ["deformable_detr"],
    "lists side by side": ["flaubert", "xlm"],
    "the number on the encoder": ["xlnet", "funnel"],
}
REFUSED = {
    "one block, many times": ["albert"],
    "widths that grow": ["mobilenet_v1"],
    "weights scaled by the layer's number": ["rwkv"],
}


# Dear, and another type of the same kind is in the default tests (gemma3: in test_families.py).
SLOW = {
    "deformable_detr",
    "blip-2",
    "donut-swin",
    "gemma3",
    "nllb-moe",
    "pegasus_x",
    "pvt_v2",
    "qwen2_vl",
    "switch_transformers",
    "umt5",
}


def marks_of(name: str) -> list[Any]:
    missing = pytest.mark.skipif(name not in CONFIG_MAPPING, reason="not in this version of transformers")
    return [missing, pytest.mark.slow] if name in SLOW else [missing]


def make_cases(rules: dict[str, list[str]]) -> list[Any]:
    return [
        pytest.param(name, rule, id=f"{name}-{rule}", marks=marks_of(name))
        for rule, names in rules.items()
        for name in names
    ]


@pytest.mark.parametrize(("model_type", "rule"), make_cases(RIGHT))
def test_every_cut_of_a_sample_is_right(model_type: str, rule: str) -> None:
    verdict = check_type(model_type)
    if verdict.status == "not built" and compare_versions("transformers", "<", "5.23"):
        pytest.skip(f"not in this version of transformers: {verdict.reason}")
    assert verdict.status == "right", verdict.failures or verdict.refusals or verdict.reason
    assert "skip" in verdict.passed or rule == "lists side by side"  # which are no blocks that could be skipped


@pytest.mark.parametrize(("model_type", "rule"), make_cases(REFUSED))
def test_what_cannot_be_cut_is_refused(model_type: str, rule: str) -> None:
    verdict = check_type(model_type)
    assert verdict.status in ("refused", "none"), rule
