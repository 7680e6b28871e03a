"""Layers that are merged: the weights are the sums that the plan says, and come back to the bit."""

from __future__ import annotations

import copy
import random
from fractions import Fraction

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_mpruner import PruningPlan, UnsupportedArchitectureError, apply_plan_, find_block_stacks
from hf_mpruner.merging import Merge, cannot_sum, merged_weights
from hf_mpruner.plan import StackPlan
from hf_mpruner.surgery import ModelEdit

PATH = "bert.encoder.layer"
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 50}
IDS = torch.arange(2, 18).reshape(2, 8)


def make_model(depth: int = 6, seed: int = 0, dtype: torch.dtype = torch.float32) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=depth, **SIZES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def draw_merges(draw: random.Random, depth: int, kept: tuple[int, ...]) -> dict[int, dict[int, float]]:
    """Some kept layers become sums over any layers: also over each other, and over layers before them."""
    layers = draw.sample(kept, draw.randint(1, len(kept)))
    return {
        layer: {of: round(draw.uniform(-3, 3), 6) for of in draw.sample(range(depth), draw.randint(1, depth))}
        for layer in layers
    }


def exact(terms: dict[int, float], values: dict[int, float]) -> float:
    """The sum in rational numbers, rounded once to 64 bits."""
    return float(sum(Fraction(coefficient) * Fraction(values[of]) for of, coefficient in terms.items()))


@pytest.mark.parametrize("seed", range(8))
def test_merged_weights_are_the_sum_of_those_before(seed: int) -> None:
    draw = random.Random(seed)
    depth = draw.randint(2, 6)
    dtype = draw.choice([torch.float32, torch.float64, torch.bfloat16])
    model = make_model(depth, seed, dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kept = tuple(sorted(draw.sample(range(depth), draw.randint(1, depth - 1))))
    merges = draw_merges(draw, depth, kept)
    plan = PruningPlan.from_kept({PATH: kept}, find_block_stacks(model), merged={PATH: merges})
    edit = apply_plan_(model, plan)
    after = model.state_dict()
    assert len(model.bert.encoder.layer) == len(kept)
    spacing = torch.finfo(dtype).eps
    for place, layer in enumerate(kept):
        for name in after:
            if not name.startswith(f"{PATH}.{place}."):
                continue
            leaf = name.removeprefix(f"{PATH}.{place}.")
            if layer not in merges:
                assert torch.equal(after[name], before[f"{PATH}.{layer}.{leaf}"])
                continue
            terms = merges[layer]
            wanted = sum(coefficient * before[f"{PATH}.{of}.{leaf}"].double() for of, coefficient in terms.items())
            assert torch.equal(after[name], wanted.to(dtype)), name
            for at in draw.sample(range(wanted.numel()), 3):
                values = {of: before[f"{PATH}.{of}.{leaf}"].flatten()[at].item() for of in terms}
                largest = max(abs(coefficient * values[of]) for of, coefficient in terms.items())
                assert after[name].flatten()[at].item() == pytest.approx(
                    exact(terms, values), abs=2 * spacing * largest
                )
    untouched = [name for name in after if not name.startswith(f"{PATH}.")]
    assert all(torch.equal(after[name], before[name]) for name in untouched)

    edit.undo()
    again = model.state_dict()
    assert again.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in again.items())


def test_tensors_stay_the_objects_that_they_are_and_their_gradients_go() -> None:
    model = make_model(4)
    layer = model.bert.encoder.layer[1]
    model(input_ids=IDS, labels=torch.tensor([0, 1])).loss.backward()
    parameters, places = list(layer.parameters()), [parameter.data_ptr() for parameter in layer.parameters()]
    edit = ModelEdit(model, {PATH: [0, 1, 3]}, merged={PATH: {1: {1: 0.25, 2: 0.75}}})
    untouched = model.bert.encoder.layer[0].output.dense.weight
    assert untouched.grad is not None
    edit.apply()
    assert all(one is other for one, other in zip(parameters, layer.parameters(), strict=True))
    assert [parameter.data_ptr() for parameter in parameters] == places
    assert all(parameter.grad is None and parameter.requires_grad for parameter in parameters)
    assert untouched.grad is not None


def test_sums_that_read_each_other_read_what_was_before() -> None:
    model = make_model(3)
    weights = [layer.output.dense.weight.detach().clone() for layer in model.bert.encoder.layer]
    apply_plan_(
        model,
        PruningPlan.from_kept(
            {PATH: [0, 1]}, find_block_stacks(model), merged={PATH: {0: {1: 1.0}, 1: {0: 1.0, 2: 1.0}}}
        ),
    )
    assert torch.equal(model.bert.encoder.layer[0].output.dense.weight, weights[1])
    assert torch.equal(model.bert.encoder.layer[1].output.dense.weight, weights[0] + weights[2])


def test_buffers_stay_those_of_the_layer_that_stays() -> None:
    class Normed(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2)
            self.norm.running_var.fill_(value)

    model = nn.ModuleDict({"layer": nn.ModuleList(Normed(value) for value in (1.0, 2.0, 5.0))})
    merge = Merge(model, "layer", {0: {0: -1.0, 1: 1.0, 2: 1.0}})
    merge.apply()
    assert model["layer"][0].norm.running_var.tolist() == [1.0, 1.0]


def test_weights_are_merged_for_a_while() -> None:
    model = make_model(3)
    before = copy.deepcopy(model.state_dict())
    with merged_weights(model, {PATH: {0: {1: 1.0}}}):
        assert torch.equal(
            model.state_dict()[f"{PATH}.0.output.dense.weight"], before[f"{PATH}.1.output.dense.weight"]
        )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_sum_that_fails_half_way_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(3)
    before = copy.deepcopy(model.state_dict())
    edit = ModelEdit(model, {PATH: [0, 1]}, merged={PATH: {0: {0: 2.0}, 1: {1: 1.0, 2: 1.0}}})
    sums = edit.merges[0].sums
    object.__setattr__(sums[-1], "terms", ((1.0, torch.zeros(3)),))  # of another shape
    with pytest.raises(RuntimeError):
        edit.apply()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert len(model.bert.encoder.layer) == 3


@pytest.mark.parametrize("seed", range(4))
def test_two_plans_in_one_are_both_in_turn(seed: int) -> None:
    draw = random.Random(seed)
    model = make_model(6, seed, torch.float64)
    once = copy.deepcopy(model)
    first_kept = tuple(sorted(draw.sample(range(6), 4)))
    first = PruningPlan.from_kept(
        {PATH: first_kept}, find_block_stacks(model), merged={PATH: draw_merges(draw, 6, first_kept)}
    )
    apply_plan_(model, first)
    second_kept = tuple(sorted(draw.sample(range(4), 2)))
    merges = draw_merges(draw, 4, second_kept) if seed % 3 else {}
    second = PruningPlan.from_kept({PATH: second_kept}, find_block_stacks(model), merged={PATH: merges})
    apply_plan_(model, second)
    both = first.then(second)
    assert both.kept[PATH] == tuple(first_kept[place] for place in second_kept)
    apply_plan_(once, PruningPlan.from_dict(both.to_dict()))
    for (name, one), other in zip(model.state_dict().items(), once.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, msg=name)


def test_a_plan_without_merges_composes_as_before() -> None:
    both = StackPlan(5, (0, 2, 3)).then(StackPlan(3, (0, 2)))
    assert (both.kept, both.merged) == ((0, 3), {})
    with pytest.raises(ValueError, match="expects 4 layers, the first leaves 3"):
        StackPlan(5, (0, 2, 3)).then(StackPlan(4, (0, 2)))


def test_what_is_merged_is_said(tmp_path) -> None:
    model = make_model(6)
    merges = {1: {1: -1.0, 2: 1.0, 3: 1.0}, 5: {0: 0.5, 4: 0.5}}
    plan = PruningPlan.from_kept({PATH: [0, 1, 5]}, find_block_stacks(model), merged={PATH: merges})
    text = f"{PATH}: 6 -> 3 layers, without 2-4; merged: 2-3 into 1, 0, 4 into 5"
    assert str(plan) == text
    assert "merged: 2-3 into 1, 0, 4 into 5" in str(plan.preview(model))
    plan.save_pretrained(tmp_path)
    again = PruningPlan.from_pretrained(tmp_path)
    assert again == plan
    assert again.merged == {PATH: merges}
    assert "merged" not in str(PruningPlan.from_kept({PATH: [0, 1]}, find_block_stacks(model)))


def test_a_merge_without_a_cut_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Layers \[1\].*none of 3 layers goes"):
        StackPlan(3, (0, 1, 2), {1: {1: 0.5, 2: 0.5}})


@pytest.mark.parametrize("kept", [(0, 1, 3), (1, 3)])
def test_a_full_check_runs_the_merged_model(kept: tuple[int, ...]) -> None:
    model = make_model(4)
    plan = PruningPlan.from_kept({PATH: kept}, find_block_stacks(model), merged={PATH: {1: {1: 0.4, 2: 0.6}}})
    by_hand = copy.deepcopy(model)
    apply_plan_(model, plan, verify="full", inputs={"input_ids": IDS})
    with torch.no_grad():
        for one, other in zip(
            by_hand.bert.encoder.layer[1].parameters(), by_hand.bert.encoder.layer[2].parameters(), strict=True
        ):
            one.copy_((0.4 * one.double() + 0.6 * other.double()).float())
        by_hand.bert.encoder.layer = nn.ModuleList(by_hand.bert.encoder.layer[layer] for layer in kept)
        assert torch.equal(model(input_ids=IDS).logits, by_hand(input_ids=IDS).logits)


def test_a_full_check_sees_a_cut_whose_sums_were_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(4)
    before = copy.deepcopy(model.state_dict())
    plan = PruningPlan.from_kept({PATH: (0, 1, 3)}, find_block_stacks(model), merged={PATH: {1: {1: 0.4, 2: 0.6}}})
    monkeypatch.setattr("hf_mpruner.surgery.edit.Merge.apply", lambda self: None)
    monkeypatch.setattr(
        "hf_mpruner.verify.check.merged_weights", lambda model, merged: merged_by_hand(model, merged[PATH])
    )
    with pytest.raises(UnsupportedArchitectureError, match="is not the uncut model with the removed layers skipped"):
        apply_plan_(model, plan, verify="full", inputs={"input_ids": IDS})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class merged_by_hand:
    def __init__(self, model: nn.Module, merges: dict[int, dict[int, float]]) -> None:
        self.model, self.merges, self.state = model, merges, copy.deepcopy(model.state_dict())

    @torch.no_grad()
    def __enter__(self) -> None:
        for layer, terms in self.merges.items():
            for name, parameter in self.model.bert.encoder.layer[layer].named_parameters():
                parameter.copy_(sum(c * self.state[f"{PATH}.{of}.{name}"] for of, c in terms.items()))

    def __exit__(self, *error: object) -> None:
        self.model.load_state_dict(self.state)


def test_a_merged_decoder_generates_and_reloads(tmp_path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(num_hidden_layers=4, num_key_value_heads=1, **SIZES, bos_token_id=0, eos_token_id=1)
    model = LlamaForCausalLM(config).eval()
    plan = PruningPlan.from_kept(
        {"model.layers": [0, 1, 3]}, find_block_stacks(model), merged={"model.layers": {1: {1: 0.5, 2: 0.5}}}
    )
    apply_plan_(model, plan, verify="full", inputs={"input_ids": IDS})
    model.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 1}
    assert torch.equal(again.generate(IDS, **options), model.generate(IDS, **options))


def refused(model: nn.Module, path: str, kept: list[int], merges: dict[int, dict[int, float]], match: str) -> None:
    before = copy.deepcopy(model.state_dict())
    plan = PruningPlan.from_kept({path: kept}, find_block_stacks(model), merged={path: merges})
    with pytest.raises(UnsupportedArchitectureError, match=match):
        apply_plan_(model, plan)
    assert len(model.get_submodule(path)) == plan.stacks[path].depth
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_blocks_that_cannot_be_summed_are_refused() -> None:
    sizes = {"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 32, "vocab_size": 50}
    t5 = T5ForConditionalGeneration(T5Config(num_layers=3, **sizes))
    refused(t5, "encoder.block", [0, 2], {0: {0: 0.5, 1: 0.5}}, r"only layer 0 has '.*relative_attention_bias")
    refused(t5, "encoder.block", [0, 1], {1: {0: 0.5, 1: 0.5}}, "are built differently")

    tied = make_model(4)
    tied.bert.encoder.layer[1].output.dense.weight = tied.bert.encoder.layer[3].output.dense.weight
    assert "shares a weight" in (cannot_sum(tied, PATH, 1, [2]) or "")
    assert cannot_sum(tied, PATH, 0, [1, 3]) is None

    codes = make_model(4)
    dense = codes.bert.encoder.layer[2].output.dense
    dense.weight = nn.Parameter(dense.weight.detach().to(torch.int8), requires_grad=False)
    assert "torch.int8: its numbers are codes" in (cannot_sum(codes, PATH, 1, [2]) or "")
    codes.is_quantized = True
    assert "quantised" in (cannot_sum(codes, PATH, 0, [1]) or "")

    wide = make_model(4)
    wide.bert.encoder.layer[2].output.dense.weight = nn.Parameter(torch.zeros(3, 3))
    assert "differs in shape: [16, 24] and [3, 3]" in (cannot_sum(wide, PATH, 1, [2]) or "")

    albert = AlbertModel(AlbertConfig(num_hidden_layers=2, embedding_size=8, **SIZES))
    groups = nn.ModuleList([albert.encoder.albert_layer_groups[0]] * 2)
    holder = nn.ModuleDict({"layer": groups})
    assert "stands in several places" in (cannot_sum(holder, "layer", 0, [1]) or "")

    followed = nn.ModuleDict({"layer": nn.ModuleList([nn.Linear(1, 1)] * 1), "head": nn.ModuleList([nn.Linear(1, 1)])})
    assert "'head' has weights for each layer" in (cannot_sum(followed, "layer", 0, [0], ["head"]) or "")


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads what transformers deprecates
def test_a_model_with_adapters_is_refused() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(make_model(4), peft.LoraConfig(target_modules=["query"]))
    plan = PruningPlan.from_kept(
        {PATH: [0, 1, 3]}, find_block_stacks(make_model(4)), merged={PATH: {1: {1: 0.5, 2: 0.5}}}
    )
    with pytest.raises(UnsupportedArchitectureError, match=r"has adapters.*merge_and_unload"):
        apply_plan_(model, plan)
    assert len(model.get_base_model().bert.encoder.layer) == 4
