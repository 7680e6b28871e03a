"""Verdicts with a promise: outcomes of the uncut model against the cut one's, at levels that were paid for."""

from __future__ import annotations

import json

import pytest
import torch

from custom_kit import CUSTOM_STACK, make_custom
from hf_mpruner import PruningConfig
from hf_mpruner.engine import PruningEngine
from hf_mpruner.errors import MPrunerError
from hf_mpruner.guarantee import DropBound, Outcomes, TestLevels, bound_drop
from hf_mpruner.promises import verdict_in_words
from hf_mpruner.record import PruningRecord
from promise_kit import Judged, make_engine, run, zeros_and_ones


def test_a_round_is_accepted_by_its_bound_against_the_uncut_model():
    engine = run(make_engine(make_custom(), CUSTOM_STACK, {1: 400, 2: 20}))
    record = engine.record
    assert [(r.kept[CUSTOM_STACK], r.verdict) for r in record.rounds[:2]] == [([0], "rejected"), ([0, 2], "accepted")]
    levels = TestLevels(1 - 0.95, 3)  # k = 1, 2, 3
    before = zeros_and_ones(3600, 4000)
    for number, (lost, level) in enumerate(((400, levels.next([])), (20, levels.next([False])))):
        round_ = record.rounds[number]
        after = zeros_and_ones(3600, 4000, lost)
        expected = bound_drop(before, after, greater_is_better=True, max_drop=0.02, level=level)
        assert round_.level == level
        assert DropBound.from_dict(round_.bound) == expected
        assert round_.drop == pytest.approx(lost / 4000)
        assert (round_.verdict == "accepted") == expected.holds
    assert record.promise == {"confidence": 0.95, "max_metric_drop": 0.02, "num_branches": 3}
    assert Outcomes.from_dict(record.baseline.outcomes) == before


def test_each_cut_is_compared_with_the_uncut_model_and_not_with_the_last_accepted_one():
    # of 4 layers go 2, then 1: together they lose 1.5 + 1.5 points, each alone would pass
    engine = run(make_engine(make_custom(), CUSTOM_STACK, {2: 60, 1: 120}, granularity=2, max_granularity=2))
    assert [(len(r.kept[CUSTOM_STACK]), r.verdict) for r in engine.record.rounds] == [(2, "accepted"), (1, "rejected")]
    assert engine.record.rounds[1].drop == pytest.approx(0.03)
    assert engine.record.rounds[1].level == 1 - 0.95  # one branch, at full level again


@pytest.mark.parametrize("kind", ["values", "replicates"])
@pytest.mark.parametrize(("worse", "verdict"), [(0.004, "accepted"), (0.05, "rejected"), (-0.05, "accepted")])
def test_a_loss_that_rises_is_a_drop(kind, worse, verdict):
    model = make_custom()
    generator = torch.Generator().manual_seed(0)
    spread = 1.0 if kind == "values" else 1 / 400**0.5  # of the examples, of their mean
    base = 1 + spread * torch.rand(400, generator=generator)
    noise = 0.01 * spread * torch.randn(400, generator=generator)

    class Losses(Judged):
        def values(self):
            return base if self.depth() == 4 else base + worse + noise - noise.mean()

        def evaluate(self):
            return {"loss": float(self.values().mean())}

        def outcomes(self, metric):
            values = self.values()
            return Outcomes(kind, tuple(values.tolist()), float(values.mean()), 400)

    judged = Losses(lambda: len(model.layers), {})
    engine = make_engine(model, CUSTOM_STACK, {}, judged=judged, max_rounds=1)
    round_ = run(engine).record.rounds[0]
    assert round_.verdict == verdict
    assert round_.drop == pytest.approx(worse, abs=1e-5)
    assert round_.bound["drop"] == pytest.approx(round_.drop, abs=1e-5)
    assert round_.bound["upper"] > round_.drop


def test_too_few_examples_reject_what_the_measured_drop_would_accept():
    lost = {1: 8, 2: 8, 3: 8}
    few = run(make_engine(make_custom(), CUSTOM_STACK, lost, num_examples=600))
    assert {r.verdict for r in few.record.rounds} == {"rejected"}
    first = few.record.rounds[0]
    assert first.drop == pytest.approx(8 / 600)
    assert "the measured drop is within the allowed 0.02, but too few examples judged" in first.reason
    assert f"about {first.bound['needed']:,} would" in first.reason
    assert first.bound["needed"] > 600
    plain = run(make_engine(make_custom(), CUSTOM_STACK, lost, num_examples=600, confidence=None))
    assert plain.record.rounds[0].verdict == "accepted"
    assert (plain.record.promise, plain.record.baseline.outcomes, plain.record.rounds[0].bound) == ({}, None, None)
    many = run(make_engine(make_custom(), CUSTOM_STACK, {1: 80}, num_examples=6000))
    assert many.record.rounds[0].verdict == "accepted"


def test_a_set_on_which_no_cut_could_pass_is_refused_with_the_uncut_model():
    model = make_custom()
    with pytest.raises(MPrunerError, match=r"50 examples are too few .* at least [\d,]+ are needed"):
        make_engine(model, CUSTOM_STACK, {}, num_examples=50).start_round()
    assert len(model.layers) == 4


def test_a_value_that_is_not_finite_is_a_rejection_and_pays_its_level():
    engine = run(make_engine(make_custom(), CUSTOM_STACK, {1: None, 2: None, 3: None}))
    assert [r.verdict for r in engine.record.rounds] == ["rejected"] * 3
    assert engine.record.verdicts == [False] * 3
    assert [r.level for r in engine.record.rounds] == [
        TestLevels(1 - 0.95, 3).next(v) for v in ([], [False], [False, False])
    ]
    assert engine.record.rounds[0].reason == "accuracy is nan"


def test_refused_and_withdrawn_cuts_were_not_tested():
    engine = make_engine(make_custom(fewest=3), CUSTOM_STACK, {})  # to one layer and to two is refused
    assert engine.start_round()
    engine.withdraw("the training ended")
    assert [(r.refused, r.level) for r in engine.record.rounds] == [(True, None), (True, None), (False, None)]
    assert engine.record.verdicts == []


def test_a_run_that_is_gone_on_with_has_the_same_levels_and_verdicts():
    lost = {1: 400, 2: 20}
    whole = run(make_engine(make_custom(), CUSTOM_STACK, lost))
    first = make_engine(model := make_custom(), CUSTOM_STACK, lost)
    assert first.start_round()
    first.decide()
    kept = PruningRecord.from_dict(json.loads(json.dumps(first.record.to_dict())))
    second = run(make_engine(model, CUSTOM_STACK, lost, record=kept))
    assert [(r.verdict, r.level, r.bound, r.reason) for r in second.record.rounds] == [
        (r.verdict, r.level, r.bound, r.reason) for r in whole.record.rounds
    ]
    assert len(whole.record.rounds) > 2


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"confidence": 0.9}, r"confidence=0.95 \(now 0.9\)"),
        ({"confidence": None}, r"confidence=0.95 \(now None\)"),
        ({"max_metric_drop": 0.05}, r"max_metric_drop=0.02 \(now 0.05\)"),
        ({"metric": "f1"}, r"metric='accuracy' \(now 'f1'\)"),
    ],
)
def test_no_other_promise_is_gone_on_with(changed, told):
    engine = make_engine(model := make_custom(), CUSTOM_STACK, {2: 5})
    engine.start_round()
    engine.decide()
    with pytest.raises(MPrunerError, match=told):
        make_engine(model, CUSTOM_STACK, {}, record=engine.record, **changed)


def test_a_plain_run_does_not_become_a_promise():
    engine = make_engine(model := make_custom(), CUSTOM_STACK, {}, confidence=None)
    engine.start_round()
    engine.decide()
    make_engine(model, CUSTOM_STACK, {}, record=engine.record, confidence=None, max_metric_drop=0.5)
    with pytest.raises(MPrunerError, match=r"confidence=None \(now 0.95\)"):
        make_engine(model, CUSTOM_STACK, {}, record=engine.record)


def test_a_coarser_config_later_changes_no_level():
    engine = make_engine(model := make_custom(), CUSTOM_STACK, {1: 400})
    engine.start_round()
    engine.decide()
    resumed = make_engine(model, CUSTOM_STACK, {1: 400}, record=engine.record, max_granularity=2)
    assert resumed.record.promise["num_branches"] == 3


def test_what_was_reopened_goes_on_with_the_levels_and_stops_when_none_is_left():
    engine = run(make_engine(make_custom(), CUSTOM_STACK, {1: 400, 2: 400, 3: 400}))
    assert engine.record.verdicts == [False] * 3
    engine.reopen()
    assert not engine.start_round()
    assert engine.record.stopped == (
        "no error rate is left for another test after 3 rejected cuts: the promise paid for 3"
    )
    assert len(engine.record.rounds) == 3


def test_a_promise_needs_something_to_judge_by():
    config, measure = PruningConfig(confidence=0.95), lambda stacks: {}
    judged = Judged(lambda: 4, {})
    for given in ({}, {"evaluate": judged.evaluate}, {"take_outcomes": judged.outcomes}):
        with pytest.raises(ValueError, match=r"confidence=0.95 promises something .* nothing evaluates"):
            PruningEngine(make_custom(), config, measure=measure, **given)


def test_outcomes_that_are_not_of_the_metric_are_refused():
    class Other(Judged):
        def outcomes(self, metric):
            return zeros_and_ones(self.right - 300, self.num_examples)

    with pytest.raises(MPrunerError, match=r"gave accuracy=0.9, but its outcomes on the examples give 0.825"):
        make_engine(make_custom(), CUSTOM_STACK, {}, judged=Other(lambda: 4, {})).start_round()


def test_outcomes_of_other_examples_are_refused():
    judged = Judged(lambda: 4, {})
    engine = make_engine(make_custom(), CUSTOM_STACK, {}, judged=judged)
    engine.start_round()
    judged.num_examples, judged.right = 2000, 1800
    with pytest.raises(MPrunerError, match=r"cannot be bounded: .*num_examples is 4000"):
        engine.decide()
    assert engine.record.verdicts == []


def test_a_cut_model_without_outcomes_is_rejected_and_the_run_goes_on():
    class Odd(Judged):
        def outcomes(self, metric):
            if self.depth() == 1:
                raise MPrunerError("accuracy is no number\non a resample.")
            return super().outcomes(metric)

    model = make_custom()
    engine = run(make_engine(model, CUSTOM_STACK, {}, judged=Odd(lambda: len(model.layers), {})))
    first, second = engine.record.rounds[:2]
    assert (first.verdict, first.bound, second.verdict) == ("rejected", None, "accepted")
    assert engine.record.verdicts[:2] == [False, True]
    assert first.reason == (
        "accuracy 0.9, which cannot be compared example by example: accuracy is no number on a resample."
    )


def test_a_plan_carries_no_outcomes():
    engine = run(make_engine(make_custom(), CUSTOM_STACK, {1: 400, 2: 20}))
    evidence = engine.record.to_plan().evidence
    assert "outcomes" not in evidence["baseline"]
    assert evidence["rounds"][1]["bound"] == engine.record.rounds[1].bound


def test_reasons_say_what_was_found():
    before = zeros_and_ones(1080, 1200)
    for lost, max_drop, told in (
        (2, 0.02, "): within the allowed 0.02"),
        (120, 0.02, "): more than the allowed 0.02"),
        (22, 0.02, "): the measured drop is within the allowed 0.02, but too few examples judged"),
    ):
        after = zeros_and_ones(1080, 1200, lost)
        bound = bound_drop(before, after, greater_is_better=True, max_drop=max_drop, level=0.025)
        text = verdict_in_words("accuracy", after.value, bound)
        assert told in text
        assert f"drop {lost / 1200:.6g}, at most {bound.upper:.6g} with error rate 0.025 (exact paired test" in text
        assert "1,200 examples" in text
