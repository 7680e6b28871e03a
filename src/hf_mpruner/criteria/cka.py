"""`cka`: layers whose outputs look like those of a layer before them (MPruner, arXiv 2408.13482)."""

from __future__ import annotations

from collections.abc import Collection

import torch

from hf_mpruner.architectures import BlockStack
from hf_mpruner.clusters import LayerCluster, Linkage, find_clusters
from hf_mpruner.criteria.base import Criterion, Scores
from hf_mpruner.criteria.inputs import CriterionInputs
from hf_mpruner.criteria.scores import LayerScores
from hf_mpruner.criteria.select import check_number, free_layers, pick_lowest
from hf_mpruner.errors import CalibrationError
from hf_mpruner.features import measure_similarity
from hf_mpruner.similarity import SimilarityMatrix


def score_similarity(inputs: CriterionInputs, null_seed: int | None = None) -> dict[str, LayerScores]:
    """Scores of each stack that hold its whole similarity matrix.

    Args:
        inputs (`CriterionInputs`): model, stacks, data, protocol and linkage. Its processes share the work.
        null_seed (`int`, *optional*): also measure what shuffled rows give; see `measure_similarity`.

    Returns:
        `dict[str, LayerScores]`: `values` are 1 - similarity with the layer before, `None` for the first; `pairs` is the
        similarity of all pairs; `details` is what else `similarity_of` needs, and `linkage`.

    Raises:
        CalibrationError: if there is no calibration data, or it cannot be measured.
    """
    if inputs.batches is None:
        raise CalibrationError("Similarity is measured on calibration data, but none was given.")
    matrices = measure_similarity(
        inputs.model,
        inputs.batches,
        inputs.stacks,
        protocol=inputs.protocol,
        null_seed=null_seed,
        show_progress=inputs.show_progress,
        runtime=inputs.runtime,
    )
    scores = {}
    for path, matrix in matrices.items():
        details = {key: value for key, value in matrix.to_dict().items() if key != "values"}
        values = (None, *(1 - similarity for similarity in matrix.adjacent))
        pairs = tuple(tuple(row) for row in matrix.values.tolist())
        scores[path] = LayerScores(path, values, pairs=pairs, details={**details, "linkage": inputs.linkage})
    return scores


def similarity_of(scores: LayerScores) -> SimilarityMatrix:
    """The matrix that `score_similarity` measured, also after a way through JSON.

    Args:
        scores (`LayerScores`): of `cka` or `cka_segments`.

    Raises:
        ValueError: if they are of another criterion.
    """
    return SimilarityMatrix.from_dict({**scores.details, **({"values": scores.pairs} if scores.pairs else {})})


class Cka(Criterion):
    """Clusters of layers that look alike lose all but their first layer.

    For a number of layers the threshold is the largest at which the clusters let at least as many go; of those that would
    go, the ones that are most similar to what let them in: the first layer of their cluster (`linkage="anchor"`) or their
    predecessor (`"chain"`). Where no threshold gives enough layers (protected ones, runs that must fit a period, negative
    similarities), the layers that are most similar to their predecessor go, the first layer last.
    """

    name = "cka"
    title = "similarity of outputs (linear CKA), in clusters"
    source = "MPruner, arXiv 2408.13482, Algorithms 2-4"
    cost = "1"
    needs = frozenset({"data"})

    def score(self, inputs: CriterionInputs) -> Scores:
        """1 - similarity with the layer before."""
        return score_similarity(inputs)

    def select(
        self, scores: LayerScores, stack: BlockStack, num_removed: int, protected: Collection[int] = ()
    ) -> tuple[int, ...]:
        """The layers that clusters let go at the threshold that `num_removed` asks for, ascending."""
        check_number(stack, num_removed, protected)
        if not num_removed:
            return ()
        linkage: Linkage = scores.details.get("linkage", "anchor")
        free = set(free_layers(stack, protected))
        values = torch.tensor(scores.pairs, dtype=torch.float64)
        for threshold in sorted(
            {float(value) for value in values.triu(1).flatten() if value > 0} | {0.0}, reverse=True
        ):
            clusters = find_clusters(values, threshold, linkage)
            going = stack.removable({layer for cluster in clusters for layer in cluster.layers[1:]} & free)
            if len(going) < num_removed:
                continue
            if len(going) == num_removed:
                return going
            distances = _distances(clusters, scores.pairs, linkage)
            limited = LayerScores(
                scores.path, tuple(distances.get(layer) if layer in going else None for layer in range(stack.depth))
            )
            try:
                return pick_lowest(limited, stack, num_removed, protected)
            except ValueError:  # so many of these do not fit the period; a lower threshold offers more
                continue
        last = 1 + max((value for value in scores.values if value is not None), default=0.0)
        values_of_all = tuple(last if value is None else value for value in scores.values)
        return pick_lowest(LayerScores(scores.path, values_of_all), stack, num_removed, protected)


def _distances(
    clusters: list[LayerCluster], pairs: tuple[tuple[float, ...], ...], linkage: Linkage
) -> dict[int, float]:
    """1 - similarity with what let each layer into its cluster."""
    found = {}
    for cluster in clusters:
        for before, layer in zip(cluster.layers, cluster.layers[1:], strict=False):
            found[layer] = 1 - pairs[cluster.layers[0] if linkage == "anchor" else before][layer]
    return found
