"""Features of a layer to its centred linear Gram matrix, K = X X^T of n rows, as exact as float32 products allow.

Symbols follow MPruner (arXiv 2408.13482, equations 1-5) and Nguyen et al. 2020 (arXiv 2010.15327).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_mpruner.similarity.protocol import Estimator

# A layer whose rows differ by less than this many units in the last place of their mean is constant: what is left
# after centring is rounding, and the CKA of rounding is noise.
_CONSTANT_ULPS = 10

# Values that are centred and multiplied at a time. On a CPU a part stays in the cache, where a copy of a whole output
# is written to memory and read back; on an accelerator a part is large enough that starting kernels takes no time (an
# H100: 1 << 22 takes twice as long as 1 << 25, and more gains less than a tenth).
_PART = {"cpu": 1 << 19}
_PART_ON_ACCELERATOR = 1 << 25

# So few rows are shifted by one product where they are of half precision: whole numbers up to 256 are exact in it, and few
# enough are added up. And an accelerator multiplies them by themselves with few of its units, however long they are: strips of
# so many columns go side by side (an H100: 8 rows of 2 M values in 49 microseconds instead of 254).
_FEW_ROWS, _STRIP = 64, 1024

# Gram matrices of no more entries (of a layer) are centred for all layers together: starting a kernel takes longer.
_SMALL = 1 << 16


class Gram(NamedTuple):
    """Products of one layer's rows, shifted to mean zero as well as float32 can; `centre_grams` does the rest.

    Attributes:
        products (`torch.Tensor` of shape `(groups, rows, rows)`): zero in rows and columns that do not count.
        noise (`torch.Tensor` of shape `(groups,)`): sum of the diagonal that rounding alone can leave.
    """

    products: Tensor
    noise: Tensor


def centred_gram(
    features: Tensor | Iterable[Tensor], row_mask: Tensor | None = None, estimator: Estimator = "unbiased"
) -> Tensor:
    """Centred linear Gram matrices of one layer: `multiply_rows`, then `centre_grams`.

    Args:
        features (`torch.Tensor` or `Iterable[torch.Tensor]`): as for `multiply_rows`.
        row_mask (`torch.Tensor`, *optional*): as for `multiply_rows`.
        estimator (`str`): as for `centre_grams`.

    Returns:
        `torch.Tensor` of shape `(groups, rows * rows)`, float64, zero in rows and columns that do not count.
    """
    return centre_grams([multiply_rows(features, row_mask)], row_mask, estimator)[0]


def multiply_rows(features: Tensor | Iterable[Tensor], row_mask: Tensor | None = None) -> Gram:
    """The products of one layer's rows, whose common mean is taken off first.

    Both estimators are invariant to a common shift, and a large common activation then no longer cancels in float32. Mean and
    product are float32 (float64 for float64 features). Columns are taken a part at a time, so no second copy of the features
    exists.

    Args:
        features (`torch.Tensor` of shape `(rows, features)` or `(groups, rows, features)`): one layer; or an iterable of
            such tensors, which hold the layer's columns in parts.
        row_mask (`torch.Tensor` of shape `(groups, rows)`, *optional*): True at rows that count. The others may hold
            anything, NaN too.

    Returns:
        `Gram`: on the features' device.
    """
    products = noise = torch.zeros(())
    for number, part in enumerate(_columns(features)):
        with exact_matmul(part.device):
            scale = part.shape[1] ** 2 if row_mask is None and _can_shift_by_product(part) else 1
            x, noise_here = centre_rows(part, row_mask) if scale == 1 else _shifted_by_product(part)
            here = _products(x) if scale == 1 else _products(x) / scale
            products, noise = (products.add_(here), noise + noise_here) if number else (here, noise_here)
    return Gram(products, noise)


def centre_grams(grams: Sequence[Gram], row_mask: Tensor | None, estimator: Estimator) -> list[Tensor]:
    """Centre the products of all layers in float64, so that HSIC is a plain inner product of two Gram matrices.

    Args:
        grams (`Sequence[Gram]`): of `multiply_rows`; all of one shape. On several devices, they come to the first one's.
        row_mask (`torch.Tensor` of shape `(groups, rows)`, *optional*): the one that they were made with.
        estimator (`str`): `"biased"` gives H K H (MPruner equation 2), `"unbiased"` the U-centred K with zero diagonal.

    Returns:
        `list[torch.Tensor]`: per layer `(groups, rows * rows)`, float64, zero in rows and columns that do not count.
    """
    device, groups = grams[0].products.device, len(grams[0].products)
    if len(grams) > 1 and grams[0].products.numel() > _SMALL:
        return [centre_grams([gram], row_mask, estimator)[0] for gram in grams]
    products = torch.cat([gram.products.to(device) for gram in grams])  # (layers * groups, rows, rows)
    noise = torch.cat([gram.noise.to(device) for gram in grams])
    energy = products.diagonal(dim1=1, dim2=2).sum(1)
    products = products * (energy > noise).view(-1, 1, 1)  # a constant group is exactly zero; NaN stays NaN
    mask = None if row_mask is None else row_mask.to(device).repeat(len(grams), 1)
    return list(_centre_(to_double(products), mask, estimator).flatten(1).split(groups))


def part_width(num_rows: int, device: torch.device) -> int:
    """Columns of `num_rows` rows that are worked on at a time on this device, 1 or more."""
    return max(1, _PART.get(device.type, _PART_ON_ACCELERATOR) // max(1, num_rows))


def _columns(features: Tensor | Iterable[Tensor]) -> Iterator[Tensor]:
    """One layer as (groups, rows, features), its columns in parts."""
    for block in [features] if isinstance(features, Tensor) else features:
        x = block.unsqueeze(0) if block.dim() == 2 else block
        # A part is several times wider than the Gram matrix that it is added to, which may be larger than the features.
        yield from x.split(max(8 * x.shape[1], part_width(x.shape[0] * x.shape[1], x.device)), 2)


def centre_rows(x: Tensor, row_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows minus their mean, and the energy per group that rounding alone can leave; `x` is (groups, rows, features)."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    num_rows: Any = x.shape[1]
    if row_mask is None:
        mean = x.mean(1, keepdim=True)
        x = x - mean
    else:
        counted = row_mask.unsqueeze(2)
        num_rows = row_mask.sum(1).clamp(min=1)
        x = torch.where(counted, x, 0)
        mean = x.sum(1, keepdim=True) / num_rows.view(-1, 1, 1)
        x = x.addcmul_(counted.to(x.dtype), mean, value=-1)  # rows that do not count stay zero
    return x, _rounding(x.dtype) ** 2 * num_rows * mean.square().sum((1, 2))


def _can_shift_by_product(x: Tensor) -> bool:
    """Whether a product of half precision (groups, rows, features) can be had in float32, of exact factors."""
    return (
        x.is_cuda
        and torch.version.hip is None
        and x.dtype in (torch.bfloat16, torch.float16)
        and x.shape[1] <= _FEW_ROWS
        and hasattr(torch.ops.aten.bmm, "dtype")  # since PyTorch 2.8
    )


def _shifted_by_product(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows minus their mean, times n: (n I - 1 1^T) X in float32, as one product, which reads X once instead of three times.

    All factors are exact, and sums are of float32. The energy that rounding can leave is that of the first row, which
    is the mean's where all rows are equal.
    """
    n = x.shape[1]
    factors = x.new_full((n, n), -1).fill_diagonal_(n - 1).expand(len(x), n, n)
    energy = torch.linalg.vector_norm(x[:, 0], dim=1, dtype=torch.float32).square()
    return torch.bmm(factors, x, out_dtype=torch.float32), _rounding(torch.float32) ** 2 * n * energy


def _products(x: Tensor) -> Tensor:
    """X X^T of each group; `x` is (groups, rows, features)."""
    few = len(x) == 1 and x.shape[1] <= _FEW_ROWS and x.shape[2] >= 2 * _STRIP
    return _products_in_strips(x) if few and x.device.type != "cpu" else torch.bmm(x, x.transpose(1, 2))


def _products_in_strips(x: Tensor) -> Tensor:
    """The same of one group, (1, rows, features)."""
    whole = x.shape[2] // _STRIP * _STRIP
    strips = x[0, :, :whole].unflatten(1, (-1, _STRIP)).transpose(0, 1)
    total = torch.bmm(strips, strips.transpose(1, 2)).sum(0, keepdim=True)
    rest = x[:, :, whole:]
    return total.baddbmm_(rest, rest.transpose(1, 2)) if rest.shape[2] else total


def _rounding(dtype: torch.dtype) -> float:
    """Differences of a constant layer's rows from their mean are below this part of it."""
    return _CONSTANT_ULPS * torch.finfo(dtype).eps


def _centre_(gram: Tensor, row_mask: Tensor | None, estimator: Estimator) -> Tensor:
    """H K H or the U-centred K of Gram matrices (groups, n, n), in place; zero in rows and columns that do not count."""
    n: Any = gram.shape[1]
    if row_mask is not None:
        rows = row_mask.to(gram).unsqueeze(2)
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


def to_double(x: Tensor) -> Tensor:
    """Float64, on the CPU where the device has no float64 (mps)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


@contextmanager
def exact_matmul(device: torch.device) -> Iterator[None]:
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
