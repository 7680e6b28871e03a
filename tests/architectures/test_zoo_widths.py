"""A sample of model types, narrowed as `python -m zoo.widths` narrows all: what is left computes what it must."""

from __future__ import annotations

import pytest
from zoo.widths import check_widths

BOTH = {"gemma2", "cohere2", "qwen2_moe", "funnel", "t5", "vivit", "falcon_h1", "zamba"}
NEURONS = {
    "deberta-v2", "opt", "gpt2", "falcon", "rwkv", "reformer", "mobilebert", "bart", "clip", "whisper", "wav2vec2-conformer",
    "deepseek_v2", "albert", "chinese_clip",
}  # fmt: skip
HEADS = {"granitemoe", "glm4_moe", "phimoe", "gpt_oss"}
NONE = {
    "resnet": "",
    "swin": "mlp_ratio = 4.0 is a factor",
    "lxmert": "does not count the neurons of single feed-forwards",
    "lilt": "follows it otherwise",
    "olmoe": "counts experts that lie in one tensor",
}
QUICK = {"cohere2", "funnel", "zamba"}


def cases(names):
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in sorted(names)]


@pytest.mark.parametrize("model_type", cases(BOTH | NEURONS | HEADS))
def test_a_narrowed_type_computes_what_the_whole_one_does_with_zeros(model_type: str) -> None:
    verdict = check_widths(model_type)
    if verdict.reason.startswith("not built"):
        pytest.skip(verdict.reason)
    assert not verdict.faults
    found = {one.partition(" ")[0] for one in verdict.right}
    assert ("neurons" in found) == (model_type in BOTH | NEURONS or model_type == "glm4_moe")
    assert ("heads" in found) == (model_type in BOTH | HEADS)


@pytest.mark.parametrize("model_type", NONE)
def test_a_type_that_cannot_be_narrowed_says_why(model_type: str) -> None:
    verdict = check_widths(model_type)
    assert not verdict.right
    assert not verdict.faults
    if NONE[model_type]:
        assert any(NONE[model_type] in refusal for refusal in verdict.refusals)
