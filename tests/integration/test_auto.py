"""`threshold="auto"`: the number of layers is searched for, in a Trainer's rounds and in one call."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from custom_kit import CUSTOM_STACK, make_custom
from cycles_kit import Maker, prune, save_bert
from hf_mpruner import PruningConfig, prune_
from hf_mpruner.guarantee import TestLevels
from hf_mpruner.search import most_recoveries, num_branches, stand
from resume_kit import assert_resumes, lived, pending_at
from trainer_kit import STACK, Rows, Scripted, add, build_trainer

AUTO = {"threshold": "auto", "criterion": "tail", "calibration_samples": 16, "calibration_batch_size": 8}


def by_depth(most, path=STACK, depth=8):
    """An `evaluate` of a model that may lose so many layers."""
    return lambda model: {"accuracy": 0.9 if depth - len(model.get_submodule(path)) <= most else 0.5}


def removed_in(record):
    """How many layers each round would have left the model without."""
    return [sum(record.depths.values()) - sum(map(len, round_.kept.values())) for round_ in record.rounds]


def tried_by(trainer, callback):
    return removed_in(callback.record), [round_.verdict for round_ in callback.record.rounds]


@pytest.mark.parametrize(
    ("most", "tried"), [(7, [1, 3, 7]), (0, [1]), (2, [1, 3, 2]), (5, [1, 3, 7, 5, 6]), (4, [1, 3, 7, 5, 4])]
)
def test_one_call_finds_the_most_layers_that_pass(make_bert, most, tried):
    model = make_bert(8)
    report = prune_(model, PruningConfig(**AUTO), calibration=Rows(16, 0), evaluate=by_depth(most))
    assert removed_in(report.record) == tried
    assert len(model.get_submodule(STACK)) == 8 - most
    assert report.plan.num_removed == most
    assert f"recoveries: {len(tried)} of at most {most_recoveries(7)}" in str(report)
    assert report.record.search == {"numbers": list(range(1, 8)), "most_recoveries": 5, "num_branches": 3}
    assert [round_.granularity for round_ in report.rounds] == [1] * len(tried)


def test_candidates_are_cut_from_the_last_accepted_model_by_what_the_criterion_says_of_it(make_bert):
    report = prune_(
        make_bert(8),
        PruningConfig(**{**AUTO, "criterion": "block_influence"}),
        calibration=Rows(16, 0),
        evaluate=by_depth(5),
    )
    kept = set(range(8))
    for round_ in report.rounds:
        assert set(round_.kept[STACK]) < kept
        assert round_.scores["scores"][STACK]["layers"] == sorted(kept)
        kept = set(round_.kept[STACK]) if round_.verdict == "accepted" else kept
    assert len(kept) == 3


def test_what_is_protected_and_what_is_asked_for_bound_the_search(make_bert):
    config = PruningConfig(**AUTO, protect=[0, 2, -1], target_num_layers=4)
    report = prune_(make_bert(8), config, calibration=Rows(16, 0), evaluate=by_depth(8))
    assert report.record.search["numbers"] == [1, 2, 3, 4]
    assert removed_in(report.record) == [1, 3, 4]
    assert {0, 2, 7} < set(report.record.kept[STACK])
    assert report.record.stopped == "target reached"


def test_refused_cuts_are_passed_over_and_cost_no_recovery():
    # with fewer than four layers the cut cannot be proved right
    model = make_custom(num_hidden_layers=6, fewest=4)
    report = prune_(model, PruningConfig(**AUTO), calibration=Rows(16, 0), evaluate=by_depth(9, CUSTOM_STACK, 6))
    assert removed_in(report.record) == [1, 3, 4, 5, 2]
    assert [round_.refused for round_ in report.rounds] == [False, True, True, True, False]
    assert len(model.layers) == 4
    assert report.record.stopped.startswith("no stack can be cut any further")
    assert "recoveries: 2 of at most 4" in str(report)


def test_without_something_to_judge_by_nothing_can_be_searched_for(make_bert):
    with pytest.raises(
        ValueError, match="threshold='auto' searches for the most layers that a metric allows, but nothing"
    ):
        prune_(make_bert(), PruningConfig(**AUTO), calibration=Rows(16, 0))


@pytest.mark.parametrize(
    ("field", "value"),
    [("layers_per_round", 1), ("granularity", 2), ("max_granularity", 1), ("similarity_error_rate", 0.05)],
)
def test_what_contradicts_a_search_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}={value} contradicts threshold='auto': .* Leave {field} out"):
        PruningConfig(**{**AUTO, field: value})


# -- in a Trainer's training ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "tried", "verdicts"),
    [
        ([0.9, 0.5], [1], "r"),
        ([0.9, 0.9, 0.9, 0.5, 0.9, 0.5], [1, 3, 7, 5, 6], "aarar"),
        ([0.9, 0.9, 0.5, 0.9], [1, 3, 2], "ara"),
        ([0.9, 0.9, float("nan"), 0.5], [1, 3, 2], "arr"),
    ],
)
def test_whatever_the_verdicts_the_rounds_are_as_many_as_was_said(tmp_path, make_bert, values, tried, verdicts):
    script = Scripted(*values)
    trainer = build_trainer(make_bert(8, num_labels=2), tmp_path, script, num_train_epochs=5, max_steps=-1)
    callback = add(trainer, **AUTO, stop_when_done=True)
    trainer.train()
    assert tried_by(trainer, callback)[0] == tried
    assert "".join(round_.verdict[0] for round_ in callback.record.rounds) == verdicts
    assert script.values == []
    assert callback.record.stopped.startswith(("the search is over", "no further layer can go"))
    assert len(trainer.model.get_submodule(STACK)) == 8 - stand(callback.record).removed
    assert trainer.state.global_step == 3 * len(tried)
    assert stand(callback.record).num_recoveries <= callback.record.search["most_recoveries"]


def test_a_training_that_may_be_too_short_is_said_and_what_was_accepted_stays(tmp_path, make_bert, caplog):
    trainer = build_trainer(make_bert(8), tmp_path, Scripted(0.9, 0.9, 0.9), num_train_epochs=2)
    callback = add(trainer, **AUTO)
    with caplog.at_level(logging.WARNING, logger="hf_mpruner"):
        trainer.train()
    assert (
        "may need 5 epochs (start_epoch=0, and 5 recoveries at most of recovery_epochs=1), but the training has 2"
        in caplog.text
    )
    assert "TrainingArguments(num_train_epochs=5)" in caplog.text
    assert tried_by(trainer, callback) == ([1, 3], ["accepted", "accepted"])
    assert len(trainer.model.get_submodule(STACK)) == 5


def test_a_second_training_goes_on_where_the_search_was(tmp_path, make_bert):
    trainer = build_trainer(make_bert(8), tmp_path, Scripted(0.9, 0.9, 0.9, 0.5, 0.9, 0.5), num_train_epochs=3)
    callback = add(trainer, **AUTO)
    trainer.train()
    assert tried_by(trainer, callback)[0] == [1, 3, 7]
    trainer.train()
    assert tried_by(trainer, callback)[0] == [1, 3, 7, 5, 6]
    trainer.train()  # nothing is left to try, and nothing is tried again
    assert tried_by(trainer, callback)[0] == [1, 3, 7, 5, 6]
    assert callback.record.stopped == "the search is over: 5 of 8 layers go, a cut of 6 was rejected"


def depth_values(depth, step):
    return {4: 0.9, 3: 0.89, 2: 0.88, 1: 0.5}[depth]


def test_a_run_that_is_interrupted_in_its_search_ends_as_one_that_never_was(tmp_path, make_bert):
    settings = {"values": depth_values, "config": {**AUTO, "criterion": "block_influence"}, "num_train_epochs": 5}
    run = lived(make_bert, tmp_path / "whole", **settings)
    assert [verdict for verdict, *_ in run.verdicts] == ["accepted", "rejected", "accepted"]
    for step in (4, 8):  # before the first verdict, and before the second
        assert pending_at(tmp_path / "whole", step)
        _, callback = assert_resumes(make_bert, run, tmp_path / str(step), step, **settings)
        assert removed_in(callback.record) == [1, 3, 2]


def test_the_promise_of_a_search_is_paid_by_levels_that_were_fixed_before(tmp_path, make_bert):
    trainer = build_trainer(make_bert(6, num_labels=2), tmp_path, num_train_epochs=5)
    trainer.eval_dataset = Rows(120, 3)
    callback = add(trainer, **{**AUTO, "confidence": 0.9, "max_metric_drop": 0.9})
    trainer.train()
    record = callback.record
    assert record.promise["num_branches"] == record.search["num_branches"] == num_branches(5)
    levels = TestLevels(0.1, num_branches(5), num_others=4)
    tested = [round_ for round_ in record.rounds if round_.was_tested]
    assert [round_.level for round_ in tested] == pytest.approx(
        [levels.next(record.verdicts[:place]) for place in range(len(tested))]
    )
    assert removed_in(record)[:2] == [1, 3]


def test_cycles_search_with_a_fresh_trainer_for_each_candidate(tmp_path):
    maker = Maker(tmp_path / "training", {4: 0.9, 3: 0.89, 2: 0.88, 1: 0.5}.__getitem__)
    config = {**AUTO, "criterion": "cka"}
    report = prune(maker, save_bert(tmp_path / "source"), tmp_path / "out", **config)
    assert removed_in(report.record) == [1, 3, 2]
    assert [round_.verdict for round_ in report.rounds] == ["accepted", "rejected", "accepted"]
    assert {round_.criterion for round_ in report.rounds} == {"cka_evidence"}
    assert report.record.stopped == "the search is over: 2 of 4 layers go, a cut of 3 was rejected"
    assert len(maker.trainers) == 4  # the uncut model's, and one for each candidate


# -- several stacks ---------------------------------------------------------------------------------------------------


def make_t5():
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "decoder_start_token_id": 0}
    return T5ForConditionalGeneration(T5Config(num_layers=4, num_decoder_layers=3, **sizes)).eval()


def pairs():
    draw = torch.Generator().manual_seed(1)
    return [{name: torch.randint(2, 64, (4, 5), generator=draw) for name in ("input_ids", "labels")} for _ in range(2)]


@pytest.mark.parametrize(("criterion", "left"), [("tail", (2, 1)), ("loss", None)])
def test_a_number_is_shared_out_over_two_stacks(criterion, left):
    model = make_t5()
    report = prune_(
        model,
        PruningConfig(**{**AUTO, "criterion": criterion}),
        calibration=pairs(),
        evaluate=lambda model: {"accuracy": 0.9 if len(model.encoder.block) + len(model.decoder.block) >= 3 else 0.5},
    )
    # T5 cannot generate with fewer encoder than decoder layers: another share of the same number is tried then
    tested = [place for place, round_ in enumerate(report.rounds) if round_.was_tested]
    assert [removed_in(report.record)[place] for place in tested] == [1, 3, 5, 4]
    assert report.record.search["numbers"] == list(range(1, 6))
    found = (len(model.encoder.block), len(model.decoder.block))
    assert sum(found) == 3
    assert left is None or found == left
