"""Linear HSIC and CKA: centred Gram matrices, their inner products, and the same from feature space.

Symbols follow MPruner (arXiv 2408.13482, equations 1-5) and Nguyen et al. 2020 (arXiv 2010.15327): K = X X^T of n rows,
HSIC(K, L) an inner product of centred Gram matrices, CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hf_mpruner.similarity.protocol import MIN_ROWS, Estimator

# A layer whose rows differ by less than this many units in the last place of their mean is constant: what is left
# after centring is rounding, and the CKA of rounding is noise.
_CONSTANT_ULPS = 10

# Values that are centred and multiplied at a time. On a CPU a part stays in the cache, where a copy of a whole output
# is written to memory and read back; on an accelerator a part is large enough that starting kernels takes no time.
_PART = {"cpu": 1 << 19}
_PART_ON_ACCELERATOR = 1 << 24


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
    hsic = hsic_of_features([_double(x), _double(y)], estimator)[0]
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


def centred_gram(
    features: Tensor | Iterable[Tensor], row_mask: Tensor | None = None, estimator: Estimator = "unbiased"
) -> Tensor:
    """Centred linear Gram matrices, flattened, so that HSIC is a plain inner product of two of them.

    Features are shifted to mean zero first: both estimators are invariant to it, and a large common activation no longer
    cancels in float32. The product is float32 (float64 for float64 features), the centring float64. Columns are taken a
    part at a time, so no second copy of the features exists.

    Args:
        features (`torch.Tensor` of shape `(rows, features)` or `(groups, rows, features)`): one layer; or an iterable of
            such tensors, which hold the layer's columns in parts.
        row_mask (`torch.Tensor` of shape `(groups, rows)`, *optional*): True at rows that count. The others may hold
            anything, NaN too.
        estimator (`str`): `"biased"` gives H K H (MPruner equation 2), `"unbiased"` the U-centred K with zero diagonal.

    Returns:
        `torch.Tensor` of shape `(groups, rows * rows)`, float64, zero in rows and columns that do not count.
    """
    gram = noise = torch.zeros(())
    for number, part in enumerate(_columns(features)):
        with _exact_matmul(part.device):
            x, noise_here = _centred_rows(part, row_mask)  # (groups, rows, features), (groups,)
            if number:
                gram, noise = gram.baddbmm_(x, x.transpose(1, 2)), noise + noise_here
            else:
                gram, noise = torch.bmm(x, x.transpose(1, 2)), noise_here
    energy = gram.diagonal(dim1=1, dim2=2).sum(1)
    gram = gram * (energy > noise).view(-1, 1, 1)  # a constant group is exactly zero; NaN stays NaN
    return _centre_(_double(gram), row_mask, estimator).flatten(1)


def part_width(num_rows: int, device: torch.device) -> int:
    """Columns of `num_rows` rows that are worked on at a time on this device, 1 or more."""
    return max(1, _PART.get(device.type, _PART_ON_ACCELERATOR) // max(1, num_rows))


def _columns(features: Tensor | Iterable[Tensor]) -> Iterator[Tensor]:
    """One layer as (groups, rows, features), its columns in parts."""
    for block in [features] if isinstance(features, Tensor) else features:
        x = block.unsqueeze(0) if block.dim() == 2 else block
        # A part is several times wider than the Gram matrix that it is added to, which may be larger than the features.
        yield from x.split(max(8 * x.shape[1], part_width(x.shape[0] * x.shape[1], x.device)), 2)


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
    with _exact_matmul(features[0].device):
        dtype = max((x.dtype for x in features), key=lambda dtype: dtype.itemsize)
        layers = []
        for features_of_layer in features:
            x, noise = _centred_rows(features_of_layer.to(features[0].device, dtype).unsqueeze(0), None)
            layers.append(x[0] * (x.square().sum() > noise))  # a constant layer is exactly zero; NaN stays NaN
        cross = _cross_energy(layers)
        if estimator == "biased":
            return cross.unsqueeze(0) / (n - 1) ** 2
        squares = torch.stack([_double(x.square().sum(1)) for x in layers])  # (layers, rows): diagonals of the Grams
        # Row sums off the diagonal, (layers, rows).
        sums = torch.stack([_double(x @ x.sum(0)) for x in layers]) - squares
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
    total = _double(layers[0].new_zeros(len(layers), len(layers)))
    for i in range(len(parts[0])):
        for j in range(i, len(parts[0])):
            tiles = _double(torch.stack([(x[i] @ x[j].T).flatten() for x in parts]))
            total = total + (tiles @ tiles.T) * (1 if i == j else 2)
    return total


def _cross_energy_by_pairs(layers: Sequence[Tensor]) -> Tensor:
    """`_cross_energy` from products of features."""
    energies = [[_double(x.T @ y).square().sum() for y in layers[i:]] for i, x in enumerate(layers)]
    upper = torch.stack([torch.stack([row[0].new_zeros(())] * i + row) for i, row in enumerate(energies)])
    return upper + upper.triu(1).T


def _centred_rows(x: Tensor, row_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows minus their mean, and the energy per group that rounding alone can leave; `x` is (groups, rows, features)."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if row_mask is None:
        num_rows = torch.full((len(x),), x.shape[1], device=x.device)
        mean = x.mean(1, keepdim=True)
        x = x - mean
    else:
        counted = row_mask.unsqueeze(2)
        num_rows = row_mask.sum(1).clamp(min=1)
        x = torch.where(counted, x, 0)
        mean = x.sum(1, keepdim=True) / num_rows.view(-1, 1, 1)
        x = x.addcmul_(counted.to(x.dtype), mean, value=-1)  # rows that do not count stay zero
    rounding = _CONSTANT_ULPS * torch.finfo(x.dtype).eps
    return x, rounding**2 * num_rows * mean.square().sum((1, 2))


def _centre_(gram: Tensor, row_mask: Tensor | None, estimator: Estimator) -> Tensor:
    """H K H or the U-centred K of Gram matrices (groups, n, n), in place; zero in rows and columns that do not count."""
    rows = gram.new_ones(1, gram.shape[1], 1) if row_mask is None else row_mask.to(gram).unsqueeze(2)
    n = rows.sum(1, keepdim=True)
    if estimator == "unbiased":
        gram.diagonal(dim1=1, dim2=2).zero_()
        means = gram.sum(2, keepdim=True) / (n - 2)
        total = means.sum(1, keepdim=True) / (n - 1)
    else:
        means = gram.sum(2, keepdim=True) / n
        total = means.sum(1, keepdim=True) / n
    means = means - total / 2
    gram.sub_(means).sub_(means.transpose(1, 2))
    if row_mask is not None:
        gram.mul_(rows).mul_(rows.transpose(1, 2))
    if estimator == "unbiased":
        gram.diagonal(dim1=1, dim2=2).zero_()
    return gram


def _double(x: Tensor) -> Tensor:
    """Float64, on the CPU where the device has no float64 (mps)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


@contextmanager
def _exact_matmul(device: torch.device) -> Iterator[None]:
    """Float32 products in float32: neither autocast nor TF32 nor bfloat16 shortcuts may touch a Gram matrix."""
    backend: Any = torch.backends.mkldnn if device.type == "cpu" else torch.backends.cuda
    knob: Any = getattr(backend, "matmul", None)
    own = hasattr(knob, "fp32_precision")  # a switch per backend, since PyTorch 2.9; before that one for all
    before = knob.fp32_precision if own else torch.get_float32_matmul_precision()

    def switch(precision: str) -> None:
        if own:
            knob.fp32_precision = precision
        else:
            torch.set_float32_matmul_precision(precision)

    lowered = before not in ("ieee", "none", "highest")
    try:
        if lowered:
            switch("ieee" if own else "highest")
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if lowered:
            switch(before)
