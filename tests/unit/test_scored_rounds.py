"""Rounds in which a number of layers goes by a criterion: how many, which, what the record says, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

import criteria_kit  # noqa: F401 - registers criteria
from hf_mpruner import PruningConfig, prune_
from hf_mpruner.architectures import BlockStack, ConfigField, find_block_stacks
from hf_mpruner.clusters import find_clusters
from hf_mpruner.criteria import (
    CriterionInputs,
    LayerScores,
    Quota,
    ScoredLayers,
    as_recorded,
    find_criterion,
    from_original,
    score_layers,
    to_original,
)
from hf_mpruner.engine import PruningEngine
from hf_mpruner.errors import CalibrationError
from hf_mpruner.features import measure_similarity
from hf_mpruner.plan import PruningPlan
from hf_mpruner.record import PruningRecord
from hf_mpruner.roundplan import plan_of
from hf_mpruner.similarity import SimilarityMatrix
from trainer_kit import STACK, Rows

SMALL = {"calibration_samples": 16, "calibration_batch_size": 8}


def stack_of(depth, path="layer", **facts):
    return BlockStack(path, "Layer", depth, ConfigField("num_hidden_layers"), **facts)


def quota(depths, **config):
    return Quota(PruningConfig(criterion="tail", **config), depths)


@pytest.fixture
def by_weights():
    criterion = find_criterion("by_weights")
    criterion.asked.clear()
    return criterion


def rows(number=16):
    return Rows(number, 0)


def scripted(values):
    """An `evaluate` that knows a value for each depth."""
    return lambda model: {"accuracy": values[len(model.get_submodule(STACK))]}


@pytest.mark.parametrize(
    ("config", "depth", "granularity", "number"),
    [
        ({"target_num_layers": 6}, 12, 1, 6),
        ({"target_num_layers": 6}, 12, 2, 3),
        ({"target_num_layers": 6}, 11, 2, 3),
        ({"target_num_layers": 6}, 11, 3, 2),
        ({"target_num_layers": 6, "layers_per_round": 2}, 12, 1, 2),
        ({"target_num_layers": 6, "layers_per_round": 2}, 7, 1, 1),
        ({"target_num_layers": 6, "layers_per_round": 2}, 12, 3, 1),
        ({"layers_per_round": 4}, 12, 1, 4),
        ({"layers_per_round": 4}, 3, 1, 2),
        ({"target_num_layers": 6}, 6, 1, 0),
    ],
)
def test_how_many_go_next(config, depth, granularity, number):
    found = quota({"layer": 12}, **config).numbers([stack_of(depth)], {}, granularity)
    assert found == ({"layer": number} if number else {})


def test_a_stack_whose_layers_go_in_runs_gets_a_number_that_its_runs_can_give():
    stack = stack_of(8, period=2, period_reason="blocks alternate", pinned={7: "the last stays"})
    assert quota({"layer": 8}, target_num_layers=2).numbers([stack], {}, 1) == {"layer": 6}
    assert quota({"layer": 8}, target_num_layers=2).numbers([stack], {}, 2) == {"layer": 2}
    assert quota({"layer": 8}, target_num_layers=2, layers_per_round=1).numbers([stack], {}, 1) == {"layer": 2}
    with pytest.raises(
        ValueError, match="target_num_layers=3: 5 layers of 'layer' cannot be removed together: blocks"
    ):
        quota({"layer": 8}, target_num_layers=3).check([stack], {})


def test_only_the_stack_that_is_named_shrinks():
    stacks = [stack_of(8, "encoder"), stack_of(8, "decoder")]
    both = quota({"encoder": 8, "decoder": 8}, target_num_layers=["encoder:3"])
    assert both.numbers(stacks, {"encoder": {0}}, 1) == {"encoder": 5}
    assert not both.is_reached({"encoder": [0, 1, 2, 3], "decoder": [0]})
    assert both.is_reached({"encoder": [0, 1, 2], "decoder": list(range(8))})


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"criterion": "greedy_los"}, "criterion='greedy_los' is not known.*Known criteria: .*tail"),
        (
            {"target_num_layers": 2, "protect": [0, 1, -1]},
            "3 of its 4 layers are pinned or protected, so at most 1 can go",
        ),
        ({"target_num_layers": 5}, "has only 4 layers"),
        ({"target_num_layers": "encoder:2"}, "'encoder' is no block stack"),
        ({"target_num_layers": None, "layers_per_round": 1, "protect": [0, 1, 2, 3]}, "Every layer that could go"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(make_bert, config, says):
    def evaluate(model):
        raise AssertionError("evaluated")

    with pytest.raises(ValueError, match=says):
        prune_(
            make_bert(),
            PruningConfig(**{"criterion": "tail", "target_num_layers": 2, **SMALL, **config}),
            calibration=rows(),
            evaluate=evaluate,
        )


def test_an_engine_without_scores_says_so(make_bert):
    with pytest.raises(ValueError, match="pass score to PruningEngine"):
        PruningEngine(make_bert(), PruningConfig(criterion="tail", target_num_layers=2), measure=lambda stacks: {})


def test_all_layers_of_a_target_go_in_one_round(make_bert, by_weights):
    model = make_bert(6)
    wanted = sorted(range(6), key=lambda i: sum(p.abs().sum() for p in model.bert.encoder.layer[i].parameters()))[:4]
    report = prune_(model, PruningConfig(criterion="by_weights", target_num_layers=2, **SMALL), calibration=rows())
    assert report.plan.kept == {STACK: tuple(sorted(set(range(6)) - set(wanted)))}
    assert (report.record.stopped, [r.verdict for r in report.rounds]) == ("target reached", ["unjudged"])
    assert by_weights.asked == [{STACK: (6, 4)}]
    assert report.record.similarity_after == {}
    assert (report.rounds[0].criterion, report.rounds[0].similarity, report.rounds[0].clusters) == (
        "by_weights",
        {},
        {},
    )


def test_a_target_is_reached_in_rounds_and_scores_are_in_the_original_numbering(make_bert, by_weights):
    model = make_bert(6)
    config = PruningConfig(criterion="by_weights", target_num_layers=3, layers_per_round=2, **SMALL)
    report = prune_(model, config, calibration=rows(), evaluate=scripted(dict.fromkeys(range(7), 0.5)))
    assert by_weights.asked == [{STACK: (6, 2)}, {STACK: (4, 1)}]
    first, second = report.rounds
    assert second.scores["scores"][STACK]["layers"] == first.kept[STACK]
    before, after = first.scores["scores"][STACK], second.scores["scores"][STACK]
    of = dict(zip(before["layers"], before["values"], strict=True))
    assert [of[layer] for layer in after["layers"]] == after["values"]
    assert report.record.stopped == "target reached"


def test_a_rejected_round_takes_fewer_layers_and_is_not_scored_again(make_bert, by_weights):
    model = make_bert(6)
    values = {6: 0.9, 2: 0.1, 4: 0.9, 3: 0.2}
    config = PruningConfig(criterion="by_weights", target_num_layers=2, max_metric_drop=0.01, **SMALL)
    report = prune_(model, config, calibration=rows(), evaluate=scripted(values))
    # four of six, rejected; two, accepted; then one (k = 2) of the two that are left, rejected, and k = 3 is the same cut
    assert [(r.granularity, len(r.kept[STACK]), r.verdict) for r in report.rounds] == [
        (1, 2, "rejected"),
        (2, 4, "accepted"),
        (2, 3, "rejected"),
    ]
    assert report.record.stopped == "rejected up to granularity 3"
    assert by_weights.asked == [{STACK: (6, 4)}, {STACK: (4, 1)}]
    assert report.rounds[0].scores == report.rounds[1].scores


def test_without_a_target_and_a_metric_one_round_is_all(make_bert):
    report = prune_(make_bert(6), PruningConfig(criterion="tail", layers_per_round=2, **SMALL), calibration=rows())
    assert report.plan.kept == {STACK: (0, 1, 2, 3)}
    assert "nothing can judge a second one" in report.record.stopped


def test_protected_layers_are_pinned_for_who_scores_and_stay(make_bert):
    config = PruningConfig(criterion="from_the_end", target_num_layers=4, layers_per_round=1, protect=[-1, 3], **SMALL)
    data = [{**row, "labels": torch.tensor(row["labels"])} for row in rows().rows]
    report = prune_(make_bert(6), config, calibration=data)
    assert report.plan.kept == {STACK: (0, 1, 3, 5)}
    assert [r.scores["scores"][STACK]["order"] for r in report.rounds] == [[4], [2]]


def test_a_criterion_that_needs_labels_says_so_before_the_evaluation(make_bert):
    unlabelled = [{"input_ids": row["input_ids"]} for row in rows().rows]
    config = PruningConfig(criterion="from_the_end", target_num_layers=2, **SMALL)
    with pytest.raises(CalibrationError, match=r"gives no loss on input_ids\. Pass calibration data with labels"):
        prune_(make_bert(), config, calibration=unlabelled, evaluate=scripted({}))


def test_a_criterion_that_needs_a_metric_gets_the_users_signed_so_that_higher_is_better(make_bert, caplog):
    criterion = find_criterion("by_metric")
    criterion.values.clear()
    config = PruningConfig(criterion="by_metric", target_num_layers=2, metric="loss", max_metric_drop=1e9, **SMALL)
    prune_(make_bert(), config, calibration=rows(), evaluate=lambda model: {"eval_loss": 3.0})
    assert criterion.values == [-3.0] * 4
    assert "The same examples choose the layers and judge the result: the criterion 'by_metric'" in caplog.text
    with pytest.raises(CalibrationError, match="evaluates the model without each layer: pass evaluate"):
        prune_(make_bert(), config, calibration=rows())


def test_a_quantised_model_has_no_gradients(make_bert):
    model = make_bert()
    model.is_quantized = True
    config = PruningConfig(criterion="by_gradients", target_num_layers=2, **SMALL)
    with pytest.raises(CalibrationError, match="needs gradients, but the model has weights of type quantised"):
        prune_(model, config, calibration=rows())


def test_scores_that_none_can_be_removed_by_end_the_run_in_words(make_bert, by_weights, monkeypatch):
    monkeypatch.setattr(type(by_weights), "score", lambda self, inputs: {STACK: [1.0, None, None, None]})
    config = PruningConfig(criterion="by_weights", target_num_layers=2, **SMALL)
    report = prune_(make_bert(), config, calibration=rows())
    assert report.record.stopped.startswith("by_weights finds no layers that could go: 2 layers of")
    assert report.rounds == ()


def test_scores_survive_a_record(make_bert):
    scores = LayerScores("layer", (0.5, None, 0.25), (2, 0), ((1.0, 0.5), (0.5, 1.0)), {"trace": {3: (1, 2)}})
    scored = as_recorded(ScoredLayers("mine", {"layer": scores}))
    values = json.loads(json.dumps(to_original(scored, {"layer": [1, 4, 7]})))
    assert values["scores"]["layer"]["order"] == [7, 1]
    again = from_original(values)
    assert again == scored
    assert again.scores["layer"].details == scored.scores["layer"].details == {"trace": {"3": [1, 2]}}
    with pytest.raises(TypeError, match=r"'mine' says in LayerScores\.details cannot be written"):
        as_recorded(ScoredLayers("mine", {"layer": replace(scores, details={"matrix": torch.ones(1)})}))


def test_a_pending_round_comes_back_from_its_record(make_bert):
    model = make_bert(6)
    config = PruningConfig(criterion="by_weights", target_num_layers=2, layers_per_round=2, **SMALL)

    def score(criterion, stacks, num_removed):
        values = {stack.path: LayerScores(stack.path, tuple(map(float, range(stack.depth)))) for stack in stacks}
        return ScoredLayers(criterion.name, values)

    engine = PruningEngine(model, config, measure=lambda stacks: {}, score=score)
    engine.start_round()
    engine.decide()
    planned = engine.plan_round()
    engine.start_round()
    record = PruningRecord.from_dict(json.loads(json.dumps(engine.record.to_dict())))
    again = plan_of(record.rounds[-1], record)
    assert (again.plan.stacks, again.granularity, again.scored) == (planned.plan.stacks, 1, planned.scored)
    assert record.rounds[-1].kept[STACK] == [4, 5]


def test_a_run_that_is_gone_on_with_scores_nothing_again_and_repeats_no_rejected_cut(make_bert, by_weights):
    config = PruningConfig(criterion="by_weights", target_num_layers=2, max_metric_drop=0.01, **SMALL)
    values = {4: 0.9, 2: 0.1, 3: 0.1}

    def engine_of(model, record=None):
        def score(criterion, stacks, num_removed):
            return score_layers(criterion, CriterionInputs(model, stacks, num_removed=num_removed))

        judge = scripted(values)
        return PruningEngine(
            model, config, measure=lambda stacks: {}, score=score, evaluate=lambda: judge(model), record=record
        )

    model = make_bert()
    engine = engine_of(model)
    engine.start_round()
    engine.decide()
    record = PruningRecord.from_dict(json.loads(json.dumps(engine.record.to_dict())))
    later = engine_of(make_bert(), record)
    assert later.start_round()
    assert by_weights.asked == [{STACK: (4, 2)}]
    assert len(later.record.rounds[-1].kept[STACK]) == 3
    later.decide()
    assert not later.start_round()
    assert later.record.stopped == "rejected up to granularity 3"


def test_a_run_that_reached_its_target_goes_on_to_a_smaller_one(make_bert):
    def engine_of(model, target, record=None):
        def score(criterion, stacks, num_removed):
            return score_layers(criterion, CriterionInputs(model, stacks, num_removed=num_removed))

        config = PruningConfig(criterion="tail", target_num_layers=target, **SMALL)
        return PruningEngine(model, config, measure=lambda stacks: {}, score=score, record=record)

    model = make_bert()
    first = engine_of(model, 3)
    first.start_round()
    first.decide()
    assert (first.done, first.record.stopped) == (True, "target reached")
    assert engine_of(model, 3, first.record).done
    later = engine_of(model, 2, first.record)
    assert later.start_round()
    assert later.record.rounds[-1].kept == {STACK: [0, 1]}


def test_what_rounds_merge_is_told_in_layers_of_the_original_model(make_bert):
    model = make_bert(6)
    config = PruningConfig(criterion="merging", target_num_layers=2, layers_per_round=2, **SMALL)
    report = prune_(model, config, calibration=rows())
    first, second = report.rounds
    assert first.merged == {STACK: {"3": {"3": 0.5, "4": 0.25, "5": 0.25}}}
    assert second.merged == {STACK: {"1": {"1": 0.5, "2": 0.25, "3": 0.25}}}
    # layer 3 was a sum already when layer 1 took a quarter of it
    quarter = Fraction(1, 4)
    wanted = {1: 0.5, 2: 0.25, **{3: quarter / 2, 4: quarter * quarter, 5: quarter * quarter}}
    assert report.plan.stacks[STACK].merged == {1: {layer: float(share) for layer, share in wanted.items()}}
    again = PruningRecord.from_dict(json.loads(json.dumps(report.record.to_dict())))
    assert again == report.record
    assert again.to_plan() == report.plan == PruningPlan.from_dict(json.loads(json.dumps(report.plan.to_dict())))


def test_a_record_of_before_criteria_loads(make_bert):
    report = prune_(make_bert(), PruningConfig(threshold=0.0, **SMALL), calibration=rows())
    values = json.loads(json.dumps(report.record.to_dict()))
    for round_ in values["rounds"]:
        for name in ("criterion", "scores", "merged"):
            del round_[name]
    assert PruningRecord.from_dict(values) == report.record
    assert find_block_stacks(make_bert())[0].path == STACK


def test_with_cka_and_a_target_the_matrix_and_the_clusters_reach_the_round(make_bert):
    model, same = make_bert(6), make_bert(6)
    batches = [{key: torch.stack([row[key] for row in rows().rows]) for key in ("input_ids", "attention_mask")}]
    report = prune_(model, PruningConfig(target_num_layers=3, **SMALL), calibration=batches)
    matrix = measure_similarity(same, batches)[STACK]
    (round_,) = report.rounds
    assert SimilarityMatrix.from_dict(round_.similarity[STACK]) == matrix
    gone = set(report.plan.stacks[STACK].removed)
    # brute force: the largest value of the matrix at which the clusters let those three go
    for value in sorted(matrix.values.flatten().tolist(), reverse=True):
        found = [list(one.layers) for one in find_clusters(matrix, value) if len(one.layers) > 1] if value <= 1 else []
        if gone <= {layer for layers in found for layer in layers[1:]}:
            break
    assert round_.clusters == {STACK: found}
    assert list(report.record.similarity_after[STACK]["layers"]) == list(report.plan.kept[STACK])
    again = PruningRecord.from_dict(json.loads(json.dumps(report.record.to_dict())))
    again.rounds[0].verdict = "pending"
    planned = plan_of(again.rounds[0], again)
    assert (planned.matrices[STACK], planned.plan.kept) == (matrix, report.plan.kept)
