"""Sizes against real files, caches against closed forms and against what a real forward pass keeps."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    RegNetConfig,
    RegNetForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_mpruner import PruningConfig, apply_plan_, prune_
from hf_mpruner.cli import main
from hf_mpruner.footprint import CacheSize, measure_cache, saved_bytes, weight_files_bytes
from hf_mpruner.plan import PruningPlan, StackPlan
from hf_mpruner.record import Measurement, PruningRecord
from hf_mpruner.report import PruningReport, cache_in_words

TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 50, "max_position_embeddings": 64,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip


def llama(**more):
    return LlamaForCausalLM(LlamaConfig(**TEXT, **{"num_hidden_layers": 3, "num_key_value_heads": 2, **more}))


def gpt2():
    sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "vocab_size": 50}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def t5():
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "vocab_size": 50}
    return T5ForConditionalGeneration(T5Config(num_layers=2, num_decoder_layers=3, **sizes, decoder_start_token_id=0))


def bert():
    return BertForSequenceClassification(BertConfig(**TEXT, num_hidden_layers=2))


def regnet():  # batch norms, whose running means are saved, and counts of another type
    return RegNetForImageClassification(RegNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1]))


# -- size -----------------------------------------------------------------------------------------------------------


def header_bytes(file):
    """Of a file of safetensors: a length of eight bytes, and so much JSON."""
    with file.open("rb") as opened:
        return 8 + struct.unpack("<Q", opened.read(8))[0]


@pytest.mark.parametrize("make", [llama, gpt2, t5, bert, regnet], ids=lambda make: make.__name__)
def test_the_tensors_of_the_real_file_take_what_was_counted(make, tmp_path):
    model = make().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    assert weight_files_bytes(tmp_path) == file.stat().st_size
    assert file.stat().st_size - header_bytes(file) == saved_bytes(model)
    counted = saved_bytes(model)
    model.to("meta").tie_weights()  # which the move undoes
    assert saved_bytes(model) == counted


def test_shards_are_added_up_and_a_missing_one_is_noticed(tmp_path):
    assert weight_files_bytes(tmp_path) is None
    llama().save_pretrained(tmp_path, max_shard_size="20KB")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    assert weight_files_bytes(tmp_path) == sum(file.stat().st_size for file in files)
    files[0].unlink()
    assert weight_files_bytes(tmp_path) is None


def test_what_a_class_leaves_out_of_its_files_does_not_count():
    class Part(nn.Module):
        _keys_to_ignore_on_save = ("table",)

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))
            self.again = self.weight
            self.register_buffer("table", torch.zeros(100))
            self.register_buffer("kept", torch.zeros(2, dtype=torch.int64))
            self.register_buffer("computed", torch.zeros(100), persistent=False)

    assert saved_bytes(Part()) == 3 * 4 + 2 * 8


# -- cache ----------------------------------------------------------------------------------------------------------


def real_bytes(model, tokens, **more):
    """What a real forward pass keeps, in keys and values alone."""
    cache = model.eval()(torch.zeros(1, tokens, dtype=torch.long), use_cache=True, **more).past_key_values
    return sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_keys_and_values_are_those_of_the_closed_form(dtype, device):
    for model, heads in ((llama(), 2), (gpt2(), 4)):
        found = measure_cache(model.to(device, dtype))
        each = 2 * 3 * heads * 8 * dtype.itemsize  # keys and values, layers, heads, dimensions, bytes
        assert (found.bytes_per_token, found.constant_bytes, found.bytes_per_source_token) == (each, 0, 0)
        assert (found.bytes_per_late_token, found.num_tokens, found.num_bytes) == (each, 64, 64 * each)
        assert found.dtype == str(dtype).removeprefix("torch.")


def test_it_is_what_a_real_pass_keeps_and_leaves_the_model_alone():
    model = llama().train()
    model.register_forward_pre_hook(lambda *_: pytest.fail("its weights were run"))
    state, drawn = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    found = measure_cache(model)
    assert torch.equal(drawn, torch.get_rng_state())
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model._forward_pre_hooks.clear()
    assert real_bytes(model, 7) == 7 * found.bytes_per_token


def test_layers_that_look_at_a_window_stop_growing():
    settings = {**TEXT, "num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16}
    model = Gemma2ForCausalLM(Gemma2Config(**settings))
    found = measure_cache(model)
    each = 2 * 2 * 8 * 4  # of one layer
    assert (found.bytes_per_token, found.bytes_per_late_token) == (4 * each, 2 * each)  # every second one has a window
    assert found.num_bytes == 2 * 64 * each + 2 * 15 * each == real_bytes(model, 64)
    assert cache_in_words(found.to_dict()) == "512 B per token, 256 B from the end of a window of 15 tokens on"


def test_experts_and_what_no_token_adds_to():
    mixtral = MixtralForCausalLM(
        MixtralConfig(**TEXT, num_hidden_layers=2, num_key_value_heads=2, num_local_experts=4)
    )
    assert measure_cache(mixtral).bytes_per_token == 2 * 2 * 2 * 8 * 4
    mamba = MambaForCausalLM(MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=50, state_size=4))
    found = measure_cache(mamba)
    inner, taps = mamba.config.intermediate_size, mamba.config.conv_kernel
    assert found == CacheSize(0, 2 * inner * (4 + taps) * 4)
    assert cache_in_words(found.to_dict()) == "4.1 kB whatever the length"


def test_an_encoder_decoder_keeps_the_source_too():
    bart = BartForConditionalGeneration(
        BartConfig(
            d_model=32, encoder_layers=1, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=4,
            encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=50, max_position_embeddings=64,
        )
    )  # fmt: skip
    for model in (t5(), bart):
        found = measure_cache(model)
        each = 2 * 3 * 4 * 8 * 4  # of the decoder's three layers
        assert (found.bytes_per_token, found.bytes_per_source_token, found.constant_bytes) == (each, each, 0)


def test_what_keeps_nothing_has_no_cache():
    assert measure_cache(bert()) is None
    assert measure_cache(nn.Linear(2, 2)) is None


def test_a_model_that_is_not_its_config_is_not_told_of():
    model = llama()
    del model.model.layers[1]  # by hand: the config says three layers still
    assert measure_cache(model) is None


def test_a_cut_model_has_a_smaller_cache():
    model = llama()
    whole = measure_cache(model)
    apply_plan_(model, PruningPlan({"model.layers": StackPlan(3, (0, 2))}, "llama"))
    assert measure_cache(model).bytes_per_token * 3 == whole.bytes_per_token * 2


# -- in a run -------------------------------------------------------------------------------------------------------


def test_a_run_says_what_every_model_takes(tmp_path):
    torch.manual_seed(0)
    rows = [{"input_ids": torch.randint(1, 50, (6,))} for _ in range(8)]
    config = PruningConfig(target_num_layers=2, criterion="tail", calibration_samples=8, calibration_batch_size=4)
    report = prune_(llama(), config, calibration=rows)
    before, after = report.before, report.after
    assert before.cache["bytes_per_token"] == 2 * 3 * 2 * 8 * 4
    assert after.cache["bytes_per_token"] == 2 * 2 * 2 * 8 * 4
    assert (before.saved_bytes, after.saved_bytes) == (before.num_bytes, after.num_bytes)
    values = report.to_dict()
    assert values["cache_bytes_per_token_before"] == 384
    assert values["cache_bytes_per_token_after"] == 256
    assert values["tokens_per_second_after"] == 24 / after.latency_seconds
    assert values["examples_per_second_before"] == 4 / before.latency_seconds
    header, original, first = report.to_table().splitlines()
    assert "batch 1 ms" in header
    assert "384 B" in original
    assert "256 B" in first
    assert "cache for each token" in report.to_html()
    report.save(tmp_path)
    assert PruningReport.load(tmp_path).record == report.record


def test_an_old_record_is_read():
    old = {"depths": {"layers": 2}, "baseline": {"parameters": 10, "num_bytes": 40}, "rounds": []}
    record = PruningRecord.from_dict(json.loads(json.dumps(old)))
    assert record.baseline == Measurement(10, 40)
    assert PruningReport(record).to_dict()["saved_bytes_before"] is None


def test_inspect_tells_it_from_a_config_alone(tmp_path, capsys):
    model = gpt2().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    size = saved_bytes(model)
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()  # no weights are read
    assert main(["inspect", str(tmp_path), "--format", "json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["dtype"], values["saved_bytes"]) == ("bfloat16", size)
    assert values["cache"]["bytes_per_token"] == 2 * 3 * 32 * 2
    assert main(["inspect", str(tmp_path)]) == 0
    assert "in bfloat16: 83.6 kB as saved, cache of a sequence 384 B per token\n" in capsys.readouterr().out
