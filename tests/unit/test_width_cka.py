"""Greedy CKA in closed form against a search that computes every CKA anew."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from hf_mpruner.errors import CalibrationError
from hf_mpruner.similarity import linear_cka
from hf_mpruner.width import Moments, NeuronInputs, find_neuron_criterion
from hf_mpruner.width.cka import greedy_cka_order

ACTIVATIONS = {"relu": functional.relu, "gelu": functional.gelu, "linear": lambda x: x}


def layer_outputs(seed: int, activation: str = "relu", samples: int = 60, neurons: int = 14) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 9, generator=generator, dtype=torch.float64)
    weight = torch.randn(9, neurons, generator=generator, dtype=torch.float64)
    return ACTIVATIONS[activation](x @ weight + 0.3 * torch.randn(neurons, generator=generator, dtype=torch.float64))


def searched(x: torch.Tensor, number: int, start_anew: bool = False) -> tuple[list[int], list[float]]:
    """As the paper's text: every candidate's CKA from activations with that neuron at a constant."""
    gone: list[int] = []
    values = []
    for _ in range(number):
        best, found = -1, -1.0
        for i in range(x.shape[1]):
            if i not in gone:
                without = x.clone()
                without[:, [i] if start_anew else [*gone, i]] = 0.7
                value = linear_cka(x, without, "biased").item()
                best, found = (i, value) if value > found + 1e-13 else (best, found)
        gone.append(best)
        values.append(found)
    return gone, values


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("seed", range(4))
def test_the_order_is_that_of_the_search(activation: str, seed: int) -> None:
    x = layer_outputs(seed, activation)
    order, values = greedy_cka_order(x)
    expected, ckas = searched(x, 13)
    assert order.tolist() == expected
    torch.testing.assert_close(values[order], torch.tensor(ckas, dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_the_ranking_is_that_of_the_published_code(seed: int) -> None:
    x = layer_outputs(seed)
    expected, ckas = searched(x, 13, start_anew=True)
    order, values = greedy_cka_order(x, 13, mode="one_shot")
    assert order.tolist() == expected
    assert values[order].tolist() == pytest.approx(ckas, abs=1e-10)
    assert greedy_cka_order(x)[0].tolist() != expected, "both modes agree on this layer: the test shows nothing"


def test_dead_and_constant_neurons_go_first() -> None:
    x = layer_outputs(0)
    x[:, 5], x[:, 9] = 0.0, 1e6
    assert greedy_cka_order(x)[0][:2].tolist() == [5, 9]
    assert greedy_cka_order(x, mode="one_shot")[0][:2].tolist() == [5, 9]


def test_a_constant_neuron_is_constant_in_low_precision_and_in_batches_too() -> None:
    x = layer_outputs(0).float()
    x[:, 5] = 0.1
    moments = Moments(14)
    for rows in x.split(7):
        moments.update(rows)
    order, values = greedy_cka_order(moments)
    assert order[0] == 5
    assert values[5] == pytest.approx(1.0, abs=1e-12)
    assert order.tolist() == greedy_cka_order(x)[0].tolist()


@pytest.mark.parametrize("seed", range(3))
def test_of_equal_neurons_the_lower_index_goes_first(seed: int) -> None:
    x = layer_outputs(seed)
    x[:, 11], x[:, 7] = x[:, 3], -x[:, 3]
    order = greedy_cka_order(x)[0].tolist()
    assert order == searched(x, 13)[0]
    pair = [i for i in order if i in (3, 7, 11)]
    assert pair == sorted(pair)


def test_the_last_neuron_that_varies_stays() -> None:
    x = torch.full((20, 5), 2.0, dtype=torch.float64)
    x[:, 2] = layer_outputs(0)[:20, 0] + torch.arange(20)
    assert greedy_cka_order(x)[0].tolist() == [0, 1, 3, 4]
    x[:, 2] = 1.0
    with pytest.raises(CalibrationError, match=r"Every neuron of 'fc1'.*20 samples"):
        greedy_cka_order(x, 1, layer="fc1")


def test_positions_are_samples_and_columns_of_moments_go_together() -> None:
    x = torch.stack([layer_outputs(seed, neurons=6) for seed in range(3)], dim=2)
    rows = x.permute(0, 2, 1).reshape(-1, 6)
    assert greedy_cka_order(x)[0].tolist() == searched(rows, 5)[0]

    gone: list[int] = []
    for _ in range(5):
        candidates = {}
        for i in set(range(6)) - set(gone):
            without = x.clone()
            without[:, [*gone, i]] = 0
            candidates[i] = linear_cka(x.flatten(1), without.flatten(1), "biased").item()
        gone.append(max(candidates, key=candidates.__getitem__))
    assert greedy_cka_order(Moments.of(x))[0].tolist() == gone


def test_through_the_criteria() -> None:
    x = layer_outputs(2)
    for name, mode in (("cka", "greedy"), ("cka_one_shot", "one_shot")):
        held = find_neuron_criterion(name).order(NeuronInputs("fc1", x), 0.5)
        streamed = find_neuron_criterion(name).order(NeuronInputs("fc1", moments=Moments.of(x)), 7)
        assert held.order.tolist() == streamed.order.tolist() == greedy_cka_order(x, 7, mode)[0].tolist()
        assert len(held.kept()) == 7
    with pytest.raises(ValueError, match="greedy, one_shot"):
        greedy_cka_order(x, 1, mode="fast")
    for wrong, message in ((14, "'fc1' would go"), (1.0, "'fc1' would go"), (1.5, "no fraction"), (-1, "negative")):
        with pytest.raises(ValueError, match=message):
            greedy_cka_order(x, wrong, layer="fc1")
