"""`Moments`: means and covariance of activations, batch by batch, so that no activation has to be held."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_mpruner.errors import CalibrationError


class Moments:
    """Running mean and covariance of a layer's activations X and, where wanted, of the next layer's Y.

    Batches are merged about their own means (Chan, Golub & LeVeque 1983), in float64: a large mean costs no digits, and
    the order of batches does not matter beyond rounding. Held: one square matrix of `num_neurons * columns + num_targets`
    columns.

    Args:
        num_neurons (`int`): neurons of the layer.
        num_targets (`int`): columns of Y; 0 without Y.
        columns (`int`): columns of X that one neuron has: more than 1 for a channel with several positions, neuron by
            neuron (`x.flatten(1)` of `(samples, channels, positions)`).

    Example:
        >>> x = torch.arange(12.0).reshape(6, 2).sin()
        >>> moments = Moments(2)
        >>> moments.update(x[:4])
        >>> moments.update(x[4:])
        >>> torch.allclose(moments.covariance, x.double().T.cov())
        True
    """

    def __init__(self, num_neurons: int, num_targets: int = 0, columns: int = 1) -> None:
        if min(num_neurons, columns) < 1 or num_targets < 0:
            raise ValueError(
                f"num_neurons={num_neurons}, num_targets={num_targets}, columns={columns}: a layer has 1 or more neurons "
                "of 1 or more columns each, and 0 or more targets."
            )
        self.num_neurons, self.num_targets, self.columns = num_neurons, num_targets, columns
        size = num_neurons * columns + num_targets
        self.num_samples = 0
        self._mean = torch.zeros(size, dtype=torch.float64)
        self._products = torch.zeros(size, size, dtype=torch.float64)

    @classmethod
    def of(cls, activations: Tensor, target: Tensor | None = None) -> Moments:
        """Of all samples at once.

        Args:
            activations (`torch.Tensor`): `(samples, neurons)` or `(samples, neurons, columns)`.
            target (`torch.Tensor` of shape `(samples, m)`, *optional*): the next layer's.

        Raises:
            ValueError: if the shapes do not fit.
            CalibrationError: for values that are not finite.
        """
        columns = activations.shape[2] if activations.ndim == 3 else 1
        moments = cls(activations.shape[1], 0 if target is None else target.shape[1], columns)
        moments.update(activations, target)
        return moments

    @property
    def num_inputs(self) -> int:
        """Columns of X."""
        return self.num_neurons * self.columns

    @property
    def mean(self) -> Tensor:
        """Mean of every column: X's, then Y's; float64."""
        return self._mean

    @property
    def covariance(self) -> Tensor:
        """Covariance of all columns, X's then Y's, divided by samples - 1; float64.

        Raises:
            CalibrationError: if fewer than 2 samples were added.
        """
        if self.num_samples < 2:
            raise CalibrationError(
                f"{self.num_samples} samples were added: a covariance needs 2 or more. Pass more calibration data."
            )
        return self._products / (self.num_samples - 1)

    @torch.no_grad()
    def update(self, activations: Tensor, target: Tensor | None = None) -> None:
        """Add one batch.

        Args:
            activations (`torch.Tensor`): `(samples, neurons)` or `(samples, neurons, columns)`, or the latter flattened.
            target (`torch.Tensor` of shape `(samples, num_targets)`, *optional*): the next layer's, of the same samples.

        Raises:
            ValueError: if the shapes do not fit.
            CalibrationError: for values that are not finite.
        """
        rows = activations.flatten(1)
        if (rows.shape[1], target is not None) != (self.num_inputs, self.num_targets > 0):
            raise ValueError(
                f"activations of shape {tuple(activations.shape)} {'with' if target is not None else 'without'} a target "
                f"do not fit: these moments are of {self.num_neurons} neurons of {self.columns} columns and "
                f"{self.num_targets} targets."
            )
        if target is not None:
            if target.shape != (len(rows), self.num_targets):
                raise ValueError(
                    f"target of shape {tuple(target.shape)} does not fit {len(rows)} samples of {self.num_targets} targets."
                )
            rows = torch.cat([rows, target.to(rows)], dim=1)
        if not len(rows):
            return
        # Not every device has float64.
        rows = (rows.cpu() if rows.device.type == "mps" else rows).to(torch.float64)
        mean = rows.mean(0)
        centred = rows - mean
        self._add(len(rows), mean.cpu(), (centred.T @ centred).cpu())

    def merge(self, other: Moments) -> None:
        """Add what another has seen, e.g. on another process.

        Raises:
            ValueError: if the other is of another shape.
        """
        shapes = [(m.num_neurons, m.num_targets, m.columns) for m in (self, other)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"moments of (neurons, targets, columns) {shapes[1]} do not merge into {shapes[0]}: both must be the same."
            )
        if other.num_samples:
            self._add(other.num_samples, other._mean, other._products)

    def with_targets(self, kept: Tensor) -> Moments:
        """The same of some columns of Y only, e.g. those of the next layer's neurons that stay.

        Args:
            kept (`torch.Tensor` of `int`): columns of Y.
        """
        columns = torch.cat([torch.arange(self.num_inputs), self.num_inputs + torch.as_tensor(kept).long()])
        part = Moments(self.num_neurons, len(kept), self.columns)
        part.num_samples = self.num_samples
        part._mean, part._products = self._mean[columns], self._products[columns][:, columns]
        return part

    def _add(self, count: int, mean: Tensor, products: Tensor) -> None:
        broken = ~products.diagonal().isfinite()
        if broken.any():
            column = int(broken.nonzero()[0])
            what = (
                f"neuron {column // self.columns}"
                if column < self.num_inputs
                else f"target {column - self.num_inputs}"
            )
            raise CalibrationError(
                f"The activations of {what} are NaN or infinite. Run the model in float32 or bfloat16, or look for bad "
                "examples; nothing was averaged over them."
            )
        total = self.num_samples + count
        step = mean - self._mean
        self._products += products + torch.outer(step, step) * (self.num_samples * count / total)
        self._mean = self._mean + step * (count / total)
        self.num_samples = total
