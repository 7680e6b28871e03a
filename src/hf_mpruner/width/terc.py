"""TERC: walk through neurons and drop each that tells the next layer nothing that the kept ones do not; layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from hf_mpruner.width.base import NeuronCriterion, NeuronInputs, NeuronOrder


class Information(Protocol):
    """What neurons tell of the next layer's activations Y; changes as neurons are dropped."""

    def alone(self) -> Tensor:
        """`I(X_i; Y)` of each neuron alone, `(neurons,)`; only their order is used."""

    def transfers(self, neuron: int) -> tuple[bool, float]:
        """Whether `I(X_i; Y | the other kept neurons)` is above the criterion, and its estimate."""

    def drop(self, neuron: int) -> None:
        """No longer condition on a neuron. Called after `transfers` of it."""


def terc_walk(
    information: Information, layer: str, neurons: int, most: int | None = None, ordering: bool = True
) -> NeuronOrder:
    """The transfer entropy redundancy criterion, with MI ordering (Westphal et al., arXiv 2411.00147, section 5.1).

    Neurons are visited once, those that tell least about Y by themselves first: of two redundant sets of different size,
    the smaller one, whose neurons tell more each, is then kept. A neuron whose information given all that are still kept
    is not above the criterion is dropped for good.

    Args:
        information (`Information`): the estimator.
        layer (`str`): what errors and reports call the layer.
        neurons (`int`): of the layer.
        most (`int`, *optional*): how many may go: the guard against layer collapse. Default: all but one.
        ordering (`bool`): False visits the neurons by their index, as plain TERC does.

    Returns:
        `NeuronOrder`: those dropped, in the order of the walk. Values are the information of each at its visit, NaN where
        the walk ended before it. `details["guarded"]` says whether it ended because no more may go.
    """
    most = neurons - 1 if most is None else min(most, neurons - 1)
    visits = information.alone().argsort(stable=True).tolist() if ordering else range(neurons)
    values = torch.full((neurons,), float("nan"), dtype=torch.float64)
    dropped: list[int] = []
    guarded = False
    for neuron in visits:
        if len(dropped) >= most:
            guarded = True
            break
        needed, values[neuron] = information.transfers(neuron)
        if not needed:
            information.drop(neuron)
            dropped.append(neuron)
    order = torch.tensor(dropped, dtype=torch.int64)
    return NeuronOrder(layer, neurons, order, values, {"guarded": guarded})


def sweep_layers(
    criterion: NeuronCriterion,
    layers: Sequence[NeuronInputs],
    amount: float | int | Mapping[str, float | int] | None = None,
) -> dict[str, NeuronOrder]:
    """Order the neurons of all layers from the outputs to the inputs: each layer's target is what is left of the next.

    So a layer keeps what the next one's kept neurons need, and nothing for those that go (Westphal et al., section 5).

    Args:
        criterion (`NeuronCriterion`): which measure; one without a target orders each layer by itself.
        layers (sequence of `NeuronInputs`): in forward order. The target of each is all neurons of the next layer in this
            sequence (of a channel with several positions: all its columns), that of the last one the model's output.
        amount (`float`, `int`, or one of these for each layer's name, *optional*): how many neurons go. Default: as the
            criterion decides, if it does (`mipp`, `mipp_neural`).

    Returns:
        `dict`: a `NeuronOrder` for each layer's name, in forward order.

    Raises:
        ValueError: if a target does not have the next layer's columns, two layers have one name, or a layer has no amount
            and the criterion does not decide.
    """
    if len({inputs.layer for inputs in layers}) != len(layers):
        raise ValueError(f"layers {[inputs.layer for inputs in layers]} are not told apart: give each its own name.")
    found: dict[str, NeuronOrder] = {}
    following: tuple[NeuronInputs, NeuronOrder] | None = None
    for given in reversed(layers):
        inputs = given
        if following is not None and "target" in criterion.needs:
            inputs = _with_kept_target(given, *following)
        asked = amount_of(criterion, inputs.layer, amount)
        order = criterion.order(inputs, asked)
        found[inputs.layer] = order
        following = (inputs, order)
    return {inputs.layer: found[inputs.layer] for inputs in layers}


def amount_of(
    criterion: NeuronCriterion, layer: str, amount: float | int | Mapping[str, float | int] | None
) -> float | int | None:
    """How many neurons of a layer were asked for.

    Raises:
        ValueError: if nobody says how many: the criterion only ranks, and all neurons but one would go.
    """
    asked = amount.get(layer) if isinstance(amount, Mapping) else amount
    if asked is None and not criterion.decides:
        raise ValueError(
            f"How many neurons of '{layer}' go? The criterion '{criterion.name}' ranks them and does not decide: pass an "
            "amount, e.g. 0.2 for a fifth of them, or 0 to leave the layer as it is."
        )
    return asked


def _with_kept_target(inputs: NeuronInputs, following: NeuronInputs, order: NeuronOrder) -> NeuronInputs:
    """The same inputs, with the kept neurons of the next layer as their target."""
    columns = _columns(following)
    kept = (order.kept()[:, None] * columns + torch.arange(columns)).flatten()
    size = inputs.moments.num_targets if inputs.moments is not None else _width(inputs.target)
    if size != following.num_neurons * columns:
        raise ValueError(
            f"the target of '{inputs.layer}' has {size} columns, but the next layer, '{following.layer}', has "
            f"{following.num_neurons} neurons of {columns} columns: pass the next layer's activations as the target."
        )
    return replace(
        inputs,
        target=None if inputs.target is None else inputs.target[:, kept],
        moments=None if inputs.moments is None else inputs.moments.with_targets(kept),
    )


def _columns(inputs: NeuronInputs) -> int:
    if inputs.moments is not None:
        return inputs.moments.columns
    return inputs.activations.shape[2] if inputs.activations is not None and inputs.activations.ndim == 3 else 1


def _width(target: Tensor | None) -> int:
    return 0 if target is None else target.shape[1]
