"""How far a measured similarity may be from the one of unlimited data: standard errors over batches, and intervals."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_mpruner.intervals import student_t_quantile

# Student's t is the normal distribution for all purposes from here on, and its closed form grows with the degrees.
_MOST_DEGREES = 1000
# Nearer to 1 than this, what is left of a residual is rounding.
_ROUNDING = 1e-6
_DIGITS = 3


def second_moments(hsic: Tensor, weights: Tensor) -> Tensor:
    """What the standard errors need besides the sums; of several sets of groups they add up.

    Args:
        hsic (`torch.Tensor` of shape `(groups, layers, layers)`): of each batch, or of each example; float64.
        weights (`torch.Tensor` of shape `(groups,)`): of each in the sums.

    Returns:
        `torch.Tensor` of shape `(3, layers, layers)`: sums over the groups of `h_ij h_ij`, `h_ij h_ii` and `h_ii h_jj`,
        with `h` weighted.
    """
    h = hsic * weights.view(-1, 1, 1)
    h = (h + h.transpose(1, 2)) / 2
    own = h.diagonal(dim1=1, dim2=2)
    return torch.stack([h.square().sum(0), (h * own.unsqueeze(2)).sum(0), own.T @ own])


def standard_errors(sums: Tensor, moments: Tensor, num_groups: int) -> Tensor:
    """Standard errors of `S_ij / sqrt(S_ii S_jj)`, the delta method for a function of sums over groups.

    Linearised at the sums, a group g of weighted HSICs h moves the similarity c_ij by

        u_g = h_ij / sqrt(S_ii S_jj) - c_ij / 2 (h_ii / S_ii + h_jj / S_jj),

    which adds up to 0, and the variance of c_ij is G / (G - 1) times the sum of u_g^2 over G groups: the variance of a
    ratio of two totals (W. G. Cochran, Sampling Techniques, 3rd edition, 1977, chapter 6) with a geometric mean below
    the line. Weights are in h, so that groups of unequal size count as they do in the estimate. For a mean of ratios all
    S_ii are the sum of the weights, and it is the variance of a weighted mean.

    Args:
        sums (`torch.Tensor` of shape `(layers, layers)`): of the groups' weighted HSICs (or CKA values), symmetric.
        moments (`torch.Tensor` of shape `(3, layers, layers)`): from `second_moments` of the same groups.
        num_groups (`int`): G, 2 or more.

    Returns:
        `torch.Tensor` of shape `(layers, layers)`: to three digits, 0 on the diagonal.
    """
    own = sums.diagonal()
    scale = (own.unsqueeze(1) * own.unsqueeze(0)).sqrt()
    cka = sums / scale
    square = moments[0] / scale.square()
    mixed = moments[1] / (scale * own.unsqueeze(1))
    both = moments[2] / (own.unsqueeze(1) * own.unsqueeze(0))
    energy = both.diagonal()
    spread = (
        square - cka * (mixed + mixed.T) + cka.square() / 4 * (energy.unsqueeze(1) + energy.unsqueeze(0) + 2 * both)
    )
    errors = (spread.clamp(min=0) * (num_groups / (num_groups - 1))).sqrt()
    return rounded(errors.fill_diagonal_(0.0))


def rounded(errors: Tensor) -> Tensor:
    """Symmetric, to three digits: no standard error is known better than that, and files of all pairs stay small."""
    rows = [[float(f"{error:.{_DIGITS - 1}e}") for error in row] for row in ((errors + errors.T) / 2).tolist()]
    return torch.tensor(rows, dtype=torch.float64)


def interval(values: Tensor, errors: Tensor, num_groups: int, tail: float) -> tuple[Tensor, Tensor]:
    """Ends beyond which the similarity of unlimited data lies with probability `tail` on each side.

    Student's t with G - 1 degrees of freedom. An estimate that is too high comes with a standard error that is too small,
    since similarities end at 1; so the lower end is taken on the scale of Fisher's z, where it is lower.

    Args:
        values (`torch.Tensor`): similarities.
        errors (`torch.Tensor`): standard errors, same shape.
        num_groups (`int`): G, the batches (or examples) that they are over.
        tail (`float`): 0.025 for an interval of 95 %.

    Returns:
        `tuple` of two `torch.Tensor`: lower and upper ends, in -1..1.
    """
    reach = student_t_quantile(1.0 - tail, min(num_groups - 1, _MOST_DEGREES)) * errors
    room = 1 - values.square()
    lower = torch.tanh(torch.atanh(values) - reach / room)
    lower = torch.where(room > _ROUNDING, lower, values - reach)
    return lower.clamp(-1.0, 1.0), (values + reach).clamp(-1.0, 1.0)
