"""A run by a criterion of its own in table, page, plots and card: which it was, its scores, its cost, and no claim of CKA."""

from __future__ import annotations

import re

import pytest

from hf_mpruner.card import ModelFacts, check_card, render_card
from hf_mpruner.config import PruningConfig
from hf_mpruner.record import CHOSEN_BY_JUDGE
from hf_mpruner.report import PruningReport, chosen_by, scored_rounds, total_cost, write_plots
from hf_mpruner.report.scores import ScoreMarks, score_chart
from hf_mpruner.tracking import _draw
from report_kit import bert_report, build_report

STACK = "bert.encoder.layer"
FACTS = ModelFacts(
    "BertForSequenceClassification", "AutoModelForSequenceClassification", "transformers", "text-classification",
    "text-classification", "bert", "AutoTokenizer",
)  # fmt: skip
CONFIG = PruningConfig(criterion="greedy_loss", target_num_layers=3, max_metric_drop=0.02)
COST = {"forward_passes": 21.0, "backward_passes": 0.0, "seconds": 2.5}


def scores_of(layers, values, order=(), criterion="greedy_loss", title="loss without the layer", cost=COST):
    one = {"path": STACK, "values": values, "order": list(order), "pairs": [], "details": {}, "layers": list(layers)}
    return {"criterion": criterion, "title": title, "scores": {STACK: one}, "cost": dict(cost)}


def scored_report(criterion="greedy_loss", title="loss without the layer", cost=COST, **facts):
    """Six layers: three rejected, then one accepted on the same scores, then two of five, rejected."""
    rounds = [
        ({STACK: [0, 2, 4]}, "rejected", 0.81),
        ({STACK: [0, 1, 2, 4, 5]}, "accepted", 0.9325),
        ({STACK: [0, 2, 5]}, "rejected", 0.78),
    ]
    settings = {"measured_after": False, "config": CONFIG.to_dict(), "stopped": "it was over", **facts}
    report = build_report({STACK: 6}, rounds, source_model="a/b", **settings)
    first = scores_of(range(6), [2.5, 1.25, 3.0, 1.0, 2.0, 1.5], (3, 1, 5), criterion, title, cost)
    later = scores_of([0, 1, 2, 4, 5], [2.5, 1.375, 3.0, None, 2.0], (1, 4), criterion, title, cost)
    for round_, scores in zip(report.record.rounds, (first, first, later), strict=True):
        round_.criterion, round_.scores, round_.similarity, round_.clusters = criterion, scores, {}, {}
    return report


def card_of(report, **facts):
    card = render_card(report, model=FACTS, title="small", **facts)
    check_card(card)
    return card


def test_the_table_says_what_chose_and_what_that_cost():
    report = scored_report()
    assert str(report).splitlines()[-2:] == [
        "layers chosen by greedy_loss: 42 forward passes over the calibration data, 5.00 s",
        "stopped: it was over",
    ]
    values = report.to_dict()
    assert values["criteria"] == ["greedy_loss"]
    assert values["scoring_cost"] == {"forward_passes": 42.0, "backward_passes": 0.0, "seconds": 5.0}
    assert PruningReport.from_dict(values).record == report.record
    assert "chosen" not in str(bert_report())


def test_what_is_drawn_of_each_round():
    rejected, accepted, _ = scored_rounds(scored_report().record)
    (before,), (after,) = rejected.marks, accepted.marks
    assert before.states == ("kept", "candidate", "kept", "candidate", "kept", "candidate")
    assert after.states == ("kept", "kept", "kept", "removed", "kept", "kept")
    assert accepted.cost == "21 forward passes over the calibration data, 2.50 s"


def test_marks_stand_where_their_values_are():
    """Read back from the picture: heights are a linear map of the scores, lower ones lower."""
    values = (0.25, 1.0, None, 0.5, 0.75)
    svg = score_chart(ScoreMarks("loss", "layer", (0, 2, 3, 5, 7), values, ("kept",) * 4 + ("removed",), (7, 0)))
    shown = re.findall(
        r'<g class="cell (\w+)"><title>layer (\d): ([\d.]+), [^<]*</title><rect x="[\d.]+" y="([\d.]+)"', svg
    )
    assert [(state, int(layer), float(value)) for state, layer, value, _ in shown] == [
        ("kept", 0, 0.25), ("kept", 2, 1.0), ("kept", 5, 0.5), ("removed", 7, 0.75),
    ]  # fmt: skip
    heights = [float(y) for *_, y in shown]
    slope = (heights[0] - heights[1]) / 0.75
    assert heights[2] == pytest.approx(heights[1] + slope * 0.5, abs=0.02)
    assert heights[3] == pytest.approx(heights[1] + slope * 0.25, abs=0.02)
    assert "Lowest: layer 0, highest: layer 2. To go: 7." in svg
    assert "layer 7: 0.75, removed in this round, 1st to go" in svg


@pytest.mark.parametrize("values", [(0.0, 0.0), (None, None), (-3e-9, 5e-9), (1e9, 3e9), (0.5, None)])
def test_scores_of_any_size_are_drawn(values):
    svg = score_chart(ScoreMarks("mine", "layer", (0, 1), values, ("kept", "removed")))
    assert svg.count("<title>") == sum(value is not None for value in values)
    assert "nan" not in svg


def test_the_page_shows_scores_and_claims_no_similarity():
    page = scored_report(data={"calibration": {"source": "given by the user"}}).to_html()
    assert page.count('class="scores"') == 3
    assert "Round 2: greedy_loss" in page
    assert "loss without the layer; 21 forward passes over the calibration data, 2.50 s." in page
    assert "layers scored by greedy_loss in 1.00 s" in page
    assert "similarity measured" not in page
    assert "CKA" not in page
    assert "Dashed line: threshold" not in page
    old = bert_report().to_html()
    assert 'id="scores"' not in old
    assert "Dashed line: threshold 0.98" in old


def test_plots_of_scores(tmp_path):
    pytest.importorskip("matplotlib")
    assert write_plots(scored_report(), tmp_path) == [
        *(f"plots/scores_round_{n}_{STACK}.png" for n in (1, 2, 3)), "plots/layers.png", "plots/metric.png",
    ]  # fmt: skip


def test_the_card_tells_the_truth_of_a_criterion():
    data = {"calibration": {"source": "sample of the training set", "num_examples": 512}}
    card = card_of(scored_report(data=data), pictures=[f"plots/scores_round_{n}_{STACK}.png" for n in (1, 2)])
    assert "1 of 6 layers removed, chosen by `greedy_loss` (loss without the layer)." in card
    assert "**Chose the layers** (their scores were measured on it): 512 examples" in card
    assert "In each round a number of layers went, chosen by `greedy_loss` (loss without the layer)." in card
    assert "Choosing them took 42 forward passes over the calibration data, 5.00 s." in card
    assert "`greedy_loss`: SLEB" in card
    tags = card.split("tags:\n")[1].split("\n-")[:5]
    assert "greedy-loss" in "".join(tags)
    assert "mpruner\n" not in card.split("---")[1].replace("hf_mpruner\n", "")
    for claim in ("CKA of each pair", "how alike", "cluster", "similarity was measured"):
        assert claim not in card
    assert (
        card.index(f"scores_round_1_{STACK}.png") < card.index("Scores in every round") < card.index("scores_round_2_")
    )


def test_every_number_of_the_sentences_about_a_criterion_is_the_record_s():
    card = card_of(scored_report(cost={"forward_passes": 13.0, "backward_passes": 7.0, "seconds": 11.25}))
    sentence = next(line for line in card.splitlines() if line.startswith("In each round"))
    cost = total_cost(scored_report(cost={"forward_passes": 13.0, "backward_passes": 7.0, "seconds": 11.25}).record)
    shown = re.findall(
        r"Choosing them took (\S+) forward passes and (\S+) backward passes over .*?, (\S+) s\.", sentence
    )
    assert shown == [(f"{cost['forward_passes']:.0f}", f"{cost['backward_passes']:.0f}", f"{cost['seconds']:.2f}")]


def test_criteria_without_data_say_nothing_of_data_that_chose():
    report = scored_report("tail", "the last layers go first", dict.fromkeys(COST, 0.0))
    report.record.data = {"calibration": {"source": "given by the user", "num_examples": 16}}
    assert "Chose the layers" not in card_of(report)
    assert "Choosing layers" not in report.to_html()
    assert "no pass over the calibration data" in card_of(report)


def test_the_same_data_that_chose_and_judged_is_a_limit():
    data = {"calibration": {"source": CHOSEN_BY_JUDGE}, "judging": {"source": "evaluation set"}}
    assert "chosen on the same data that judged the rounds" in card_of(
        scored_report("metric_drop", "metric", data=data)
    )


def test_a_users_own_criterion_and_merged_layers_are_said():
    report = scored_report("my_own", "what I like")
    report.record.rounds[1].merged = {STACK: {"2": {"2": 0.5, "3": 0.5}}}
    card = card_of(report)
    assert "`my_own` is a criterion of the user's own" in card
    assert "Layers that stayed took over a part of the weights of those that went." in card
    assert "took over a part" in report.to_html()


def test_cka_with_a_number_of_layers_names_no_threshold():
    report = bert_report(config=PruningConfig(target_num_layers=3).to_dict())
    assert chosen_by(report.record) == ["cka"]
    card = card_of(report)
    assert "chosen by how alike they are (CKA)" in card
    assert "a number of layers went, chosen by `cka`" in card
    assert "form a cluster" not in card
    assert "threshold 0.98" not in report.to_html()


@pytest.mark.parametrize("ended", [False, True])
def test_the_last_scores_go_where_the_integrations_log(ended):
    pytest.importorskip("matplotlib")
    names = [name for name, _ in _draw(scored_report().record, ended)]
    rest = ["mpruner/layers", "mpruner/metric"]
    assert names == (rest if ended else [f"mpruner/scores_{STACK}", *rest])


def test_nothing_trained_where_no_step_was_taken():
    """A verdict that waits for no training still takes a moment."""
    report = scored_report()
    for round_ in report.record.rounds:
        round_.started_at_step = round_.decided_at_step = 0
    assert all(round_.recovery_seconds > 0 for round_ in report.rounds)
    assert "without the training that followed it" not in card_of(report)
    assert "Nothing trained between a cut and its verdict." in card_of(report)
