"""Rounds by scores inside a Trainer, in cycles and after a kill: what criteria are given, and what is refused."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import T5Config, T5ForConditionalGeneration, Trainer, TrainingArguments

import criteria_kit  # noqa: F401 - registers criteria
from cycles_kit import Maker, prune, rounds_of, save_bert
from hf_mpruner import LayerPruningCallback, PruningConfig
from hf_mpruner.criteria import CriterionInputs, find_criterion
from hf_mpruner.data import Parts
from hf_mpruner.errors import CalibrationError, UnsupportedBackendError
from hf_mpruner.record import PruningRecord
from hf_mpruner.report import PruningReport
from hf_mpruner.runtime import SingleProcess
from hf_mpruner.workbench import Workbench
from resume_kit import assert_resumes, live, lived, pending_at, verdicts
from trainer_kit import STACK, Rows, Scripted, accuracy, add, build_trainer

BY_WEIGHTS = {"criterion": "by_weights", "target_num_layers": 1}
# Saved when: the first cut (to be rejected) is pending, the second (to be accepted) is, and the last round is.
PENDING = [4, 8, 10]


@pytest.fixture
def by_weights():
    criterion = find_criterion("by_weights")
    criterion.asked.clear()
    return criterion


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    from conftest import make_bert

    maker = make_bert.__wrapped__()
    return maker, lived(maker, tmp_path_factory.mktemp("run") / "out", config=BY_WEIGHTS)


def test_a_target_in_a_trainer_is_reached_by_a_coarser_k(whole):
    _, run = whole
    assert [(verdict, len(kept), k) for verdict, kept, k, _ in run.verdicts] == [
        ("rejected", 1, 1),
        ("accepted", 2, 2),
        ("rejected", 1, 2),
    ]
    first, second, third = run.record["rounds"]
    assert first["scores"] == second["scores"] != third["scores"]
    assert third["scores"]["scores"][STACK]["layers"] == second["kept"][STACK]
    assert run.record["stopped"] == "rejected up to granularity 3"
    assert run.record["similarity_after"] == {}


@pytest.mark.parametrize("step", PENDING)
def test_a_run_killed_with_a_cut_by_scores_pending_ends_with_the_same_bits(whole, tmp_path, step):
    maker, run = whole
    assert pending_at(run.folder, step) is True
    assert_resumes(maker, run, tmp_path / "out", step, config=BY_WEIGHTS)


def test_a_run_that_merges_ends_with_the_same_bits_after_a_kill_and_takes_a_merge_back(make_bert, tmp_path):
    config = {"criterion": "merging", "target_num_layers": 1, "max_rounds": 2}
    run = lived(make_bert, tmp_path / "whole", config=config, num_train_epochs=4)
    assert [verdict for verdict, *_ in run.verdicts] == ["rejected", "accepted"]
    assert run.record["rounds"][1]["merged"] == {STACK: {"1": {"1": 0.5, "2": 0.25, "3": 0.25}}}
    assert_resumes(make_bert, run, tmp_path / "out", 4, config=config, num_train_epochs=4)


def test_a_run_that_goes_on_scores_only_what_changed(whole, tmp_path, by_weights):
    maker, run = whole
    assert_resumes(maker, run, tmp_path / "out", 6, config=BY_WEIGHTS)
    assert by_weights.asked == [{STACK: (2, 1)}]  # the four layers of before were scored in the life before


def test_the_loss_is_the_trainers_own(make_bert, tmp_path):
    """Label smoothing, on the Trainer's batches, in eval mode: against the formula."""
    model = make_bert(num_labels=2)
    trainer = build_trainer(model, tmp_path, label_smoothing_factor=0.3, num_train_epochs=1)
    callback = add(trainer, criterion="from_the_end", target_num_layers=3, calibration_batch_size=8)
    with torch.no_grad():
        rows = Rows(16, 2).rows
        inputs = {name: torch.stack([row[name] for row in rows]) for name in ("input_ids", "attention_mask")}
        logits, labels = model(**inputs).logits, torch.tensor([row["labels"] for row in rows])
        wanted = 0.7 * functional.cross_entropy(logits, labels) - 0.3 * logits.log_softmax(-1).mean()
    trainer.train()
    found = callback.record.rounds[0].scores["scores"][STACK]["details"]["loss"]
    assert found == pytest.approx(wanted.item(), rel=1e-5)
    assert callback.record.stopped == "target reached"
    cost = callback.record.rounds[0].scores["cost"]
    assert (cost["forward_passes"], cost["backward_passes"]) == (1.0, 0.0)
    assert callback.plan.kept == {STACK: (0, 1, 2)}


def test_gradients_leave_nothing_behind(make_bert, tmp_path):
    trainer = build_trainer(make_bert(num_labels=2), tmp_path, num_train_epochs=1)
    callback = add(trainer, criterion="by_gradients", target_num_layers=2, max_metric_drop=1.0)
    trainer.train()
    assert len(trainer.model.get_submodule(STACK)) == 2
    assert callback.record.rounds[0].scores["cost"]["backward_passes"] == 1.0


def test_the_metric_is_that_of_the_calibration_data(make_bert, tmp_path):
    """Not of the data that judges, and as the run's metric names it; nothing of it is in the Trainer's log."""
    criterion = find_criterion("by_metric")
    criterion.values.clear()
    model, sizes = make_bert(num_labels=2), []

    def metric(prediction):
        sizes.append(len(prediction.label_ids))
        return accuracy(prediction)

    trainer = build_trainer(model, tmp_path, metric, num_train_epochs=1)
    callback = LayerPruningCallback(
        trainer,
        PruningConfig(criterion="by_metric", target_num_layers=3, max_metric_drop=1.0, calibration_samples=12),
        calibration=Rows(30, 2),
    )
    trainer.add_callback(callback)
    trainer.train()
    assert sizes == [16, 12, 12, 12, 12, 16]  # baseline, four layers, verdict
    assert all(0 <= value <= 1 for value in criterion.values)
    assert not any("eval_accuracy" in entry for entry in trainer.state.log_history)


def test_without_a_data_set_the_judging_set_is_evaluated_and_a_warning_says_so(make_bert, tmp_path, caplog):
    trainer = build_trainer(make_bert(num_labels=2), tmp_path, num_train_epochs=1)
    batches = DataLoader(Rows(16, 2), batch_size=8)
    config = PruningConfig(criterion="by_metric", target_num_layers=3, max_metric_drop=1.0, calibration_samples=16)
    trainer.add_callback(LayerPruningCallback(trainer, config, calibration=batches))
    with caplog.at_level(logging.WARNING, logger="hf_mpruner"):
        trainer.train()
    assert "the criterion 'by_metric' evaluates on the evaluation set" in caplog.text


@pytest.mark.parametrize(
    ("config", "error", "says"),
    [
        (
            {"criterion": "from_the_end", "target_num_layers": 2},
            CalibrationError,
            "'from_the_end' measures the loss on",
        ),
        (
            {"criterion": "by_gradients", "target_num_layers": 2},
            CalibrationError,
            "'by_gradients' measures the loss on",
        ),
        ({"criterion": "by_metric", "target_num_layers": 2}, CalibrationError, "has no labels, only input_ids"),
        ({"criterion": "greedy_los", "target_num_layers": 2}, ValueError, "Known criteria"),
        ({"criterion": "tail", "target_num_layers": 9}, ValueError, "has only 4 layers"),
    ],
)
def test_what_cannot_score_is_refused_before_anything_is_trained(make_bert, tmp_path, config, error, says):
    trainer = build_trainer(make_bert(num_labels=2), tmp_path)
    unlabelled = [{"input_ids": row["input_ids"]} for row in Rows(8, 2).rows]
    trainer.add_callback(LayerPruningCallback(trainer, PruningConfig(**config), calibration=unlabelled))
    with pytest.raises(error, match=says):
        trainer.train()
    assert trainer.state.global_step == 0


def test_only_the_encoder_of_a_t5_loses_layers(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_heads": 2}
    model = T5ForConditionalGeneration(
        T5Config(**sizes, num_layers=5, num_decoder_layers=3, decoder_start_token_id=0, pad_token_id=0)
    )
    rows = [{"input_ids": torch.randint(2, 32, (6,)), "labels": torch.randint(2, 32, (4,))} for _ in range(16)]
    args = TrainingArguments(
        str(tmp_path), num_train_epochs=2, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    trainer = Trainer(model, args, train_dataset=rows, eval_dataset=rows[:8])
    config = PruningConfig(
        criterion="by_weights",
        target_num_layers=["encoder.block:3"],
        layers_per_round=1,
        metric="loss",
        max_metric_drop=99.0,
    )
    callback = LayerPruningCallback(trainer, config, calibration=rows[8:])
    trainer.add_callback(callback)
    criterion = find_criterion("by_weights")
    criterion.asked.clear()
    trainer.train()
    assert (len(model.encoder.block), len(model.decoder.block)) == (3, 3)
    assert (model.config.num_layers, model.config.num_decoder_layers) == (3, 3)
    assert criterion.asked == [{"encoder.block": (5, 1)}, {"encoder.block": (4, 1)}]
    assert callback.record.stopped == "target reached"


@pytest.mark.slow
def test_cycles_score_the_plain_model_and_go_on_after_a_stop(tmp_path, by_weights):
    source, out = save_bert(tmp_path / "source"), tmp_path / "out"
    maker = Maker(tmp_path / "training", compute_metrics=Scripted(0.9, 0.9, 0.9))
    report = prune(maker, source, out, criterion="by_weights", target_num_layers=2, layers_per_round=1)
    assert [(verdict, len(kept)) for verdict, kept, _ in rounds_of(report.record)] == [
        ("accepted", 3),
        ("accepted", 2),
    ]
    assert report.record.stopped == "target reached"
    assert [round_.scores["scores"][STACK]["layers"] for round_ in report.rounds] == [
        [0, 1, 2, 3],
        report.rounds[0].kept[STACK],
    ]
    again = prune(maker, source, out, criterion="by_weights", target_num_layers=2, layers_per_round=1)
    assert again.record == report.record
    assert len(by_weights.asked) == 2
    assert PruningRecord.load(out) == report.record


@pytest.mark.parametrize(
    ("config", "arguments", "says"),
    [
        ({"criterion": "by_metric"}, {}, "no Trainer is there while layers are chosen"),
        (
            {"criterion": "from_the_end"},
            {"label_smoothing_factor": 0.1},
            r"another one \(label_smoothing_factor=0.1\)",
        ),
        ({"criterion": "nothing"}, {}, "Known criteria"),
    ],
)
def test_cycles_refuse_what_needs_a_trainer(tmp_path, config, arguments, says):
    source = save_bert(tmp_path / "source")
    maker = Maker(tmp_path / "training", **arguments)
    with pytest.raises(ValueError, match=says):
        prune(maker, source, tmp_path / "out", target_num_layers=2, **config)
    assert not (tmp_path / "out" / "pruning_record.json").exists()


def test_files_of_a_run_by_scores_load_again(whole, make_bert, tmp_path):
    trainer, callback = live(make_bert, tmp_path / "out", config={**BY_WEIGHTS, "stop_when_done": True})
    loaded = PruningReport.load(tmp_path / "out")
    assert loaded.record == PruningRecord.from_dict(json.loads(json.dumps(callback.record.to_dict())))
    assert len(verdicts(callback)) == 3
    assert trainer.state.global_step == 12


@pytest.mark.parametrize("criterion", ["by_gradients", "by_metric"])
def test_what_cannot_be_had_of_shards_is_refused(make_bert, tmp_path, criterion):
    class Sharded(SingleProcess):
        name, equal_forwards = "FSDP2", True

    trainer = build_trainer(make_bert(num_labels=2), tmp_path)
    config = PruningConfig(criterion=criterion, target_num_layers=2)
    with pytest.raises(
        UnsupportedBackendError, match=f"'{criterion}' needs (gradients|metric), which FSDP2 does not give"
    ):
        Workbench(trainer, config, Parts(Rows(8, 2)), Sharded()).make_engine(None)


def test_one_evaluation_or_loss_is_one_pass_whatever_its_batches(make_bert, tmp_path):
    """An evaluation runs in batches of its own size, and a loss may run the model unseen by hooks."""
    trainer = build_trainer(make_bert(num_labels=2), tmp_path, num_train_epochs=1, per_device_eval_batch_size=3)
    callback = add(trainer, criterion="by_metric", target_num_layers=3, max_metric_drop=1.0)
    trainer.train()
    assert callback.record.rounds[0].scores["cost"]["forward_passes"] == 4.0
    inputs = CriterionInputs(
        make_bert(), [], batches=[{"input_ids": torch.ones(2, 3, dtype=torch.long)}] * 3,
        compute_loss=lambda model, batch: model.forward(**batch).logits.sum(),
    )  # fmt: skip
    with inputs.counting() as cost:
        inputs.mean_loss()
        assert cost().forward_passes == 1.0
