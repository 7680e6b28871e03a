"""The table of a comparison: what is a mean of what, which row is best, and what an interval is of."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from hf_mpruner import Comparison
from hf_mpruner.comparison import Row
from hf_mpruner.comparison.store import Store, name_of
from hf_mpruner.data import count_shared, fingerprint
from hf_mpruner.errors import MPrunerError

LAYERS = {"encoder.layer": 8}
COST = {"forward_passes": 3.0, "backward_passes": 1.0, "seconds": 0.5}


def row(name, after, plans=("a", "b", "c"), before=None, layers=8, **more):
    before = before or tuple(value - 0.1 for value in after)
    figures = {"parameters": 1.2e6, "latency_seconds": 0.01, "scoring": COST, "recovery_seconds": 3.0}
    return Row(name, str(layers), {"encoder.layer": layers}, plans, (LAYERS,) * 3, False, before, tuple(after),
               **{**figures, **more})  # fmt: skip


def comparison(*rows, greater=True, recovers=True):
    uncut = row(
        "(uncut)", (0.9, 0.9, 0.9), ("w",) * 3, (0.88,) * 3, layers=12, scoring={}, intervals_before=([0.86, 0.9],) * 3
    )
    return Comparison("accuracy", greater, (0, 1, 2), recovers, Row(**{**vars(uncut), "target": ""}), rows)


def test_the_interval_over_seeds_is_students():
    spread = row("cka", (0.8, 0.82, 0.87)).spread_after
    # the 97.5 % quantile of Student's t with 2 degrees of freedom, from a printed table
    half = 4.303 * statistics.stdev((0.8, 0.82, 0.87)) / math.sqrt(3)
    assert spread.interval == pytest.approx((0.83 - half, 0.83 + half), abs=1e-4)
    assert (spread.source, spread.count, str(spread)) == ("seeds", 3, f"0.8300 ± {half:.4f}")


def test_one_plan_for_all_seeds_is_one_model_before_recovery():
    one = row("tail", (0.8, 0.82, 0.87), ("a",) * 3, (0.7,) * 3, intervals_before=([0.6, 0.78],) * 3)
    assert (one.spread_before.source, one.spread_before.interval) == ("examples", (0.6, 0.78))
    of_a_loss = row("tail", (0.8, 0.82, 0.87), ("a",) * 3, (0.7,) * 3, intervals_before=(None,) * 3)
    assert (of_a_loss.spread_before.source, str(of_a_loss.spread_before)) == (None, "0.7000")
    assert one.spread_after.source == "seeds"


def test_the_best_is_first_whichever_way_is_better():
    rows = [row("cka", (0.8, 0.8, 0.83)), row("tail", (0.9, 0.88, 0.9)), Row("taylor", "8", {}, failed="no labels")]
    assert [one.criterion for one in comparison(*rows).at(8)] == ["tail", "cka", "taylor"]
    assert [one.criterion for one in comparison(*rows, greater=False).at(8)] == ["cka", "tail", "taylor"]


def test_how_far_behind_is_of_the_seeds_differences():
    rows = [row("cka", (0.8, 0.7, 0.6)), row("tail", (0.81, 0.71, 0.61)), row("loss", (0.79, 0.69, 0.59))]
    found = comparison(*rows)
    gap = found.behind_best(rows[0])
    assert gap.mean == pytest.approx(0.01)
    assert gap.interval == pytest.approx((0.01, 0.01)), "the values vary by seed, the differences do not"
    assert found.behind_best(rows[1]) is None
    lower = comparison(*rows, greater=False)
    assert lower.behind_best(rows[0]).mean == pytest.approx(0.01)


def test_a_value_that_is_not_finite_is_no_figure():
    lost = row("cka", (0.8, None, 0.6), before=(0.5,) * 3, failed="accuracy is not finite after recovery with seed 1")
    found = comparison(lost, row("tail", (0.1, 0.1, 0.1)))
    assert lost.spread_after is None
    assert [one.criterion for one in found.at(8)] == ["tail", "cka"]
    assert "not finite" in str(found)


def test_the_table_names_twins_failures_and_all_depths():
    same = ("a", "a", "b")
    rows = [
        row("cka", (0.8, 0.8, 0.8), same),
        row("tail", (0.8, 0.8, 0.8), same),
        row("loss", (0.5, 0.4, 0.5), layers=6),
    ]
    found = comparison(*rows, Row("taylor", "6", {}, failed="it needs | labels"))
    lines = str(found).splitlines()
    assert [line.split()[:2] for line in lines[1:6]] == [
        ["12", "(uncut)"], ["8", "cka"], ["8", "tail"], ["6", "loss"], ["6", "taylor"],
    ]  # fmt: skip
    assert lines[2].endswith("tail")
    assert "taylor failed at 6: it needs | labels" in lines
    assert found.targets == ("8", "6")
    header, rule, *cells = [line for line in found.to_markdown().splitlines() if line.startswith("|")]
    assert {len(line.replace("\\|", "").split("|")) for line in (header, rule, *cells)} == {len(header.split("|"))}


def test_saved_and_loaded_it_is_the_same(tmp_path):
    found = comparison(row("cka", (0.8, 0.8, 0.9)), Row("taylor", "8", {}, failed="no labels"))
    file = found.save(tmp_path)
    assert Comparison.load(tmp_path) == Comparison.load(file) == found
    with pytest.raises(ValueError, match="no comparison"):
        Comparison.from_dict({"rounds": []})
    with pytest.raises(ValueError, match="format 99"):
        Comparison.from_dict({**found.to_dict(), "comparison_version": 99})


@pytest.mark.parametrize("kind", ["quality", "cost"])
@pytest.mark.parametrize("number", [2, 7])
def test_the_plots_show_every_criterion(kind, number, tmp_path):
    pytest.importorskip("matplotlib")
    rows = [row(f"measure {i}", (0.5 + i / 50, 0.5, 0.52), layers=layers) for i in range(number) for layers in (8, 6)]
    figure = comparison(*rows).plot(tmp_path / "plot.png", kind=kind)
    assert (tmp_path / "plot.png").stat().st_size > 5000
    words = {text.get_text() for legend in figure.legends for text in legend.get_texts()}
    words |= {ax.get_title() for ax in figure.axes}
    assert {f"measure {i}" for i in range(number)} <= words
    if kind == "quality":
        drawn = [line for ax in figure.axes for line in ax.lines if len(line.get_xdata()) == 3]
        styles = [line.get_linestyle() for line in drawn if line.get_color() != "#c9d0d8"]
        assert styles.count("--") == styles.count("-") == number
        assert list(drawn[0].get_xdata()) == [6, 8, 12], "the uncut model is where each line begins"


def test_without_recovery_there_is_no_line_of_it():
    pytest.importorskip("matplotlib")
    figure = comparison(row("cka", (), before=(0.5, 0.5, 0.6)), recovers=False).plot()
    assert "after recovery" not in {text.get_text() for text in figure.legends[0].get_texts()}
    with pytest.raises(ValueError, match="'quality' or 'cost'"):
        comparison(row("cka", (0.5, 0.5, 0.6))).plot(kind="speed")


def test_a_fingerprint_is_of_the_examples_not_of_their_container():
    from datasets import Dataset

    rows = [{"input_ids": [i, i + 1], "labels": i % 2} for i in range(600)]
    assert fingerprint(rows) == fingerprint(Dataset.from_list(rows))
    assert fingerprint(rows) != fingerprint([*rows[:599], {"input_ids": [0, 1], "labels": 0}][:599])
    changed = [*rows[:300], {"input_ids": [300, 301], "labels": 1 - rows[300]["labels"]}, *rows[301:]]
    assert fingerprint(rows[:256]) == fingerprint(list(rows[:256]))
    assert fingerprint(changed[200:400]) != fingerprint(rows[200:400])
    assert fingerprint({"a": rows, "b": rows[1:]})["a"] == fingerprint(rows)
    assert fingerprint(iter(rows)) == {"kind": "list_iterator"}
    pixels = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    forms = [{"pixel_values": form} for form in (pixels[0], pixels[0].numpy(), pixels[0].tolist())]
    assert fingerprint(forms[:1]) == fingerprint(forms[1:2]) == fingerprint(forms[2:])
    assert fingerprint([{"pixel_values": pixels[1]}]) != fingerprint(forms[:1])
    assert fingerprint([{"words": ["a", "b"]}]) != fingerprint([{"words": ["a", "c"]}])
    assert fingerprint([{"ragged": [[1], [2, 3]]}]) != fingerprint([{"ragged": [[1, 2], [3]]}])


def test_shared_examples_are_counted_by_what_the_model_reads():
    rows = [{"input_ids": [i, i + 1], "labels": 0} for i in range(20)]
    other = [{"input_ids": [i, i + 1], "labels": 1} for i in range(15, 30)]
    assert count_shared(rows, other) == 5
    assert count_shared(rows, {"a": other, "b": rows}) == 20
    assert count_shared(iter(rows), other) == count_shared(None, other) == 0


def test_a_cell_counts_only_with_what_it_was_written_with(tmp_path):
    store = Store(tmp_path / "out")
    store.open({"model": {"weights": "a"}})
    store.write("score-cka-seed0", {"code": "x", "num_removed": {"encoder": 4}})
    assert store.read("score-cka-seed0", code="x", num_removed={"encoder": 4})
    assert store.read("score-cka-seed0", code="y") is None
    assert store.read("score-cka-seed1") is None
    (tmp_path / "out" / "cells" / "score-tail-seed0.json").write_text('{"code": ')
    assert store.read("score-tail-seed0") is None
    with pytest.raises(MPrunerError, match=r"model\.weights='a' \(now 'b'\)"):
        Store(tmp_path / "out").open({"model": {"weights": "b"}})
    (tmp_path / "out" / "comparison_settings.json").unlink()
    with pytest.raises(MPrunerError, match=r"no comparison_settings\.json"):
        Store(tmp_path / "out").open({"model": {"weights": "a"}})


def test_names_of_users_criteria_lead_to_no_other_folder():
    assert "/" not in name_of("score", "../mine:Class", "seed0")
    assert name_of("score", "a/b", 0) != name_of("score", "a_b", 0) != name_of("score", "a:b", 0)
