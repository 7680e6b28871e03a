"""What a run spends is added up: every forward pass once, over lives of a run, and shown where people look."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from hf_mpruner import PruningConfig, prune_
from hf_mpruner.footprint.spending import Spending
from hf_mpruner.record import PruningRecord, Round
from hf_mpruner.report import PruningReport, run_cost_in_words
from report_kit import bert_report, measurement
from trainer_kit import Rows


def test_every_forward_pass_of_a_run_is_in_one_stage(make_bert):
    model, passes = make_bert(), []
    model.register_forward_pre_hook(lambda *_: passes.append(0))

    def evaluate(cut):
        for _ in range(3):
            cut(input_ids=torch.ones(2, 4, dtype=torch.long))
        return {"accuracy": {4: 0.9, 2: 0.89}.get(len(cut.bert.encoder.layer), 0.5)}

    settings = {"threshold": 0.0, "max_metric_drop": 0.05, "calibration_samples": 12, "calibration_batch_size": 6}
    report = prune_(model, PruningConfig(**settings), calibration=Rows(16, 0), evaluate=evaluate)
    spent = report.record.spent
    assert set(spent) == {"measuring", "evaluating", "timing"}
    assert sum(one["forward_passes"] for one in spent.values()) == len(passes)
    assert spent["evaluating"]["forward_passes"] == 3 * (1 + len(report.rounds))
    assert spent["measuring"]["forward_passes"] % 2 == 0  # twelve examples in batches of six, each time
    assert all(one["seconds"] > 0 for one in spent.values())
    assert report.to_dict()["spent"] == spent
    assert f"cost: {run_cost_in_words(report.record)}" in str(report)


def test_a_run_that_goes_on_adds_to_what_its_record_says():
    model, record = nn.Linear(2, 2), PruningRecord({"layers": 2})

    def live(record):
        Spending(lambda: record, model)("measuring", lambda: model(torch.ones(1, 2)))()
        return PruningRecord.from_dict(json.loads(json.dumps(record.to_dict())))

    record = live(live(record))
    assert record.spent["measuring"]["forward_passes"] == 2
    peak = record.peak_memory
    Spending(lambda: record, model)("measuring", lambda: None)()
    assert all(record.peak_memory[name] >= held for name, held in peak.items())
    assert record.spent["measuring"]["forward_passes"] == 2


def test_what_fails_was_spent_too_and_nothing_stays_hooked():
    model, record = nn.Linear(2, 2), PruningRecord({"layers": 2})

    def fail():
        model(torch.ones(1, 2))
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Spending(lambda: record, model)("evaluating", fail)()
    assert record.spent["evaluating"]["forward_passes"] == 1
    assert not model._forward_pre_hooks
    assert Spending(lambda: record, model)("evaluating", None) is None


def test_recovery_is_what_its_rounds_say_and_rounds_without_training_are_none():
    record = bert_report().record
    record.spent = {"measuring": {"seconds": 150.0, "forward_passes": 1}}
    record.peak_memory = {"process": 2_000_000_000, "accelerator": 500_000_000}
    kept = record.kept
    record.rounds.append(Round(4, 1, kept, {}, {}, measurement(kept), started_at_step=35, decided_at_step=35))
    assert PruningReport(record).to_dict()["spent"]["recovering"] == {"seconds": 6.0, "steps": 15}
    assert run_cost_in_words(record) == (
        "measuring 2 min (1 forward pass), recovering 6.00 s (15 steps); at most 2.0 GB of memory in the process and "
        "500.0 MB of memory in the accelerator"
    )


def test_a_compiled_model_is_counted_and_not_compiled_again():
    class Model(nn.Module):  # a class of torch's own would be traced with its hooks
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, input_ids):
            return self.linear(input_ids)

    graphs, model = [], Model()

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled, record = torch.compile(model, backend=backend), PruningRecord({"layers": 2})

    def evaluate():
        with torch.no_grad():
            return compiled(input_ids=torch.ones(2, 2))

    for _ in range(3):
        Spending(lambda: record, model)("evaluating", evaluate)()
    evaluate()
    assert len(graphs) == 1
    assert record.spent["evaluating"]["forward_passes"] == 3
