"""`cka_evidence`: layers that can be told to look like one before them, whatever the estimator and however few the data."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from hf_mpruner.architectures import BlockStack
from hf_mpruner.clusters import Linkage
from hf_mpruner.criteria.base import Criterion, Scores
from hf_mpruner.criteria.cka import score_similarity, similarity_of
from hf_mpruner.criteria.inputs import CriterionInputs
from hf_mpruner.criteria.scores import LayerScores

logger = logging.getLogger(__name__)

# Of each end of a calibrated similarity, one-sided.
CONFIDENCE = 0.95


class Step(NamedTuple):
    """Layers that go together, and the weakest evidence between them and the layer that stands for them then."""

    layers: tuple[int, ...]
    evidence: float


class CkaEvidence(Criterion):
    """Clusters grow by what can be shown of their similarity, so that plans for 1, 2, 3, ... layers are nested.

    The evidence of two layers is the lower end, at 95 % one-sided, of their similarity calibrated against shuffled rows:
    (s - null) / (1 - null), where the null compares each row with another one. Unrelated rows are at 0 and equal ones at 1
    under every estimator.

    Every layer begins as a cluster of its own. Of all neighbouring clusters those two merge whose merged run has the
    largest weakest evidence: of its first layer with each other (`linkage="anchor"`), or of neighbours (`"chain"`). Each
    merge lets one more layer go, the first of the later cluster. In a stack whose layers go in runs, so many clusters merge
    at a time.
    """

    name = "cka_evidence"
    title = "similarity of outputs against shuffled rows, less its noise, in nested clusters"
    source = "this library; the null: Murphy et al., arXiv 2405.01012"
    cost = "1"
    needs = frozenset({"data"})
    compares_stacks = True

    def score(self, inputs: CriterionInputs) -> Scores:
        """1 - weakest evidence of the merge that lets a layer go, and the order of these merges.

        `details["steps"]` has the layers and the weakest evidence of each merge, in order.
        """
        scores = {}
        for path, measured in score_similarity(inputs, null_seed=inputs.seed).items():
            stack = next(stack for stack in inputs.stacks if stack.path == path)
            calibrated = similarity_of(measured).calibrated
            if calibrated is None:
                raise RuntimeError("The null was not measured.")
            if calibrated.errors is None:
                logger.warning(
                    "%s: similarity was measured on one batch, so its noise is not known and not counted. Pass a smaller "
                    "calibration_batch_size (or more calibration_samples) than %d.",
                    path,
                    measured.details["num_samples"],
                )
            steps = merge_clusters(calibrated.evidence(CONFIDENCE).tolist(), stack, inputs.linkage)
            scores[path] = LayerScores(
                path,
                _values(steps, stack),
                tuple(layer for step in steps for layer in step.layers),
                measured.pairs,
                {**measured.details, "steps": [{"layers": list(s.layers), "evidence": s.evidence} for s in steps]},
            )
        return scores


def merge_clusters(evidence: Sequence[Sequence[float]], stack: BlockStack, linkage: Linkage = "anchor") -> list[Step]:
    """Merge neighbouring clusters, the two of the largest weakest evidence first, until none is left that may.

    Args:
        evidence (square, of `float`): of all pairs of layers.
        stack (`BlockStack`): says which layers are pinned, and in which runs layers go.
        linkage (`"anchor"` or `"chain"`): what a merged run's evidence is the smallest of.

    Returns:
        `list[Step]`: all that can go behind the first layer, in the order in which they go; of equal evidence the later
        layers first.

    Example:
        >>> from hf_mpruner.architectures import ConfigField
        >>> stack = BlockStack("layer", "BertLayer", 3, ConfigField("num_hidden_layers"))
        >>> merge_clusters([[1.0, 0.7, 0.5], [0.7, 1.0, 0.9], [0.5, 0.9, 1.0]], stack)
        [Step(layers=(2,), evidence=0.9), Step(layers=(1,), evidence=0.5)]
    """
    clusters = [[layer] for layer in range(stack.depth)]
    steps: list[Step] = []

    def weakest(run: list[int]) -> float:
        before = [run[0]] * (len(run) - 1) if linkage == "anchor" else run[:-1]
        return min(evidence[one][layer] for one, layer in zip(before, run[1:], strict=True))

    while True:
        best: tuple[float, int, int] | None = None
        for place in range(1, len(clusters)):
            # a run that fits the period, or the last layer: at the end it may have any length
            end = place + stack.period if place < len(clusters) - 1 else len(clusters)
            if end > len(clusters) or any(cluster[0] in stack.pinned for cluster in clusters[place:end]):
                continue
            value = weakest([layer for cluster in clusters[place - 1 : end] for layer in cluster])
            if best is None or value >= best[0]:
                best = (value, place, end)
        if best is None:
            return steps
        value, place, end = best
        steps.append(Step(tuple(cluster[0] for cluster in clusters[place:end]), value))
        clusters[place - 1 : end] = [[layer for cluster in clusters[place - 1 : end] for layer in cluster]]


def _values(steps: Sequence[Step], stack: BlockStack) -> tuple[float | None, ...]:
    """1 - evidence of each layer that goes; the others come after them all, pinned ones never."""
    values = {layer: 1 - step.evidence for step in steps for layer in step.layers}
    last = 1 + max(values.values(), default=0.0)
    return tuple(None if layer in stack.pinned else values.get(layer, last) for layer in range(stack.depth))
