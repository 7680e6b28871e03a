"""A sample of model types sliced on disk, as `python -m zoo.slices` does for all: the folder that memory gives, to the byte."""

from __future__ import annotations

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from zoo.slices import check_slices

SAMPLE = {
    "bert": "tied weights",
    "gpt2": "tied weights under other names",
    "llama": "nothing special",
    "t5": "the first block owns something, three names of one tensor",
    "bart": "encoder and decoder",
    "mixtral": "experts stored apart, one tensor in the model",
    "qwen3_moe": "experts and gates",
    "gemma3n_text": "a tensor with a layer axis",
    "vit": "names that changed",
    "whisper": "weights that are not saved",
    "clip": "two towers",
    "modernbert": "a pattern of layers",
    "resnet": "stages, statistics of batches",
    "jamba": "a hybrid with experts",
    "llava": "a tower in a language model, names that changed",
    "wav2vec2": "parametrized weights",
    "iquestcoder": "the class reads its config as one of another type than the Auto class finds",
}
SLOW = {"qwen3_moe", "llava", "whisper", "wav2vec2"}


@pytest.mark.parametrize(
    "model_type", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in SAMPLE]
)
def test_slicing_on_disk_gives_what_memory_gives(model_type: str) -> None:
    if model_type not in CONFIG_MAPPING:
        pytest.skip("not in this version of transformers")
    verdict = check_slices(model_type, most=1)
    assert (verdict.status, verdict.cuts) == ("identical", 1), verdict.reason


def test_a_difference_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: another tensor in the place of one is a wrong."""
    from hf_mpruner.slicing import cut

    write = cut.write_tensors_of

    def write_another(checkpoint, recipe, *args, **kwargs):
        first, second = [name for name in recipe if name.endswith(("query.bias", "key.bias"))][:2]
        return write(checkpoint, {**recipe, first: recipe[second]}, *args, **kwargs)

    monkeypatch.setattr(cut, "write_tensors_of", write_another)
    monkeypatch.setattr(cut, "check_written", lambda *args: None)
    verdict = check_slices("bert", most=1)
    assert verdict.status == "wrong"
    assert "model.safetensors differs" in verdict.reason
