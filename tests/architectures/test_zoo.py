"""A sample of model types for every rule, as `make zoo` checks them all."""

from __future__ import annotations

import pytest
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
    "no attention": ["mamba2", "rwkv"],
    "prefix of dense layers": ["deepseek_v2", "deepseek_v3", "glm4_moe", "lfm2_moe"],
    "every n-th layer sparse": ["qwen2_moe", "qwen3_moe", "switch_transformers", "nllb-moe"],
    "index lists": ["llama4_text", "mllama_text_model"],
    "taps on hidden states": ["dinov2", "beit", "qwen3_vl"],
    "every n-th layer crosses": ["blip-2", "instructblip_qformer"],
    "settings of single layers": ["embedding_gemma2_text"],
    "keys shared with a tail, a tensor with a layer axis": ["gemma3n_text", "gemma4_text"],
    "the first block owns something": ["t5", "umt5", "pix2struct_text_model"],
    "a constant of the total": ["minicpm3"],
    "heads for each layer": ["deformable_detr"],
    "lists side by side": ["flaubert", "xlm"],
    "the number on the encoder": ["xlnet", "funnel"],
}
REFUSED = {
    "one block, many times": ["albert"],
    "a constant of the layer's number": ["diffllama"],
}


@pytest.mark.parametrize(
    "model_type", [pytest.param(name, id=f"{name}-{rule}") for rule, names in RIGHT.items() for name in names]
)
def test_every_cut_of_a_sample_is_right(model_type: str) -> None:
    verdict = check_type(model_type)
    assert verdict.status == "right", verdict.failures or verdict.refusals or verdict.reason
    assert verdict.passed["skip"] > 0


@pytest.mark.parametrize(
    "model_type", [pytest.param(name, id=f"{name}-{rule}") for rule, names in REFUSED.items() for name in names]
)
def test_what_cannot_be_cut_is_refused_with_the_reason(model_type: str) -> None:
    verdict = check_type(model_type)
    assert verdict.status in ("refused", "none")
    assert verdict.refusals
