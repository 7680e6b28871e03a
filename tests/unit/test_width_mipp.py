"""MIPP: information against determinants, planted redundancy, and what only the neural estimator sees."""

from __future__ import annotations

import pytest
import torch
from sklearn.covariance import oas

from hf_mpruner.errors import CalibrationError
from hf_mpruner.width import Moments, NeuronInputs, find_neuron_criterion, sweep_layers
from hf_mpruner.width.mutual_information import GaussianInformation, GaussianMIPP, oas_shrinkage
from hf_mpruner.width.neural import NeuralInformation, NeuralMIPP, Predictors, t_quantile

QUICK = Predictors(hidden=(24,), epochs=120, epochs_per_neuron=30, patience=5, learning_rate=1e-2, batch_size=200)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_determinants(covariance: torch.Tensor, neuron: int, kept: list[int], columns: int, inputs: int) -> float:
    """I(X_i; Y | X_kept) from the four determinants of its definition."""

    def places(neurons: list[int]) -> list[int]:
        return [i * columns + c for i in neurons for c in range(columns)]

    def logdet(rows: list[int]) -> float:
        return torch.linalg.slogdet(covariance[rows][:, rows]).logabsdet.item() if rows else 0.0

    rest, target = places([i for i in kept if i != neuron]), list(range(inputs, len(covariance)))
    own = places([neuron])
    return (logdet(own + rest) + logdet(rest + target) - logdet(own + rest + target) - logdet(rest)) / 2


@pytest.mark.parametrize(("neurons", "columns", "targets"), [(90, 1, 7), (12, 3, 5)])
def test_information_is_that_of_the_determinants_also_after_removals(neurons: int, columns: int, targets: int) -> None:
    x = drawn(400, neurons * columns) @ drawn(neurons * columns, neurons * columns, seed=1)
    y = x @ drawn(neurons * columns, targets, seed=2) + drawn(400, targets, seed=3)
    moments = Moments.of(x.relu().reshape(400, neurons, columns), y)
    information = GaussianInformation(moments, shrinkage=0.0)
    kept = list(range(neurons))
    covariance = moments.covariance
    for _ in range(neurons - 2):
        found = information.conditional()
        checked = kept if len(kept) in (neurons, 3) else kept[::20]
        expected = {i: by_determinants(covariance, i, kept, columns, neurons * columns) for i in checked}
        assert {i: found[i].item() for i in checked} == pytest.approx(expected, abs=1e-8)
        kept.remove(chosen := int(found.nan_to_num(torch.inf).argmin()))
        information.drop(chosen)
    alone = [by_determinants(covariance, i, [i], columns, neurons * columns) for i in range(neurons)]
    assert information.alone().tolist() == pytest.approx(alone, abs=1e-8)


def test_shrinkage_is_scikit_learns() -> None:
    x = drawn(40, 25) @ (drawn(25, 25, seed=1) * 0.2 + torch.eye(25, dtype=torch.float64))
    x[:, 7] = 3.0
    varies = torch.arange(25) != 7
    scaled = ((x - x.mean(0)) / x.std(0, correction=0))[:, varies]
    _, expected = oas(scaled.numpy(), assume_centered=True)
    correlation = torch.eye(25, dtype=torch.float64)
    correlation[varies.outer(varies)] = (scaled.T @ scaled / 40).flatten()
    assert 0 < expected < 1
    assert oas_shrinkage(correlation, varies, 40) == pytest.approx(expected, rel=1e-12)
    assert GaussianInformation(Moments.of(x[:, :20], x[:, 20:])).shrinkage == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("neurons", "targets"), [(30, 5), (100, 150)])
def test_what_tells_nothing_is_kept_by_chance_as_often_as_asked(neurons: int, targets: int) -> None:
    kept, seeds = 0, 20
    for seed in range(seeds):
        moments = Moments.of(drawn(400, neurons, seed=seed), drawn(400, targets, seed=1000 + seed))
        information = GaussianInformation(moments, shrinkage=0.0, confidence=0.9)
        kept += int((information.conditional() > information.criterion()).sum())
    assert kept / (seeds * neurons) == pytest.approx(0.1, abs=0.03)


def planted(samples: int = 1000) -> tuple[torch.Tensor, torch.Tensor]:
    """Neurons 0 to 3 carry; 4 copies 0, 5 is 1 + 2 scaled, 6 is noise, 7 is dead; the next layer reads 0 to 3."""
    x = drawn(samples, 8)
    x[:, 4], x[:, 5], x[:, 7] = -3 * x[:, 0], 0.5 * (x[:, 1] + x[:, 2]), 0.25
    return x, x[:, :4] @ drawn(4, 6, seed=1) + 0.5 * drawn(samples, 6, seed=2)


def test_planted_redundant_neurons_go_and_nothing_else() -> None:
    x, y = planted()
    for seed_of_order in range(3):
        order = torch.randperm(8, generator=torch.Generator().manual_seed(seed_of_order))
        found = GaussianMIPP(confidence=0.999).order(NeuronInputs("fc1", x[:, order], target=y))
        gone = {int(order[i]) for i in found.order}
        assert {6, 7} <= gone
        assert len(gone & {0, 4}) == 1, "one of a copy and its original"
        assert len(gone & {1, 2, 5}) == 1, "one of a sum and its two parts"
        assert 3 not in gone
        assert not found.details["guarded"]


def test_ordering_keeps_the_smaller_of_two_redundant_sets() -> None:
    x = drawn(1000, 3)
    x[:, 2] = x[:, 0] + x[:, 1]
    y = x[:, 2:] @ drawn(1, 4, seed=1) + 0.5 * drawn(1000, 4, seed=2)
    moved = x[:, [2, 0, 1]]
    inputs = NeuronInputs("fc1", moved, target=y)
    assert GaussianMIPP(confidence=0.999).order(inputs).kept().tolist() == [0]
    assert GaussianMIPP(confidence=0.999, ordering=False).order(inputs).kept().tolist() == [1, 2]


def test_a_number_takes_the_least_informative_one_by_one() -> None:
    x, y = planted()
    moments = Moments.of(x, y)
    order = GaussianMIPP(shrinkage=0.0).order(NeuronInputs("fc1", moments=moments), 4)
    covariance = moments.covariance + 1e-9 * torch.eye(14, dtype=torch.float64)
    kept = [i for i in range(8) if i != 7]
    assert {6, 7} <= set(order.order.tolist())
    for chosen in [i for i in order.order.tolist() if i != 7]:
        information = {i: by_determinants(covariance, i, kept, 1, 8) for i in kept}
        assert information[chosen] < min(information.values()) + 1e-4
        kept.remove(chosen)
    assert 3 not in order.order


def test_a_channel_is_one_variable() -> None:
    x = drawn(500, 4, 3)
    x[:, 2] = x[:, 0].flip(1)
    y = x[:, [0, 1]].flatten(1) @ drawn(6, 5, seed=1) + 0.5 * drawn(500, 5, seed=2)
    found = GaussianMIPP(confidence=0.999).order(NeuronInputs("conv", x, target=y))
    assert sorted(found.order.tolist()) in ([0, 3], [2, 3])


@pytest.mark.parametrize("copies", [False, True])
def test_information_of_layers_with_fewer_dimensions_than_neurons(copies: bool) -> None:
    """120 neurons that are sums of 20, or copies: inverses are as large as the noise allows, and differences still hold."""
    x = drawn(1500, 20) @ drawn(20, 120, seed=1)
    if copies:
        x = x.relu()
        x[:, 60:] = x[:, :60]
    y = (x @ drawn(120, 30, seed=2)).relu()
    information = GaussianInformation(Moments.of(x, y), shrinkage=0.0)
    kept = list(range(120))
    for _ in range(105):
        chosen = int(information.conditional().nan_to_num(torch.inf).argmin())
        information.drop(chosen)
        kept.remove(chosen)
    expected = [by_determinants(information.correlation, i, kept, 1, 120) for i in kept]
    assert information.conditional()[kept].tolist() == pytest.approx(expected, abs=1e-4)


def test_few_samples() -> None:
    x, y = drawn(30, 40), drawn(30, 20, seed=1)
    with pytest.raises(CalibrationError, match=r"30 samples are too few.*40 columns of 'fc1'.*more than 62 samples"):
        GaussianMIPP().order(NeuronInputs("fc1", x, target=y))
    y = x[:, :20] + 0.1 * y
    order = GaussianMIPP().order(NeuronInputs("fc1", x, target=y), 0.5)
    assert order.values.isfinite().all()
    assert len(set(order.order.tolist()) & set(range(20, 40))) >= 15, "those that nothing reads"


def test_the_guard_keeps_a_layer_from_collapse() -> None:
    x, y = drawn(300, 10), drawn(300, 4, seed=1)
    found = GaussianMIPP(threshold=1e9, max_fraction=0.6).order(NeuronInputs("fc1", x, target=y))
    assert (len(found.order), found.details["guarded"]) == (6, True)
    found = GaussianMIPP(threshold=1e9, max_fraction=1.0, min_neurons=3).order(NeuronInputs("fc1", x, target=y))
    assert len(found.order) == 7
    with pytest.raises(ValueError, match=r"8 of the 10 neurons of 'fc1' would go, and 3 have to stay"):
        GaussianMIPP(min_neurons=3).order(NeuronInputs("fc1", x, target=y), 8)
    with pytest.raises(ValueError, match=r"max_fraction=1\.5"):
        GaussianMIPP(max_fraction=1.5)
    with pytest.raises(CalibrationError, match="target of 'fc1' does not vary"):
        GaussianMIPP().order(NeuronInputs("fc1", x, target=torch.ones(300, 2)))
    for wrong in ({"shrinkage": "much"}, {"shrinkage": 2.0}, {"confidence": 1.0}, {"threshold": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            GaussianMIPP(**wrong)


@pytest.mark.parametrize("held", [True, False])
def test_a_sweep_keeps_only_what_the_kept_part_of_the_next_layer_reads(held: bool) -> None:
    """Neuron 2 of the first layer is read by neuron 2 of the second alone, which the output does not read."""
    first = drawn(800, 4)
    second = first[:, :3] + 0.3 * drawn(800, 3, seed=1)
    output = second[:, :2] @ drawn(2, 2, seed=2) + 0.3 * drawn(800, 2, seed=3)

    def inputs(name: str, x: torch.Tensor, y: torch.Tensor) -> NeuronInputs:
        return NeuronInputs(name, x, target=y) if held else NeuronInputs(name, moments=Moments.of(x, y))

    layers = [inputs("fc1", first, second), inputs("fc2", second, output)]
    criterion = GaussianMIPP(confidence=0.999)
    swept = sweep_layers(criterion, layers)
    assert list(swept) == ["fc1", "fc2"]
    assert swept["fc2"].kept().tolist() == [0, 1]
    assert swept["fc1"].kept().tolist() == [0, 1]
    assert criterion.order(layers[0]).kept().tolist() == [0, 1, 2]
    asked = sweep_layers(criterion, layers, {"fc1": 1, "fc2": 0.34})
    assert [len(order.order) for order in asked.values()] == [1, 1]
    with pytest.raises(ValueError, match="the target of 'fc1' has 2 columns"):
        sweep_layers(criterion, [inputs("fc1", first, output), layers[1]])
    with pytest.raises(ValueError, match="its own name"):
        sweep_layers(criterion, [layers[0], layers[0]])


def synergy() -> tuple[torch.Tensor, torch.Tensor]:
    """The next layer reads the XOR of neurons 0 and 1, of which 4 is a copy, and neuron 2; 3 is noise."""
    signs = drawn(600, 5).sign()
    x = signs + 0.05 * drawn(600, 5, seed=1)
    x[:, 4] = x[:, 0]
    return x, torch.stack([signs[:, 0] * signs[:, 1], signs[:, 2]], 1) + 0.05 * drawn(600, 2, seed=2)


def test_an_xor_is_seen_by_the_neural_estimator_and_not_by_the_gaussian_one() -> None:
    x, y = synergy()
    inputs = NeuronInputs("fc1", x, target=y)
    gaussian = GaussianMIPP(confidence=0.999).order(inputs)
    assert gaussian.kept().tolist() == [2]
    before = torch.get_rng_state()
    neural = NeuralMIPP(predictors=QUICK).order(inputs)
    assert torch.equal(before, torch.get_rng_state())
    assert {1, 2} < set(neural.kept().tolist())
    assert sorted(neural.order.tolist()) in ([0, 3], [3, 4]), "noise and one of the copies go"
    assert neural.order.tolist() == NeuralMIPP(predictors=QUICK).order(inputs).order.tolist()


def test_neural_information_of_neurons_alone_and_of_a_number() -> None:
    x, y = synergy()
    information = NeuralInformation(x, y, predictors=QUICK)
    alone = information.alone()
    assert int(alone.argmax()) == 2, "an XOR tells nothing by one of its neurons"
    assert alone[2] > 0.4 > 0.05 > alone[[0, 1, 3, 4]].max()
    assert information.losses.max() < 0.1
    order = NeuralMIPP(predictors=QUICK).order(NeuronInputs("fc1", x, target=y), 3)
    assert len(set(order.order.tolist()) & {0, 3, 4}) >= 2
    assert order.details["beyond_criterion"] == 1
    with pytest.raises(CalibrationError, match="16 or more"):
        NeuralInformation(x[:10], y[:10])
    with pytest.raises(ValueError, match="repeats 2 or more"):
        Predictors(repeats=1)
    with pytest.raises(CalibrationError, match=r"needs activations of 'fc1'"):
        find_neuron_criterion("mipp_neural").order(NeuronInputs("fc1", moments=Moments.of(x, y)))


def test_quantiles_of_students_t_are_those_of_the_tables() -> None:
    tables = {(0.95, 4): 2.1318, (0.975, 1): 12.7062, (0.99, 9): 2.8214, (0.5, 4): 0.0, (0.05, 4): -2.1318}
    assert {key: round(t_quantile(*key), 4) for key in tables} == tables
