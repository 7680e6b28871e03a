"""Baselines: evenly spaced against every selection there is, drawn layers, the size of weights."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, T5Config, T5EncoderModel

from hf_mpruner import CalibrationError, find_block_stacks
from hf_mpruner.architectures import BlockStack, ConfigField
from hf_mpruner.criteria import CriterionInputs, LayerScores, find_criterion, score_layers


def make_stack(depth: int, period: int = 1, pinned: tuple[int, ...] = (), path: str = "layer") -> BlockStack:
    pins = dict.fromkeys(pinned, "")
    return BlockStack(path, "Layer", depth, ConfigField("n"), period=period, period_reason="shifted", pinned=pins)


def score(name: str, *stacks: BlockStack, seed: int = 0) -> dict[str, LayerScores]:
    return score_layers(find_criterion(name), CriterionInputs(nn.Identity(), stacks, seed=seed)).scores


def test_evenly_spaced_layers_stay() -> None:
    criterion, stack = find_criterion("alternate"), make_stack(12)
    scores = score("alternate", stack)["layer"]

    def kept(number: int) -> list[int]:
        removed = criterion.select(scores, stack, 12 - number)
        return [layer for layer in range(12) if layer not in removed]

    assert kept(12) == list(range(12))
    assert kept(6) == [0, 2, 4, 7, 9, 11]  # the places are 0, 2.2, 4.4, 6.6, 8.8, 11
    assert kept(4) == [0, 4, 7, 11]
    assert kept(2) == [0, 11]
    assert kept(1) == [0]


@pytest.mark.parametrize("seed", range(30))
def test_no_selection_is_more_even(seed: int) -> None:
    draw = random.Random(seed)
    depth, period = draw.randint(2, 9), draw.choice([1, 1, 2, 3])
    stack = make_stack(depth, period, tuple(draw.sample(range(depth), draw.randint(0, 2))))
    protected = set(draw.sample(range(depth), draw.randint(0, 1)))
    scores, criterion = score("alternate", stack)["layer"], find_criterion("alternate")
    for number in range(1, depth):
        places = torch.linspace(0, depth - 1, depth - number, dtype=torch.float64)

        def unevenness(removed: tuple[int, ...], places=places) -> float:
            kept = torch.tensor([layer for layer in range(depth) if layer not in removed])
            return float((kept - places).square().sum())

        allowed = [
            removed
            for removed in itertools.combinations(range(depth), number)
            if not protected & set(removed) and stack.removable(removed) == removed
        ]
        if not allowed:
            with pytest.raises(ValueError, match="cannot be removed"):
                criterion.select(scores, stack, number, protected)
            continue
        chosen = criterion.select(scores, stack, number, protected)
        assert chosen in allowed
        assert unevenness(chosen) == pytest.approx(min(map(unevenness, allowed)))


def test_what_is_drawn_is_nested_seeded_and_of_each_stack_its_own() -> None:
    stacks = [make_stack(9), make_stack(9, path="other")]
    before = random.getstate(), torch.random.get_rng_state()
    scores = score("random", *stacks, seed=7)
    assert random.getstate() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])
    criterion = find_criterion("random")
    chosen = [set(criterion.select(scores["layer"], stacks[0], number)) for number in range(9)]
    assert all(fewer < more for fewer, more in itertools.pairwise(chosen))
    assert score("random", *stacks, seed=7)["layer"].values == scores["layer"].values
    assert score("random", *stacks, seed=8)["layer"].values != scores["layer"].values
    assert scores["other"].values != scores["layer"].values
    drawn = {
        layer
        for seed in range(60)
        for layer in criterion.select(score("random", stacks[0], seed=seed)["layer"], stacks[0], 1)
    }
    assert drawn == set(range(9))


def test_more_than_can_go_is_refused_with_what_can() -> None:
    stack = make_stack(4, pinned=(0,))
    for name in ("tail", "alternate", "random"):
        with pytest.raises(ValueError, match=r"3 layers cannot be removed from 'layer'.*at most 2 can go"):
            find_criterion(name).select(score(name, stack)["layer"], stack, 3, protected={1})


SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}


def magnitude(model: nn.Module) -> LayerScores:
    stacks = find_block_stacks(model)
    return score_layers(find_criterion("magnitude"), CriterionInputs(model, stacks)).scores[stacks[0].path]


def test_magnitude_adds_up_the_weight_matrices_alone() -> None:
    torch.manual_seed(0)
    model = BertModel(BertConfig(num_hidden_layers=3, **SIZES))
    with torch.no_grad():
        for layer in model.encoder.layer:
            layer.output.dense.bias.fill_(1e6)
            layer.output.LayerNorm.weight.fill_(1e6)
        model.encoder.layer[1].output.dense.weight.mul_(3)
    expected = []
    for layer in model.encoder.layer:
        maps = [module for module in layer.modules() if isinstance(module, nn.Linear)]
        expected.append(sum(abs(value) for one in maps for value in one.weight.flatten().tolist()))
    assert magnitude(model).values == pytest.approx(expected)
    assert magnitude(model).ranking[-1] == 1


def test_magnitude_leaves_out_tables_of_positions() -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 32, "vocab_size": 50}
    model = T5EncoderModel(T5Config(num_layers=3, **sizes))
    before = magnitude(model).values
    with torch.no_grad():
        model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.fill_(1e6)
    assert magnitude(model).values == before


def test_magnitude_refuses_codes() -> None:
    model = BertModel(BertConfig(num_hidden_layers=2, **SIZES))
    stacks = find_block_stacks(model)
    inputs = CriterionInputs(model, stacks)
    dense = model.encoder.layer[1].output.dense
    dense.weight = nn.Parameter(dense.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(CalibrationError, match=r"magnitude.*torch\.int8.*without quantisation"):
        score_layers(find_criterion("magnitude"), inputs)
    model.is_quantized = True
    with pytest.raises(CalibrationError, match="quantised"):
        score_layers(find_criterion("magnitude"), inputs)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads what transformers deprecates
def test_magnitude_of_a_model_with_adapters_is_that_of_its_base() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = BertModel(BertConfig(num_hidden_layers=2, **SIZES))
    before = magnitude(model).values
    config = peft.LoraConfig(r=4, target_modules=["query", "dense"], init_lora_weights=False)
    base = peft.get_peft_model(model, config).get_base_model()
    assert magnitude(base).values == before
