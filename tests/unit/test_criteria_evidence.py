"""`cka_evidence`: nested clusters by what can be shown of similarities."""

from __future__ import annotations

import itertools
import logging

import pytest
import torch

from hf_mpruner import PruningConfig, find_block_stacks, prune_
from hf_mpruner.architectures import BlockStack, ConfigField
from hf_mpruner.card.prose import recovery_lines
from hf_mpruner.criteria import CriterionInputs, LayerScores, criterion_of, find_criterion, score_layers
from hf_mpruner.criteria.cka import similarity_of
from hf_mpruner.criteria.cka_evidence import merge_clusters
from hf_mpruner.criteria.select import pick_lowest
from hf_mpruner.similarity import SimilarityProtocol
from trainer_kit import STACK, Rows


def stack_of(depth, **facts):
    return BlockStack("layer", "Layer", depth, ConfigField("num_hidden_layers"), **facts)


def evidence_of(depth, seed):
    half = torch.rand(depth, depth, generator=torch.Generator().manual_seed(seed))
    return ((half + half.T) / 2).fill_diagonal_(1.0).tolist()


def clusters_of(depth, removed):
    """The runs that a plan leaves: each kept layer with those that went behind it."""
    runs = []
    for layer in range(depth):
        if layer in removed:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return runs


def weakest(evidence, run, linkage):
    pairs = zip([run[0]] * len(run) if linkage == "anchor" else run, run[1:], strict=False)
    return min((evidence[one][layer] for one, layer in pairs), default=1.0)


@pytest.mark.parametrize("linkage", ["anchor", "chain"])
@pytest.mark.parametrize("seed", range(4))
def test_each_merge_is_the_best_of_all_that_are_possible(linkage, seed):
    depth, evidence = 9, evidence_of(9, seed)
    removed: set[int] = set()
    for step in merge_clusters(evidence, stack_of(depth), linkage):
        runs = clusters_of(depth, removed)
        values = [weakest(evidence, one + other, linkage) for one, other in itertools.pairwise(runs)]
        assert step.evidence == max(values)
        (layer,) = step.layers
        assert values[[run[0] for run in runs].index(layer) - 1] == step.evidence
        removed.add(layer)
    assert removed == set(range(1, depth))


@pytest.mark.parametrize(
    "facts",
    [{}, {"pinned": {0: "", 4: ""}}, {"period": 2}, {"period": 2, "pinned": {3: ""}}, {"period": 9}, {"period": 3}],
)
def test_plans_are_nested_and_can_go_together(facts):
    stack, evidence = stack_of(9, **facts), evidence_of(9, 5)
    steps = merge_clusters(evidence, stack)
    order = tuple(layer for step in steps for layer in step.layers)
    values = tuple(None if layer in stack.pinned else 0.5 for layer in range(9))
    gone: tuple[int, ...] = ()
    for step in steps:
        gone = tuple(sorted((*gone, *step.layers)))
        assert stack.removable(gone) == gone
        assert not set(gone) & set(stack.pinned)
        assert pick_lowest(LayerScores("layer", values, order), stack, len(gone)) == gone
    if stack.period == 1:
        assert len(gone) == 9 - max(1, len(stack.pinned))
    if stack.period == 9:
        assert [step.layers for step in steps] == [(8 - place,) for place in range(8)]


def inputs_of(model, number=64, size=8, **more):
    rows = Rows(number, 0)
    batches = [
        {
            name: torch.stack([rows[place][name] for place in range(start, start + size)])
            for name in ("input_ids", "attention_mask")
        }
        for start in range(0, number, size)
    ]
    return CriterionInputs(model, find_block_stacks(model), batches, **more)


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_layers_that_change_next_to_nothing_have_most_evidence(make_bert, estimator):
    model = make_bert(5)
    with torch.no_grad():  # layers 1 and 2 add next to nothing
        for layer, scale in enumerate([30.0, 1e-4, 1e-4, 30.0, 30.0]):
            block = model.bert.encoder.layer[layer]
            for part in (block.attention.output, block.output):
                part.dense.weight.mul_(scale)
    inputs = inputs_of(model, protocol=SimilarityProtocol(estimator))
    scores = score_layers(find_criterion("cka_evidence"), inputs).scores[STACK]
    assert set(scores.order[:2]) == {1, 2}
    assert max(scores.values[1], scores.values[2]) < 0.01 < scores.values[4]
    calibrated = similarity_of(scores).calibrated
    assert calibrated.values[0, 2] > 0.99
    assert bool((calibrated.evidence() <= calibrated.values).all())
    steps = scores.details["steps"]
    assert [layer for step in steps for layer in step["layers"]] == list(scores.order)
    assert [1 - step["evidence"] for step in steps] == [scores.values[layer] for layer in scores.order]


def test_a_search_by_similarity_goes_by_evidence_and_its_plans_are_nested(make_bert):
    config = PruningConfig(
        threshold="auto",
        criterion="cka",
        calibration_samples=32,
        calibration_batch_size=8,
        protect=[3],
        linkage="chain",
    )
    assert criterion_of(config).name == "cka_evidence"
    assert criterion_of(PruningConfig(criterion="cka", target_num_layers=2)).name == "cka"
    report = prune_(
        make_bert(7),
        config,
        calibration=Rows(32, 0),
        evaluate=lambda model: {"accuracy": float(len(model.bert.encoder.layer) > 4)},
    )
    assert {round_.criterion for round_ in report.rounds} == {"cka_evidence"}
    assert 3 in report.record.kept[STACK]
    first = report.rounds[0]
    assert list(first.similarity) == [STACK]
    assert report.record.similarity_after
    assert "Dashed line: threshold" not in report.to_html()
    text = " ".join(recovery_lines(report, config))
    most = report.record.search["most_recoveries"]
    assert f"of at most {most} candidates {len(report.rounds)} were judged." in text
    scored = first.scores["scores"][STACK]
    assert [layer for step in scored["details"]["steps"] for layer in step["layers"]] == scored["order"]
    assert 3 not in scored["order"]


def test_one_batch_tells_nothing_of_its_noise(make_bert, caplog):
    with caplog.at_level(logging.WARNING, logger="hf_mpruner"):
        score_layers(find_criterion("cka_evidence"), inputs_of(make_bert(3), number=16, size=16))
    assert "similarity was measured on one batch, so its noise is not known" in caplog.text
    assert "calibration_batch_size (or more calibration_samples) than 16" in caplog.text
