"""Neurons and heads leave a model: it computes what the whole one does with them at zero, and is what is loaded again."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import transformers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GemmaConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    ModernBertConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    RobertaConfig,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.modeling_outputs import BaseModelOutput

from hf_mpruner import (
    PlanMismatchError,
    UnsupportedArchitectureError,
    UnsupportedBackendError,
    WidthPlan,
    apply_width_plan_,
)
from hf_mpruner.architectures import count_parameters, find_widths, prove_width
from hf_mpruner.plan import UnitPlan
from hf_mpruner.surgery import WidthEdit, masked
from hf_mpruner.surgery import narrow as narrow_module

HIDDEN, NEURONS, LAYERS = 16, 24, 2
SMALL = {"num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "intermediate_size": NEURONS, "num_attention_heads": 4}
TOKENS = {**SMALL, "vocab_size": 50}
GROUPED = {**TOKENS, "num_key_value_heads": 2, "head_dim": 6}
T5 = {
    "num_layers": LAYERS, "d_model": HIDDEN, "d_ff": NEURONS, "num_heads": 4, "d_kv": 6, "vocab_size": 50,
    "decoder_start_token_id": 0,
}  # fmt: skip
BERT_STACK = "bert.encoder.layer"

MODELS = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**TOKENS)),
    "roberta": lambda: transformers.RobertaForMaskedLM(RobertaConfig(**TOKENS, tie_word_embeddings=True)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(n_layer=LAYERS, n_embd=HIDDEN, n_head=4, vocab_size=50, bos_token_id=0, eos_token_id=1)
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(Qwen3Config(**GROUPED)),
    "gemma": lambda: transformers.GemmaForCausalLM(GemmaConfig(**{**GROUPED, "num_key_value_heads": 1})),
    "phi3": lambda: transformers.Phi3ForCausalLM(Phi3Config(**TOKENS, num_key_value_heads=2, pad_token_id=0)),
    "modernbert": lambda: transformers.ModernBertModel(
        ModernBertConfig(**TOKENS, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)
    ),
    "t5": lambda: T5ForConditionalGeneration(T5Config(**T5)),
    "t5-gated": lambda: T5ForConditionalGeneration(
        T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    ),
    "mixtral": lambda: transformers.MixtralForCausalLM(
        MixtralConfig(**{**GROUPED, "head_dim": None}, num_local_experts=2)
    ),
    "gpt-oss": lambda: transformers.GptOssForCausalLM(
        transformers.GptOssConfig(**GROUPED, num_local_experts=2, num_experts_per_tok=1)
    ),
    "vit": lambda: ViTForImageClassification(ViTConfig(**SMALL, image_size=16, patch_size=8)),
}
# What one neuron weighs: a row and a column of the hidden size, a gate besides, a bias.
PER_NEURON = {"bert": 2 * HIDDEN + 1, "roberta": 2 * HIDDEN + 1, "gpt2": 2 * HIDDEN + 1, "t5": 2 * HIDDEN,
              "vit": 2 * HIDDEN + 1}  # fmt: skip
ALIKE = {"qwen3", "mixtral", "t5-gated"}  # to others in what is narrowed, and how
WITHOUT_NEURONS = {"mixtral", "gpt-oss"}
WITH_HEADS = {"mixtral": 2, "gpt-oss": 2, "llama": 2, "qwen3": 2, "gemma": 4, "t5": 4, "t5-gated": 4, "vit": 4}


def build(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():  # weights of size 1, so that a lost neuron shows
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return model


def inputs_of(model):
    generator = torch.Generator().manual_seed(1)
    if model.config.model_type == "vit":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    ids = torch.randint(3, 50, (2, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    decoder = {"decoder_input_ids": ids[:, :4]} if model.config.is_encoder_decoder else {}
    return {"input_ids": ids, "attention_mask": mask, **decoder}


def draw_plan(model, what, number, seed=0):
    """`number` of each unit stay, others in each layer but where one tensor serves several."""
    found, generator = find_widths(model, what), torch.Generator().manual_seed(seed)
    units = {}
    for group in found.groups:
        for unit in group.units:
            kept = torch.randperm(unit.size, generator=generator)[:number].sort().values.tolist()
            tied = next((other for other in group.tied if unit.path in other), ())
            kept = next((units[path].kept for path in tied if path in units), kept)
            units[unit.path] = UnitPlan(unit.size, tuple(kept), what)
    return WidthPlan(units, model_type=model.config.model_type)


def first(output):
    return output.logits if "logits" in output else output.last_hidden_state


def check(model, plan, tmp_path):
    """Narrowed, a model computes what the whole one does with zeros; saved and loaded again it computes the same bits."""
    inputs, whole = inputs_of(model), copy.deepcopy(model)
    with torch.no_grad():
        unpruned = first(model(**inputs))
        with masked(whole, plan, find_widths(whole)):
            wanted = first(whole(**inputs))
        edit = apply_width_plan_(model, plan)
        given = first(model(**inputs))
    assert not torch.allclose(unpruned, wanted, atol=1e-3), "the plan removes nothing that matters"
    torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(first(again(**inputs)), given)
    return edit


def cases(names):
    return [pytest.param(name, marks=pytest.mark.slow if name in ALIKE else ()) for name in names]


@pytest.mark.parametrize("name", cases(name for name in MODELS if name not in WITHOUT_NEURONS))
def test_without_neurons_a_model_is_the_whole_one_with_zeros(name, tmp_path):
    model = build(name)
    before = count_parameters(model)
    plan = draw_plan(model, "neurons", 7)
    preview = plan.preview(model)
    check(model, plan, tmp_path)
    assert (preview.parameters_before, preview.parameters_after) == (before, count_parameters(model))
    each = PER_NEURON.get(name, 3 * HIDDEN)
    assert before - count_parameters(model) == each * plan.num_removed


@pytest.mark.parametrize("name", cases(WITH_HEADS))
def test_without_heads_a_model_is_the_whole_one_with_zeros(name, tmp_path):
    model = build(name)
    plan = draw_plan(model, "heads", WITH_HEADS[name] // 2)
    preview = plan.preview(model)
    check(model, plan, tmp_path)
    assert preview.parameters_after == count_parameters(model) < preview.parameters_before


@pytest.mark.parametrize(("name", "what"), [("llama", "heads"), ("t5", "heads"), ("gpt2", "neurons")])
def test_a_narrowed_model_generates_with_its_cache_what_it_generates_without(name, what):
    model = build(name)
    apply_width_plan_(model, draw_plan(model, what, 1))
    ids = inputs_of(model)["input_ids"][:1]
    made = [
        model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=cache, pad_token_id=0)
        for cache in (True, False)
    ]
    assert torch.equal(*made)


@pytest.mark.parametrize(
    ("name", "what"), [("bert", "neurons"), ("roberta", "neurons"), ("t5", "heads"), ("vit", "heads")]
)
def test_undo_leaves_no_trace(name, what):
    model = build(name)
    loss = first(model(**inputs_of(model))).sum()
    loss.backward()
    next(model.parameters()).requires_grad_(False)
    state = {name: (id(p), p.data_ptr(), p.requires_grad, p.grad) for name, p in model.named_parameters()}
    values = {path: dict(vars(module)) for path, module in model.named_modules()}
    config = copy.deepcopy(model.config)
    edit = apply_width_plan_(model, draw_plan(model, what, 2))
    assert model.config.to_dict() != config.to_dict()
    assert [p.requires_grad for p in model.parameters()] == [one[2] for one in state.values()]
    edit.undo()
    after = {name: (id(p), p.data_ptr(), p.requires_grad, p.grad) for name, p in model.named_parameters()}
    assert all(after[name][:3] == one[:3] and after[name][3] is one[3] for name, one in state.items())
    assert {path: dict(vars(module)) for path, module in model.named_modules()} == values
    assert vars(model.config) == vars(config)


def test_a_plan_goes_over_the_disk_and_is_replayed_byte_for_byte(tmp_path):
    model, fresh = build("llama"), build("llama")
    plan = draw_plan(model, "neurons", 5)
    assert WidthPlan.from_pretrained(plan.save_pretrained(tmp_path).parent) == plan
    apply_width_plan_(model, plan)
    apply_width_plan_(fresh, WidthPlan.from_pretrained(tmp_path))
    for one, other in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(one, other)


def test_two_plans_in_a_row_are_one():
    model, fresh = build("bert"), build("bert")
    first_plan = draw_plan(model, "neurons", 10)
    apply_width_plan_(model, first_plan)
    second = draw_plan(model, "neurons", 4, seed=3)
    apply_width_plan_(model, second)
    apply_width_plan_(fresh, first_plan.then(second))
    for one, other in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(PlanMismatchError, match=r"expects 10 neurons .* leaves 4"):
        second.then(second)


def interleave_(model):
    """Gate and up in turn instead of one behind the other: no shape shows it."""
    mlp = model.model.layers[1].mlp

    def interleaved(hidden):
        both = mlp.gate_up_proj(hidden).unflatten(-1, (-1, 2))
        return mlp.down_proj(both[..., 1] * torch.nn.functional.silu(both[..., 0]))

    mlp.forward = interleaved
    return mlp


def test_halves_that_cannot_be_looked_at_are_refused():
    model = build("phi3")
    plan = draw_plan(model, "neurons", 6)
    mlp = model.model.layers[1].mlp
    mlp.forward = lambda hidden, gates: mlp.down_proj(gates)
    with pytest.raises(
        UnsupportedArchitectureError, match=r"does not run alone \(TypeError.*belong together is not known"
    ):
        apply_width_plan_(model, plan)
    assert model.config.intermediate_size == mlp.down_proj.in_features


def test_halves_that_lie_otherwise_are_refused_before_anything_changes():
    model = build("phi3")
    plan, inputs = draw_plan(model, "neurons", 6), inputs_of(model)
    mlp = interleave_(model)
    before = first(model(**inputs))
    with pytest.raises(UnsupportedArchitectureError, match=r"layers.1.mlp.gate_up_proj' holds two projections in one"):
        apply_width_plan_(model, plan)
    assert torch.equal(first(model(**inputs)), before)
    del mlp.forward
    apply_width_plan_(model, plan)


def test_full_verification_finds_what_no_structure_shows(monkeypatch):
    monkeypatch.setattr("hf_mpruner.surgery.narrow.check_layout", lambda *_: None)
    model = build("phi3")
    plan, inputs = draw_plan(model, "neurons", 6), inputs_of(model)
    interleave_(model)
    before = first(model(**inputs))
    with pytest.raises(UnsupportedArchitectureError, match="same neurons or heads set to zero"):
        apply_width_plan_(model, plan, verify="full", inputs=inputs)
    assert torch.equal(first(model(**inputs)), before)


@pytest.mark.parametrize(("noise", "allowed"), [(0.0, True), (0.04, True), (0.5, False)])
def test_rounding_in_16_bits_is_no_fault_and_other_neurons_are_one(monkeypatch, noise, allowed):
    """Wide, deep models are off by more in bfloat16 than is allowed elsewhere; small ones are not, so it is added."""
    model = build("llama").bfloat16()
    plan, inputs = draw_plan(model, "neurons", 12), inputs_of(model)
    run_still, calls = narrow_module.run_still, []

    def rounded(*given):
        calls.append(given)
        found = run_still(*given)
        off = noise * (len(calls) > 2)  # the narrowed model, after the whole and the masked one
        generator = torch.Generator().manual_seed(0)
        return {
            name: one + (off * one.std() * torch.randn(one.shape, generator=generator)).to(one.dtype)
            for name, one in found.items()
        }

    monkeypatch.setattr(narrow_module, "run_still", rounded)
    if allowed:
        apply_width_plan_(model, plan, verify="full", inputs=inputs)
    else:
        with pytest.raises(UnsupportedArchitectureError, match="same neurons or heads set to zero"):
            apply_width_plan_(model, plan, verify="full", inputs=inputs)


def test_other_neurons_are_a_fault_in_16_bits_too(monkeypatch):
    model = build("llama").bfloat16()
    plan, inputs = draw_plan(model, "neurons", 12), inputs_of(model)
    wrong = {path: replace(unit, kept=unit.removed) for path, unit in plan.units.items()}
    monkeypatch.setattr(narrow_module, "masked", lambda model, _, found: masked(model, WidthPlan(wrong), found))
    with pytest.raises(UnsupportedArchitectureError, match="same neurons or heads set to zero"):
        apply_width_plan_(model, plan, verify="full", inputs=inputs)
    assert model.config.intermediate_size == NEURONS


def test_weights_that_are_elsewhere_are_refused():
    model = build("bert")
    plan = draw_plan(model, "neurons", 6)
    model.hf_device_map = {"bert": "cpu", "classifier": "disk"}
    with pytest.raises(UnsupportedBackendError, match="lies on cpu, disk"):
        apply_width_plan_(model, plan)
    del model.hf_device_map
    model.classifier.to("meta")
    with pytest.raises(UnsupportedBackendError, match=r"'classifier.bias' is not whole in this process"):
        apply_width_plan_(model, plan)
    assert model.config.intermediate_size == NEURONS


def test_a_model_without_values_is_narrowed_all_the_same():
    with torch.device("meta"):
        model = MODELS["phi3"]()
    apply_width_plan_(model, draw_plan(model, "neurons", 6))
    assert model.model.layers[0].mlp.gate_up_proj.weight.shape == (12, HIDDEN)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it
def test_adapters_are_merged_first():
    peft = pytest.importorskip("peft")
    model = build("bert")
    plan = draw_plan(model, "neurons", 6)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query", "dense"], r=2))
    with pytest.raises(UnsupportedArchitectureError, match="merge_and_unload"):
        apply_width_plan_(wrapped, plan)
    whole = wrapped.merge_and_unload()
    apply_width_plan_(whole, plan)
    assert whole.config.intermediate_size == 6


def test_dtype_and_ties_stay():
    model = build("roberta").bfloat16()
    apply_width_plan_(model, draw_plan(model, "neurons", 3))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.lm_head.decoder.weight is model.roberta.embeddings.word_embeddings.weight


def test_a_plan_for_another_model_is_refused():
    plan = draw_plan(build("bert"), "neurons", 5)
    with pytest.raises(PlanMismatchError, match=r"made for model_type 'bert', .* 'roberta'"):
        apply_width_plan_(build("roberta"), plan)
    model = build("bert")
    apply_width_plan_(model, plan)
    with pytest.raises(PlanMismatchError, match=r"24 neurons .* has 5 there. Was it applied already"):
        apply_width_plan_(model, plan)
    wrong = WidthPlan({"bert.encoder.layer.0.attention.output.dense": UnitPlan(4, (0,), "heads")})
    with pytest.raises(PlanMismatchError, match="has none there that can go"):
        apply_width_plan_(build("bert"), wrong)


def test_other_sizes_in_other_layers_are_refused():
    model = build("bert")
    units = {f"{BERT_STACK}.{layer}.output.dense": UnitPlan(NEURONS, tuple(range(4 + layer))) for layer in range(2)}
    with pytest.raises(PlanMismatchError, match=r"keep 4 neurons .* 5, but config.intermediate_size is one number"):
        apply_width_plan_(model, WidthPlan(units))


def test_heads_that_share_a_bias_go_together():
    model = build("t5")
    plan = draw_plan(model, "heads", 2)
    path = "encoder.block.1.layer.0.SelfAttention.o"
    other = {**plan.units, path: UnitPlan(4, (0, 1) if plan.units[path].kept != (0, 1) else (2, 3), "heads")}
    with pytest.raises(PlanMismatchError, match="share a tensor with entries for each of their heads"):
        apply_width_plan_(model, WidthPlan(other))


@pytest.mark.parametrize(
    ("model", "what", "reason"),
    [
        (lambda: build("bert"), "heads", "num_attention_heads = 4 divides a width among the heads"),
        (lambda: build("phi3"), "heads", "qkv_proj.weight' holds queries, keys and values in one"),
        (
            lambda: transformers.Olmo2Model(transformers.Olmo2Config(**TOKENS)),
            "heads",
            "q_norm.weight' normalises over all heads at once",
        ),
        (
            lambda: transformers.MixtralModel(MixtralConfig(**GROUPED, num_local_experts=3)),
            "neurons",
            "counts experts that lie in one tensor",
        ),
        (
            lambda: transformers.Dinov2Model(transformers.Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)),
            "neurons",
            "mlp_ratio = 4 is a factor of another width",
        ),
    ],
    ids=["bert", "phi3", "olmo2", "mixtral", "dinov2"],
)  # fmt: skip
def test_what_no_config_can_express_is_refused_in_words(model, what, reason):
    found = find_widths(model(), what)
    assert not found.groups
    assert any(reason in refusal for refusal in found.refusals)


def test_feed_forwards_inside_of_a_block_that_has_its_own_are_told_apart():
    sizes = {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16, "num_feedforward_networks": 2}
    model = transformers.MobileBertModel(transformers.MobileBertConfig(**{**TOKENS, **sizes, "num_hidden_layers": 1}))
    (group,) = find_widths(model, "neurons").groups
    written = {unit.path: {part.path for part in unit.slices} - {unit.path} for unit in group.units}
    layer = "encoder.layer.0"
    assert written == {
        f"{layer}.output.dense": {f"{layer}.intermediate.dense"},
        f"{layer}.ffn.0.output.dense": {f"{layer}.ffn.0.intermediate.dense"},
    }
    ids = {"input_ids": torch.tensor([[3, 4, 5]])}
    apply_width_plan_(model.eval(), draw_plan(model, "neurons", 5), verify="full", inputs=ids)


def test_a_width_that_a_config_does_not_take_is_refused_before_anything_changes():
    """Llama wants its width to be a multiple of the number of its heads."""
    model = LlamaForCausalLM(LlamaConfig(**TOKENS))
    with pytest.raises(UnsupportedArchitectureError, match="multiple of the number of attention heads"):
        WidthEdit(model, draw_plan(model, "heads", 3))
    assert model.config.num_attention_heads == 4


def test_the_proof_lists_every_config_object():
    model = build("t5")
    plan = draw_plan(model, "neurons", 9)
    proof = prove_width(model, find_widths(model), plan.kept)
    assert {(edit.path, edit.new) for edit in proof.configs} == {("", 9), ("encoder", 9), ("decoder", 9)}
    apply_width_plan_(model, plan)
    assert model.config.d_ff == model.encoder.config.d_ff == model.decoder.config.d_ff == 9


class LayeredConfig(PreTrainedConfig):
    model_type = "layered_width"

    def __init__(self, num_hidden_layers=3, hidden_size=HIDDEN, intermediate_size=NEURONS, **kwargs):
        self.num_hidden_layers, self.hidden_size, self.intermediate_size = (
            num_hidden_layers,
            hidden_size,
            intermediate_size,
        )
        super().__init__(**kwargs)


class LayeredFeedForward(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.up = torch.nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = torch.nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden):
        return hidden + self.down(torch.tanh(self.up(hidden)))


class LayeredModel(PreTrainedModel):
    """Reads `per_layer_config`, which transformers' own text models do for other values only."""

    config_class = LayeredConfig
    main_input_name = "inputs_embeds"

    def __init__(self, config):
        super().__init__(config)
        own = [config.per_layer_config[layer] for layer in range(config.num_hidden_layers)]
        self.layers = torch.nn.ModuleList(LayeredFeedForward(one) for one in own)
        self.post_init()

    def forward(self, inputs_embeds):
        for layer in self.layers:
            inputs_embeds = layer(inputs_embeds)
        return BaseModelOutput(last_hidden_state=inputs_embeds)


@pytest.mark.skipif(not hasattr(PreTrainedConfig, "per_layer_config"), reason="not in this version of transformers")
def test_a_model_that_reads_a_config_for_each_layer_may_have_other_sizes_in_each(tmp_path):
    torch.manual_seed(0)
    model = LayeredModel(LayeredConfig()).eval()
    group = find_widths(model, "neurons").groups[0]
    assert group.per_layer
    assert [unit.layer for unit in group.units] == [0, 1, 2]
    kept = [(0, 3, 5), tuple(range(NEURONS)), (1, 2, 4, 8)]
    units = {unit.path: UnitPlan(NEURONS, stays) for unit, stays in zip(group.units, kept, strict=True)}
    inputs = {"inputs_embeds": torch.randn(2, 3, HIDDEN)}
    edit = apply_width_plan_(model, WidthPlan(units), verify="full", inputs=inputs)
    model.save_pretrained(tmp_path)
    again = LayeredModel.from_pretrained(tmp_path)
    assert [layer.up.out_features for layer in again.layers] == [3, NEURONS, 4]
    with torch.no_grad():
        assert torch.equal(first(again(**inputs)), first(model(**inputs)))
    edit.undo()
    assert not model.config.is_heterogeneous
    assert [layer.up.out_features for layer in model.layers] == [model.config.intermediate_size] * 3
    assert [
        refusal for refusal in find_widths(model).refusals if "stands before" in refusal
    ]  # hidden_size is no such width
