"""MIPP with the paper's own estimator: how much worse small networks predict the next layer without a neuron."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from hf_mpruner.errors import CalibrationError
from hf_mpruner.width.base import NeuronCriterion, NeuronInputs, NeuronOrder, check_survivors
from hf_mpruner.width.mutual_information import check_guard, most_that_may_go
from hf_mpruner.width.terc import terc_walk

MIN_SAMPLES = 16
# Predictors from one neuron each that are trained at once: bounds the memory of their outputs.
CHUNK = 64


@dataclass(frozen=True)
class Predictors:
    """How the networks that predict the next layer are built and trained.

    Args:
        hidden (`tuple` of `int`): widths of their hidden layers, with ReLU.
        epochs (`int`): at most, of the first fit on all neurons and of those on one neuron alone.
        epochs_per_neuron (`int`): at most, after a neuron is masked.
        patience (`int`): epochs without a lower held-out loss (mean over the repeats) after which a fit ends.
        learning_rate (`float`): of Adam.
        batch_size (`int`): samples of a step.
        held_out (`float`): fraction of samples on which losses are taken; each repeat holds out others.
        repeats (`int`): networks with their own weights and held-out samples, for the confidence interval.
    """

    hidden: tuple[int, ...] = (64, 64)
    epochs: int = 300
    epochs_per_neuron: int = 100
    patience: int = 10
    learning_rate: float = 3e-3
    batch_size: int = 512
    held_out: float = 0.25
    repeats: int = 5

    def __post_init__(self) -> None:
        """Check every number."""
        counts = (self.epochs, self.epochs_per_neuron, self.patience, self.batch_size, *self.hidden)
        if min(counts) < 1 or self.repeats < 2 or not 0 < self.held_out < 1 or not self.learning_rate > 0:
            raise ValueError(
                f"{self} cannot be trained: widths, epochs, patience and batch_size are 1 or more, repeats 2 or more, "
                "held_out between 0 and 1, learning_rate above 0."
            )


class NeuralInformation:
    """What neurons tell of the next layer, by held-out losses of networks that predict it.

    After Covert, Lundberg & Lee 2020: `I(X; Y)` stands in proportion to `loss(constant) - loss(f(X))` with a well-fitted f;
    the constant cancels between two sets of neurons. The loss is the mean squared error of Y's columns scaled to a
    variance of 1, so what is compared are errors, not nats.

    Args:
        activations (`torch.Tensor`): `(samples, neurons)`, or `(samples, channels, positions)` for multivariate ones.
        target (`torch.Tensor`): `(samples, m)`.
        confidence (`float`): a neuron is needed if the lower end of the one-sided interval of this confidence (Student's
            t over the repeats) of its difference of losses is above 0: 0.5 removes sparingly, 0.99 much.
        predictors (`Predictors`): the networks.
        seed (`int`): of weights, splits and batches; the global random state is not touched.
        layer (`str`): what errors call the layer.

    Raises:
        ValueError: for a confidence outside 0 to 1.
        CalibrationError: with fewer than 16 samples, or a target that does not vary.
    """

    def __init__(
        self,
        activations: Tensor,
        target: Tensor,
        confidence: float = 0.95,
        predictors: Predictors | None = None,
        seed: int = 0,
        layer: str = "layer",
    ) -> None:
        self.settings = settings = predictors or Predictors()
        if not 0.0 < confidence < 1.0:
            raise ValueError(f"confidence={confidence} is not between 0 and 1: pass e.g. 0.95.")
        self.num_neurons = activations.shape[1]
        x, y = _scaled(activations.detach().flatten(1)), _scaled(target.detach().flatten(1))
        if len(x) != len(y) or len(x) < MIN_SAMPLES:
            raise CalibrationError(
                f"'{layer}' has {len(x)} samples and its target {len(y)}: both need the same {MIN_SAMPLES} or more."
            )
        y = y[:, y.abs().amax(0) > 0]
        if not y.shape[1]:
            raise CalibrationError(f"The target of '{layer}' does not vary over {len(x)} samples.")
        self._x, self._y = x, y
        self._columns = x.shape[1] // self.num_neurons
        self._quantile = t_quantile(confidence, settings.repeats - 1)
        self._generator = torch.Generator().manual_seed(seed)
        orders = torch.stack([torch.randperm(len(x), generator=self._generator) for _ in range(settings.repeats)])
        held = max(1, round(settings.held_out * len(x)))
        self._held, self._train = orders[:, :held], orders[:, held:]
        self._mask = torch.ones(x.shape[1])
        self._reference = self._new(settings.repeats, x.shape[1])
        self._losses = self._fit(self._reference, self._mask, settings.epochs)
        self._adapted: dict[int, tuple[list[Tensor], Tensor]] = {}

    @property
    def losses(self) -> Tensor:
        """Held-out loss of each repeat with the neurons that are still kept; 1 is that of a constant."""
        return self._losses

    @torch.no_grad()
    def alone(self) -> Tensor:
        """1 - held-out loss of a predictor from each neuron alone, `(neurons,)`."""
        found = []
        columns = self._x.reshape(len(self._x), self.num_neurons, self._columns)
        train, held = self._train[0], self._held[0]
        for part in columns.split(CHUNK, dim=1):
            x = part.transpose(0, 1)
            nets = self._new(len(x), self._columns)
            y = self._y.expand(len(x), -1, -1)
            steps = ((x[:, rows], y[:, rows]) for rows in self._batches_of_one(train))
            found.append(_train(nets, steps, (x[:, held], y[:, held]), self.settings, len(train)))
        return 1 - torch.cat(found)

    def transfers(self, neuron: int) -> tuple[bool, float]:
        """Whether losses rise without a neuron, and by how much on average over the repeats."""
        mask = self._mask.clone()
        mask[neuron * self._columns : (neuron + 1) * self._columns] = 0
        nets = [weight.clone() for weight in self._reference]
        losses = self._fit(nets, mask, self.settings.epochs_per_neuron)
        self._adapted = {neuron: (nets, losses)}
        rise = (losses - self._losses).double()
        lowest = rise.mean() - self._quantile * rise.std() / math.sqrt(len(rise))
        return bool(lowest > 0), float(rise.mean())

    def drop(self, neuron: int) -> None:
        """Mask a neuron for good: the networks that adapted to its absence are the new reference."""
        if neuron not in self._adapted:
            self.transfers(neuron)
        self._reference, self._losses = self._adapted[neuron]
        self._mask[neuron * self._columns : (neuron + 1) * self._columns] = 0
        self._adapted = {}

    def _new(self, count: int, inputs: int) -> list[Tensor]:
        """Weights and biases of `count` networks."""
        sizes = [inputs, *self.settings.hidden, self._y.shape[1]]
        weights = []
        for before, after in pairwise(sizes):
            drawn = torch.randn(count, before, after, generator=self._generator) * math.sqrt(2 / before)
            weights += [drawn, torch.zeros(count, 1, after)]
        # Predictions begin near the mean of Y, 0.
        weights[-2] *= 0.1
        return weights

    def _fit(self, nets: list[Tensor], mask: Tensor, epochs: int) -> Tensor:
        """Train in place on neurons that are not masked, one network a repeat; the lowest held-out loss of each."""
        x = self._x * mask
        steps = ((x[rows], self._y[rows]) for rows in self._batches(epochs))
        held = (x[self._held], self._y[self._held])
        return _train(nets, steps, held, self.settings, self._train.shape[1])

    def _batches(self, epochs: int) -> Iterator[Tensor]:
        """Rows `(repeats, batch)`, epoch by epoch."""
        for _ in range(epochs):
            order = torch.rand(self._train.shape, generator=self._generator).argsort(1)
            yield from self._train.gather(1, order).split(self.settings.batch_size, dim=1)

    def _batches_of_one(self, train: Tensor) -> Iterator[Tensor]:
        for _ in range(self.settings.epochs):
            yield from train[torch.randperm(len(train), generator=self._generator)].split(self.settings.batch_size)


def _scaled(values: Tensor) -> Tensor:
    """Columns with mean 0 and variance 1; 0 where constant."""
    values = values.double().cpu()
    if not values.isfinite().all():
        raise CalibrationError("activations are NaN or infinite: run the model in float32, or look for bad examples.")
    mean, deviation = values.mean(0), values.std(0)
    varies = deviation > mean.abs() * 1e-12
    return ((values - mean) / torch.where(varies, deviation, torch.inf)).float()


def _predict(nets: list[Tensor], x: Tensor) -> Tensor:
    """`(networks, samples, m)` from `(networks, samples, inputs)`."""
    for i in range(0, len(nets), 2):
        x = torch.baddbmm(nets[i + 1], x, nets[i])
        if i < len(nets) - 2:
            x = x.relu()
    return x


def _train(
    nets: list[Tensor],
    steps: Iterator[tuple[Tensor, Tensor]],
    held: tuple[Tensor, Tensor],
    settings: Predictors,
    num_train: int,
) -> Tensor:
    """Adam over batches, with early stopping; leaves each network at its lowest held-out loss, and returns these."""

    def held_loss() -> Tensor:
        with torch.no_grad():
            return (_predict(nets, held[0]) - held[1]).square().mean((1, 2))

    best, lowest = [weight.clone() for weight in nets], held_loss()
    mean_lowest, waited = float(lowest.mean()), 0
    with torch.enable_grad():
        for weight in nets:
            weight.requires_grad_(True)
        optimizer = torch.optim.Adam(nets, lr=settings.learning_rate)
        epoch_steps = math.ceil(num_train / settings.batch_size)
        for step, (x, y) in enumerate(steps, start=1):
            # A sum over networks: each gets the gradient of its own mean.
            loss = (_predict(nets, x) - y).square().mean((1, 2)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % epoch_steps:
                continue
            now = held_loss()
            better = now < lowest
            lowest = torch.where(better, now, lowest)
            for kept, weight in zip(best, nets, strict=True):
                kept[better] = weight.detach()[better]
            waited = 0 if float(lowest.mean()) < mean_lowest * (1 - 1e-4) else waited + 1
            mean_lowest = min(mean_lowest, float(lowest.mean()))
            if waited >= settings.patience:
                break
    for weight, kept in zip(nets, best, strict=True):
        weight.requires_grad_(False).copy_(kept)
    return lowest


class NeuralMIPP(NeuronCriterion):
    """MIPP as published: TERC with MI ordering over `NeuralInformation`. Costs a short fit for each neuron.

    With a number asked, one walk is made: the neurons that it drops go first, then the others by how little losses rose
    without them at their visit.

    Args:
        confidence, predictors: see `NeuralInformation`.
        max_fraction (`float`): of a layer's neurons that may go where the criterion decides: a guard against collapse.
        min_neurons (`int`): that always stay.
        ordering (`bool`): MI ordering of the walk.
    """

    name = "mipp_neural"
    title = "neurons without which small networks predict the next layer no worse go"
    source = "Westphal et al., arXiv 2411.00147 (MIPP); estimator after Covert et al. 2020"
    needs = frozenset({"activations", "target"})
    decides = True

    def __init__(
        self,
        confidence: float = 0.95,
        predictors: Predictors | None = None,
        max_fraction: float = 0.9,
        min_neurons: int = 1,
        ordering: bool = True,
    ) -> None:
        check_guard(max_fraction, min_neurons)
        self.confidence, self.predictors = confidence, predictors or Predictors()
        self.max_fraction, self.min_neurons, self.ordering = max_fraction, min_neurons, ordering

    def rank(self, inputs: NeuronInputs, number: int | None) -> NeuronOrder:
        """By one walk."""
        neurons, layer = inputs.num_neurons, inputs.layer
        if inputs.activations is None or inputs.target is None:
            raise CalibrationError(
                f"'{self.name}' needs the activations of '{layer}' and its target held, not moments."
            )
        information = NeuralInformation(
            inputs.activations, inputs.target, self.confidence, self.predictors, inputs.seed, layer
        )
        if number is None:
            most = most_that_may_go(neurons, self.max_fraction, self.min_neurons)
            return terc_walk(information, layer, neurons, most, self.ordering)
        check_survivors(number, neurons, layer, self.min_neurons)
        found = terc_walk(information, layer, neurons, number, self.ordering)
        missing = number - len(found.order)
        if missing:
            rest = found.values.clone()
            rest[found.order] = torch.inf
            found = NeuronOrder(
                layer,
                neurons,
                torch.cat([found.order, rest.argsort(stable=True)[:missing]]),
                found.values,
                {**found.details, "beyond_criterion": missing},
            )
        return found


def t_quantile(probability: float, degrees: int) -> float:
    """Of Student's t: its distribution integrated by Simpson's rule, inverted by bisection."""
    if probability < 0.5:
        return -t_quantile(1 - probability, degrees)
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)

    def below(value: float, parts: int = 400) -> float:
        # With t = sqrt(degrees) tan(angle) the integrand is smooth and its range finite.
        end = math.atan(value / math.sqrt(degrees))
        heights = [math.cos(end * i / parts) ** (degrees - 1) for i in range(parts + 1)]
        total = heights[0] + heights[-1] + 4 * sum(heights[1:-1:2]) + 2 * sum(heights[2:-1:2])
        return 0.5 + scale * math.sqrt(degrees) * total * end / parts / 3

    low, high = 0.0, 1.0
    while below(high) < probability:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < probability else (low, middle)
    return (low + high) / 2
