"""Rounds whose cut cannot be proved right: rejected without being made, and the next coarser cut is tried."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from custom_kit import CUSTOM_STACK, make_custom
from hf_mpruner import PruningConfig, prune_
from hf_mpruner.engine import PruningEngine
from hf_mpruner.errors import UnsupportedBackendError
from hf_mpruner.features import measure_similarity
from hf_mpruner.record import PruningRecord
from hf_mpruner.report import PruningReport
from hf_mpruner.runtime import SingleProcess
from hf_mpruner.similarity import SimilarityMatrix
from trainer_kit import Rows

# Every layer is alike: of 4 layers k = 1 keeps [0], k = 2 keeps [0, 2], k = 3 keeps [0, 2, 3].
ALL_ALIKE = {"threshold": 0.0, "calibration_samples": 16, "calibration_batch_size": 8}


class Counting(SingleProcess):
    """Notes what an edit tells its runtime."""

    def __init__(self):
        self.calls = []

    def before_edit(self):
        self.calls.append("before")

    def after_edit(self):
        self.calls.append("after")


def make_engine(model, runtime=None, evaluate=None, trains=False, **config):
    batches = [{"input_ids": torch.randint(0, 99, (8, 5), generator=torch.Generator().manual_seed(1))}]
    return PruningEngine(
        model,
        PruningConfig(**{**ALL_ALIKE, **config}),
        measure=lambda stacks: measure_similarity(model, batches, stacks),
        evaluate=evaluate,
        runtime=runtime,
        trains=trains,
    )


def state(model, optimizer):
    weights = [(name, id(p), p.detach().clone()) for name, p in model.named_parameters()]
    return weights, [[id(p) for p in group["params"]] for group in optimizer.param_groups], model.config.to_dict()


def assert_same_state(before, after):
    (weights, groups, config), (others, other_groups, other_config) = before, after
    assert [(name, number) for name, number, _ in weights] == [(name, number) for name, number, _ in others]
    assert all(torch.equal(one, other) for (*_, one), (*_, other) in zip(weights, others, strict=True))
    assert (groups, config) == (other_groups, other_config)


def test_a_refused_cut_is_a_rejected_round_and_the_next_k_is_tried(caplog):
    model = make_custom(fewest=3)
    engine = make_engine(model)
    with caplog.at_level(logging.WARNING, logger="hf_mpruner"):
        assert engine.start_round(step=7)
    first, second, third = engine.record.rounds
    assert [(r.number, r.granularity, r.kept[CUSTOM_STACK], r.verdict, r.refused) for r in (first, second, third)] == [
        (1, 1, [0], "rejected", True),
        (2, 2, [0, 2], "rejected", True),
        (3, 3, [0, 2, 3], "pending", False),
    ]
    assert "CustomModel (model_type 'custom_kit'): cutting 'layers' to layers [0] cannot be proved" in first.reason
    assert "to layers [0, 2] cannot be proved right: " in second.reason
    assert (first.started_at_step, first.decided_at_step, first.drop, first.after.metric) == (7, 7, None, None)
    assert first.after.parameters == second.after.parameters > third.after.parameters == model.num_parameters()
    assert caplog.text.count("refused, nothing was cut: CustomModel") == 2
    assert len(model.layers) == 3
    engine.decide()
    assert [round_.verdict for round_ in engine.record.rounds] == ["rejected", "rejected", "unjudged"]


def test_a_refused_cut_touches_neither_model_nor_optimizer_nor_random_state():
    model, runtime = make_custom(fewest=3), Counting()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    before, random_state = state(model, optimizer), torch.get_rng_state()
    engine = make_engine(model, runtime, trains=True, max_granularity=2)
    assert not engine.start_round(optimizer)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert_same_state(before, state(model, optimizer))
    assert engine.done
    assert engine.record.stopped == "refused at granularity 2, the coarsest allowed"
    assert runtime.calls == ["before", "after"] * 2


def test_a_cut_is_refused_once_for_every_k_that_gives_it():
    # 0 and 2 are protected: k = 1 and k = 2 both keep [0, 2]
    engine = make_engine(make_custom(fewest=3), protect=[0, 2])
    assert engine.start_round()
    assert [(r.granularity, r.kept[CUSTOM_STACK]) for r in engine.record.rounds] == [(1, [0, 2]), (3, [0, 2, 3])]


def test_refused_rounds_count_as_rounds():
    engine = make_engine(make_custom(fewest=3), max_rounds=2)
    assert not engine.start_round()
    assert engine.record.stopped == "max_rounds=2 reached"


def test_a_model_that_cannot_be_cut_further_ends_the_rounds_and_not_the_training():
    engine = make_engine(make_custom(fewest=3), granularity=3)
    assert engine.start_round()
    engine.decide()
    assert not engine.start_round()
    assert engine.record.stopped.startswith("no stack can be cut any further: CustomModel (model_type 'custom_kit')")
    assert engine.record.kept == {CUSTOM_STACK: [0, 2, 3]}


def test_the_reason_of_a_later_round_says_whose_numbers_it_uses():
    model = make_custom(num_hidden_layers=6, fewest=3)
    engine = make_engine(model, granularity=3)
    assert engine.start_round()  # keeps 0, 2, 3 and 5
    engine.decide()
    engine.record.granularity = 1
    engine.start_round()
    refused = [round_ for round_ in engine.record.rounds if round_.refused]
    assert refused
    assert all(r.reason.endswith("(Layers are numbered as they were before this round.)") for r in refused)


def test_other_failures_of_a_cut_are_still_errors():
    class Odd(torch.optim.SGD):
        pass

    model = make_custom()
    optimizer = Odd(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.state[model.head.weight]["odd"] = object()
    engine = make_engine(model, trains=True)
    with pytest.raises(UnsupportedBackendError, match="Odd keeps a object in its state"):
        engine.start_round(optimizer)
    assert len(model.layers) == 4
    assert engine.record.rounds == []


def test_the_record_says_so_and_older_records_load():
    engine = make_engine(make_custom(fewest=3))
    engine.start_round()
    values = json.loads(json.dumps(engine.record.to_dict()))
    assert [round_.refused for round_ in PruningRecord.from_dict(values).rounds] == [True, True, False]
    for round_ in values["rounds"]:
        del round_["refused"]
    assert [round_.refused for round_ in PruningRecord.from_dict(values).rounds] == [False, False, False]


def test_the_report_shows_refusals_with_their_reasons():
    engine = make_engine(make_custom(fewest=3), evaluate=lambda: {"loss": 1.0})
    engine.start_round()
    engine.decide()
    report = PruningReport(engine.record)
    rows = [line.split() for line in report.to_table().splitlines()]
    assert rows[2] == ["1", "1", "refused"]
    assert rows[3] == ["2", "2", "refused,", "k=2"]
    assert rows[4][-2:] == ["accepted,", "k=3"]
    assert "\nround 1 was refused: CustomModel (model_type 'custom_kit'): cutting 'layers' to layers [0] " in str(
        report
    )
    assert report.plan.kept == {CUSTOM_STACK: (0, 2, 3)}
    assert report.after.parameters == rows_parameters(rows[4])


def rows_parameters(row):
    return int(row[2].replace(",", ""))


def test_prune_goes_on_after_a_refused_cut():
    model = make_custom(fewest=3)
    report = prune_(model, PruningConfig(**ALL_ALIKE), calibration=Rows(16, 0))
    assert [round_.verdict for round_ in report.rounds] == ["rejected", "rejected", "unjudged"]
    assert len(model.layers) == 3


def test_prune_leaves_the_model_whole_if_every_cut_is_refused(weight_digest):
    model = make_custom(fewest=3)
    before = weight_digest(model), model.config.to_dict()
    report = prune_(model, PruningConfig(**ALL_ALIKE, max_granularity=2), calibration=Rows(16, 0))
    assert (weight_digest(model), model.config.to_dict()) == before
    assert report.plan.num_removed == 0
    assert report.record.stopped == "refused at granularity 2, the coarsest allowed"


# -- the model that was kept -------------------------------------------------------------------------------------------


def counted(model, judge=None, **config):
    """An engine that counts how often it measures."""
    engine, passes = make_engine(model, evaluate=judge, **config), []
    model.register_forward_pre_hook(lambda *_: passes.append(len(model.layers)))
    return engine, passes


def test_what_was_measured_last_is_of_the_model_that_was_kept_if_its_cut_was_rejected():
    values = iter([{"accuracy": 0.9}, {"accuracy": 0.1}])
    engine, passes = counted(make_custom(), lambda: next(values), max_granularity=1)
    assert engine.start_round(step=3)
    engine.decide(step=6)
    assert not engine.start_round(step=6)
    assert passes == [4]
    engine.measure_kept(step=6)
    assert passes == [4]
    assert engine.record.similarity_after == engine.record.rounds[0].similarity
    engine.measure_kept(step=7)  # trained on
    assert passes == [4, 4]


def test_nothing_that_is_alike_is_not_measured_twice():
    engine, passes = counted(make_custom(), threshold=1.0)
    assert not engine.start_round(step=3)
    engine.measure_kept(step=3)
    assert passes == [4]
    (values,) = engine.record.similarity_after.values()
    assert SimilarityMatrix.from_dict(values).layers == (0, 1, 2, 3)


def test_an_accepted_model_is_measured_once_at_the_end_in_original_numbers():
    engine, passes = counted(make_custom(), granularity=2, max_rounds=1)
    assert engine.start_round()
    engine.measure_kept()  # not while a cut is pending
    assert engine.record.similarity_after == {}
    engine.decide()
    engine.measure_kept()
    assert passes == [4, 2]
    assert SimilarityMatrix.from_dict(engine.record.similarity_after[CUSTOM_STACK]).layers == (0, 2)
    engine.reopen()
    assert engine.record.similarity_after == {}


def test_one_layer_is_like_no_other():
    engine, passes = counted(make_custom(), max_rounds=1)
    assert engine.start_round()
    engine.decide()
    engine.measure_kept()
    assert (passes, engine.record.similarity_after) == ([4], {})


def test_weights_that_cannot_be_measured_at_the_end_lose_no_run(caplog):
    model = make_custom()
    engine, _ = counted(model, granularity=2, max_rounds=1)
    assert engine.start_round()
    engine.decide()
    next(model.layers.parameters()).data.fill_(float("nan"))
    with caplog.at_level(logging.WARNING, logger="hf_mpruner"):
        engine.measure_kept()
    assert engine.record.similarity_after == {}
    assert "Measuring the model that was kept failed and is left out: CalibrationError" in caplog.text
