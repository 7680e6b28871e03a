"""Greedy CKA pruning of neurons, in closed form: the same order as the published search, without its evaluations."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_mpruner.errors import CalibrationError
from hf_mpruner.width.base import NeuronCriterion, NeuronInputs, NeuronOrder, check_survivors, number_of
from hf_mpruner.width.moments import Moments

MODES = ("greedy", "one_shot")
# CKA values that differ by less are equal: duplicates differ by the rounding of sums, which depends on the machine.
TIE = 1e-13


def greedy_cka_order(
    activations: Tensor | Moments, number: float | int | None = None, mode: str = "greedy", layer: str = "layer"
) -> tuple[Tensor, Tensor]:
    r"""Which neurons go, so that linear CKA between the layer with all and with the remaining neurons stays highest.

    With A the centred activations, `C = A^T A` and `S_ij = C_ij^2`, the CKA of the whole layer and a subset is
    `sum_{i in subset} q_i / sqrt(sum_ij S_ij * sum_{i in subset} r_i)`, where `q_i` sums `S_ij` over all neurons j and
    `r_i` over those of the subset. Taking neuron i out changes the numerator by `-q_i` and the other sum by
    `-2 r_i + S_ii`, so that one matrix product and O(neurons) per removal replace a CKA for each candidate (Higgins
    2023, section 3, whose text recomputes each). Neurons whose output is constant add nothing and tie for first place; of
    equal ones the lower index goes first.

    Args:
        activations (`torch.Tensor` or `Moments`): `(samples, neurons)`; or `(samples, channels, positions)`, whose
            positions count as samples; or moments, whose columns of one neuron go together.
        number (`int`, or `float` for a fraction, *optional*): how many go. Default: all but one.
        mode (`str`): `"greedy"` judges the others again after each removal, as the paper's text says. `"one_shot"` ranks
            all by the CKA without that one neuron alone: what the published code does, since it starts each step from the
            activations of all neurons.
        layer (`str`): what errors call the layer.

    Returns:
        `tuple`: the order, `number` indices, and the CKA of each neuron's removal as judged last, `(neurons,)` float64
        (greedy: for a removed one, at its removal; for the others, of going next).

    Raises:
        ValueError: for another mode, a negative number, or if no neuron would stay.
        CalibrationError: if every neuron's output is constant, or values are not finite.

    Example:
        >>> x = torch.arange(40.0).reshape(10, 4).sin()
        >>> x[:, 1] = 0.5
        >>> greedy_cka_order(x, 2)[0][0]
        tensor(1)
    """
    if mode not in MODES:
        raise ValueError(f"mode='{mode}' is not known: pass one of {', '.join(MODES)}.")
    squares = _squared_covariances(activations)
    neurons = len(squares)
    number = neurons - 1 if number is None else number_of(number, neurons, layer)
    check_survivors(number, neurons, layer)
    whole = squares.sum(1)
    total = whole.sum()
    if not total > 0:
        raise CalibrationError(
            f"Every neuron of '{layer}' gives the same output for all {_samples_in(activations)} samples, so there is no "
            "similarity to keep: pass different samples, or look for a dead layer."
        )
    if mode == "one_shot":
        values = _after_removal(whole, whole, squares.diagonal(), total)
        return (values / TIE).round().argsort(descending=True, stable=True)[:number], values
    return _greedy(squares, whole, total, number)


def _greedy(squares: Tensor, whole: Tensor, total: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """One after another; every sum is over the neurons that are still there."""
    own, left = squares.diagonal(), whole.clone()
    alive = torch.ones_like(whole)
    order = torch.empty(number, dtype=torch.int64)
    values = torch.full_like(whole, float("nan"))
    gone = torch.zeros_like(whole, dtype=torch.bool)
    for step in range(number):
        scores = _after_removal(whole, left, own, total, alive).masked_fill_(gone, -torch.inf)
        chosen = int((scores >= scores.max() - TIE).to(torch.int8).argmax())
        order[step], values[chosen] = chosen, scores[chosen]
        alive[chosen], gone[chosen] = 0.0, True
        left -= squares[chosen]
    scores = _after_removal(whole, left, own, total, alive)
    return order, torch.where(gone, values, scores)


def _after_removal(whole: Tensor, left: Tensor, own: Tensor, total: Tensor, alive: Tensor | None = None) -> Tensor:
    """CKA of the whole layer and what stays without each neuron; -inf where nothing that varies would stay."""
    numerator = whole.sum() if alive is None else whole @ alive
    square = left.sum() if alive is None else left @ alive
    remaining = square - 2 * left + own
    # Below rounding of the sums there is nothing left: a 0 / 0 would otherwise win.
    nothing = remaining <= square * 1e-14
    return ((numerator - whole) / (remaining.clamp_min(0) * total).sqrt()).masked_fill(nothing, -torch.inf)


def _squared_covariances(activations: Tensor | Moments) -> Tensor:
    """`S`: for each pair of neurons the sum of squared covariances of their columns."""
    if isinstance(activations, Moments):
        moments = activations
    else:
        moments = Moments.of(activations.movedim(1, -1).flatten(0, -2) if activations.ndim > 2 else activations)
    inputs, columns = moments.num_inputs, moments.columns
    squares = moments.covariance[:inputs, :inputs].square_()
    # A column that is constant but for rounding of its mean must not pass for one that varies.
    noise = (moments.mean[:inputs].abs() * 1e-12).square()
    constant = squares.diagonal().sqrt() <= noise
    squares[constant] = 0
    squares[:, constant] = 0
    return squares.reshape(moments.num_neurons, columns, moments.num_neurons, columns).sum((1, 3))


def _samples_in(activations: Tensor | Moments) -> int:
    return activations.num_samples if isinstance(activations, Moments) else len(activations)


class GreedyCKA(NeuronCriterion):
    """Neurons whose removal keeps CKA between the layer before and after highest go first (`greedy_cka_order`)."""

    name = "cka"
    title = "highest CKA between the layer with all and with the remaining neurons, judged again after each removal"
    source = "Higgins 2023, section 3, in closed form"
    mode = "greedy"

    def rank(self, inputs: NeuronInputs, number: int | None) -> NeuronOrder:
        """In greedy order; values are CKA, the higher the earlier."""
        given = inputs.moments if inputs.moments is not None else inputs.activations
        if given is None:
            raise CalibrationError(f"'{inputs.layer}' has neither activations nor moments.")
        order, values = greedy_cka_order(given, number, self.mode, inputs.layer)
        return NeuronOrder(inputs.layer, inputs.num_neurons, order, values)


class OneShotCKA(GreedyCKA):
    """Neurons ranked once by the CKA without each alone: what the published code of Higgins 2023 does."""

    name = "cka_one_shot"
    title = "highest CKA between the layer with all neurons and without this one"
    source = "Higgins 2023, as its published code behaves"
    mode = "one_shot"
