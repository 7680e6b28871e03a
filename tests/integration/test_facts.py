"""What a run writes down beside its verdicts: true on every road, and left out where it is not known."""

from __future__ import annotations

import json
import platform

import numpy as np
import pytest
import torch
import transformers
from torch.utils.data import IterableDataset
from transformers import BertConfig, BertForTokenClassification, Trainer, TrainerCallback, TrainingArguments

from hf_mpruner import LayerPruningCallback, PruningConfig, PruningReport, __version__, find_block_stacks, prune_
from hf_mpruner.environment import describe_device, library_versions
from hf_mpruner.facts import write_facts
from hf_mpruner.intervals import wilson_interval
from hf_mpruner.record import PruningRecord
from trainer_kit import Rows, Scripted, accuracy, add, assert_same, build_trainer, everything

ALIKE = {"threshold": 0.0, "max_metric_drop": 1.0, "calibration_samples": 12, "calibration_batch_size": 8}


def trained(model, folder, **settings):
    """One accepted round inside a training; returns trainer and record."""
    trainer = build_trainer(model, folder, **{"num_train_epochs": 1, **settings})
    callback = add(trainer, max_metric_drop=1.0, max_rounds=1)
    trainer.train()
    return trainer, callback.record


def several(prediction):
    right = float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())
    return {"accuracy": right, "f1": 0.25, "broken": float("nan")}


def test_an_evaluation_is_written_down_whole_with_the_interval_of_its_accuracy(make_bert, tmp_path):
    trainer = build_trainer(make_bert(num_labels=2), tmp_path, several, num_train_epochs=1)
    callback = add(trainer, metric="accuracy", max_metric_drop=1.0, max_rounds=1)
    trainer.train()
    record = callback.record
    last = trainer.evaluate()
    for measured in (record.baseline, record.rounds[0].after):
        assert set(measured.metrics) == {"loss", "accuracy", "f1"}  # no speed, nothing that is not finite
        assert measured.metrics["accuracy"] == measured.metric
        assert measured.num_examples == 16
        assert measured.interval == list(wilson_interval(measured.metric, 16))
    assert record.rounds[0].after.metrics["loss"] == pytest.approx(last["eval_loss"])
    assert record.data["judging"] == {"source": "evaluation set", "num_examples": 16}
    assert "evaluation_loop" not in vars(trainer)


def test_an_f1_and_a_loss_have_no_interval(make_bert, tmp_path):
    for number, settings in enumerate(({"metric": "f1"}, {"metric": "loss"})):
        trainer = build_trainer(make_bert(num_labels=2), tmp_path / str(number), several, num_train_epochs=1)
        callback = add(trainer, max_metric_drop=9.0, max_rounds=1, **settings)
        trainer.train()
        assert callback.record.baseline.num_examples == 16
        assert callback.record.baseline.interval is None


def test_tokens_are_no_examples(tmp_path):
    """Half of all tokens is also a number of examples, so only the labels' shape can tell."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 99}
    model = BertForTokenClassification(BertConfig(num_hidden_layers=3, num_labels=2, **sizes))
    rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"] % 2} for row in Rows(16, 0)]
    args = TrainingArguments(
        str(tmp_path), num_train_epochs=1, report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True
    )
    trainer = Trainer(
        model, args, train_dataset=rows, eval_dataset=rows, compute_metrics=lambda prediction: {"accuracy": 0.5}
    )
    callback = LayerPruningCallback(trainer, PruningConfig(**ALIKE, max_rounds=1), calibration=rows)
    trainer.add_callback(callback)
    trainer.train()
    assert (callback.record.baseline.metric, callback.record.baseline.num_examples) == (0.5, 16)
    assert callback.record.baseline.interval is None


class Stream(IterableDataset):
    def __iter__(self):
        yield from Rows(10, 3)


@pytest.mark.parametrize(
    ("data", "metric", "count"),
    [
        (Stream(), "accuracy", 10),
        ({"small": Rows(6, 3), "large": Rows(14, 4)}, "large_accuracy", 14),
        (Rows(15, 3), "accuracy", 15),
    ],
    ids=["stream", "several", "set"],
)
def test_examples_are_counted_by_the_evaluation_that_saw_them(make_bert, tmp_path, data, metric, count):
    trainer = build_trainer(make_bert(num_labels=2), tmp_path, accuracy, num_train_epochs=1)
    trainer.eval_dataset = data
    callback = add(trainer, metric=metric, max_metric_drop=1.0, max_rounds=1)
    trainer.train()
    baseline = callback.record.baseline
    assert (baseline.num_examples, callback.record.data["judging"]["num_examples"]) == (count, count)
    assert baseline.interval == list(wilson_interval(baseline.metric, count))


def test_a_last_batch_that_is_left_out_is_not_counted(make_bert, tmp_path):
    settings = {"dataloader_drop_last": True, "per_device_eval_batch_size": 5}
    _, record = trained(make_bert(num_labels=2), tmp_path, **settings)
    assert record.baseline.num_examples == 15
    assert record.data["judging"]["num_examples"] == 15


def test_settings_versions_and_device(make_bert, tmp_path):
    settings = {
        "learning_rate": 2e-4,
        "gradient_accumulation_steps": 2,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 1,
    }
    _, record = trained(make_bert(num_labels=2), tmp_path / "out", run_name="mine", num_train_epochs=2, **settings)
    training = record.training
    assert {name: training[name] for name in settings} == settings
    assert (training["optim"], training["optimizer"], training["seed"]) == ("adamw_torch_fused", "AdamW", 1)
    assert (training["num_train_epochs"], training["per_device_train_batch_size"], training["world_size"]) == (
        2.0,
        8,
        1,
    )
    assert "max_steps" not in training
    assert record.data["training"] == {"source": "training set", "num_examples": 24}
    assert record.data["calibration"] == {"source": "given by the user", "num_examples": 16}
    assert record.versions["python"] == platform.python_version()
    assert record.versions["hf_mpruner"] == __version__
    assert (record.versions["torch"], record.versions["transformers"]) == (torch.__version__, transformers.__version__)
    assert record.device == describe_device("cpu")
    text = json.dumps(record.to_dict(), allow_nan=False)
    assert str(tmp_path) not in text
    assert PruningReport.load(tmp_path / "out").record == record


def test_an_optimizer_and_a_schedule_of_the_user_speak_for_themselves(make_bert, tmp_path):
    model = make_bert(num_labels=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    _, record = trained(model, tmp_path, optimizers=(optimizer, schedule))
    found = {
        name: value for name, value in record.training.items() if name in ("optimizer", "scheduler", "weight_decay")
    }
    assert found == {"optimizer": "SGD", "scheduler": "StepLR", "weight_decay": 0.1}
    assert record.training["learning_rate"] == 0.5
    assert not {"optim", "lr_scheduler_type", "warmup_steps"} & set(record.training)


def test_a_run_that_is_gone_on_with_keeps_the_rates_of_layers_that_were_cut(make_bert, tmp_path):
    model = make_bert(num_labels=2)
    trainer = build_trainer(model, tmp_path, optimizers=(torch.optim.SGD(model.parameters(), lr=0.2), None))
    begun = {"optimizer": "SGD", "learning_rate": [0.1, 0.2], "weight_decay": 0.3, "seed": 5}
    record = PruningRecord({}, training=begun)
    write_facts(record, trainer, {"calibration": {"source": "given by the user"}})
    assert (record.training["learning_rate"], record.training["weight_decay"]) == ([0.1, 0.2], 0.3)
    assert record.training["seed"] == 1
    record = PruningRecord({}, training={**begun, "optimizer": "AdamW"})
    write_facts(record, trainer, {"calibration": {"source": "given by the user"}})
    assert (record.training["learning_rate"], record.training["weight_decay"]) == (0.2, 0.0)


def test_other_libraries_are_named_only_if_they_are_in_use(monkeypatch):
    import sys

    monkeypatch.delitem(sys.modules, "evaluate", raising=False)
    assert "evaluate" not in library_versions()
    used = type(sys)("evaluate")
    used.__version__ = "1.2.3"
    monkeypatch.setitem(sys.modules, "evaluate", used)
    assert library_versions()["evaluate"] == "1.2.3"


def test_prune_knows_what_it_is_told(make_bert):
    rows = Rows(20, 1)

    def evaluate(model):
        logits = model(**{k: torch.stack([row[k] for row in rows]) for k in ("input_ids", "attention_mask")}).logits
        labels = np.array([row["labels"] for row in rows])
        return {"eval_accuracy": np.float32((logits.argmax(-1).numpy() == labels).mean()), "eval_runtime": 1.0}

    settings = {"calibration": Rows(16, 0), "evaluate": evaluate}
    record = prune_(make_bert(), PruningConfig(**ALIKE, max_rounds=1), **settings, eval_dataset=rows).record
    assert record.data["judging"] == {"source": "given by the user", "num_examples": 20}
    assert record.data["calibration"] == {"source": "given by the user", "num_examples": 12}
    after = record.rounds[0].after
    assert after.metrics == {"accuracy": after.metric}
    assert after.interval == list(wilson_interval(after.metric, 20))
    assert record.device.startswith("CPU")
    assert record.versions["torch"] == torch.__version__

    record = prune_(make_bert(), PruningConfig(**ALIKE, max_rounds=1), **settings).record
    assert "judging" not in record.data
    assert (record.baseline.num_examples, record.baseline.interval) == (None, None)


def test_a_record_as_they_were_before_keeps_its_calibration(tmp_path):
    report = PruningReport.from_dict(
        {"record": {"depths": {"layer": 2}, "calibration": {"source": "given by the user"}}}
    )
    assert report.record.data == {"calibration": {"source": "given by the user"}}


def test_every_model_of_a_training_is_timed_and_adapters_only_when_they_are_merged(make_bert, tmp_path):
    trainer = build_trainer(make_bert(num_labels=2), tmp_path, Scripted(0.9, 0.1, 0.9), num_train_epochs=2)
    callback = add(trainer, recovery="lora", max_rounds=2)
    passes = []
    trainer.model.register_forward_pre_hook(
        lambda *_: passes.append(any("lora_A" in name for name, _ in trainer.model.named_modules()))
    )
    trainer.train()
    record = callback.record
    assert [round_.verdict for round_ in record.rounds] == ["rejected", "accepted"]
    assert record.rounds[0].after.latency_seconds is None  # it would be that of the adapters, too
    assert record.rounds[1].after.latency_seconds > 0
    assert record.baseline.latency_seconds > 0
    assert passes[-6:] == [False] * 6
    assert record.latency["batch_size"] == 16


def test_timing_changes_no_bit_of_the_training(make_bert, tmp_path, monkeypatch):
    def run(folder):
        trainer, record = trained(make_bert(num_labels=2, hidden_dropout_prob=0.2), folder, num_train_epochs=2)
        return everything(trainer), record

    timed, record = run(tmp_path / "timed")
    monkeypatch.setattr("hf_mpruner.workbench.measure_costs", lambda *args, **kwargs: None)
    untimed, other = run(tmp_path / "untimed")
    assert_same(timed, untimed)
    assert record.rounds[0].after.latency_seconds > 0
    assert other.rounds[0].after.latency_seconds is None
    assert record.rounds[0].after.metrics == other.rounds[0].after.metrics


@pytest.mark.parametrize("best", [False, True], ids=["last", "best"])
def test_the_model_that_was_kept_is_measured_as_it_ends(make_bert, tmp_path, best):
    """The cut is rejected in the first of three epochs: what was measured before it is of other weights by then."""
    settings = {"load_best_model_at_end": True, "save_strategy": "epoch", "eval_strategy": "epoch"} if best else {}
    trainer = build_trainer(make_bert(num_labels=2), tmp_path, by_epoch, metric_for_best_model="loss", **settings)
    callback = add(trainer, max_granularity=1, metric="made_up", greater_is_better=True, learning_rate_policy="run")
    by_epoch.trainer = trainer
    trainer.train()
    record = callback.record
    assert [round_.verdict for round_ in record.rounds] == ["rejected"]
    if best:
        assert trainer.state.best_model_checkpoint is not None
    (path,) = record.depths
    now = callback._bench.measure(find_block_stacks(trainer.model))[path].to_dict()
    assert record.similarity_after == {path: now}
    assert record.similarity_after[path]["values"] != record.rounds[0].similarity[path]["values"]
    assert PruningReport.load(tmp_path).record.similarity_after == record.similarity_after


def by_epoch(prediction):
    return {"made_up": len(by_epoch.trainer.model.bert.encoder.layer)}


def test_a_training_that_is_interrupted_has_no_last_model(make_bert, tmp_path):
    class Stop(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            if state.epoch >= 2:
                raise KeyboardInterrupt

    trainer = build_trainer(make_bert(num_labels=2), tmp_path, num_train_epochs=3)
    callback = add(trainer, max_metric_drop=1.0, max_rounds=1)
    trainer.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert callback.record.rounds[0].verdict == "accepted"
    assert callback.record.similarity_after == {}
