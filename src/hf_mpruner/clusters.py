"""Clusters: contiguous runs of layers whose outputs look alike (MPruner Algorithm 3, arXiv 2408.13482)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from torch import Tensor

    from hf_mpruner.similarity import SimilarityMatrix

Linkage = Literal["anchor", "chain"]


@dataclass(frozen=True)
class LayerCluster:
    """A run of layers that look alike.

    Args:
        layers (`tuple[int, ...]`): consecutive positions in the stack.
        weakest (`float`): smallest similarity that let a layer in (with the first layer for `"anchor"`, with the
            predecessor for `"chain"`); 1.0 for a single layer.
    """

    layers: tuple[int, ...]
    weakest: float


def find_clusters(
    matrix: SimilarityMatrix | Tensor, threshold: float = 0.98, linkage: Linkage = "anchor"
) -> list[LayerCluster]:
    """Split all layers into contiguous clusters of similar ones.

    Args:
        matrix (`SimilarityMatrix` or `torch.Tensor` of shape `(layers, layers)`): similarity of all pairs.
        threshold (`float`): fraction 0..1; a layer joins at this similarity or above (the paper's tau).
        linkage (`str`): `"anchor"` compares a layer with the first one of the current cluster, as the paper's code does;
            `"chain"` with its predecessor, as its Algorithm 3 is printed. Chains drift: many small steps can join two
            layers that are far apart.

    Returns:
        `list[LayerCluster]`: in order, together every layer once; layers that resemble no neighbour stand alone.

    Raises:
        ValueError: if the threshold is outside 0..1, the linkage unknown, or the matrix not square or not a number.

    Example:
        >>> import torch
        >>> similarity = torch.tensor([[1.0, 0.99, 0.97], [0.99, 1.0, 0.99], [0.97, 0.99, 1.0]])
        >>> [cluster.layers for cluster in find_clusters(similarity, threshold=0.98)]
        [(0, 1), (2,)]
        >>> [cluster.layers for cluster in find_clusters(similarity, threshold=0.98, linkage="chain")]
        [(0, 1, 2)]
    """
    check_rule(threshold, linkage)
    values = _checked_values(matrix)
    clusters: list[LayerCluster] = []
    run, weakest = [0], 1.0
    for layer in range(1, len(values)):
        similarity = values[run[0] if linkage == "anchor" else run[-1]][layer]
        if similarity >= threshold:
            run.append(layer)
            weakest = min(weakest, similarity)
        else:
            clusters.append(LayerCluster(tuple(run), weakest))
            run, weakest = [layer], 1.0
    return [*clusters, LayerCluster(tuple(run), weakest)]


def compared_pairs(clusters: Sequence[LayerCluster], linkage: Linkage = "anchor") -> list[tuple[int, int]]:
    """The pairs of layers whose similarities decided on these clusters: one for each layer but the first.

    Clusters that come of other similarities are the same if each of these pairs is on the same side of the threshold: the
    first of them that is not is the first place at which the clusters part.

    Args:
        clusters (sequence of `LayerCluster`): from `find_clusters`.
        linkage (`str`): that they were found with.

    Returns:
        `list` of pairs: the layer that is compared with, and the layer that joined or did not.

    Example:
        >>> compared_pairs([LayerCluster((0, 1), 0.99), LayerCluster((2,), 1.0)])
        [(0, 1), (0, 2)]
        >>> compared_pairs([LayerCluster((0, 1), 0.99), LayerCluster((2,), 1.0)], "chain")
        [(0, 1), (1, 2)]
    """
    pairs, anchor = [], 0
    for layer in (layer for cluster in clusters for layer in cluster.layers if layer):
        pairs.append((anchor if linkage == "anchor" else layer - 1, layer))
        if layer in {cluster.layers[0] for cluster in clusters}:
            anchor = layer
    return pairs


def check_rule(threshold: float, linkage: str) -> None:
    """Refuse what is no threshold or no linkage.

    Raises:
        ValueError: if the threshold is outside 0..1 or the linkage unknown.
    """
    if linkage not in get_args(Linkage):
        raise ValueError(f"linkage={linkage!r} is not one of 'anchor', 'chain'.")
    if 0 <= threshold <= 1:
        return
    percent = threshold if 1 < threshold <= 100 else 98
    raise ValueError(
        f"threshold={threshold} is outside 0..1. Similarity is a fraction here: for {percent:g} % pass "
        f"threshold={percent / 100:g}."
    )


def _checked_values(matrix: SimilarityMatrix | Tensor) -> list[list[float]]:
    """The similarities as nested lists."""
    from hf_mpruner.similarity import SimilarityMatrix  # here, so that a command line's --help loads no torch

    values = matrix.values if isinstance(matrix, SimilarityMatrix) else matrix
    if values.dim() != 2 or values.shape[0] != values.shape[1] or not len(values):
        raise ValueError(
            f"the similarity matrix has shape {tuple(values.shape)}; it must be square: (layers, layers)."
        )
    missing = values.isnan().nonzero().tolist()
    if missing:
        i, j = missing[0]
        raise ValueError(
            f"the similarity of layers {i} and {j} is NaN. Measure again: a layer's output is not a number."
        )
    rows: list[list[float]] = values.tolist()
    return rows
