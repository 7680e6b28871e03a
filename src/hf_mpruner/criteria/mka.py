"""`mka`: neighbours that know the same become one (MKA, arXiv 2406.16330); merged, not deleted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hf_mpruner.architectures import BlockStack
from hf_mpruner.criteria.base import Criterion, Scores
from hf_mpruner.criteria.inputs import CriterionInputs
from hf_mpruner.criteria.laco import runs_behind, unmergeable
from hf_mpruner.criteria.scores import LayerScores
from hf_mpruner.criteria.streams import BlockPass, check_finite, each_pass
from hf_mpruner.errors import CalibrationError


class Mka(Criterion):
    """Two layers become alpha theta_l + (1 - alpha) theta_m, with alpha their similarity: what both say about examples.

    Of each layer one vector an example is looked at, the mean of its real positions. They give a kernel over examples,
    K_ij = exp(-|x_i - x_j|^2 / sigma^2) with sigma^2 the median of the squared distances, as the diffusion maps of the
    paper begin. From there it is simpler than the paper, which embeds the examples by eigenvectors of the kernel and
    estimates densities: entropies are taken of the kernels themselves, S(A) = -trace(A log A) with A = K / trace(K), and
    jointly S(A, B) = S of their elementwise product (matrix-based entropy, Giraldo et al. 2015, arXiv 1211.2459 at order
    1); the information is I(A; B) = S(A) + S(B) - S(A, B). Similarity is I(A; B) / sqrt(I(A; A) I(B; B)), cut to 0..1:
    1 for layers that tell examples apart alike.

    Of neighbours the most similar ones are merged, the later into the earlier. A layer that takes over several does so one
    after the other, alpha each time its own similarity with the one that it takes over. The published code merges the last
    two layers always, and into weights that are thrown away.
    """

    name = "mka"
    title = "neighbours that tell examples apart alike; merges"
    source = "MKA, arXiv 2406.16330, with matrix-based entropies"
    cost = "1"
    needs = frozenset({"data", "weights"})

    num_examples = 256
    """Examples that are compared at most: the first of the calibration data. All of them run."""

    def score(self, inputs: CriterionInputs) -> Scores:
        """1 - similarity with the layer before; `pairs` is the similarity of all pairs.

        Raises:
            CalibrationError: for fewer than four examples, hidden states that are not finite, or layers that cannot be
                merged.
        """
        found = {stack.path: _mean_states(stack.depth) for stack in inputs.stacks}

        def visit(block: BlockPass) -> None:
            rows = found[block.path][block.layer]
            taken = sum(map(len, rows))
            if taken < self.num_examples:
                rows.append(example_means(block)[: self.num_examples - taken])

        for _ in each_pass(inputs, visit, "Comparing what layers know"):
            pass
        scores, reasons = {}, list[str]()
        for stack in inputs.stacks:
            kernels = [
                gaussian_kernel(torch.cat(rows), f"{stack.path}.{i}") for i, rows in enumerate(found[stack.path])
            ]
            pairs = similarity_of_kernels(kernels)
            stay = unmergeable(inputs.model, stack)
            reasons += [reason for layer, reason in stay.items() if layer]
            values: list[float | None] = [None] * stack.depth
            for layer in set(stack.prunable) - stay.keys():
                values[layer] = 1 - pairs[layer - 1][layer]
            details = {"num_examples": len(kernels[0])}
            scores[stack.path] = LayerScores(stack.path, tuple(values), pairs=pairs, details=details)
        if all(value is None for one in scores.values() for value in one.values):
            raise CalibrationError(
                f"The criterion '{self.name}' merges layers, which this model's cannot be: "
                f"{reasons[0] if reasons else 'none may go'}. Or take a criterion that deletes layers, e.g. block_influence."
            )
        return scores

    def must_stay(self, model: nn.Module, stack: BlockStack) -> dict[int, str]:
        """Layers whose weights cannot be added to those of the layer before."""
        return unmergeable(model, stack)

    def merges(self, scores: LayerScores, stack: BlockStack, removed: Sequence[int]) -> dict[int, dict[int, float]]:
        """Alpha theta_l + (1 - alpha) theta_m, one removed layer after the other."""
        merged = {}
        for base, run in runs_behind(removed, stack.depth).items():
            terms = {base: 1.0}
            for layer in run:
                alpha = scores.pairs[base][layer]
                terms = {**{of: alpha * coefficient for of, coefficient in terms.items()}, layer: 1 - alpha}
            merged[base] = terms
        return merged


def _mean_states(depth: int) -> list[list[Tensor]]:
    return [[] for _ in range(depth)]


def example_means(block: BlockPass) -> Tensor:
    """Mean of each example's real positions, `(examples, features)` in 64 bits; examples without any are left out."""
    states = block.after.to(torch.promote_types(block.after.dtype, torch.float32))
    if block.mask is None:
        means = states.mean(1)
    else:
        counts = block.mask.sum(1, keepdim=True)
        sums = torch.where(block.mask.unsqueeze(2), states, 0).sum(1)  # not a product: pads may hold NaN
        means = (sums / counts.clamp(min=1))[counts.flatten() > 0]
    check_finite(block, means)
    return means.cpu().double()


def gaussian_kernel(rows: Tensor, name: str = "a layer") -> Tensor:
    """exp(-|x_i - x_j|^2 / sigma^2) of rows, with sigma^2 the median of the squared distances of different rows.

    Args:
        rows (`torch.Tensor` of shape `(examples, features)`): float64.
        name (`str`): of the layer, for messages.

    Raises:
        CalibrationError: for fewer than four rows, or rows that are all alike.
    """
    if len(rows) < 4:
        raise CalibrationError(f"mka compares examples, and got {len(rows)}: pass a calibration set of 4 or more.")
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()
    pairs = distances[torch.triu(torch.ones_like(distances), 1).bool()]
    width = pairs.median() if pairs.median() > 0 else pairs.mean()
    if width <= 0:
        raise CalibrationError(
            f"{name} puts out the same for every example, so nothing can be compared. Use other ones."
        )
    return torch.exp(-distances / width)


def matrix_entropy(kernel: Tensor) -> float:
    """-trace(A log A) of a kernel made to trace 1: 0 where all examples are alike, log(examples) where none are."""
    values = torch.linalg.eigvalsh(kernel / kernel.trace()).clamp(min=0)
    return float(-torch.xlogy(values, values).sum())


def similarity_of_kernels(kernels: Sequence[Tensor]) -> tuple[tuple[float, ...], ...]:
    """Normalised information of all pairs of kernels over the same examples, 0..1.

    Example:
        >>> rows = torch.arange(8.0, dtype=torch.float64).view(4, 2)
        >>> similarity_of_kernels([gaussian_kernel(rows), gaussian_kernel(3 * rows + 1)])
        ((1.0, 1.0), (1.0, 1.0))
    """
    alone = [matrix_entropy(kernel) for kernel in kernels]
    shared: Mapping[tuple[int, int], float] = {
        (i, j): alone[i] + alone[j] - matrix_entropy(kernels[i] * kernels[j])
        for i in range(len(kernels))
        for j in range(i, len(kernels))
    }
    rows = []
    for i in range(len(kernels)):
        row = []
        for j in range(len(kernels)):
            own = shared[i, i] * shared[j, j]
            value = shared[min(i, j), max(i, j)] / own**0.5 if own > 0 else float(i == j)
            row.append(1.0 if i == j else round(min(1.0, max(0.0, value)), 12))
        rows.append(tuple(row))
    return tuple(rows)
