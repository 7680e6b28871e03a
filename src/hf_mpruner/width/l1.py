"""Baselines for neurons: the L1 norm of incoming weights, and chance."""

from __future__ import annotations

import torch

from hf_mpruner.errors import CalibrationError
from hf_mpruner.width.base import NeuronCriterion, NeuronInputs, NeuronOrder


class L1Norm(NeuronCriterion):
    """Neurons whose incoming weights have the smallest L1 norm go first; of equal ones the earlier neuron.

    Higgins 2023, section 3 ("L1 pruning"): the sum of |weight| over the neuron's row; the bias does not count. Of a
    convolution: over the channel's whole filter.

    Example:
        >>> weights = torch.tensor([[1.0, -2.0], [0.5, 0.5], [0.0, 3.0]])
        >>> L1Norm().order(NeuronInputs("fc1", weights=weights), 2).order
        tensor([1, 0])
    """

    name = "l1"
    title = "smallest L1 norm of incoming weights first"
    source = "baseline; Higgins 2023, section 3"
    needs = frozenset({"weights"})

    def rank(self, inputs: NeuronInputs, number: int | None) -> NeuronOrder:
        """All by their norms."""
        if inputs.weights is None or inputs.weights.shape[0] != inputs.num_neurons or inputs.weights.ndim < 2:
            shape = None if inputs.weights is None else tuple(inputs.weights.shape)
            raise ValueError(
                f"weights of '{inputs.layer}' have shape {shape}: pass one row of incoming weights for each of its "
                f"{inputs.num_neurons} neurons."
            )
        norms = inputs.weights.detach().to(torch.float64).abs().flatten(1).sum(1).cpu()
        if not norms.isfinite().all():
            raise CalibrationError(f"The weights of '{inputs.layer}' are not finite: load the model again.")
        return NeuronOrder(inputs.layer, len(norms), lowest_first(norms, number), norms)


class RandomNeurons(NeuronCriterion):
    """Neurons go by chance, the same ones for the same seed and layer name."""

    name = "random"
    title = "neurons by chance"
    source = "baseline"
    needs = frozenset()

    def rank(self, inputs: NeuronInputs, number: int | None) -> NeuronOrder:
        """A permutation drawn from the seed and the layer's name, so that layers of one size differ."""
        salt = sum((position + 1) * byte for position, byte in enumerate(inputs.layer.encode()))
        generator = torch.Generator().manual_seed(inputs.seed * 1_000_003 + salt)
        values = torch.rand(inputs.num_neurons, generator=generator, dtype=torch.float64)
        return NeuronOrder(inputs.layer, inputs.num_neurons, lowest_first(values, number), values)


def lowest_first(values: torch.Tensor, number: int | None = None) -> torch.Tensor:
    """Indices by ascending value, of equal ones the lower index first; `number` of them, or all but one."""
    return values.argsort(stable=True)[: len(values) - 1 if number is None else number]
