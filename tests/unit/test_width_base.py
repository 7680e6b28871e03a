"""What neuron criteria share: running moments, amounts, orders, names."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_mpruner.errors import CalibrationError
from hf_mpruner.width import Moments, NeuronCriterion, NeuronInputs, NeuronOrder, find_neuron_criterion
from hf_mpruner.width import registry as names


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_moments_of_batches_are_numpys_of_everything_at_once(offset: float) -> None:
    x, y = drawn(50, 4) + offset, drawn(50, 3, seed=1) - offset
    halves = [Moments(4, 3), Moments(4, 3)]
    for i, rows in enumerate((slice(0, 20), slice(20, 27), slice(27, 50))):
        halves[i % 2].update(x[rows], y[rows])
    halves[0].merge(halves[1])
    both = np.concatenate([x.double().numpy(), y.double().numpy()], axis=1)
    assert halves[0].num_samples == 50
    np.testing.assert_allclose(halves[0].mean.numpy(), both.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(halves[0].covariance.numpy(), np.cov(both.T), rtol=1e-9, atol=1e-9)


def test_moments_of_some_targets() -> None:
    x, y = drawn(30, 2, 3), drawn(30, 5, seed=1)
    kept = torch.tensor([4, 1])
    part, alone = Moments.of(x, y).with_targets(kept), Moments.of(x, y[:, kept])
    assert (part.num_neurons, part.columns, part.num_targets, part.num_samples) == (2, 3, 2, 30)
    torch.testing.assert_close(part.covariance, alone.covariance)


def test_moments_refuse_what_does_not_fit() -> None:
    moments = Moments(4)
    with pytest.raises(ValueError, match=r"4 neurons"):
        moments.update(drawn(5, 3))
    with pytest.raises(ValueError, match="with a target"):
        moments.update(drawn(5, 4), drawn(5, 2))
    with pytest.raises(ValueError, match="do not merge"):
        moments.merge(Moments(5))
    with pytest.raises(CalibrationError, match="2 or more"):
        _ = moments.covariance
    broken = drawn(5, 4)
    broken[2, 3] = float("nan")
    with pytest.raises(CalibrationError, match="neuron 3"):
        moments.update(broken)
    assert moments.num_samples == 0


def test_amounts() -> None:
    order = NeuronOrder("fc1", 5, torch.tensor([4, 0, 2, 1]), torch.zeros(5))
    assert order.select(0.4).tolist() == [0, 4]
    assert order.select(3).tolist() == [0, 2, 4]
    assert order.kept().tolist() == [3]
    assert order.select(0.0).tolist() == []
    for wrong in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match="no fraction from 0 to 1"):
            order.select(wrong)
    for all_of_them in (1.0, 5, 7):
        with pytest.raises(ValueError, match=r"neurons of 'fc1' would go"):
            order.select(all_of_them)
    with pytest.raises(ValueError, match="the order names 1"):
        NeuronOrder("fc1", 5, torch.tensor([4]), torch.zeros(5)).select(2)


@pytest.mark.parametrize("name", names.known_neuron_criteria())
def test_no_criterion_takes_all_neurons_or_a_wrong_fraction(name: str) -> None:
    x = drawn(64, 4).relu()
    inputs = NeuronInputs("fc1", x, target=drawn(64, 3, seed=1), weights=drawn(4, 7))
    criterion = find_neuron_criterion(name)
    for amount in (1.0, 4):
        with pytest.raises(ValueError, match="'fc1' would go"):
            criterion.order(inputs, amount)
    with pytest.raises(ValueError, match="no fraction"):
        criterion.order(inputs, 1.2)
    assert len(criterion.order(inputs, 2).order) == 2


def test_a_criterion_says_what_it_was_not_given() -> None:
    with pytest.raises(CalibrationError, match=r"'l1' needs weights of 'fc1'.*weights=\.\.\."):
        find_neuron_criterion("l1").order(NeuronInputs("fc1", activations=drawn(5, 3)), 1)


def test_l1_is_the_sum_of_the_rows_absolute_weights() -> None:
    filters = drawn(6, 3, 2, 2)
    order = find_neuron_criterion("l1").order(NeuronInputs("conv", weights=filters))
    by_hand = [sum(abs(value) for value in filters[i].flatten().tolist()) for i in range(6)]
    assert order.values.tolist() == pytest.approx(by_hand)
    assert order.order.tolist() == sorted(range(6), key=by_hand.__getitem__)[:5]
    with pytest.raises(ValueError, match="one row of incoming weights"):
        find_neuron_criterion("l1").order(NeuronInputs("fc1", activations=drawn(5, 4), weights=drawn(3, 2)), 1)


def test_chance_depends_on_seed_and_layer_only() -> None:
    def order(layer: str, seed: int) -> list[int]:
        inputs = NeuronInputs(layer, weights=torch.zeros(32, 1), seed=seed)
        return find_neuron_criterion("random").order(inputs).order.tolist()

    assert order("a", 0) == order("a", 0)
    assert order("a", 0) != order("a", 1)
    assert order("a", 0) != order("b", 0)


def test_a_criterion_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_REGISTERED", {})

    @names.register_neuron_criterion
    class Last(NeuronCriterion):
        name = "last"
        needs = frozenset()

        def rank(self, inputs: NeuronInputs, number: int | None) -> NeuronOrder:
            order = torch.arange(inputs.num_neurons).flip(0)[: number or inputs.num_neurons - 1]
            return NeuronOrder(inputs.layer, inputs.num_neurons, order, torch.zeros(inputs.num_neurons))

    assert find_neuron_criterion("last").order(NeuronInputs(weights=torch.zeros(4, 1)), 2).order.tolist() == [3, 2]
    with pytest.raises(ValueError, match=r"'lost' is not known. Did you mean 'last'\?.*cka, .*l1, .*random, last"):
        find_neuron_criterion("lost")
    with pytest.raises(TypeError, match="is no neuron criterion"):
        names.register_neuron_criterion(object)  # type: ignore[type-var]
