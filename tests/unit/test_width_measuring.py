"""Which neurons and heads go: measured over real tokens, ordered by a criterion, as many as a config takes."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from hf_mpruner import CalibrationError, UnsupportedArchitectureError, apply_width_plan_, prune_width_
from hf_mpruner.architectures import count_parameters, find_widths
from hf_mpruner.width import greedy_cka_order, measure_units, plan_width
from hf_mpruner.width.measure import incoming_weights
from hf_mpruner.width.planning import units_together

TOKENS = {
    "num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "vocab_size": 50,
}  # fmt: skip
T5 = {"num_layers": 2, "d_model": 16, "d_ff": 24, "num_heads": 4, "d_kv": 6, "vocab_size": 50}


def bert(**more):
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**{**TOKENS, **more}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return model


def examples(number=12, seed=0):
    """Sequences of 3 to 9 tokens, unpadded."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 10, (number,), generator=generator).tolist()
    return [{"input_ids": torch.randint(3, 50, (length,), generator=generator).tolist()} for length in lengths]


def padded(rows, size=4):
    """The same in batches with padding on alternate sides, so that no position is always real."""
    for start in range(0, len(rows), size):
        part = [row["input_ids"] for row in rows[start : start + size]]
        width = max(map(len, part)) + 1
        ids, mask = torch.zeros(len(part), width, dtype=torch.long), torch.zeros(len(part), width, dtype=torch.long)
        for i, one in enumerate(part):
            at = slice(width - len(one), width) if start % (2 * size) else slice(0, len(one))
            ids[i, at], mask[i, at] = torch.tensor(one), 1
        yield {"input_ids": ids, "attention_mask": mask}


def capture(model, path, rows):
    """The input of a module, example by example without any padding."""
    seen = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    with torch.no_grad():
        for row in rows:
            model.eval()(torch.tensor([row["input_ids"]]))
    handle.remove()
    return torch.cat([one.reshape(-1, one.shape[-1]) for one in seen]).double()


def test_moments_are_those_of_real_tokens_only():
    model, rows = bert(position_embedding_type="absolute"), examples()
    # positions count from the left, so an example alone and one padded on the left differ: padding goes right here
    batches = [batch for batch in padded(rows) if batch["attention_mask"][:, 0].all()]
    alone = [{"input_ids": ids[mask.bool()].tolist()} for b in batches for ids, mask in zip(*b.values(), strict=True)]
    group = find_widths(model, "neurons").groups[0]
    needs = frozenset({"moments", "target"})
    measured = list(measure_units(model, batches, units_together(group), needs=needs))
    assert [inputs.layer for inputs in measured] == [unit.path for unit in group.units]
    for inputs, unit in zip(measured, group.units, strict=True):
        wanted = capture(model, unit.path, alone)
        assert inputs.moments.num_samples == len(wanted)
        torch.testing.assert_close(inputs.moments.covariance[:24, :24], wanted.T.cov(), rtol=1e-4, atol=1e-6)
        assert inputs.moments.num_targets == 16


def test_several_passes_measure_what_one_does():
    model, rows = bert(), list(padded(examples()))
    together = units_together(find_widths(model, "neurons").groups[0])
    once = list(measure_units(model, rows, together))
    each = list(measure_units(model, rows, together, max_bytes=1))
    for one, other in zip(once, each, strict=True):
        assert torch.equal(one.moments.covariance, other.moments.covariance)


def test_a_model_is_left_as_it_was_after_measuring():
    model = bert()
    model.bert.encoder.layer[0].train(False)
    flags, state = [m.training for m in model.modules()], torch.get_rng_state()
    found = find_widths(model)
    plan_width(model, found, 0.5, batches=list(padded(examples())))
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("criterion", ["cka", "cka_one_shot", "mipp", "l1"])
def test_planted_neurons_go_first(criterion):
    """Dead ones for what looks at activations, light ones for what looks at weights: other ones in each layer."""
    model = bert()
    planted = [(1, 5, 8, 13, 17, 20), (0, 2, 3, 11, 19, 23)]
    with torch.no_grad():
        for layer, neurons in zip(model.bert.encoder.layer, planted, strict=True):
            layer.intermediate.dense.weight[list(neurons)] *= 1e-4
            layer.intermediate.dense.bias[list(neurons)] = -50.0
    report = prune_width_(model, 0.25, criterion=criterion, calibration=list(padded(examples(48))))
    assert [unit.removed for unit in report.plan.units.values()] == planted
    assert model.config.intermediate_size == 18


def test_heads_go_by_the_columns_of_the_whole_group():
    """Grouped queries: the greedy order over groups is that of brute force over sets of columns."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**TOKENS, num_key_value_heads=2, head_dim=6))
    rows = examples(20)
    report = prune_width_(model, 0.5, what="heads", calibration=list(padded(rows)))
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (2, 1)
    fresh = LlamaForCausalLM(LlamaConfig(**TOKENS, num_key_value_heads=2, head_dim=6))
    torch.manual_seed(0)
    fresh = LlamaForCausalLM(LlamaConfig(**TOKENS, num_key_value_heads=2, head_dim=6))
    first = next(iter(report.plan.units))
    activations = capture(fresh, first, rows)
    activations = activations - activations.mean(0)
    whole = activations @ activations.T

    def cka(columns):
        part = activations[:, columns] @ activations[:, columns].T
        return float((part * whole).sum() / (part.norm() * whole.norm()))

    best = max(range(2), key=lambda group: cka(slice(group * 12, (group + 1) * 12)))
    assert report.plan.units[first].kept == (best,)


def test_heads_that_share_a_bias_are_judged_together():
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**T5))
    batch = {"input_ids": torch.randint(3, 50, (6, 8)), "decoder_input_ids": torch.randint(3, 50, (6, 5))}
    group = find_widths(model, "heads").groups[0]
    sizes = [len(units) for units in units_together(group)]
    assert sorted(sizes) == [1, 1, 2, 2]  # cross-attention has no bias to share
    plan = prune_width_(model, 0.25, what="heads", calibration=[batch], verify="full").plan
    for stack in ("encoder", "decoder"):
        kept = {plan.units[f"{stack}.block.{layer}.layer.0.SelfAttention.o"].kept for layer in range(2)}
        assert len(kept) == 1
    assert model.config.num_heads == 3


def test_weights_into_a_neuron_are_its_rows_whatever_the_layout():
    torch.manual_seed(0)
    gpt = GPT2Model(GPT2Config(n_layer=1, n_embd=16, n_head=4, vocab_size=50, bos_token_id=0, eos_token_id=1))
    unit = find_widths(gpt, "neurons").groups[0].units[0]
    assert torch.equal(incoming_weights(gpt, [unit]), gpt.h[0].mlp.c_fc.weight.T)
    llama = LlamaForCausalLM(LlamaConfig(**TOKENS, num_key_value_heads=2, head_dim=6)).model
    unit = find_widths(llama, "heads").groups[0].units[0]
    attention = llama.layers[0].self_attn
    second = [attention.q_proj.weight[12:], attention.k_proj.weight[6:], attention.v_proj.weight[6:]]
    assert torch.equal(incoming_weights(llama, [unit])[1], torch.cat([one.flatten() for one in second]))


def test_a_vision_model_is_measured_without_a_mask():
    torch.manual_seed(0)
    small = {name: value for name, value in TOKENS.items() if name != "vocab_size"}
    model = ViTModel(ViTConfig(**small, image_size=16, patch_size=8)).eval()
    pixels = torch.randn(6, 3, 16, 16)
    wanted = []
    handle = model.layers[0].mlp.fc2.register_forward_pre_hook(lambda _, given: wanted.append(given[0].detach()))
    with torch.no_grad():
        model(pixels)
    handle.remove()
    before = count_parameters(model)
    report = prune_width_(model, 0.5, calibration=[{"pixel_values": pixels}])
    order, _ = greedy_cka_order(wanted[0].reshape(-1, 24).double(), 12)
    assert set(report.plan.units["layers.0.mlp.fc2"].removed) == set(order.tolist())
    assert before - count_parameters(model) == 2 * 12 * (2 * 16 + 1)
    assert report.preview.parameters_after == count_parameters(model)


def test_the_edit_of_a_report_takes_it_back():
    model = bert()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = prune_width_(model, 0.5, criterion="random")
    assert model.config.intermediate_size == 12
    report.edit.undo()
    assert model.config.intermediate_size == 24
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("fraction", "multiple", "left"), [(0.25, 8, 24), (0.25, 1, 18), (0.3, 4, 20), (0.5, 8, 16), (0.9, 8, 8)]
)
def test_what_stays_is_a_multiple_and_no_less_than_asked(fraction, multiple, left):
    model = bert()
    if left == 24:
        with pytest.raises(ValueError, match="takes none of the 24 neurons"):
            prune_width_(model, fraction, criterion="random", multiple_of=multiple)
    else:
        prune_width_(model, fraction, criterion="random", multiple_of=multiple)
    assert model.config.intermediate_size == left


def test_only_the_asked_values_are_lowered():
    from transformers import BartConfig, BartModel

    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 32}
    model = BartModel(BartConfig(**sizes, encoder_attention_heads=2, decoder_attention_heads=2, vocab_size=50))
    prune_width_(model, 0.5, criterion="l1", fields=["decoder_ffn_dim"])
    assert (model.config.encoder_ffn_dim, model.config.decoder_ffn_dim) == (24, 16)
    with pytest.raises(ValueError, match=r"'ffn_dim' counts no neurons .* 'encoder_ffn_dim', 'decoder_ffn_dim'"):
        prune_width_(model, 0.5, criterion="l1", fields=["ffn_dim"])


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"fraction": 1.5}, ValueError, "no fraction from 0 to 1"),
        ({"fraction": -0.1}, ValueError, "no fraction from 0 to 1"),
        ({"fraction": 3}, ValueError, "for a fifth of the neurons pass 0.2"),
        ({"fraction": "half"}, TypeError, "pass a fraction such as 0.2"),
        ({"fraction": 1.0}, ValueError, r"24 of the 24 neurons of 'bert.encoder.layer.0.output.dense' would go"),
        ({"fraction": 0.0}, ValueError, "takes none of the 24 neurons"),
        ({"criterion": "ckaa"}, ValueError, r"'ckaa' is not known. Did you mean 'cka'\? Known neuron criteria: cka, "),
        ({"what": "layers"}, ValueError, "what='layers' is not known: pass one of 'neurons', 'heads'"),
        ({"what": "heads"}, UnsupportedArchitectureError, r"divides a width among the heads(.|\n)*masked instead"),
        ({"fraction": None}, ValueError, "'cka' does not say how many go"),
        ({"multiple_of": 0}, ValueError, "no whole number from 1"),
        ({"criterion": "cka", "calibration": None}, CalibrationError, "pass calibration=dataset"),
        ({"calibration": []}, CalibrationError, "The calibration data is empty"),
    ],
)
def test_bad_arguments_are_refused_before_anything_changes(arguments, kind, text):
    model = bert()
    given = {"fraction": 0.5, "criterion": "cka", "calibration": examples(), **arguments}
    with pytest.raises(kind, match=text):
        prune_width_(model, given.pop("fraction"), **given)
    assert model.config.intermediate_size == 24


def test_activations_that_are_not_finite_name_the_neuron():
    model = bert()
    with torch.no_grad():
        model.bert.encoder.layer[1].intermediate.dense.bias[3] = float("nan")
    with pytest.raises(CalibrationError, match="neuron 3 are NaN or infinite"):
        prune_width_(model, 0.5, calibration=list(padded(examples())))


def test_a_plan_of_a_call_is_replayed_on_a_fresh_model(tmp_path):
    model, fresh = bert(), bert()
    report = prune_width_(model, 0.4, calibration=list(padded(examples())))
    assert report.plan.evidence["criterion"] == "cka"
    apply_width_plan_(fresh, type(report.plan).from_pretrained(report.plan.save_pretrained(tmp_path)))
    for one, other in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(one, other)
    assert "24 -> 14 in each of 2 layers" in str(report)


def test_mipp_decides_how_many_and_the_layer_that_keeps_most_counts():
    """Six dead neurons in one layer and three in the other: three go, of the six some."""
    model = bert()
    dead = [(1, 5, 8, 13, 17, 20), (0, 2, 3)]
    with torch.no_grad():
        for layer, neurons in zip(model.bert.encoder.layer, dead, strict=True):
            layer.intermediate.dense.weight[list(neurons)] = 0.0
            layer.intermediate.dense.bias[list(neurons)] = -50.0
    report = prune_width_(
        model, None, criterion="mipp", calibration=list(padded(examples(200))), calibration_samples=200
    )
    first, second = (unit.removed for unit in report.plan.units.values())
    assert second == (0, 2, 3)
    assert len(first) == 3
    assert set(first) < set(dead[0])
    assert model.config.intermediate_size == 21


def test_positions_that_no_mask_fits_are_refused_unless_nothing_is_padded():
    """Longformer runs on a multiple of its window, which is more positions than there are tokens."""
    from transformers import LongformerConfig, LongformerModel

    torch.manual_seed(0)
    model = LongformerModel(LongformerConfig(**TOKENS, attention_window=4, max_position_embeddings=32, pad_token_id=0))
    ids = torch.randint(2, 50, (2, 7))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    with pytest.raises(CalibrationError, match="calibration_batch_size=1"):
        prune_width_(model, 0.5, calibration=[{"input_ids": ids, "attention_mask": mask}])
    assert model.config.intermediate_size == 24
    prune_width_(model, 0.5, calibration=[{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
    assert model.config.intermediate_size == 12
