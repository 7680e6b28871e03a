"""Rounds that merge layers inside a Trainer: taken back to the bit, gone on with after a kill, and told in plan and record."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from cycles_kit import Maker, prune, save_bert
from hf_mpruner import PruningConfig, PruningPlan, apply_plan_, find_block_stacks, prune_
from hf_mpruner.cli import main
from hf_mpruner.record import PruningRecord
from hf_mpruner.uploads.pages import plan_of_weights
from resume_kit import assert_resumes, lived, pending_at
from trainer_kit import STACK, Rows, Scripted, add, assert_same, build_trainer, everything

MERGING = {"criterion": "laco", "target_num_layers": 1}
# Saved when: the first cut (to be rejected) is pending, the second (to be accepted) is, and the last round is.
PENDING = [4, 8, 10]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    from conftest import make_bert

    maker = make_bert.__wrapped__()
    return maker, lived(maker, tmp_path_factory.mktemp("run") / "out", config=MERGING)


def test_rounds_merge_and_the_plan_says_how(whole):
    _, run = whole
    rounds = run.record["rounds"]
    assert [(round_["verdict"], len(round_["kept"][STACK])) for round_ in rounds] == [
        ("rejected", 1),
        ("accepted", 2),
        ("rejected", 1),
    ]
    assert all(round_["merged"][STACK] for round_ in rounds)
    assert rounds[0]["merged"] == {STACK: {"0": {"0": -2.0, "1": 1.0, "2": 1.0, "3": 1.0}}}


@pytest.mark.parametrize("step", [PENDING[0], *(pytest.param(step, marks=pytest.mark.slow) for step in PENDING[1:])])
def test_a_run_killed_with_a_merge_pending_ends_with_the_same_bits(whole, tmp_path, step):
    maker, run = whole
    assert pending_at(run.folder, step) is True
    assert_resumes(maker, run, tmp_path / "out", step, config=MERGING)


@pytest.mark.parametrize(
    ("snapshot", "recovery"), [("cpu", "full"), pytest.param("disk", "full", marks=pytest.mark.slow), ("cpu", "lora")]
)
def test_a_rejected_merge_comes_back_to_the_bit(make_bert, tmp_path, snapshot, recovery):
    """Weights, moments and flags before the cut, and after its verdict; in between a merged model trained."""
    trainer = build_trainer(make_bert(num_labels=2), tmp_path, Scripted(0.9, 0.1), num_train_epochs=2)
    callback = add(
        trainer, criterion="laco", target_num_layers=2, max_granularity=1, start_epoch=1, recovery_epochs=1,
        snapshot=snapshot, recovery=recovery, verify="full",
    )  # fmt: skip
    start, decide, seen = callback._start_round, callback._decide, {}

    def watched_start(*args):
        seen["before"] = everything(trainer)
        seen["made"] = start(*args)
        seen["cut"] = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        return seen["made"]

    def watched_decide(*args):
        decide(*args)
        seen["after"] = everything(trainer)

    callback._start_round, callback._decide = watched_start, watched_decide
    trainer.train()
    (round_,) = callback.record.rounds
    assert (round_.verdict, seen["made"]) == ("rejected", True)
    for layer, terms in round_.merged[STACK].items():
        place, leaf = round_.kept[STACK].index(int(layer)), "output.dense"
        wanted = sum(share * seen["before"][0][f"{STACK}.{of}.{leaf}.weight"].double() for of, share in terms.items())
        inside = ".base_layer" if recovery == "lora" else ""
        assert torch.equal(seen["cut"][f"{STACK}.{place}.{leaf}{inside}.weight"], wanted.float())
    assert_same(seen["before"], seen["after"])


@pytest.mark.slow
def test_cycles_merge_too(tmp_path):
    source, out = save_bert(tmp_path / "source"), tmp_path / "out"
    maker = Maker(tmp_path / "training", compute_metrics=Scripted(0.9, 0.1, 0.9, 0.9))
    report = prune(maker, source, out, criterion="laco", target_num_layers=2)
    assert [(round_.verdict, len(round_.kept[STACK])) for round_ in report.rounds] == [
        ("rejected", 2),
        ("accepted", 3),
        ("accepted", 2),
    ]
    assert all(round_.merged[STACK] for round_ in report.rounds)
    assert PruningPlan.from_pretrained(out).merged == report.plan.merged


def test_the_plan_of_a_run_is_both_rounds_in_one_and_fits_the_weights_as_they_are(make_bert, tmp_path):
    """Two rounds without training between: applied to the model of before, the plan gives the very weights."""
    model = make_bert(num_labels=2).eval()
    before = copy.deepcopy(model)
    config = PruningConfig(
        criterion="laco", target_num_layers=2, layers_per_round=1, metric="loss", max_metric_drop=9.0
    )
    batches = [
        {name: torch.stack([torch.as_tensor(row[name]) for row in Rows(8, 2).rows]) for name in Rows(1, 2).rows[0]}
    ]
    report = prune_(model, config, calibration=batches, evaluate=lambda model: {"loss": 1.0})
    assert [len(round_.kept[STACK]) for round_ in report.rounds] == [3, 2]
    plan = PruningPlan.from_dict(json.loads(json.dumps(report.plan.to_dict())))
    assert plan.merged
    apply_plan_(before, plan)
    for (name, one), other in zip(model.state_dict().items(), before.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7, msg=name)
    pending = PruningRecord.from_dict(report.record.to_dict())
    pending.rounds[-1].verdict = "pending"
    assert plan_of_weights(pending).stacks == report.plan.stacks


def test_a_plan_that_merges_is_applied_by_the_command(tmp_path, capsys):
    source, out, file = save_bert(tmp_path / "source"), tmp_path / "out", tmp_path / "plan.json"
    model = AutoModelForSequenceClassification.from_pretrained(source)
    merged = {STACK: {1: {1: -1.0, 2: 1.0, 3: 1.0}}}
    plan = PruningPlan.from_kept({STACK: [0, 1]}, find_block_stacks(model), merged=merged)
    file.write_text(json.dumps(plan.to_dict()))
    words = ["apply", str(source), "--plan", str(file), "--output_dir", str(out)]
    assert main(words) == 2  # sums of weights are no tensors of the checkpoint
    assert "--in_memory" in capsys.readouterr().err
    assert not out.exists()
    assert main([*words, "--in_memory"]) == 0
    assert "merged: 2-3 into 1" in capsys.readouterr().out
    weights, name = model.state_dict(), f"{STACK}.{{}}.output.dense.weight"
    base, others = weights[name.format(1)].double(), [weights[name.format(layer)].double() for layer in (2, 3)]
    cut = AutoModelForSequenceClassification.from_pretrained(out).state_dict()
    assert torch.equal(cut[name.format(1)], (base + sum(other - base for other in others)).float())
    assert PruningPlan.from_pretrained(out).merged == merged
    assert PruningRecord.load(out).rounds[0].merged == {STACK: {"1": {"1": -1.0, "2": 1.0, "3": 1.0}}}
