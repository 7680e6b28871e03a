"""Rounds of pruning, and masks on plain modules that training does not lift."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hf_mpruner.errors import CalibrationError
from hf_mpruner.width import find_neuron_criterion, known_neuron_criteria
from hf_mpruner.width.masks import (
    PlainLayer,
    alive_neurons,
    layer_inputs,
    make_permanent,
    mask_by_criterion,
    mask_neurons,
    read_outputs,
    widths,
)
from hf_mpruner.width.neural import NeuralMIPP, Predictors
from hf_mpruner.width.schedule import numbers_by_round, prune_in_rounds

MLP_LAYERS = [PlainLayer("0", "1"), PlainLayer("3", "4")]
CNN_LAYERS = [PlainLayer("0", "2", norm="1"), PlainLayer("3", "4"), PlainLayer("6", "7")]


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    first = [nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()]
    second = [nn.Conv2d(6, 8, 3, padding=1), nn.MaxPool2d(2), nn.Flatten()]
    model = nn.Sequential(*first, *second, nn.Linear(8 * 9, 10), nn.ReLU(), nn.Linear(10, 3))
    with torch.no_grad():
        model[1].bias.fill_(0.3)
    return model


def train(model: nn.Module, x: torch.Tensor, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(len(x)) % 3).backward()
        optimizer.step()


def test_numbers_by_round() -> None:
    assert [512 - sum(numbers_by_round(512, 0.2, rounds)) for rounds in (1, 2, 15)] == [410, 328, 18]
    assert numbers_by_round(3, 0.2, 3) == [1, 0, 0], "rounding ends a schedule before the last neuron"
    with pytest.raises(ValueError, match=r"Round 2 of 5 takes 5 neurons from 'fc1', which then has 5 of 10"):
        numbers_by_round(10, 0.5, 5, of="original", layer="fc1")
    for wrong in ({"fraction": 1.1}, {"rounds": 0}, {"of": "first"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            numbers_by_round(**{"width": 8, "fraction": 0.5, "rounds": 2, **wrong})  # type: ignore[arg-type]


def test_rounds_call_in_turn_and_check_what_went() -> None:
    calls: list[object] = []
    left = {"a": set(range(10)), "b": set(range(4))}

    def prune(numbers: dict[str, int]) -> dict[str, list[int]]:
        calls.append(numbers)
        return {name: [left[name].pop() for _ in range(number)] for name, number in numbers.items()}

    def evaluate() -> dict[str, float]:
        calls.append("evaluate")
        return {"size": len(left["a"])}

    history = prune_in_rounds({"a": 10, "b": 4}, 0.5, 2, prune, lambda number: calls.append(number), evaluate)
    # 2.5 to the nearest is 2, as numpy and Python round halves.
    assert calls == [{"a": 5, "b": 2}, "evaluate", 1, "evaluate", {"a": 2, "b": 1}, "evaluate", 2, "evaluate"]
    assert [done.widths for done in history] == [{"a": 5, "b": 2}, {"a": 3, "b": 1}]
    assert history[0].before == {"size": 5}
    with pytest.raises(ValueError, match=r"asked for 5 neurons of 'a' in round 1 and took 1"):
        prune_in_rounds({"a": 10}, 0.5, 1, lambda numbers: {"a": [3]}, lambda number: None)
    calls.clear()
    with pytest.raises(ValueError, match=r"Round 2 of 2 takes 1 neurons from 'b'"):
        prune_in_rounds({"a": 10, "b": 2}, 0.45, 2, prune, lambda number: None, of="original")
    assert calls == [], "nothing was pruned by a schedule that cannot be finished"


@pytest.mark.parametrize("bias", [True, False])
def test_masked_neurons_stay_at_zero_through_training(bias: bool) -> None:
    model, x = mlp(), torch.randn(30, 6, generator=torch.Generator().manual_seed(1))
    mask_neurons(model[0], [2, 5], bias)
    mask_neurons(model[0], torch.tensor([7]), bias)
    train(model, x)
    model.eval()
    before = model(x)
    hidden = model[0](x)
    gone = [2, 5, 7]
    assert alive_neurons(model[0]).nonzero().flatten().tolist() == [i for i in range(16) if i not in gone]
    assert (hidden[:, gone].std(0) == 0).all()
    assert (hidden[:, gone] == 0).all() == bias
    if bias:
        # Another road to the same function: the narrower network.
        kept = alive_neurons(model[0])
        narrow = (x @ model[0].weight[kept].T + model[0].bias[kept]).relu() @ model[3].weight[:, kept].T + model[
            3
        ].bias
        torch.testing.assert_close(model[5](narrow.relu()), before)
    make_permanent(model)
    assert set(dict(model.named_parameters())) == set(dict(mlp().named_parameters()))
    assert torch.equal(model(x), before)


def test_an_optimizer_from_before_the_mask_goes_on_and_lifts_nothing() -> None:
    model, x = mlp(), torch.randn(30, 6, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(len(x)) % 3).backward()
        optimizer.step()

    step()
    mask_neurons(model[0], [2])
    before = model[0].weight_orig.detach().clone()
    step()
    model.eval()
    assert (model[0](x)[:, 2] == 0).all()
    assert not torch.equal(model[0].weight_orig[3], before[3]), "neurons that stay are still trained"
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    make_permanent(model)
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_outputs_are_read_before_an_activation_in_place_writes_over_them() -> None:
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True))
    outputs, _ = read_outputs(model, ["0"], [x])
    torch.testing.assert_close(outputs["0"], x @ model[0].weight.T + model[0].bias)


def test_nothing_goes_if_nobody_says_how_much() -> None:
    model, x = mlp(), torch.randn(50, 6)
    for amount in (None, {"0": 0.5}):
        with pytest.raises(ValueError, match=r"How many neurons of '\d' go\? The criterion 'cka' ranks them"):
            mask_by_criterion(model, MLP_LAYERS, find_neuron_criterion("cka"), [x], amount)
    assert widths(model, MLP_LAYERS) == {"0": 16, "3": 12}


def test_masks_refuse() -> None:
    layer = nn.Linear(3, 4)
    with pytest.raises(ValueError, match=r"\[4\] are not all of this Linear, which has 4: 0 to 3"):
        mask_neurons(layer, [4])
    mask_neurons(layer, [0, 1])
    with pytest.raises(ValueError, match="4 of the 4 neurons of 'Linear' would go"):
        mask_neurons(layer, [2, 3])
    assert alive_neurons(layer).tolist() == [False, False, True, True]
    with pytest.raises(TypeError, match="ReLU has no weight"):
        mask_neurons(nn.ReLU(), [0])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", known_neuron_criteria())
@pytest.mark.parametrize("trained", [False, True])
def test_every_criterion_masks_an_mlp_and_a_cnn(name: str, trained: bool) -> None:
    quick = Predictors(hidden=(8,), epochs=5, epochs_per_neuron=2, patience=1)
    criterion = NeuralMIPP(predictors=quick) if name == "mipp_neural" else find_neuron_criterion(name)
    generator = torch.Generator().manual_seed(1)
    for model, layers, x in (
        (mlp(), MLP_LAYERS, torch.randn(120, 6, generator=generator)),
        (cnn(), CNN_LAYERS, torch.randn(120, 1, 6, 6, generator=generator)),
    ):
        if trained:
            train(model, x)
        full = widths(model, layers)
        first = mask_by_criterion(model, layers, criterion, x.split(50), 0.25, grid=2)
        train(model, x)
        second = mask_by_criterion(model, layers, criterion, x.split(50), 1, grid=2)
        for layer in layers:
            gone = first[layer.name].tolist() + second[layer.name].tolist()
            assert len(set(gone)) == len(gone) == round(0.25 * full[layer.name]) + 1, "none goes twice"
        assert widths(model, layers) == {n: w - round(0.25 * w) - 1 for n, w in full.items()}
        outputs, _ = read_outputs(model, [layer.output for layer in layers], [x])
        for layer in layers:
            silent = outputs[layer.output][:, ~alive_neurons(model.get_submodule(layer.name))]
            assert (silent == 0).all(), "also behind a normalisation with a shift of its own"


def test_what_a_layer_gets_to_see() -> None:
    model, x = cnn(), torch.randn(20, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    model.train()
    mask_neurons(model[3], [1, 4])
    first, second, third = layer_inputs(model, CNN_LAYERS, x.split(8), grid=2)
    assert model.training
    assert model[1].training
    model.eval()
    activations = model[:3](x)
    torch.testing.assert_close(first.activations, nn.functional.adaptive_avg_pool2d(activations, 2).flatten(2))
    pooled = nn.functional.adaptive_avg_pool2d(model[:5](x), 2)[:, alive_neurons(model[3])]
    torch.testing.assert_close(second.activations, pooled.flatten(2))
    torch.testing.assert_close(first.target, pooled.flatten(1))
    torch.testing.assert_close(second.target, model[:8](x))
    torch.testing.assert_close(third.target, model(x))
    assert second.weights.shape == (6, 6, 3, 3)


def test_a_collapse_is_refused_before_anything_is_masked() -> None:
    model, x = mlp(), torch.randn(50, 6)
    with pytest.raises(ValueError, match="12 of the 12 neurons of '3' would go"):
        mask_by_criterion(model, MLP_LAYERS, find_neuron_criterion("l1"), [x], {"0": 4, "3": 12})
    assert widths(model, MLP_LAYERS) == {"0": 16, "3": 12}
    with pytest.raises(ValueError, match=r"'2' puts out .*name the activation function"):
        layer_inputs(cnn(), [PlainLayer("3", "2")], [torch.randn(4, 1, 6, 6)])
    with pytest.raises(CalibrationError, match="No batch was given"):
        read_outputs(model, ["1"], [])
    shared = nn.ReLU()
    twice = nn.Sequential(nn.Linear(6, 6), shared, nn.Linear(6, 6), shared)
    with pytest.raises(CalibrationError, match="'1' ran 2 times"):
        read_outputs(twice, ["1"], [x])
