"""`NeuronCriterion`: a measure of how much each neuron of a layer matters, and the order in which they go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_mpruner.errors import CalibrationError
from hf_mpruner.width.moments import Moments


@dataclass
class NeuronInputs:
    """What a criterion may look at of one layer. Give what it `needs`; more does no harm.

    Activations are those after the layer's activation function: what the next layer reads. In a gated feed-forward
    block that is the product of gate and up, in a convolution the channel after its normalisation and non-linearity.

    Args:
        layer (`str`): what errors and reports call the layer.
        activations (`torch.Tensor`): `(samples, neurons)`; of a convolution `(samples, channels, positions)`.
        target (`torch.Tensor` of shape `(samples, m)`): activations of the next layer, for the same samples.
        moments (`Moments`): of the activations and, if there is one, the target: instead of holding both.
        weights (`torch.Tensor`): `(neurons, inputs)` or with more dimensions: the incoming weights of each neuron.
        seed (`int`): of criteria that draw.

    Example:
        >>> inputs = NeuronInputs("fc1", activations=torch.arange(12.0).reshape(4, 3).sin())
        >>> inputs.num_neurons, inputs.get_moments().num_samples
        (3, 4)
    """

    layer: str = "layer"
    activations: Tensor | None = None
    target: Tensor | None = None
    moments: Moments | None = None
    weights: Tensor | None = None
    seed: int = 0

    @property
    def num_neurons(self) -> int:
        """Neurons of the layer.

        Raises:
            ValueError: if nothing was given that tells.
        """
        if self.activations is not None:
            return self.activations.shape[1]
        if self.moments is not None:
            return self.moments.num_neurons
        if self.weights is not None:
            return self.weights.shape[0]
        raise ValueError(f"Nothing of '{self.layer}' was given: pass activations, moments or weights.")

    def get_moments(self) -> Moments:
        """The moments given, or those of the activations given.

        Raises:
            CalibrationError: without either.
        """
        if self.moments is not None:
            return self.moments
        if self.activations is None:
            raise CalibrationError(
                f"'{self.layer}' has neither activations nor moments: run calibration data through it."
            )
        return Moments.of(self.activations, self.target)


@dataclass(frozen=True)
class NeuronOrder:
    """Which neurons of one layer go, first one first.

    Args:
        layer (`str`): as in the inputs.
        num_neurons (`int`): of the layer.
        order (`torch.Tensor` of `int64`): indices of neurons; not all of them where a criterion says by itself which
            stay, or was asked for a number.
        values (`torch.Tensor` of shape `(neurons,)`): what each was judged by when it was judged last; what that is says
            the criterion. NaN where it was not.
        details (`dict`): further plain values, for reports.

    Example:
        >>> order = NeuronOrder("fc1", 4, torch.tensor([2, 0, 3]), torch.tensor([0.3, 0.9, 0.1, 0.5]))
        >>> order.select(0.5)
        tensor([0, 2])
        >>> order.kept(0.5)
        tensor([1, 3])
    """

    layer: str
    num_neurons: int
    order: Tensor
    values: Tensor
    details: dict[str, Any] = field(default_factory=dict)

    def select(self, amount: float | int | None = None) -> Tensor:
        """Which neurons go, ascending.

        Args:
            amount (`float` or `int`, *optional*): a fraction of the layer's neurons as `float`, or how many as `int`.
                Default: all of the order.

        Raises:
            ValueError: for a fraction outside 0 to 1, for all neurons of the layer, and for more than the order has.
        """
        number = len(self.order) if amount is None else number_of(amount, self.num_neurons, self.layer)
        check_survivors(number, self.num_neurons, self.layer)
        if number > len(self.order):
            raise ValueError(
                f"{number} of the {self.num_neurons} neurons of '{self.layer}' were asked for, but the order names "
                f"{len(self.order)}: ask the criterion for that number, or take fewer."
            )
        return self.order[:number].sort().values

    def kept(self, amount: float | int | None = None) -> Tensor:
        """Which neurons stay, ascending; like `select`."""
        stays = torch.ones(self.num_neurons, dtype=torch.bool)
        stays[self.select(amount)] = False
        return stays.nonzero().flatten()


class NeuronCriterion(ABC):
    """A measure of neurons. Subclass it, define `name` and `rank`, and use it wherever neurons go.

    Attributes:
        name (`str`): what it is called.
        title (`str`): one line on what it measures.
        source (`str`): paper, or "baseline".
        needs (`frozenset[str]`): of `"moments"` (or the activations that they are of), `"activations"` (all samples
            held), `"target"` (activations of the next layer, in the moments or held), `"weights"`. Empty: nothing but
            the number of neurons.
        decides (`bool`): whether it says by itself how many neurons go. Of one that does not, an order without an amount
            is a ranking of all neurons but one, and nothing goes without an amount.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    source: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset({"moments"})
    decides: ClassVar[bool] = False

    @abstractmethod
    def rank(self, inputs: NeuronInputs, number: int | None) -> NeuronOrder:
        """The order in which neurons go.

        Args:
            inputs (`NeuronInputs`): of one layer, checked to have what it `needs`.
            number (`int`, *optional*): how many are wanted, at most one less than there are. `None`: as the criterion
                decides by itself, or all but one.
        """

    def order(self, inputs: NeuronInputs, amount: float | int | None = None) -> NeuronOrder:
        """The order in which neurons go, with inputs and amount checked.

        Args:
            inputs (`NeuronInputs`): of one layer.
            amount (`float` or `int`, *optional*): a fraction (`float`) or a number (`int`) of neurons to remove.

        Raises:
            ValueError: for a fraction outside 0 to 1, or an amount that would leave no neuron.
            CalibrationError: if the criterion needs what was not given.
        """
        self._check_needs(inputs)
        neurons, number = inputs.num_neurons, None
        if amount is not None:
            number = number_of(amount, neurons, inputs.layer)
            check_survivors(number, neurons, inputs.layer)
        return self.rank(inputs, number)

    def _check_needs(self, inputs: NeuronInputs) -> None:
        moments = inputs.moments
        has = {
            "moments": moments is not None or inputs.activations is not None,
            "activations": inputs.activations is not None,
            "target": inputs.target is not None or (moments is not None and moments.num_targets > 0),
            "weights": inputs.weights is not None,
        }
        missing = sorted(need for need in self.needs if not has[need])
        if missing:
            raise CalibrationError(
                f"The neuron criterion '{self.name}' needs {' and '.join(missing)} of '{inputs.layer}': pass "
                f"NeuronInputs({', '.join(f'{name}=...' for name in missing)})."
            )


def number_of(amount: float | int, neurons: int, layer: str = "layer") -> int:
    """How many neurons an amount is: a fraction as `float`, rounded to the nearest, or a number as `int`.

    Raises:
        TypeError: for something else than a number.
        ValueError: for a fraction outside 0 to 1, or a negative number.

    Example:
        >>> number_of(0.2, 512), number_of(3, 512)
        (102, 3)
    """
    if isinstance(amount, bool) or not isinstance(amount, int | float):
        raise TypeError(
            f"amount={amount!r} for '{layer}': pass a fraction such as 0.2, or a number of neurons such as 100."
        )
    if isinstance(amount, float):
        if not 0.0 <= amount <= 1.0:
            raise ValueError(
                f"amount={amount} for '{layer}' is no fraction from 0 to 1: for a fifth of the neurons pass 0.2, for a "
                f"number of neurons an int, e.g. {max(1, neurons // 5)}."
            )
        return round(amount * neurons)
    if amount < 0:
        raise ValueError(
            f"amount={amount} for '{layer}' is negative: pass a number of neurons from 0 to {neurons - 1}."
        )
    return amount


def check_survivors(number: int, neurons: int, layer: str = "layer", least: int = 1) -> None:
    """Check that a layer keeps some neurons.

    Raises:
        ValueError: names the layer and says how many can go.
    """
    if number > neurons - least:
        raise ValueError(
            f"{number} of the {neurons} neurons of '{layer}' would go, and {least} {'has' if least == 1 else 'have'} to "
            f"stay: a layer without neurons passes nothing on. Remove at most {max(0, neurons - least)}, or a smaller "
            "fraction."
        )
