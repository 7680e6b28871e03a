"""Linear HSIC and CKA: inner products of centred Gram matrices, and the same from feature space.

Symbols follow MPruner (arXiv 2408.13482, equations 1-5) and Nguyen et al. 2020 (arXiv 2010.15327): K = X X^T of n rows,
HSIC(K, L) an inner product of centred Gram matrices, CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hf_mpruner.similarity.gram import centre_rows, centred_gram, exact_matmul, part_width, to_double
from hf_mpruner.similarity.protocol import MIN_ROWS, Estimator


def linear_cka(x: Tensor, y: Tensor, estimator: Estimator = "unbiased") -> Tensor:
    """Linear centred kernel alignment of two layers' features, computed in float64.

    Invariant to rotation, to one scale and to translation of either side. Differentiable.

    Args:
        x (`torch.Tensor` of shape `(rows, features_x)`): features of one layer.
        y (`torch.Tensor` of shape `(rows, features_y)`): features of another, same rows in the same order.
        estimator (`str`): `"unbiased"` (Song et al. 2012, 4 rows or more) or `"biased"` (MPruner equations 1-5, 2 or more).

    Returns:
        `torch.Tensor`: float64 scalar, at most 1. 1 means equal up to rotation, scale and shift; unrelated rows give 0
        on average (unbiased, so small negative values occur) or a value that grows with features / rows (biased).

    Raises:
        ValueError: if the shapes do not fit, the rows are too few, a value is not finite, or a side is constant.

    Example:
        >>> x = torch.arange(12.0).reshape(6, 2).sin()
        >>> round(linear_cka(x, 3 * x.flip(1) + 1).item(), 6)
        1.0
    """
    if estimator not in MIN_ROWS:
        raise ValueError(f"estimator={estimator!r} is not one of 'unbiased', 'biased'.")
    if x.dim() != 2 or y.dim() != 2 or len(x) != len(y):
        raise ValueError(
            f"linear_cka got x of shape {tuple(x.shape)} and y of shape {tuple(y.shape)}; it needs two matrices "
            "(rows, features) with the same rows in the same order. Flatten what follows the first dimension."
        )
    if len(x) < MIN_ROWS[estimator]:
        raise ValueError(too_few_rows(len(x), estimator))
    hsic = hsic_of_features([to_double(x), to_double(y)], estimator)[0]
    for name, energy in (("x", hsic[0, 0]), ("y", hsic[1, 1])):
        if not torch.isfinite(energy):
            raise ValueError(f"linear_cka: {name} holds NaN or infinite values.")
        if energy <= 0:
            raise ValueError(f"linear_cka: all rows of {name} are equal, so its similarity to anything is undefined.")
    return hsic[0, 1] / (hsic[0, 0] * hsic[1, 1]).sqrt()


def too_few_rows(num_rows: int, estimator: Estimator) -> str:
    """The message for a Gram matrix of `num_rows` rows that `estimator` cannot use."""
    advice = "pass more rows (a larger batch)" + (", or estimator='biased'" if num_rows >= MIN_ROWS["biased"] else "")
    return f"{num_rows} rows are too few: estimator={estimator!r} needs at least {MIN_ROWS[estimator]}; {advice}."


def hsic_of_features(features: Sequence[Tensor], estimator: Estimator) -> Tensor:
    """HSIC of every pair of layers, one group of rows, by the cheaper of the two exact roads.

    Args:
        features (`Sequence[torch.Tensor]`): per layer `(rows, features)`.
        estimator (`str`): `"unbiased"` or `"biased"`.

    Returns:
        `torch.Tensor` of shape `(1, layers, layers)`, float64.
    """
    num_rows = len(features[0])
    if num_rows > max(x.shape[1] for x in features):
        return feature_space_hsic(features, estimator)
    grams = [centred_gram(x, None, estimator) for x in features]
    return gram_hsic(grams, torch.tensor([num_rows]), estimator)


def gram_hsic(
    grams: Sequence[Tensor], num_rows: Tensor, estimator: Estimator, others: Sequence[Tensor] | None = None
) -> Tensor:
    """HSIC of every pair of layers from their centred Gram matrices: one `(L, n n) x (n n, L)` product per group.

    Args:
        grams (`Sequence[torch.Tensor]`): per layer `(groups, rows * rows)` as `centred_gram` returns them.
        num_rows (`torch.Tensor` of shape `(groups,)`): rows that count in each group.
        estimator (`str`): the one the Gram matrices were centred for.
        others (`Sequence[torch.Tensor]`, *optional*): as many, of the same shapes, to compare each with; by default these
            layers themselves.

    Returns:
        `torch.Tensor` of shape `(groups, layers, layers)`, float64.
    """
    stacked = torch.stack([gram.to(grams[0].device) for gram in grams], dim=1)  # (groups, layers, rows * rows)
    with_these = stacked if others is None else torch.stack([gram.to(grams[0].device) for gram in others], dim=1)
    inner = torch.bmm(stacked, with_these.transpose(1, 2))
    n = num_rows.to(inner.device, torch.float64).view(-1, 1, 1)
    return inner / (n * (n - 3) if estimator == "unbiased" else (n - 1) ** 2)


def feature_space_hsic(features: Sequence[Tensor], estimator: Estimator) -> Tensor:
    """HSIC of every pair of layers without any Gram matrix; the same numbers, cheaper when rows outnumber features.

    tr(K~ L~) = ||X^T Y||_F^2 - sum_i |x_i|^2 |y_i|^2 for K~, L~ with zero diagonal, and row i of K~ sums to
    x_i . sum_j x_j - |x_i|^2 (Song et al. 2012, HSIC_1 expanded).

    Args:
        features (`Sequence[torch.Tensor]`): per layer `(rows, features)`.
        estimator (`str`): `"unbiased"` or `"biased"`.

    Returns:
        `torch.Tensor` of shape `(1, layers, layers)`, float64.
    """
    n = len(features[0])
    with exact_matmul(features[0].device):
        dtype = max((x.dtype for x in features), key=lambda dtype: dtype.itemsize)
        layers = []
        for features_of_layer in features:
            x, noise = centre_rows(features_of_layer.to(features[0].device, dtype).unsqueeze(0), None)
            layers.append(x[0] * (x.square().sum() > noise))  # a constant layer is exactly zero; NaN stays NaN
        cross = _cross_energy(layers)
        if estimator == "biased":
            return cross.unsqueeze(0) / (n - 1) ** 2
        squares = torch.stack([to_double(x.square().sum(1)) for x in layers])  # (layers, rows): diagonals of the Grams
        # Row sums off the diagonal, (layers, rows).
        sums = torch.stack([to_double(x @ x.sum(0)) for x in layers]) - squares
    totals = sums.sum(1)
    hsic = cross - squares @ squares.T
    hsic = hsic + torch.outer(totals, totals) / ((n - 1) * (n - 2)) - (sums @ sums.T) * (2 / (n - 2))
    return hsic.unsqueeze(0) / (n * (n - 3))


def _cross_energy(layers: Sequence[Tensor]) -> Tensor:
    """||X_i^T X_j||_F^2 for all pairs, (layers, layers) float64; `layers` are (rows, features) each.

    It is also the inner product of X_i X_i^T and X_j X_j^T. Products of features cost a matrix product a pair of layers.
    Gram matrices cost one a layer and, an entry and pair, one multiplication in float64, twice as dear; storing, widening
    and reading an entry takes a CPU as long as some 256 multiplications.
    """
    rows, widths = len(layers[0]), [x.shape[1] for x in layers]
    by_pairs = rows * (sum(widths) ** 2 + sum(width**2 for width in widths)) / 2
    by_grams = rows**2 * (sum(widths) + 256 * len(layers) + 2 * len(layers) ** 2) / 2
    return _cross_energy_by_pairs(layers) if by_pairs <= by_grams else _cross_energy_by_grams(layers)


def _cross_energy_by_grams(layers: Sequence[Tensor]) -> Tensor:
    """`_cross_energy` from square tiles of the Gram matrices, those above the diagonal counted twice."""
    side = math.isqrt(2 * part_width(len(layers), layers[0].device)) + 1
    parts = [x.split(side) for x in layers]
    total = to_double(layers[0].new_zeros(len(layers), len(layers)))
    for i in range(len(parts[0])):
        for j in range(i, len(parts[0])):
            tiles = to_double(torch.stack([(x[i] @ x[j].T).flatten() for x in parts]))
            total = total + (tiles @ tiles.T) * (1 if i == j else 2)
    return total


def _cross_energy_by_pairs(layers: Sequence[Tensor]) -> Tensor:
    """`_cross_energy` from products of features."""
    energies = [[to_double(x.T @ y).square().sum() for y in layers[i:]] for i, x in enumerate(layers)]
    upper = torch.stack([torch.stack([row[0].new_zeros(())] * i + row) for i, row in enumerate(energies)])
    return upper + upper.triu(1).T
