"""Which layers go by a similarity matrix: as clusters say, and as the best of all segmentations says."""

from __future__ import annotations

import itertools
import json
import random

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from hf_mpruner import PruningPlan, find_block_stacks, find_clusters, measure_similarity
from hf_mpruner.architectures import BlockStack, ConfigField
from hf_mpruner.criteria import CriterionInputs, LayerScores, ScoredLayers, find_criterion, plan_layers, score_layers
from hf_mpruner.criteria.cka import similarity_of
from hf_mpruner.criteria.cka_segments import best_segments, segment_costs
from hf_mpruner.similarity import SimilarityProtocol

PROTOCOL = SimilarityProtocol(rows="tokens")


def make_stack(depth: int, period: int = 1, pinned: tuple[int, ...] = ()) -> BlockStack:
    pins = dict.fromkeys(pinned, "")
    return BlockStack("layer", "Layer", depth, ConfigField("n"), period=period, period_reason="shifted", pinned=pins)


def make_matrix(draw: random.Random, depth: int) -> Tensor:
    """Symmetric, ones on the diagonal, in few steps so that there are ties."""
    values = torch.eye(depth, dtype=torch.float64)
    for i, j in itertools.combinations(range(depth), 2):
        values[i, j] = values[j, i] = round(draw.uniform(-0.1, 1), 1 if draw.random() < 0.5 else 4)
    return values


def make_scores(matrix: Tensor, linkage: str = "anchor") -> LayerScores:
    values = (None, *(1 - value for value in matrix.diagonal(1).tolist()))
    return LayerScores("layer", values, pairs=tuple(map(tuple, matrix.tolist())), details={"linkage": linkage})


def cluster_cut(matrix: Tensor, threshold: float, linkage: str, stack: BlockStack, protected: set[int]):
    clusters = find_clusters(matrix, threshold, linkage)
    plan = PruningPlan.from_clusters({"layer": clusters}, [stack], protect=[f"layer:{layer}" for layer in protected])
    return plan.stacks["layer"].removed


@pytest.mark.parametrize("linkage", ["anchor", "chain"])
@pytest.mark.parametrize("seed", range(30))
def test_a_number_that_a_threshold_gives_is_cut_as_at_that_threshold(seed: int, linkage: str) -> None:
    draw = random.Random(seed)
    depth = draw.randint(3, 9)
    stack = make_stack(depth, draw.choice([1, 1, 2]), tuple(draw.sample(range(depth), draw.randint(0, 1))))
    protected = set(draw.sample(range(depth), draw.randint(0, 1)))
    matrix = make_matrix(draw, depth)
    scores, criterion = make_scores(matrix, linkage), find_criterion("cka")
    seen: set[int] = set()
    for step in range(1000, -1, -1):  # values have four decimals, so steps between them are enough together with ties
        removed = cluster_cut(matrix, step / 1000, linkage, stack, protected)
        for number in range(1, len(removed) + 1):
            if number in seen:
                continue
            seen.add(number)
            if number == len(removed) and fits_exactly(matrix, linkage, stack, protected, number, step / 1000):
                assert criterion.select(scores, stack, number, protected) == removed


def fits_exactly(
    matrix: Tensor, linkage: str, stack: BlockStack, protected: set[int], number: int, low: float
) -> bool:
    """Whether no threshold above `low` lets `number` layers or more go in another way."""
    cuts = {
        cluster_cut(matrix, value, linkage, stack, protected)
        for value in matrix.flatten().tolist()
        if low <= value <= 1
    }
    return {cut for cut in cuts if len(cut) >= number} == {cluster_cut(matrix, low, linkage, stack, protected)}


@pytest.mark.parametrize("seed", range(20))
def test_of_too_many_the_most_similar_go(seed: int) -> None:
    draw = random.Random(seed)
    depth = draw.randint(3, 9)
    stack, matrix = make_stack(depth), make_matrix(draw, depth).abs()
    criterion, scores = find_criterion("cka"), make_scores(matrix)
    for number in range(1, depth):
        chosen = criterion.select(scores, stack, number)
        assert len(chosen) == number
        thresholds = sorted({0.0, *matrix.triu(1).flatten().tolist()}, reverse=True)
        enough = [t for t in thresholds if len(cluster_cut(matrix, t, "anchor", stack, set())) >= number]
        if not enough:
            continue
        anchors = {
            layer: cluster.layers[0] for cluster in find_clusters(matrix, enough[0]) for layer in cluster.layers[1:]
        }
        assert set(chosen) <= anchors.keys()
        weakest = min(matrix[anchors[layer], layer] for layer in chosen)
        assert all(matrix[anchors[layer], layer] <= weakest for layer in anchors.keys() - set(chosen))


def test_without_any_similarity_the_least_unlike_layers_go_and_the_first_last() -> None:
    matrix = torch.tensor([[1, -0.5, -0.6], [-0.5, 1, -0.1], [-0.6, -0.1, 1]], dtype=torch.float64)
    criterion, scores = find_criterion("cka"), make_scores(matrix)
    assert criterion.select(scores, make_stack(3), 0) == ()
    assert criterion.select(scores, make_stack(3), 1) == (2,)
    assert criterion.select(scores, make_stack(3), 2) == (1, 2)
    assert criterion.select(scores, make_stack(3), 2, protected={2}) == (0, 1)
    with pytest.raises(ValueError, match="at most 2 can go"):
        criterion.select(scores, make_stack(3), 3)


def segmentations(depth: int, number: int) -> list[tuple[int, ...]]:
    return [(0, *rest) for rest in itertools.combinations(range(1, depth), number - 1)]


@pytest.mark.parametrize("seed", range(20))
def test_no_segmentation_has_a_smaller_sum_of_squares(seed: int) -> None:
    draw = random.Random(seed)
    depth, period = draw.randint(2, 8), draw.choice([1, 1, 2])
    rows = make_matrix(draw, depth)
    must = {0, *draw.sample(range(depth), draw.randint(0, 2))}
    stack = make_stack(depth, period, tuple(must))

    def cost(starts: tuple[int, ...]) -> float:
        total = 0.0
        for first, end in zip(starts, (*starts[1:], depth), strict=True):
            run = rows[first:end]  # squared distances from the mean, by way of those of all pairs
            total += float((run.unsqueeze(0) - run.unsqueeze(1)).square().sum()) / (2 * len(run))
        return total

    for number in range(1, depth + 1):
        allowed = [
            starts
            for starts in segmentations(depth, number)
            if must <= set(starts)
            and all(
                (end - first - 1) % period == 0 for first, end in itertools.pairwise((*starts, depth)) if end < depth
            )
        ]
        found = best_segments(segment_costs(rows), number, must, period)
        assert (found is None) == (not allowed)
        if found is not None:
            assert found in allowed
            assert cost(found) == pytest.approx(min(map(cost, allowed)), abs=1e-9)
            removed = tuple(layer for layer in range(depth) if layer not in found)
            assert stack.removable(removed) == removed
            chosen = find_criterion("cka_segments").select(make_scores(rows), stack, depth - number)
            assert cost(tuple(layer for layer in range(depth) if layer not in chosen)) == pytest.approx(cost(found))


def test_segments_that_cannot_be_are_refused() -> None:
    scores = make_scores(torch.eye(4, dtype=torch.float64))
    with pytest.raises(ValueError, match="cannot be removed with a segment's first layer staying"):
        find_criterion("cka_segments").select(scores, make_stack(4), 3, protected={3})


@pytest.fixture(scope="module")
def scored():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
    model = BertModel(BertConfig(num_hidden_layers=4, **sizes))
    batches = [{"input_ids": torch.randint(2, 50, (3, 7))} for _ in range(2)]
    inputs = CriterionInputs(model, find_block_stacks(model), batches, protocol=PROTOCOL, linkage="chain")
    return model, batches, inputs, score_layers(find_criterion("cka"), inputs)


def test_scores_hold_the_whole_matrix_also_after_json(scored) -> None:
    model, batches, _, found = scored
    matrix = measure_similarity(model, batches, protocol=PROTOCOL)["encoder.layer"]
    again = ScoredLayers.from_dict(json.loads(json.dumps(found.to_dict())))
    assert similarity_of(again.scores["encoder.layer"]) == matrix
    values = again.scores["encoder.layer"].values
    assert values[0] is None
    assert [1 - value for value in values[1:]] == pytest.approx(list(matrix.adjacent))
    assert again.scores["encoder.layer"].details["linkage"] == "chain"
    assert found.cost.forward_passes == 1


def test_both_plan_a_model_for_every_number(scored) -> None:
    _, _, inputs, found = scored
    for name in ("cka", "cka_segments"):
        for number in range(4):
            plan = plan_layers(find_criterion(name), found, inputs.stacks, {"encoder.layer": number})
            assert plan.num_removed == number
            assert 0 in plan.kept["encoder.layer"]
