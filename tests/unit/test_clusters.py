"""Clusters: contiguous, complete, by the anchor or by the predecessor."""

from __future__ import annotations

import re

import pytest
import torch

from hf_mpruner.clusters import LayerCluster, find_clusters
from hf_mpruner.similarity import SimilarityMatrix, SimilarityProtocol


def drifting(depth: int, step: float = 0.01) -> torch.Tensor:
    """Each layer `step` less alike per layer of distance."""
    distance = (torch.arange(depth)[:, None] - torch.arange(depth)[None, :]).abs()
    return 1 - step * distance.double()


def test_anchors_compare_with_the_first_layer_of_the_cluster() -> None:
    assert find_clusters(drifting(7), threshold=0.9799) == [
        LayerCluster((0, 1, 2), weakest=pytest.approx(0.98)),
        LayerCluster((3, 4, 5), weakest=pytest.approx(0.98)),
        LayerCluster((6,), weakest=1.0),
    ]


def test_chains_compare_with_the_predecessor_and_drift() -> None:
    matrix = drifting(7)
    matrix[4, 5] = matrix[5, 4] = 0.5
    assert find_clusters(matrix, threshold=0.9799, linkage="chain") == [
        LayerCluster((0, 1, 2, 3, 4), weakest=pytest.approx(0.99)),
        LayerCluster((5, 6), weakest=pytest.approx(0.99)),
    ]


def test_the_default_is_the_anchor_at_98_percent() -> None:
    assert find_clusters(drifting(7)) == find_clusters(drifting(7), 0.98, "anchor")


@pytest.mark.parametrize("linkage", ["anchor", "chain"])
@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.9, 0.98, 1.0])
def test_every_layer_is_in_one_contiguous_cluster(threshold: float, linkage: str) -> None:
    values = torch.rand(13, 13, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = ((values + values.T) / 2).fill_diagonal_(1)
    clusters = find_clusters(matrix, threshold, linkage)
    assert [layer for cluster in clusters for layer in cluster.layers] == list(range(13))
    assert all(cluster.weakest >= threshold for cluster in clusters)
    assert all(cluster.weakest == 1 for cluster in clusters if len(cluster.layers) == 1)


def test_a_similarity_equal_to_the_threshold_joins() -> None:
    matrix = torch.tensor([[1.0, 0.75], [0.75, 1.0]])
    assert find_clusters(matrix, threshold=0.75) == [LayerCluster((0, 1), weakest=0.75)]


def test_a_measured_matrix_and_its_values_give_the_same() -> None:
    measured = SimilarityMatrix(drifting(5), SimilarityProtocol(), num_samples=8)
    assert find_clusters(measured, 0.97) == find_clusters(drifting(5), 0.97)


def test_one_layer_stands_alone() -> None:
    assert find_clusters(torch.eye(1)) == [LayerCluster((0,), 1.0)]


@pytest.mark.parametrize(
    ("threshold", "text"),
    [
        (98.0, "threshold=98.0 is outside 0..1. Similarity is a fraction here: for 98 % pass threshold=0.98."),
        (99.5, "threshold=99.5 is outside 0..1. Similarity is a fraction here: for 99.5 % pass threshold=0.995."),
        (-0.1, "threshold=-0.1 is outside 0..1. Similarity is a fraction here: for 98 % pass threshold=0.98."),
        (float("nan"), "threshold=nan is outside 0..1."),
    ],
)
def test_a_threshold_outside_the_fractions_is_refused(threshold: float, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        find_clusters(drifting(3), threshold)


@pytest.mark.parametrize(
    ("matrix", "linkage", "text"),
    [
        (torch.eye(3), "anchors", "linkage='anchors' is not one of 'anchor', 'chain'"),
        (torch.ones(2, 3), "anchor", r"shape \(2, 3\); it must be square"),
        (torch.ones(0, 0), "anchor", r"shape \(0, 0\)"),
        (torch.tensor([[1.0, 0.5], [float("nan"), 1.0]]), "anchor", "similarity of layers 1 and 0 is NaN"),
    ],
)
def test_bad_input_is_refused(matrix: torch.Tensor, linkage: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        find_clusters(matrix, linkage=linkage)
