"""What the figures show is what the record holds, and the files are whole."""

from __future__ import annotations

import sys

import pytest
import torch
from matplotlib.colors import to_rgba
from PIL import Image

from hf_mpruner.report import PruningReport, write_plots
from hf_mpruner.report import plots as drawing
from hf_mpruner.report.plots import draw_adjacent_similarity, draw_layers, draw_metric, file_name, write_heat_maps
from hf_mpruner.report.series import layer_strips, measured_models, metric_curve, short_names
from hf_mpruner.similarity import SimilarityMatrix, SimilarityProtocol
from report_kit import bert_report, build_report

BERT = "bert.encoder.layer"


# -- what is shown --------------------------------------------------------------------------------------------------


def test_a_strip_tells_what_each_round_did_to_each_layer():
    (strip,) = layer_strips(bert_report().record)
    assert (strip.path, strip.depth, strip.kept) == (BERT, 6, (0, 1, 2, 4, 5))
    assert [row.layers("kept") for row in strip.rows] == [(0, 2, 4), (0, 1, 2, 4, 5), (0, 2, 5)]
    assert [row.layers("candidate") for row in strip.rows] == [(1, 3, 5), (), (1, 4)]
    assert [row.layers("removed") for row in strip.rows] == [(), (3,), ()]
    assert [row.layers("gone") for row in strip.rows] == [(), (), (3,)]


def test_a_refused_cut_removes_nothing_and_is_called_so():
    report = build_report({"h": 3}, [({"h": [0, 1]}, "refused", None), ({"h": [0, 2]}, "unjudged", None)])
    (strip,) = layer_strips(report.record)
    assert [row.verdict for row in strip.rows] == ["refused", "unjudged"]
    assert strip.rows[0].layers("candidate") == (2,)
    assert strip.rows[1].layers("removed") == (1,)


def test_the_metric_curve_has_the_original_and_every_round_that_was_measured():
    curve = metric_curve(bert_report(halfwidth=0.01).record)
    assert [(point.label, point.metric, point.accepted) for point in curve.points] == [
        ("original", 0.94, True), ("1", 0.81, False), ("2", 0.9325, True), ("3", 0.78, False),
    ]  # fmt: skip
    assert curve.limit == pytest.approx(0.92)
    assert curve.points[2].interval == pytest.approx((0.9225, 0.9425))


def test_a_metric_that_should_be_small_has_its_limit_above():
    curve = metric_curve(bert_report(baseline=1.5, metric="loss", greater_is_better=False).record)
    assert curve.limit == pytest.approx(1.52)


@pytest.mark.parametrize(
    "report",
    [
        build_report({"h": 3}, []),
        build_report({"h": 3}, [({"h": [0]}, "unjudged", None)], baseline=None, metric=None),
        build_report({"h": 3}, [({"h": [0]}, "refused", None)]),
    ],
    ids=["no round", "no metric", "refused"],
)
def test_no_curve_is_made_up(report):
    assert metric_curve(report.record) is None


def test_without_the_allowed_drop_there_is_no_limit():
    assert metric_curve(bert_report(config={}).record).limit is None


def test_each_measured_model_comes_once():
    models = measured_models(bert_report().record)
    # round 3 was rejected, so the model that it was decided on is the one that was kept
    assert [(model.name, model.rounds, model.kept) for model in models] == [
        ("original", (1, 2), False), ("after round 2 (kept)", (3,), True),
    ]  # fmt: skip
    assert models[1].matrices[BERT].layers == (0, 1, 2, 4, 5)
    assert [model.name for model in measured_models(bert_report(measured_after=False).record)] == [
        "original",
        "after round 2",
    ]


def test_what_was_kept_comes_last_if_no_round_followed_it():
    report = build_report({"h": 4}, [({"h": [0, 2]}, "accepted", 0.94)])
    assert [(model.name, model.rounds) for model in measured_models(report.record)] == [
        ("original", (1,)), ("after round 1 (kept)", ()),
    ]  # fmt: skip


def test_names_of_stages_are_shortened_and_one_stack_s_is_not():
    assert short_names([BERT]) == {BERT: BERT}
    assert list(short_names(["encoder.block", "decoder.block"]).values()) == ["encoder.block", "decoder.block"]


# -- what is drawn --------------------------------------------------------------------------------------------------


def faces(ax):
    return [tuple(patch.get_facecolor()) for patch in ax.patches]


def test_the_strip_s_cells_have_the_states_colours():
    axes = draw_layers(bert_report()).get_axes()[0]
    colours = faces(axes)
    assert len(colours) == 4 * 6  # three rounds, and the end
    kept, removed = to_rgba(drawing.LOOKS["kept"]["facecolor"]), to_rgba(drawing.LOOKS["removed"]["facecolor"])
    assert colours[6:12] == [kept, kept, kept, removed, kept, kept]
    assert [patch.get_hatch() is not None for patch in axes.patches[:6]] == [False, True, False, True, False, True]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "round 1, rejected", "round 2, accepted", "round 3, rejected", "in the end",
    ]  # fmt: skip


def test_the_stages_of_a_model_stand_side_by_side():
    depths = {f"resnet.encoder.stages.{i}.layers": depth for i, depth in enumerate((3, 4, 6, 3))}
    kept = {path: [0, 1] for path in depths}
    figure = draw_layers(build_report(depths, [(kept, "accepted", 0.93)]))
    drawn = [ax for ax in figure.get_axes() if ax.patches]
    assert [len(ax.patches) for ax in drawn] == [2 * depth for depth in depths.values()]
    assert [ax.get_title(loc="left") for ax in drawn] == [f"stages.{i}.layers" for i in range(4)]


@pytest.mark.parametrize(("size", "factor"), [("parameters", 1), ("bytes", 4)])
def test_points_lie_where_they_were_measured(size, factor):
    ax = draw_metric(metric_curve(bert_report(halfwidth=0.01).record), size).get_axes()[0]
    marks = [line for line in ax.lines if line.get_marker() in ("s", "o")]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in marks] == [
        (6500 * factor, 0.94), (3500 * factor, 0.81), (5500 * factor, 0.9325), (3500 * factor, 0.78),
    ]  # fmt: skip
    assert [line.get_markerfacecolor() == "white" for line in marks] == [False, True, False, True]
    bars = [bar.lines[2][0].get_segments()[0][:, 1].tolist() for bar in ax.containers]
    assert bars[0] == pytest.approx([0.93, 0.95])
    assert any(line.get_linestyle() == "--" and line.get_ydata()[0] == pytest.approx(0.92) for line in ax.lines)


def test_billions_of_parameters_are_labelled_b():
    depths = {"h": 4}
    report = build_report(depths, [({"h": [0, 1]}, "accepted", 0.93)])
    report.record.baseline.parameters, report.record.rounds[0].after.parameters = 7_000_000_000, 4_000_000_000
    figure = draw_metric(metric_curve(report.record))
    labels = [label.get_text() for label in figure.get_axes()[0].get_xticklabels()]
    assert labels == ["4B", "5B", "6B", "7B"]


def test_without_intervals_there_are_no_bars():
    assert not draw_metric(metric_curve(bert_report().record)).get_axes()[0].containers


def test_curves_lie_between_the_layers_they_compare():
    report = bert_report()
    ax = draw_adjacent_similarity(report).get_axes()[0]
    original, kept, threshold = ax.lines
    assert original.get_xdata() == pytest.approx([0.5, 1.5, 2.5, 3.5, 4.5])
    assert kept.get_xdata() == pytest.approx([0.5, 1.5, 3.0, 4.5])
    (_, matrices) = report.similarities()[0]
    assert original.get_ydata() == pytest.approx(matrices[BERT].adjacent)
    assert threshold.get_ydata()[0] == 0.98


# -- the files ------------------------------------------------------------------------------------------------------


def test_every_figure_is_written_and_named(tmp_path):
    names = write_plots(bert_report(), tmp_path)
    assert names == [
        *(f"plots/similarity_round_{number}_{BERT}.png" for number in (1, 2, 3)), f"plots/similarity_after_{BERT}.png",
        "plots/layers.png", "plots/metric.png", "plots/adjacent_similarity.png",
    ]  # fmt: skip
    assert sorted(file.name for file in (tmp_path / "plots").iterdir()) == sorted(name[6:] for name in names)
    for name in names:
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 150
            assert len(picture.convert("L").getcolors(256)) > 4, "an empty picture"


def test_a_loaded_report_gives_the_same_bytes(tmp_path):
    report = build_report({"encoder.block": 3}, [({"encoder.block": [0, 2]}, "accepted", 0.93)], measured_after=False)
    report.save(tmp_path)
    write_plots(report, tmp_path / "one")
    names = write_plots(PruningReport.load(tmp_path), tmp_path / "two")
    assert [(tmp_path / "one" / name).read_bytes() for name in names] == [
        (tmp_path / "two" / name).read_bytes() for name in names
    ]


def test_only_what_is_known_is_drawn(tmp_path):
    assert write_plots(build_report({"h": 3}, [], measured_after=False), tmp_path) == []
    assert not list(tmp_path.iterdir())
    report = build_report({"h": 3}, [({"h": [0]}, "unjudged", None)], baseline=None, metric=None)
    assert write_plots(report, tmp_path) == [
        "plots/similarity_round_1_h.png", "plots/layers.png", "plots/adjacent_similarity.png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "name"),
    [(BERT, BERT), ("../../etc/passwd", "_.._etc_passwd"), ("a\\b:c", "a_b_c"), ("...", "stack")],
)
def test_a_stack_of_a_stranger_s_report_cannot_leave_the_folder(path, name):
    assert file_name(path) == name


def test_without_matplotlib_it_is_said_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert write_plots(bert_report(), tmp_path) == []
    assert caplog.text.count("pip install hf_mpruner[plots]") == 1
    matrix = SimilarityMatrix(torch.eye(3), SimilarityProtocol(), 8, "layers")
    assert write_heat_maps(tmp_path, {"layers": matrix, "more": matrix}, "similarity") == []
    assert caplog.text.count("pip install hf_mpruner[plots]") == 2
    assert not list(tmp_path.iterdir())
    with pytest.raises(
        ImportError, match=r"figures need matplotlib, which is missing: pip install hf_mpruner\[plots\]"
    ):
        draw_layers(bert_report())


def test_pyplot_is_not_touched(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    assert write_plots(build_report({"h": 2}, [({"h": [0]}, "accepted", 0.94)]), tmp_path)
