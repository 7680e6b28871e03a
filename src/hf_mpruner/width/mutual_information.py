"""MIPP under a Gaussian model: how much each neuron tells the next layer, for all neurons of a layer at once."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor

from hf_mpruner.errors import CalibrationError
from hf_mpruner.width.base import NeuronCriterion, NeuronInputs, NeuronOrder, check_survivors
from hf_mpruner.width.moments import Moments
from hf_mpruner.width.terc import terc_walk

# Added to every variance of 1: how finely an activation is told apart. Without it copies have no inverse covariance.
NOISE = 1e-10
# Removals that are collected before they are applied to a whole matrix in one product.
PENDING = 64


class GaussianInformation:
    r"""`I(X_i; Y | the other kept neurons)` of a layer, as if (X, Y) were jointly Gaussian.

    For such variables it is `1/2 log([Cov(X, Y)^-1]_ii / [Cov(X)^-1]_ii)`, with determinants of blocks where a neuron has
    several columns, and dropping a neuron is a Schur complement of both inverses: a layer costs O(columns^3) once. What
    depends on Y by more than means and covariances (the XOR of two neurons) is not seen.

    Columns are scaled to a variance of 1, which changes no information; those that are constant tell nothing.

    Args:
        moments (`Moments`): of X and Y.
        shrinkage (`float`, `"oas"` or `"auto"`): how far correlations are shrunk towards 0, from 0 to 1. `"oas"` takes
            the oracle approximating shrinkage of the joint correlations (Chen et al. 2010), `"auto"` the same with fewer
            than 2 samples a column of X and Y and else none: shrinking is like noise on every neuron, and a neuron that
            others give exactly then seems to tell something.
        confidence (`float`): a neuron is needed if its information would come up by chance in fewer than 1 - confidence
            of the samples of this size, were it 0 (`chance_information`).
        threshold (`float`, *optional*): of information in nats, in place of the confidence.
        layer (`str`): what errors call the layer.

    Raises:
        ValueError: for a confidence, threshold or shrinkage outside its range.
        CalibrationError: without a target that varies.

    Example:
        >>> x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
        >>> x[:, 2] = x[:, 0]
        >>> information = GaussianInformation(Moments.of(x, (x + x[:, [1, 1, 1]]).exp()))
        >>> (information.conditional() < 1e-4).tolist()
        [True, False, True]
    """

    def __init__(
        self,
        moments: Moments,
        shrinkage: float | str = "auto",
        confidence: float = 0.95,
        threshold: float | None = None,
        layer: str = "layer",
    ) -> None:
        _check_settings(shrinkage, confidence, threshold)
        self.layer, self.threshold, self.confidence = layer, threshold, confidence
        self.num_samples, self.columns, self.num_neurons = moments.num_samples, moments.columns, moments.num_neurons
        inputs = moments.num_inputs
        self.correlation, varies = _correlation(moments)
        if not varies[inputs:].any():
            raise CalibrationError(
                f"The target of '{layer}' does not vary over {moments.num_samples} samples, so no neuron can tell anything "
                "about it: pass the next layer's activations on different samples, or look for a dead next layer."
            )
        if shrinkage == "auto":
            shrinkage = "oas" if moments.num_samples < 2 * int(varies.sum()) else 0.0
        rate = oas_shrinkage(self.correlation, varies, moments.num_samples) if shrinkage == "oas" else float(shrinkage)
        self.shrinkage = rate
        diagonal = self.correlation.diagonal()
        self.correlation *= 1 - rate
        diagonal.fill_(1.0 + NOISE)
        self.num_targets = int(varies[inputs:].sum())
        whole = self.correlation[:inputs, :inputs]
        cross = self.correlation[:inputs, inputs:]
        given = whole - cross @ torch.linalg.solve(self.correlation[inputs:, inputs:], cross.T)
        self._alone = self._log_ratio(_blocks(whole, self.columns), _blocks(given, self.columns))
        self._marginal = _Precision(whole, self.columns)
        self._given = _Precision(given, self.columns)
        self._gone = torch.zeros(self.num_neurons, dtype=torch.bool)
        self._known = self._log_ratio(self._given.blocks, self._marginal.blocks)

    def alone(self) -> Tensor:
        """`I(X_i; Y)` of each neuron alone, in nats, `(neurons,)`."""
        return self._alone

    def conditional(self) -> Tensor:
        """`I(X_i; Y | the other kept neurons)`, in nats, `(neurons,)`; NaN for those dropped."""
        return self._known.masked_fill(self._gone, float("nan"))

    def transfers(self, neuron: int) -> tuple[bool, float]:
        """Whether a neuron's conditional information is above the criterion, and what it is.

        Raises:
            CalibrationError: if there are too few samples to tell, and no threshold was given.
        """
        value = float(self._known[neuron])
        return value > self.criterion(), value

    def criterion(self) -> float:
        """The information that a neuron has to exceed now, in nats."""
        if self.threshold is not None:
            return self.threshold
        kept = int((~self._gone).sum()) * self.columns
        found = chance_information(self.num_samples - 1 - kept, self.columns, self.num_targets, self.confidence)
        if found is None:
            raise CalibrationError(
                f"{self.num_samples} samples are too few to say which of {kept} columns of '{self.layer}' tell something "
                f"about {self.num_targets} targets: pass more than {kept + self.num_targets + self.columns + 1} samples, "
                "a number or fraction of neurons to remove, or a threshold."
            )
        return found

    def drop(self, neuron: int) -> None:
        """No longer condition on a neuron."""
        self._gone[neuron] = True
        self._marginal.drop(neuron)
        self._given.drop(neuron)
        self._known = self._log_ratio(self._given.blocks, self._marginal.blocks, self._gone)

    @staticmethod
    def _log_ratio(upper: Tensor, lower: Tensor, gone: Tensor | None = None) -> Tensor:
        """Half the logarithm of the ratio of determinants, block by block; 0 for dropped ones."""
        if gone is not None:
            one = torch.eye(upper.shape[1], dtype=upper.dtype)
            upper, lower = (torch.where(gone[:, None, None], one, blocks) for blocks in (upper, lower))
        return ((upper.logdet() - lower.logdet()) / 2).clamp_min(0.0)


class _Precision:
    """The inverse of a covariance whose neurons are taken out one by one; only its diagonal blocks are always current.

    Taking out a neuron is a rank-`columns` update of the whole matrix. Updates are collected and applied by one matrix
    product, as a single one is bound by memory; what is read in between is corrected for those that are pending.
    """

    def __init__(self, covariance: Tensor, columns: int) -> None:
        self._matrix = torch.linalg.inv(covariance)
        self._matrix = (self._matrix + self._matrix.T) / 2
        self._columns = columns
        self._pending = torch.empty(len(covariance), PENDING * columns, dtype=covariance.dtype)
        self._filled = 0
        self.blocks = _blocks(self._matrix, columns).clone()

    def drop(self, neuron: int) -> None:
        """Make it the inverse covariance of the others."""
        rows = slice(neuron * self._columns, (neuron + 1) * self._columns)
        done = self._pending[:, : self._filled]
        column = self._matrix[:, rows] - done @ done[rows].T
        root = torch.linalg.cholesky(self.blocks[neuron])
        update = torch.linalg.solve_triangular(root, column.T, upper=False).T
        split = update.reshape(-1, self._columns, self._columns)
        self.blocks -= split @ split.transpose(1, 2)
        self._pending[:, self._filled : self._filled + self._columns] = update
        self._filled += self._columns
        if self._filled == self._pending.shape[1]:
            self._matrix.addmm_(self._pending, self._pending.T, alpha=-1)
            self._filled = 0


def oas_shrinkage(correlation: Tensor, varies: Tensor, num_samples: int) -> float:
    """The oracle approximating shrinkage towards the identity of columns with a variance of 1.

    Args:
        correlation (`torch.Tensor`): `(columns, columns)`.
        varies (`torch.Tensor` of `bool`): columns that count.
        num_samples (`int`): of which it was computed.

    Returns:
        `float`: from 0 to 1 (Chen, Wiesel, Eldar & Hero 2010, equation 23, without the terms of 2 / columns, as
        scikit-learn's `oas`).
    """
    size = int(varies.sum())
    part = correlation[varies][:, varies]
    square, trace = float(part.square().mean()), float(part.diagonal().mean()) ** 2
    spread = (num_samples + 1) * (square - trace / size)
    return 1.0 if spread <= 0 else min(1.0, (square + trace) / spread)


class GaussianMIPP(NeuronCriterion):
    """MIPP with `GaussianInformation`: neurons that tell the next layer least, given the kept ones, go.

    Without a number asked, TERC decides (`terc_walk`): what stays is what the criterion keeps. With a number, the neuron
    with the least conditional information goes, and the others are judged again, until so many are gone: TERC with a
    criterion that rises until the number is met.

    The columns of one channel (positions of `(samples, channels, positions)`) are one multivariate variable that goes as
    a whole, as in the paper's appendix E.2.

    Args:
        confidence, threshold, shrinkage: see `GaussianInformation`.
        max_fraction (`float`): of a layer's neurons that may go where the criterion decides: a guard against collapse.
        min_neurons (`int`): that always stay.
        ordering (`bool`): MI ordering of the walk.
    """

    name = "mipp"
    title = "least information about the next layer that the kept neurons do not give first (Gaussian)"
    source = "Westphal et al., arXiv 2411.00147 (MIPP, TERC with MI ordering); Gaussian closed form"
    needs = frozenset({"moments", "target"})
    decides = True

    def __init__(
        self,
        confidence: float = 0.95,
        threshold: float | None = None,
        shrinkage: float | str = "auto",
        max_fraction: float = 0.9,
        min_neurons: int = 1,
        ordering: bool = True,
    ) -> None:
        _check_settings(shrinkage, confidence, threshold)
        check_guard(max_fraction, min_neurons)
        self.confidence, self.threshold, self.shrinkage = confidence, threshold, shrinkage
        self.max_fraction, self.min_neurons, self.ordering = max_fraction, min_neurons, ordering

    def rank(self, inputs: NeuronInputs, number: int | None) -> NeuronOrder:
        """By TERC, or those that tell least up to a number."""
        moments, layer = inputs.get_moments(), inputs.layer
        information = GaussianInformation(moments, self.shrinkage, self.confidence, self.threshold, layer)
        if number is None:
            most = most_that_may_go(moments.num_neurons, self.max_fraction, self.min_neurons)
            return terc_walk(information, layer, moments.num_neurons, most, self.ordering)
        check_survivors(number, moments.num_neurons, layer, self.min_neurons)
        values = information.conditional()
        order = torch.empty(number, dtype=torch.int64)
        for step in range(number):
            now = information.conditional()
            left = ~now.isnan()
            values[left] = now[left]
            order[step] = int(now.nan_to_num(torch.inf).argmin())
            information.drop(int(order[step]))
        return NeuronOrder(layer, moments.num_neurons, order, values)


def most_that_may_go(neurons: int, max_fraction: float, min_neurons: int) -> int:
    """How many neurons of a layer the guard lets go."""
    return max(0, min(math.floor(max_fraction * neurons), neurons - min_neurons))


def check_guard(max_fraction: float, min_neurons: int) -> None:
    """Check the settings of the guard against layer collapse.

    Raises:
        ValueError: says which are allowed.
    """
    if not 0.0 <= max_fraction <= 1.0 or min_neurons < 1:
        raise ValueError(
            f"max_fraction={max_fraction}, min_neurons={min_neurons}: the fraction of neurons that may go is from 0 to 1, "
            "and 1 or more neurons stay."
        )


def _check_settings(shrinkage: float | str, confidence: float, threshold: float | None) -> None:
    if shrinkage not in ("auto", "oas") and not (isinstance(shrinkage, int | float) and 0.0 <= shrinkage <= 1.0):
        raise ValueError(f"shrinkage={shrinkage!r} is not known: pass 'auto', 'oas' or a number from 0 to 1.")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence={confidence} is not between 0 and 1: pass e.g. 0.95.")
    if threshold is not None and not threshold >= 0.0:
        raise ValueError(f"threshold={threshold} is negative: information is 0 nats or more.")


def _correlation(moments: Moments) -> tuple[Tensor, Tensor]:
    """Correlations of all columns, and which columns vary; a constant one is as independent of all others as can be."""
    covariance = moments.covariance
    deviation = covariance.diagonal().sqrt()
    varies = deviation > moments.mean.abs() * 1e-12
    scale = torch.where(varies, 1 / deviation, torch.zeros_like(deviation))
    correlation = covariance * scale[:, None] * scale
    correlation.diagonal().fill_(1.0)
    return correlation, varies


def _blocks(matrix: Tensor, columns: int) -> Tensor:
    """The diagonal blocks `(neurons, columns, columns)` of a square matrix."""
    neurons = len(matrix) // columns
    return matrix.reshape(neurons, columns, neurons, columns).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def chance_information(freedom: int, columns: int, targets: int, confidence: float) -> float | None:
    """The information that columns which tell nothing seem to give about targets in a fraction `confidence` of samples.

    Wilks' lambda of adding them to a regression is exp(-2 information); it is compared by Rao's F, which is exact for
    one column.

    Args:
        freedom (`int`): samples - 1 - all columns, those included.
        columns (`int`): that are added.
        targets (`int`): that are regressed.
        confidence (`float`): between 0 and 1.

    Returns:
        `float` or `None`: in nats; None if there are too few samples for any statement.
    """
    product = targets * columns
    spread = targets**2 + columns**2 - 5
    root = math.sqrt((product**2 - 4) / spread) if spread > 0 else 1.0
    rest = (freedom + columns - (targets + columns + 1) / 2) * root - (product - 2) / 2
    if freedom < 1 or rest < 1:
        return None
    found = root / 2 * math.log1p(_f_quantile(confidence, product, rest) * product / rest)
    return found if math.isfinite(found) else None


def _f_quantile(probability: float, upper: float, lower: float) -> float:
    """Of Fisher's F, by Paulson (1942): its cube root is nearly the ratio of two normal variables."""
    a, b, z = 2 / (9 * upper), 2 / (9 * lower), NormalDist().inv_cdf(probability)
    inside = max(0.0, b * (1 - a) ** 2 + a * (1 - b) ** 2 - a * b * z * z)
    bottom = (1 - b) ** 2 - z * z * b
    # With next to no degrees of freedom the approximation has no finite value.
    return math.inf if bottom <= 0 else max(0.0, ((1 - a) * (1 - b) + z * math.sqrt(inside)) / bottom) ** 3
