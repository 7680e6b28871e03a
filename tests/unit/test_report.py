"""Record and report: plain data, and a table whose every figure comes from it."""

from __future__ import annotations

import json

import pytest
import torch

from hf_mpruner.record import RECORD_NAME, Measurement, PruningRecord, Round
from hf_mpruner.report import PruningReport, format_bytes
from hf_mpruner.similarity import PROTOCOLS, SimilarityMatrix


@pytest.fixture
def record():
    matrix = SimilarityMatrix(torch.eye(3, dtype=torch.float64), PROTOCOLS["default"], 64, "encoder.layer", (0, 1, 2))
    common = {"clusters": {"encoder.layer": [[1, 2]]}, "similarity": {"encoder.layer": matrix.to_dict()}}
    return PruningRecord(
        {"encoder.layer": 3},
        model_type="bert",
        metric="accuracy",
        greater_is_better=True,
        baseline=Measurement(3000, 12_000, 0.94, 1.5),
        rounds=[
            Round(1, 1, {"encoder.layer": [0]}, after=Measurement(1000, 4000, 0.5, 0.5), verdict="rejected", drop=0.44,
                  **common),
            Round(2, 2, {"encoder.layer": [0, 1]}, after=Measurement(2000, 8000, 0.935, 1.0), verdict="accepted",
                  drop=0.005, **common),
        ],
        stopped="the training ended",
    )  # fmt: skip


def test_the_table_shows_every_round_and_the_uncut_model(record):
    lines = PruningReport(record).to_table().splitlines()
    assert lines[0].split() == [
        "round", "encoder.layer", "parameters", "size", "accuracy", "drop", "evaluation", "s", "verdict",
    ]  # fmt: skip
    assert lines[1].split() == ["original", "3", "3,000", "12.0", "kB", "0.9400", "1.50"]
    assert lines[2].split() == ["1", "1", "1,000", "4.0", "kB", "0.5000", "+0.4400", "0.50", "rejected"]
    assert lines[3].split() == ["2", "2", "2,000", "8.0", "kB", "0.9350", "+0.0050", "1.00", "accepted,", "k=2"]
    assert "stopped: the training ended" in str(PruningReport(record))


def test_intervals_and_latencies_where_they_are_known(record):
    record.baseline.interval, record.baseline.latency_seconds = [0.9231, 0.9534], 0.01234
    record.rounds[0].refused = True
    record.rounds[1].after.latency_seconds = 0.00617
    table, report = PruningReport(record).to_table(), PruningReport(record)
    assert table.splitlines() == [
        "round     encoder.layer  parameters     size           accuracy [95%]     drop  evaluation s  latency ms  verdict",
        "original              3       3,000  12.0 kB  0.9400 [0.9231, 0.9534]                   1.50       12.34",
        "1                     1                                                                                   refused",
        "2                     2       2,000   8.0 kB                   0.9350  +0.0050          1.00        6.17  accepted, k=2",
    ]  # fmt: skip
    facts = report.to_dict()
    assert (facts["interval_before"], facts["interval_after"]) == ([0.9231, 0.9534], None)
    assert (facts["latency_seconds_before"], facts["latency_seconds_after"]) == (0.01234, 0.00617)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


def test_a_column_without_any_value_is_left_out(record):
    for measured in (record.baseline, *(round_.after for round_ in record.rounds)):
        measured.metric = measured.evaluation_seconds = None
    for round_ in record.rounds:
        round_.drop, round_.verdict = None, "unjudged"
    report = PruningReport(record)
    assert report.to_table().splitlines()[0].split() == ["round", "encoder.layer", "parameters", "size", "verdict"]
    assert report.to_markdown().splitlines()[:2] == [
        "| round | encoder.layer | parameters | size | verdict |",
        "| :--- | ---: | ---: | ---: | :--- |",
    ]
    record.baseline, record.rounds = None, []
    assert PruningReport(record).to_table() == "round  encoder.layer"


def test_a_report_as_they_were_before_loads(record):
    values = PruningReport(record).to_dict()
    new = ("metrics", "num_examples", "interval", "latency_seconds")
    for measured in (values["record"]["baseline"], *(round_["after"] for round_ in values["record"]["rounds"])):
        for name in new:
            del measured[name]
    for name in ("data", "training", "versions", "device", "latency", "confidence", "similarity_after"):
        del values["record"][name]
    assert PruningReport.from_dict(values).to_table() == PruningReport(record).to_table()


def test_markdown_has_the_same_cells(record):
    lines = PruningReport(record).to_markdown().splitlines()
    assert lines[3] == "| 1 | 1 | 1,000 | 4.0 kB | 0.5000 | +0.4400 | 0.50 | rejected |"
    assert len({line.count("|") for line in lines}) == 1


def test_what_was_kept_is_the_last_accepted_round(record):
    report = PruningReport(record)
    assert report.plan.kept == {"encoder.layer": (0, 1)}
    assert report.after.metric == 0.935
    record.rounds[1].verdict = "rejected"
    assert PruningReport(record).plan.kept == {"encoder.layer": (0, 1, 2)}
    assert PruningReport(record).after is record.baseline


def test_saved_and_loaded_it_is_the_same(record, tmp_path):
    report = PruningReport(record)
    report.save(tmp_path)
    loaded = PruningReport.load(tmp_path)
    assert loaded.record == record
    assert loaded.to_table() == report.to_table()
    assert loaded.similarities()[0][1]["encoder.layer"].layers == (0, 1, 2)
    assert json.loads((tmp_path / "report.json").read_text())["layers_after"] == {"encoder.layer": 2}


def test_a_pending_round_is_known_and_not_reported(record, tmp_path):
    record.rounds[1].verdict = "pending"
    assert record.pending is record.rounds[1]
    assert len(PruningReport(record).rounds) == 1
    record.save(tmp_path)
    assert PruningRecord.load(tmp_path) == record
    assert [file.name for file in tmp_path.iterdir()] == [RECORD_NAME]


def test_a_record_of_a_newer_format_is_refused():
    with pytest.raises(ValueError, match=r"This pruning record has format 5, this hf_mpruner reads up to 1"):
        PruningRecord.from_dict({"record_version": 5, "depths": {}})


@pytest.mark.parametrize(("size", "text"), [(999, "999 B"), (1000, "1.0 kB"), (267_838_488, "267.8 MB")])
def test_bytes_in_decimal_units(size, text):
    assert format_bytes(size) == text
