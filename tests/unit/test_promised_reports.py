"""What a run with a promise says of it: table, JSON, page, card; and that none of them says more than the record."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from hf_mpruner import PruningConfig
from hf_mpruner.card import ModelFacts, render_card
from hf_mpruner.guarantee import bound_drop
from hf_mpruner.report import PruningReport, promise_in_words
from promise_kit import zeros_and_ones
from report_kit import bert_report, build_report

PATH = "bert.encoder.layer"


def promised(lost=(300, 20, 300), confidence=0.95, **facts):
    """`bert_report` as a run that tested its rounds: rejected, accepted, rejected."""
    report = bert_report(config=PruningConfig(max_metric_drop=0.02, confidence=confidence).to_dict(), **facts)
    record = report.record
    record.promise = {"confidence": confidence, "max_metric_drop": 0.02, "num_branches": 3}
    before = zeros_and_ones(3760, 4000)
    record.baseline.outcomes, record.baseline.num_examples = before.to_dict(), 4000
    for round_, more, level in zip(record.rounds, lost, (0.025, 0.00625, 0.01), strict=True):
        after = zeros_and_ones(3760, 4000, more)
        round_.bound = bound_drop(before, after, greater_is_better=True, max_drop=0.02, level=level).to_dict()
        round_.level, round_.drop, round_.after.metric = level, round_.bound["drop"], after.value
    return report


def card(report):
    facts = ModelFacts("BertForSequenceClassification", "AutoModel", "transformers")
    return " ".join(render_card(report, model=facts, title="small").split())


def test_the_table_has_the_bound_beside_the_drop():
    report = promised()
    header, _, *rows = report.to_table().splitlines()
    assert header.split()[-3:] == ["most", "evaluation", "s"] or "at most" in header
    for row, round_ in zip(rows, report.record.rounds, strict=True):
        assert f"{round_.drop:+.4f}" in row
        assert f"{round_.bound['upper']:+.4f}" in row
    assert "at most" not in bert_report().to_table()


def test_json_text_and_page_say_the_sentence_of_the_record():
    report = promised()
    words = promise_in_words(report.record)
    assert "95 %" in words
    assert "4,000" in words
    assert "3 rounds were judged" in words
    values = json.loads(json.dumps(report.to_dict()))
    assert values["promise"] == words
    assert values["drop_at_most"] == report.record.rounds[1].bound["upper"]
    assert f"promise: {words}" in str(report)
    page = report.to_html()
    assert f'<p id="promise">{words}</p>' in page
    assert f"at most {values['drop_at_most']:+.4f}" in page
    assert PruningReport.from_dict(values).record == report.record


@pytest.mark.parametrize(("max_drop", "shown"), [(0.02, "0.020"), (0.0005, "0.0005")])
def test_the_bound_that_is_shown_is_the_kept_models_own(max_drop, shown):
    report = promised()
    report.record.promise["max_metric_drop"] = max_drop
    assert shown in promise_in_words(report.record)
    report.record.rounds[2].verdict = "accepted"
    report.record.rounds[2].bound["drop"] = 0.07
    assert "0.070" in promise_in_words(report.record)


def test_the_card_says_it_and_its_limits():
    text = card(promised())
    assert "**Promise**: With probability 95 % or more the accuracy" in text
    assert "on examples like the 4,000 that judged it" in text
    assert "A round was kept if the upper confidence bound of how much worse" in text
    assert "may err with probability 0.05." in text
    assert "not about a quantised, converted or further trained copy" in text
    assert "a little too good" not in text
    assert "If training went on after that" not in text


def test_a_card_without_a_promise_says_that_it_compares_measured_values():
    text = card(bert_report(config=PruningConfig(max_metric_drop=0.02).to_dict()))
    assert (
        "was worse than the uncut model's by 0.02 at most. That compares measured values, and promises nothing" in text
    )
    assert "Promise" not in text
    assert "promise:" not in str(bert_report())
    assert bert_report().to_dict()["promise"] is None


def test_nothing_is_promised_of_a_cut_that_is_not_decided():
    report = promised()
    report.record.rounds[-1].verdict = "pending"
    assert promise_in_words(report.record) == ""
    assert "**Promise**" not in card(report)


def test_of_the_uncut_model_nothing_needs_to_be_promised():
    report = promised()
    for round_ in report.record.rounds:
        round_.verdict = "rejected"
    assert promise_in_words(report.record).startswith(
        "No promise is needed: no cut was accepted (3 rounds were judged)"
    )
    assert report.to_dict()["drop_at_most"] is None


def test_a_report_of_a_run_without_a_metric_has_no_promise():
    report = build_report({PATH: 4}, [({PATH: [0, 2]}, "unjudged", None)], metric=None, baseline=None)
    assert promise_in_words(report.record) == ""


def test_numbers_of_the_sentence_are_those_of_the_bound():
    report = promised(lost=(300, 33, 300))
    bound = report.record.rounds[1].bound
    found = [float(number) for number in re.findall(r"\d\.\d{3}", promise_in_words(report.record))]
    assert found[0] == 0.02
    assert found[1] == pytest.approx(bound["drop"], abs=5e-4)
    assert bound["upper"] <= found[2] <= bound["upper"] + 1e-3
    assert dataclasses.asdict(report.record.rounds[1])["bound"] == bound
