"""What unrelated rows would give: similarities against a shuffled null, and how sure they are.

Biased CKA of features that have nothing to do with each other is near 1 where features outnumber rows, and rows that are
alike (the tokens of one text) raise any estimate. Both show when the rows of one layer are compared with the rows of the
other in another order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_mpruner.errors import CalibrationError
from hf_mpruner.similarity.spread import interval, rounded

# Nearer to 1 than this, a shuffled similarity leaves no room to tell layers that are alike from others.
_LEAST_ROOM = 1e-6


@dataclass(frozen=True, eq=False)
class CalibratedSimilarity:
    """Similarities on a scale on which unrelated rows are at 0 and equal ones at 1: `(s - null) / (1 - null)`.

    Args:
        values (`torch.Tensor` of shape `(layers, layers)`): in -1..1, float64.
        errors (`torch.Tensor` of shape `(layers, layers)`, *optional*): their standard errors over `num_groups`, the noise of
            the null included; `None` of a single group.
        num_groups (`int`): batches (or examples, where each is compared by itself).
    """

    values: Tensor
    errors: Tensor | None
    num_groups: int

    def evidence(self, confidence: float = 0.95) -> Tensor:
        """Lower ends: the calibrated similarity of unlimited data is above each with this probability, each by itself.

        One-sided, Student's t on Fisher's scale as in `SimilarityMatrix.interval`; asymptotically, for batches in random
        order. Of a single batch, whose noise is not known, the values themselves.

        Args:
            confidence (`float`): between 0 and 1.

        Returns:
            `torch.Tensor` of shape `(layers, layers)`.
        """
        if self.errors is None:
            return self.values
        return interval(self.values, self.errors, self.num_groups, 1.0 - confidence)[0]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        errors = None if self.errors is None else self.errors.tolist()
        return {"values": self.values.tolist(), "errors": errors, "num_groups": self.num_groups}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CalibratedSimilarity:
        """What `to_dict` wrote."""
        errors = None if data["errors"] is None else torch.tensor(data["errors"], dtype=torch.float64)
        return cls(torch.tensor(data["values"], dtype=torch.float64), errors, data["num_groups"])


def other_order(row_mask: Tensor, seed: int) -> Tensor:
    """For each row that counts another one of its group, drawn at random: a single cycle, so no row keeps its place.

    It follows from the seed and the mask alone, so that the null does not depend on which process measures a batch.

    Args:
        row_mask (`torch.Tensor` of shape `(groups, rows)`): True at rows that count; on the CPU.
        seed (`int`): that it is drawn by.

    Returns:
        `torch.Tensor` of shape `(groups, rows)`: indices; rows that do not count keep their place.
    """
    groups, rows = row_mask.shape
    keys = torch.rand(groups, rows, generator=torch.Generator().manual_seed(seed)).masked_fill(~row_mask, 2.0)
    order = keys.argsort(1)  # rows that count first, shuffled
    count, place = row_mask.sum(1, keepdim=True), torch.arange(rows).expand(groups, rows)
    following = torch.where(place < count, (place + 1) % count.clamp(min=1), place)
    return torch.empty_like(order).scatter_(1, order, order.gather(1, following))


def reorder_grams(grams: Tensor, order: Tensor) -> Tensor:
    """Gram matrices of the same rows in another order.

    Args:
        grams (`torch.Tensor` of shape `(groups, rows * rows)`): from `centred_gram`.
        order (`torch.Tensor` of shape `(groups, rows)`): from `other_order`.
    """
    groups, rows = order.shape
    order = order.to(grams.device)
    square = grams.view(groups, rows, rows).gather(1, order.unsqueeze(2).expand(-1, -1, rows))
    return square.gather(2, order.unsqueeze(1).expand(-1, rows, -1)).flatten(1)


def null_moments(hsic: Tensor, null: Tensor, weights: Tensor) -> Tensor:
    """What the standard errors of calibrated similarities need besides `second_moments`; of several sets they add up.

    Args:
        hsic (`torch.Tensor` of shape `(groups, layers, layers)`): of each group.
        null (`torch.Tensor` of the same shape): with the second layer's rows in another order; symmetric.
        weights (`torch.Tensor` of shape `(groups,)`): of each in the sums.

    Returns:
        `torch.Tensor` of shape `(3, layers, layers)`: sums over the groups of `n_ij n_ij`, `h_ij n_ij` and `n_ij h_ii`, with
        both weighted.
    """
    h, n = hsic * weights.view(-1, 1, 1), null * weights.view(-1, 1, 1)
    h = (h + h.transpose(1, 2)) / 2
    own = h.diagonal(dim1=1, dim2=2)
    return torch.stack([n.square().sum(0), (h * n).sum(0), (n * own.unsqueeze(2)).sum(0)])


def calibrate(
    sums: Tensor, moments: Tensor, null: Tensor, null_moments: Tensor, num_groups: int
) -> CalibratedSimilarity:
    """Similarities against their null, with standard errors by the delta method.

    With S and N the sums over groups of HSICs h and shuffled HSICs n, and d = sqrt(S_ii S_jj), the calibrated similarity is
    q = (S_ij - N_ij) / (d - N_ij). Linearised at the sums, a group moves it by

        u_g = (h_ij - (1 - q) n_ij - q d / 2 (h_ii / S_ii + h_jj / S_jj)) / (d - N_ij),

    which adds up to 0, and the variance of q is G / (G - 1) times the sum of u_g^2 over G groups, as in `standard_errors`,
    which this is for n = 0. What the null adds to the noise is in n.

    Args:
        sums (`torch.Tensor` of shape `(layers, layers)`): S, symmetric.
        moments (`torch.Tensor` of shape `(3, layers, layers)`): from `second_moments`.
        null (`torch.Tensor` of shape `(layers, layers)`): N, symmetric.
        null_moments (`torch.Tensor` of shape `(3, layers, layers)`): from `null_moments`.
        num_groups (`int`): G.

    Raises:
        CalibrationError: if unrelated rows are as similar as equal ones, so that nothing can be told apart.
    """
    own = sums.diagonal()
    scale = (own.unsqueeze(1) * own.unsqueeze(0)).sqrt()
    room = scale - null
    if (room <= _LEAST_ROOM * scale).any():
        raise CalibrationError(
            "The similarity of shuffled rows is 1, so layers that are alike cannot be told from others: the groups that are "
            "compared have too few rows for this estimator. Pass a larger calibration_batch_size, or estimator='unbiased'."
        )
    q = (sums - null) / room
    errors = None
    if num_groups > 1:
        a, b = 1 - q, q * scale / 2
        mixed = moments[1] / own.unsqueeze(1)  # sum of h_ij h_ii / S_ii
        null_mixed = null_moments[2] / own.unsqueeze(1)
        both = moments[2] / (own.unsqueeze(1) * own.unsqueeze(0))
        energy = both.diagonal()
        square = (
            moments[0]
            + a.square() * null_moments[0]
            - 2 * a * null_moments[1]
            + b.square() * (energy.unsqueeze(1) + energy.unsqueeze(0) + 2 * both)
            - 2 * b * (mixed + mixed.T)
            + 2 * a * b * (null_mixed + null_mixed.T)
        ) / room.square()
        errors = rounded((square.clamp(min=0) * (num_groups / (num_groups - 1))).sqrt().fill_diagonal_(0.0))
    return CalibratedSimilarity(q.clamp(-1.0, 1.0).fill_diagonal_(1.0), errors, num_groups)
