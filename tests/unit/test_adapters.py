"""Cutting models with PEFT adapters: what their configs say about layers, what is refused, what a saved copy computes."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_mpruner import PruningConfig, PruningPlan, apply_plan_, find_block_stacks, measure_similarity, prune_
from hf_mpruner.architectures import examine
from hf_mpruner.architectures.adapters import adapted_modules, without_adapters
from hf_mpruner.artifacts import write_artifacts
from hf_mpruner.cli.models import load_config
from hf_mpruner.errors import MPrunerError, UnsupportedArchitectureError
from hf_mpruner.snapshot import Snapshot
from hf_mpruner.surgery import ModelEdit
from peft_kit import (
    IDS,
    KINDS,
    QUERY,
    logits,
    lora,
    make_base,
    make_llama,
    make_t5,
    needs_peft,
    peft,
    reload,
    reload_by_hand,
    settings_of,
    wrap,
)  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads what transformers deprecates

BERT, LLAMA = "bert.encoder.layer", "model.layers"
KEY = "bert.encoder.layer.{}.attention.self.key"


def cut(model, kept):
    stacks = find_block_stacks(model)
    return apply_plan_(model, PruningPlan.from_kept(kept, stacks))


def check(model, kept, folder, *, kind=None, base=None, **inputs):
    """Cut, save, load with peft alone, go back; returns the adapters' configs while the cut was in force."""
    before, settings, modules = logits(model, **inputs), settings_of(model), list(model.modules())
    names = list(model.state_dict())
    edit = cut(model, kept)
    inside, wanted = settings_of(model), logits(model, **inputs)
    model.save_pretrained(folder)
    assert settings_of(model) == inside  # saving names the base for a moment only
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of keys that are missing, of patterns that match nothing
        warnings.simplefilter("ignore", FutureWarning)
        loaded = reload(folder, kind) if base is None else reload_by_hand(folder, base)
    assert torch.equal(logits(loaded, **inputs), wanted)
    live = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert {name: tuple(value.shape) for name, value in loaded.state_dict().items()} == live
    edit.undo()
    assert settings_of(model) == settings
    assert list(model.modules()) == modules
    assert list(model.state_dict()) == names
    assert torch.equal(logits(model, **inputs), before)
    return inside["default"]


# what a config says about layers


@pytest.mark.parametrize(
    ("settings", "after"),
    [
        ({"target_modules": ["query", "key"]}, {}),
        ({"target_modules": "all-linear"}, {}),
        ({"layers_to_transform": 3}, {"layers_to_transform": 1}),
        ({"layers_to_transform": [0, 1, 3], "layers_pattern": "layer"}, {"layers_to_transform": [0, 1]}),
        ({"target_modules": [QUERY.format(0), QUERY.format(1)]}, {"target_modules": {QUERY.format(0)}}),
        ({"target_modules": [QUERY.format(3), "key"]}, {"target_modules": {QUERY.format(1), KEY.format(0), KEY.format(1)}}),
        ({"target_modules": r".*layer\.[013]\..*query"}, {}),
        ({"target_modules": r".*layer\.3\..*query"}, {"target_modules": {QUERY.format(1)}}),
        (
            {"target_modules": ["query"], "exclude_modules": [QUERY.format(3)]},
            {"target_modules": {QUERY.format(0)}, "exclude_modules": None},
        ),
        ({"target_modules": ["query"], "exclude_modules": r".*layer\.1\..*"}, {
            "target_modules": {QUERY.format(0), QUERY.format(1)}, "exclude_modules": None
        }),
        ({"rank_pattern": {"layer.3.attention.self.query": 5, "value": 3}}, {
            "rank_pattern": {QUERY.format(1): 5, **{QUERY.format(n).replace("query", "value"): 3 for n in (0, 1)}}
        }),
        ({"rank_pattern": {"query": 5, r"layer\.2\..*": 7}}, {"rank_pattern": {"query": 5}}),
        ({"alpha_pattern": {r"layer\.[23]\..*": 7}}, {
            "alpha_pattern": {QUERY.format(1): 7, QUERY.format(1).replace("query", "value"): 7}
        }),
        ({"modules_to_save": ["classifier", "3.output.LayerNorm"]}, {
            "modules_to_save": ["bert.encoder.layer.1.output.LayerNorm", "classifier", ]
        }),
        ({"modules_to_save": ["output.LayerNorm"]}, {}),
        ({"bias": "all"}, {}),
        ({"lora_bias": True}, {}),
        ({"trainable_token_indices": {"word_embeddings": [3, 5]}}, {}),
        ({"init_lora_weights": "olora"}, {"init_lora_weights": True}),
        ({"init_lora_weights": "gaussian"}, {}),
    ],
    ids=lambda value: str({key: sorted(one) if isinstance(one, set) else one for key, one in value.items()})[:60],
)  # fmt: skip
def test_settings_that_name_layers(tmp_path, settings, after):
    model = wrap(make_base(), lora(**settings))
    before = settings_of(model)["default"]
    inside = check(model, {BERT: [0, 3]}, tmp_path)
    assert {name: value for name, value in inside.items() if value != before[name]} == after


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", [[1], [0, 1, 2], [0, 3], [2, 3]])
def test_every_kind(tmp_path, kind, kept):
    check(wrap(make_base(), KINDS[kind]()), {BERT: kept}, tmp_path)


def test_ia3_by_full_names(tmp_path):
    config = peft.IA3Config(
        task_type="SEQ_CLS", target_modules=[KEY.format(3), "bert.encoder.layer.3.output.dense"],
        feedforward_modules=["bert.encoder.layer.3.output.dense"], init_ia3_weights=False,
    )  # fmt: skip
    inside = check(wrap(make_base(), config), {BERT: [0, 3]}, tmp_path)
    assert inside["feedforward_modules"] == {"bert.encoder.layer.1.output.dense"}


@pytest.mark.parametrize("tied", [False, True])
def test_a_causal_model(tmp_path, tied):
    base = make_llama(tie_word_embeddings=tied)
    config = lora(task_type="CAUSAL_LM", target_modules=["q_proj", "up_proj"], layers_to_transform=[0, 2, 3])
    inside = check(wrap(base, config), {LLAMA: [0, 1, 3]}, tmp_path, kind=peft.AutoPeftModelForCausalLM, input_ids=IDS)
    assert inside["layers_to_transform"] == [0, 2]


def test_embeddings_and_head_with_adapters(tmp_path):
    config = lora(task_type="CAUSAL_LM", target_modules=["q_proj", "embed_tokens", "lm_head"])
    check(wrap(make_llama(), config), {LLAMA: [0, 3]}, tmp_path, base=AutoModelForCausalLM, input_ids=IDS)


@needs_peft("0.20")
@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True},
        {"trainable_token_indices": [3, 4]},
    ],
)
def test_adapters_tied_as_the_embeddings_are(tmp_path, settings):
    config = lora(**{"task_type": "CAUSAL_LM", "target_modules": ["q_proj"], **settings})
    model = wrap(make_llama(tie_word_embeddings=True), config)
    check(model, {LLAMA: [0, 3]}, tmp_path, base=AutoModelForCausalLM, input_ids=IDS)


def make_gpt2():
    sizes = {"vocab_size": 99, "n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 32}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))


def make_resnet():
    return ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 4], layer_type="basic")
    )


def make_vit():
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4))


@pytest.mark.parametrize(
    ("make", "settings", "inputs"),
    [
        (make_gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}, {"input_ids": IDS}),
        (
            make_resnet,
            {"target_modules": ["convolution"], "layers_pattern": "layers", "modules_to_save": ["classifier.1"]},
            torch.ones(2, 3, 32, 32),
        ),
        (make_vit, {"target_modules": ["fc1", "q_proj"], "modules_to_save": ["classifier"]}, torch.ones(2, 3, 8, 8)),
        (make_vit, {"target_modules": "all-linear"}, torch.ones(2, 3, 8, 8)),
    ],
)
def test_other_layers_than_linear_ones(tmp_path, make, settings, inputs):
    torch.manual_seed(0)
    base = make()
    path = find_block_stacks(base)[-1].path
    given = inputs if isinstance(inputs, dict) else {"pixel_values": inputs}
    settings = (
        {"layers_to_transform": [2, 3], **settings} if isinstance(settings["target_modules"], list) else settings
    )
    model = wrap(base, lora(task_type=None, **settings))
    check(model, {path: [0, 3]}, tmp_path, kind=peft.AutoPeftModel, **given)


@needs_peft("0.21")
def test_both_stacks_of_an_encoder_decoder(tmp_path):
    inputs = {"input_ids": IDS, "decoder_input_ids": IDS}
    config = lora(task_type="SEQ_2_SEQ_LM", target_modules=["q", "v"], layers_to_transform=[1, 2])
    model = wrap(make_t5(), config)
    # the first blocks go, and hand their relative positions on
    inside = check(
        model, {"encoder.block": [1, 3], "decoder.block": [1, 2]}, tmp_path, base=AutoModelForSeq2SeqLM, **inputs
    )
    assert inside["layers_to_transform"] is None  # no one list is right for both
    assert sorted(inside["target_modules"]) == sorted(
        f"{stack}.block.{layer}.layer.{part}.{attention}.{name}"
        for stack, layers in (("encoder", [0]), ("decoder", [0, 1]))
        for layer in layers
        for part, attention in ((0, "SelfAttention"), *([(1, "EncDecAttention")] if stack == "decoder" else []))
        for name in "qv"
    )


@needs_peft("0.20")
def test_adapters_on_parameters_of_experts(tmp_path):
    torch.manual_seed(0)
    base = MixtralForCausalLM(MixtralConfig(
        vocab_size=99, hidden_size=16, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1,
        num_hidden_layers=3, num_local_experts=2, num_experts_per_tok=1,
    ))  # fmt: skip
    names = [f"layers.{layer}.mlp.experts.{name}" for layer in (0, 2) for name in ("gate_up_proj", "down_proj")]
    config = lora(task_type="CAUSAL_LM", target_modules=["q_proj"], target_parameters=names)
    model = wrap(base, config)
    assert len([path for path in adapted_modules(base) if path.endswith("experts")]) == 2
    inside = check(model, {LLAMA: [0, 2]}, tmp_path, base=AutoModelForCausalLM, input_ids=IDS)
    assert sorted(inside["target_parameters"]) == [
        f"model.layers.{layer}.mlp.experts.{name}" for layer in (0, 1) for name in ("down_proj", "gate_up_proj")
    ]


# looking at a model


def test_adapters_are_lifted_off_and_put_back():
    base, plain = make_base(), make_base()
    model = wrap(base, lora(modules_to_save=["classifier"], trainable_token_indices={"word_embeddings": [3]}))
    before, modules = list(model.state_dict()), list(model.modules())
    with without_adapters(base):
        assert list(base.state_dict()) == list(plain.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(base.parameters(), plain.parameters(), strict=True))
    assert list(model.state_dict()) == before
    assert list(model.modules()) == modules
    with pytest.raises(ZeroDivisionError), without_adapters(base):
        raise ZeroDivisionError
    assert list(model.state_dict()) == before


def test_the_stacks_are_those_of_the_base():
    model = wrap(make_base(), lora())
    wanted = examine(make_base()).stacks
    assert examine(model).stacks == wanted == examine(model.get_base_model()).stacks
    assert len(adapted_modules(model.get_base_model())) == 9  # two in each block, and the classifier


def test_a_merged_model_is_a_plain_one(tmp_path):
    model = wrap(make_base(), lora())
    configs = dict(model.peft_config)
    merged = model.merge_and_unload()
    merged.peft_config = configs  # as some versions of peft leave it behind
    cut(merged, {BERT: [0, 3]})
    merged.save_pretrained(tmp_path)
    assert not (tmp_path / "pruned_base").exists()
    assert torch.equal(logits(type(merged).from_pretrained(tmp_path)), logits(merged))


def test_adapters_leave_with_their_blocks():
    model = wrap(make_base(), lora())
    edit = ModelEdit(model.get_base_model(), {BERT: [0, 3]})
    gone = {name for name, param in model.named_parameters() if any(param is one for one in edit.removed_parameters)}
    assert gone == {name for name, _ in model.named_parameters() if ".layer.1." in name or ".layer.2." in name}
    assert any("lora_A" in name for name in gone)


# saving


def test_copies_save_themselves(tmp_path):
    model = wrap(make_base(), lora())
    cut(model, {BERT: [0, 3]})
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_base_model().bert.embeddings.word_embeddings.weight.zero_()
    model.save_pretrained(tmp_path / "one")
    other.save_pretrained(tmp_path / "other")
    pickle.loads(pickle.dumps(model)).save_pretrained(tmp_path / "pickled")
    assert torch.equal(logits(reload(tmp_path / "one")), logits(model))
    assert torch.equal(logits(reload(tmp_path / "other")), logits(other))
    assert not torch.equal(logits(model), logits(other))


def test_a_folder_that_was_moved(tmp_path):
    model = wrap(make_base(), lora())
    cut(model, {BERT: [0, 3]})
    model.save_pretrained(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert torch.equal(logits(reload_by_hand(tmp_path / "there")), logits(model))


@pytest.mark.parametrize("trains", [False, True])
def test_a_base_that_changes_is_saved_as_it_is(tmp_path, trains):
    model = wrap(make_base(), lora())
    cut(model, {BERT: [0, 3]})
    embedding = model.get_base_model().bert.embeddings.word_embeddings.weight.requires_grad_(trains)
    model.save_pretrained(tmp_path / "one")
    first = logits(model)
    embedding.data.mul_(2)  # which no version counter sees
    model.save_pretrained(tmp_path / "two")
    assert torch.equal(logits(reload(tmp_path / "one")), first)
    assert torch.equal(logits(reload(tmp_path / "two")), logits(model))
    assert not torch.equal(first, logits(model))


def test_adapters_for_the_first_weights_are_not_made_of_those_of_a_cut_base(tmp_path):
    model = wrap(make_base(), lora(init_lora_weights="pissa"))
    cut(model, {BERT: [0, 3]})
    with pytest.raises(MPrunerError, match="path_initial_model_for_weight_conversion turns adapters"):
        model.save_pretrained(tmp_path / "out", path_initial_model_for_weight_conversion=str(tmp_path / "first"))
    assert not (tmp_path / "out").exists()


def test_merged_adapters_are_not_saved_beside_their_base(tmp_path):
    model = wrap(make_base(), lora())
    cut(model, {BERT: [0, 3]})
    model.merge_adapter()
    with pytest.raises(MPrunerError, match=r"model\.unmerge_adapter\(\) first"):
        model.save_pretrained(tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()


def test_nothing_is_left_of_a_base_that_cannot_be_written(tmp_path, monkeypatch):
    model = wrap(make_base(), lora())
    cut(model, {BERT: [0, 3]})
    model.save_pretrained(tmp_path)
    model.get_base_model().bert.embeddings.word_embeddings.weight.data.add_(1)
    wanted = logits(reload(tmp_path))

    def fail(self, folder, **kwargs):
        (folder / "config.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(model.get_base_model()), "save_pretrained", fail)
    with pytest.raises(OSError, match="No space"):
        model.save_pretrained(tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.glob(".*"))
    assert torch.equal(logits(reload(tmp_path)), wanted)  # the one before is whole


# in one call, and verified on inputs


def test_prune_in_one_call(tmp_path):
    model = wrap(make_base(), lora(layers_to_transform=[1, 3]))
    batches = [{"input_ids": (torch.arange(64).reshape(8, 8) + n) % 99} for n in range(4)]
    seen = []
    report = prune_(
        model, PruningConfig(threshold=0.0, protect=["0", "3"], verify="full"), calibration=batches,
        evaluate=lambda one: seen.append(one) or {"accuracy": 0.5},
    )  # fmt: skip
    assert report.plan.kept == {BERT: (0, 3)}
    assert all(one is model for one in seen)
    assert model.peft_config["default"].layers_to_transform == [1]
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(reload(tmp_path)), logits(model))


def test_measured_and_counted_through_the_wrapper():
    model = wrap(make_base(), lora())
    batches = [{"input_ids": IDS}]
    (matrix,) = measure_similarity(model, batches, protocol="paper").values()
    (other,) = measure_similarity(model.get_base_model(), batches, protocol="paper").values()
    assert torch.equal(matrix.values, other.values)
    preview = PruningPlan.from_kept({BERT: [0, 3]}, find_block_stacks(model)).preview(model)
    assert preview.parameters_before == sum(param.numel() for param in model.parameters())
    cut(model, {BERT: [0, 3]})
    assert preview.parameters_after == sum(param.numel() for param in model.parameters())


def test_half_precision(tmp_path):
    model = wrap(make_base().bfloat16(), lora())
    check(model, {BERT: [0, 3]}, tmp_path)


def test_verified_on_inputs():
    model = wrap(make_base(), lora())
    inner = model.get_base_model()
    plan = PruningPlan.from_kept({BERT: [0, 3]}, find_block_stacks(model))
    before = logits(model)
    edit = apply_plan_(model, plan, verify="full", inputs={"input_ids": IDS})
    assert len(inner.bert.encoder.layer) == 2
    edit.undo()
    assert torch.equal(logits(model), before)


# what is refused, which changes nothing


def test_an_output_folder_of_the_command_line_holds_no_adapters(tmp_path):
    model = wrap(make_base(), lora())
    report = prune_(
        model, PruningConfig(threshold=0.0, protect=["0", "3"], estimator="biased"), calibration=[{"input_ids": IDS}]
    )
    with pytest.raises(MPrunerError, match=r"carries PEFT adapters.*model\.save_pretrained\(folder\) instead"):
        write_artifacts(tmp_path / "out", model=model, report=report, config=PruningConfig())
    assert not list(tmp_path.iterdir())
    model.save_pretrained(tmp_path / "adapters")
    with pytest.raises(FileNotFoundError, match=r"no config\.json\. It holds adapters: merge them"):
        load_config(str(tmp_path / "adapters"))


def refused(model, kept, match):
    settings, names = settings_of(model), list(model.state_dict())
    with pytest.raises(UnsupportedArchitectureError, match=match):
        cut(model, kept)
    assert settings_of(model) == settings
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("saved", ["encoder", "layer.3", "bert"])
def test_copies_of_blocks_are_not_cut(saved):
    model = wrap(make_base(), lora(task_type=None, modules_to_save=[saved], target_modules=["classifier"]))
    refused(model, {BERT: [0, 3]}, r"The blocks of 'bert\.encoder\.layer' would change .* modules_to_save")


def test_a_copy_that_knows_its_layer_is_not_renumbered():
    config = lora(task_type="CAUSAL_LM", target_modules=["up_proj"], modules_to_save=["self_attn"])
    refused(wrap(make_llama(), config), {LLAMA: [0, 3]}, r"Module 'model\.layers\.3\.self_attn' would change")


@needs_peft("0.21")
def test_relative_positions_with_an_adapter_are_not_moved():
    config = lora(task_type="SEQ_2_SEQ_LM", target_modules=["q", "relative_attention_bias"])
    refused(wrap(make_t5(), config), {"encoder.block": [1, 2]}, r"relative_attention_bias' would change")


def test_adapters_that_are_not_what_their_config_says():
    model = wrap(make_base(), lora())
    layer = model.get_base_model().bert.encoder.layer[3].attention.self.query
    layer.scaling["default"] *= 2
    refused(model, {BERT: [0, 3]}, r"layer\.1\.attention\.self\.query' has scaling=.*8\.0.* and would be .*4\.0")


@pytest.mark.parametrize("setting", [{"layer_replication": [(0, 2), (1, 3)]}, {"alora_invocation_tokens": [3]}])
def test_settings_under_which_nothing_can_be_cut(setting):
    config = lora(task_type="CAUSAL_LM", target_modules=["q_proj"], **setting)
    with pytest.raises(UnsupportedArchitectureError, match=f"Adapter 'default' has {next(iter(setting))}="):
        find_block_stacks(wrap(make_llama(), config))


def test_quantized_bases_are_refused():
    base = make_base()
    base.hf_quantizer = object()
    with pytest.raises(
        UnsupportedArchitectureError, match=r"BertForSequenceClassification is quantized.*quantize the pr"
    ):
        find_block_stacks(wrap(base, lora()))


def test_a_mixed_model_is_refused():
    config = peft.LoHaConfig(r=2, target_modules=["query"])
    with pytest.raises(UnsupportedArchitectureError, match="PeftMixedModel mixes kinds"):
        find_block_stacks(peft.get_peft_model(make_base(), config, mixed=True))


@needs_peft("0.20")
def test_a_kind_inside_a_model_of_transformers_is_refused_too():
    base = make_base()
    base.add_adapter(peft.OFTConfig(target_modules=["query"], oft_block_size=4))
    with pytest.raises(UnsupportedArchitectureError, match="of kind OFT"):
        find_block_stacks(base)


# memory


def test_a_snapshot_leaves_the_frozen_base_out():
    model = wrap(make_base(), lora())
    optimizer = torch.optim.AdamW(param for param in model.parameters() if param.requires_grad)
    snapshot = Snapshot.take(model, optimizer, removed=(), where="cpu")
    trained = sum(param.nbytes for param in model.parameters() if param.requires_grad)
    assert snapshot.num_bytes == trained + sum(buffer.nbytes for buffer in model.buffers())
    with torch.no_grad():
        for param in model.parameters():
            param.add_(param.requires_grad)
    before = {name: param.clone() for name, param in model.named_parameters()}
    snapshot.restore()
    moved = {name for name, param in model.named_parameters() if not torch.equal(param, before[name])}
    assert moved == {name for name, param in model.named_parameters() if param.requires_grad}


def test_a_snapshot_of_other_models_holds_frozen_weights():
    model = nn.Linear(2, 2).requires_grad_(False)
    assert Snapshot.take(model, None, removed=(), where="cpu").num_bytes == 24
