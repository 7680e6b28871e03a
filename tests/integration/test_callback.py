"""`LayerPruningCallback` inside a real `Trainer`: what it does, what it must not disturb, what it refuses."""

from __future__ import annotations

import gc
import logging
import weakref

import pytest
import torch
from transformers import AutoModelForSequenceClassification, EarlyStoppingCallback

from hf_mpruner import LayerPruningCallback, PruningConfig, PruningPlan, apply_plan_, errors
from hf_mpruner.record import PruningRecord
from trainer_kit import STACK, Rows, Scripted, Spy, add, assert_same, build_trainer, everything, realigned


@pytest.fixture
def make_trainer(make_bert, tmp_path):
    def make(model=None, **arguments):
        return build_trainer(model or make_bert(hidden_dropout_prob=0.1, num_labels=2), tmp_path / "out", **arguments)

    return make


def test_a_round_that_is_good_enough_leaves_a_smaller_model_that_reloads(make_trainer, tmp_path):
    trainer = make_trainer()
    callback = add(trainer, max_metric_drop=1.0)
    trainer.train()

    assert [round_.verdict for round_ in callback.record.rounds] == ["accepted"]
    assert len(trainer.model.bert.encoder.layer) == trainer.model.config.num_hidden_layers == 1
    assert callback.plan.kept == {STACK: (0,)}
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in trainer.model.parameters()}
    assert {id(p) for p in trainer.optimizer.state} <= held

    trainer.save_model(str(tmp_path / "saved"))
    loaded, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    batch = {
        key: torch.stack([torch.as_tensor(row[key]) for row in Rows(4, 3).rows]) for key in ("input_ids", "labels")
    }
    with torch.no_grad():
        assert torch.equal(realigned(loaded)(**batch).logits, trainer.model.eval()(**batch).logits)


def test_the_plan_replays_on_a_fresh_copy(make_trainer, make_bert):
    trainer = make_trainer()
    callback = add(trainer, max_metric_drop=1.0, granularity=2)
    trainer.train()
    fresh = make_bert(num_labels=2)
    apply_plan_(fresh, PruningPlan.from_dict(callback.plan.to_dict()))
    assert [p.shape for p in fresh.parameters()] == [p.shape for p in trainer.model.parameters()]


@pytest.mark.parametrize("place", ["cpu", "device", "disk"])
def test_a_rejected_round_restores_everything_bit_for_bit(make_trainer, place, tmp_path):
    trainer = make_trainer(compute_metrics=Scripted(0.9, 0.5), num_train_epochs=2)
    before = Spy(on_epoch_begin=lambda: everything(trainer))
    trainer.add_callback(before)
    callback = add(trainer, start_epoch=1, snapshot=place)
    during = Spy(on_step_end=lambda: len(trainer.model.bert.encoder.layer))
    after = Spy(on_epoch_end=lambda: everything(trainer))
    trainer.add_callback(during)
    trainer.add_callback(after)
    trainer.train()

    assert [round_.verdict for round_ in callback.record.rounds] == ["rejected"]
    assert during.seen["on_step_end"] == [4, 4, 4, 1, 1, 1]
    assert_same(before.seen["on_epoch_begin"][1], after.seen["on_epoch_end"][1])
    assert not [path for path in (tmp_path / "out").rglob("*") if "snapshot" in path.name or path.suffix == ".tmp"]


def test_every_round_is_compared_with_the_uncut_model(make_trainer):
    # 0.80 is within 0.05 of the accepted 0.85, but not of the original 0.90
    trainer = make_trainer(compute_metrics=Scripted(0.90, 0.86, 0.82), num_train_epochs=2)
    callback = add(trainer, granularity=2, max_granularity=2)
    trainer.train()
    assert [round_.verdict for round_ in callback.record.rounds] == ["accepted", "rejected"]
    assert callback.record.rounds[1].drop == pytest.approx(0.08)
    assert len(trainer.model.bert.encoder.layer) == 2
    assert callback.plan.kept == {STACK: (0, 2)}


def test_rejections_coarsen_the_cut_until_none_is_left(make_trainer):
    trainer = make_trainer(compute_metrics=Scripted(0.9, 0.1, 0.1, 0.1), num_train_epochs=5)
    callback = add(trainer)
    trainer.train()
    rounds = callback.record.rounds
    assert [(round_.granularity, tuple(round_.kept[STACK]), round_.verdict) for round_ in rounds] == [
        (1, (0,), "rejected"),
        (2, (0, 2), "rejected"),
        (3, (0, 2, 3), "rejected"),
    ]
    assert len(trainer.model.bert.encoder.layer) == 4
    assert "coarsest allowed" in callback.record.stopped


def test_a_drop_of_exactly_the_allowed_size_is_accepted(make_trainer):
    trainer = make_trainer(compute_metrics=Scripted(0.94, 0.93), num_train_epochs=1)
    callback = add(trainer, max_metric_drop=0.01)  # 0.94 - 0.93 is a little more than 0.01 in floating point
    trainer.train()
    assert callback.record.rounds[0].verdict == "accepted"


def test_noise_on_the_embeddings_is_seen_by_training_alone(make_trainer):
    """NEFTune is a hook that adds noise in training mode: to no similarity and to no evaluation of ours."""

    def first_round(**arguments):
        trainer = make_trainer(compute_metrics=None, num_train_epochs=1, **arguments)
        callback = add(trainer, metric="loss", max_metric_drop=0.0, recovery_epochs=0, max_rounds=1)
        trainer.train()
        return callback.record.rounds[0].similarity, callback.record.baseline.metric, callback.record.rounds[0].drop

    assert first_round(neftune_noise_alpha=50.0) == first_round()


def test_a_metric_that_is_not_a_number_rejects_and_says_so(make_trainer):
    trainer = make_trainer(compute_metrics=Scripted(0.9, float("nan")), num_train_epochs=1)
    callback = add(trainer)
    trainer.train()
    assert callback.record.rounds[0].verdict == "rejected"
    assert callback.record.rounds[0].reason == "accuracy is nan"
    assert len(trainer.model.bert.encoder.layer) == 4


def test_a_callback_that_finds_nothing_changes_no_bit_of_the_training(make_trainer):
    plain = make_trainer()
    plain.train()
    trainer = make_trainer()
    callback = add(trainer, threshold=1.0)
    trainer.train()
    assert callback.record.rounds == []
    assert callback.record.stopped == "no two neighbouring layers are alike at threshold 1"
    assert_same(everything(plain), everything(trainer))


def test_rejected_rounds_leave_the_trainers_own_events_as_they_are(make_trainer, make_bert):
    def run(prune):
        seen = Spy(**{event: lambda: None for event in ("on_log", "on_evaluate", "on_save", "on_step_end")})
        trainer = make_trainer(
            model=make_bert(num_labels=2), eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True,
            metric_for_best_model="accuracy", num_train_epochs=3, callbacks=[seen],
        )  # fmt: skip
        if prune:
            add(trainer, max_metric_drop=1.0)
        trainer.train()
        logged = [sorted(entry) for entry in trainer.state.log_history if not any("mpruner" in key for key in entry)]
        return {event: len(times) for event, times in seen.seen.items()}, logged, trainer.state.best_metric is not None

    (plain, plain_log, _), (pruned, pruned_log, best_known) = run(False), run(True)
    assert plain_log == pruned_log
    assert pruned.pop("on_log") == plain.pop("on_log") + 2  # the round, and its verdict
    assert plain == pruned
    assert best_known


def test_the_best_model_at_the_end_has_the_live_depth(make_trainer):
    # the bigger model's checkpoint is the best one ever seen; it must not be loaded into the smaller model
    trainer = make_trainer(
        compute_metrics=Scripted(0.99, 0.9, 0.9, 0.95, 0.94), eval_strategy="epoch", save_strategy="epoch",
        load_best_model_at_end=True, metric_for_best_model="accuracy", num_train_epochs=3, save_total_limit=2,
    )  # fmt: skip
    callback = add(trainer, start_epoch=1, max_metric_drop=0.5)
    trainer.train()
    assert callback.record.rounds[0].verdict == "accepted"
    assert trainer.state.best_metric == 0.95
    reloaded = AutoModelForSequenceClassification.from_pretrained(trainer.state.best_model_checkpoint)
    assert reloaded.config.num_hidden_layers == len(trainer.model.bert.encoder.layer) == 1
    live = trainer.model.state_dict()
    assert all(torch.equal(tensor, live[name]) for name, tensor in reloaded.state_dict().items())


def test_each_checkpoint_carries_the_record_and_fits_its_own_config(make_trainer, tmp_path):
    trainer = make_trainer(save_strategy="epoch", num_train_epochs=2, compute_metrics=Scripted(0.9, 0.9))
    add(trainer, start_epoch=1)
    trainer.train()
    for step, layers, rounds in ((3, 4, 0), (6, 1, 1)):
        folder = tmp_path / "out" / f"checkpoint-{step}"
        _, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        record = PruningRecord.load(folder)
        assert (len(record.rounds), len(record.kept[STACK])) == (rounds, layers)
    assert PruningPlan.from_pretrained(tmp_path / "out").kept == {STACK: (0,)}


def test_blocks_are_freed_once_their_round_is_accepted(make_trainer):
    trainer = make_trainer(num_train_epochs=2)
    last = trainer.model.bert.encoder.layer[3]
    block, weight = weakref.ref(last), weakref.ref(last.output.dense.weight)
    del last
    alive = Spy(on_epoch_end=lambda: (gc.collect() and None) or (block() is None, weight() is None))
    add(trainer, max_metric_drop=1.0)
    trainer.add_callback(alive)
    trainer.train()
    assert alive.seen["on_epoch_end"][-1] == (True, True)


def test_no_candidate_is_left_when_training_stops_early(make_trainer):
    # the second evaluation is worse, so early stopping ends the run in the first of two recovery epochs
    trainer = make_trainer(
        compute_metrics=Scripted(0.9, 0.9, 0.5, 0.2), eval_strategy="epoch", save_strategy="epoch", num_train_epochs=4,
        load_best_model_at_end=True, metric_for_best_model="accuracy",
        callbacks=[EarlyStoppingCallback(early_stopping_patience=1)],
    )  # fmt: skip
    callback = add(trainer, start_epoch=1, recovery_epochs=2)
    trainer.train()
    assert trainer.state.epoch == 2
    assert [round_.verdict for round_ in callback.record.rounds] == ["rejected"]
    assert len(trainer.model.bert.encoder.layer) == trainer.model.config.num_hidden_layers == 4


def test_no_round_begins_that_could_not_be_finished(make_trainer):
    trainer = make_trainer(max_steps=7, num_train_epochs=1)  # 3 steps an epoch
    callback = add(trainer, recovery_epochs=2, max_metric_drop=1.0, granularity=3)
    trainer.train()
    assert [round_.verdict for round_ in callback.record.rounds] == ["accepted"]
    assert callback.record.stopped == "no epochs are left for another round"


def test_training_ends_when_no_round_is_left_if_asked(make_trainer):
    trainer = make_trainer(num_train_epochs=9)
    callback = add(trainer, max_metric_drop=1.0, stop_when_done=True)
    trainer.train()
    assert len(callback.record.rounds) == 1
    assert trainer.state.epoch == 1


def test_without_recovery_all_rounds_are_decided_before_the_epoch(make_trainer):
    trainer = make_trainer(compute_metrics=Scripted(0.9, 0.5, 0.9, 0.1), num_train_epochs=1)
    callback = add(trainer, recovery_epochs=0)
    steps = Spy(on_step_begin=lambda: len(trainer.model.bert.encoder.layer))
    trainer.add_callback(steps)
    trainer.train()
    assert [round_.verdict for round_ in callback.record.rounds][:2] == ["rejected", "accepted"]
    assert steps.seen["on_step_begin"] == [2, 2, 2]


def test_frozen_recovery_trains_only_beside_the_cut_and_the_head(make_trainer):
    trainer = make_trainer(num_train_epochs=1)
    start = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    callback = add(trainer, max_metric_drop=1.0, granularity=3, protect=[3], freeze_untouched=True)
    trainer.train()
    assert callback.plan.kept == {STACK: (0, 2, 3)}  # layer 1 went: 0 and 2 are beside the cut, 3 is not
    changed = {name for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, start[
        name.replace("layer.2.", "layer.3.").replace("layer.1.", "layer.2.")
    ])}  # fmt: skip
    assert {name.split(".")[3] for name in changed if "encoder.layer" in name} == {"0", "1"}
    assert {name for name in changed if "encoder.layer" not in name} == {"classifier.weight", "classifier.bias"}
    assert all(p.requires_grad for p in trainer.model.parameters())


def test_loss_can_decide_without_compute_metrics(make_trainer):
    trainer = make_trainer(compute_metrics=None, num_train_epochs=1)
    callback = add(trainer, metric="loss", max_metric_drop=10.0)
    trainer.train()
    assert (callback.record.metric, callback.record.greater_is_better) == ("loss", False)
    assert callback.record.rounds[0].verdict == "accepted"


def test_a_second_training_goes_on_with_the_same_record(make_trainer):
    trainer = make_trainer(compute_metrics=Scripted(0.9, 0.9, 0.9), num_train_epochs=1)
    callback = add(trainer, granularity=2)
    trainer.train()
    trainer.train()
    assert [len(round_.kept[STACK]) for round_ in callback.record.rounds] == [2, 1]
    assert callback.plan.kept == {STACK: (0,)}
    assert callback.plan.stacks[STACK].depth == 4


@pytest.mark.parametrize("ask", [True, False], ids=["rollback", "train again"])
def test_an_interrupted_training_gives_the_model_back(make_trainer, ask):
    trainer = make_trainer(compute_metrics=Scripted(0.9, 0.9), num_train_epochs=2)
    before = Spy(on_epoch_begin=lambda: everything(trainer))
    trainer.add_callback(before)
    callback = add(trainer, start_epoch=1)

    def interrupt():
        if trainer.state.global_step == 5:
            raise KeyboardInterrupt

    interrupter = Spy(on_step_end=interrupt)
    trainer.add_callback(interrupter)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert len(trainer.model.bert.encoder.layer) == 1
    if ask:
        callback.rollback()
        assert_same(before.seen["on_epoch_begin"][1], everything(trainer))
        assert callback.record.rounds == []
    else:
        trainer.remove_callback(interrupter)
        trainer.train()
        assert [round_.verdict for round_ in callback.record.rounds] == ["accepted"]
        assert callback.record.rounds[0].kept == {STACK: [0]}


def test_attached_after_the_trainer_was_built(make_trainer):
    callback = LayerPruningCallback(config=PruningConfig(threshold=0.0, max_metric_drop=1.0), calibration=Rows(16, 2))
    trainer = make_trainer(callbacks=[callback])
    callback.attach(trainer)
    trainer.train()
    assert callback.record.rounds[0].verdict == "accepted"


def test_the_evaluation_set_is_sampled_by_default_and_a_warning_says_so(make_trainer, caplog):
    trainer = make_trainer(num_train_epochs=1)
    callback = LayerPruningCallback(trainer, PruningConfig(threshold=0.0, max_metric_drop=1.0, calibration_samples=12))
    trainer.add_callback(callback)
    with caplog.at_level(logging.WARNING, logger="hf_mpruner"):
        trainer.train()
    assert "The same examples choose the layers and judge the result" in caplog.text
    assert callback.record.rounds[0].similarity[STACK]["num_samples"] == 12


# -- refused, before any work is lost ---------------------------------------------------------------------------------


def assert_refused(trainer, error, text):
    layers = len(trainer.model.bert.encoder.layer)
    with pytest.raises(error, match=text):
        trainer.train()
    assert len(trainer.model.bert.encoder.layer) == trainer.model.config.num_hidden_layers == layers
    assert trainer.state.global_step == 0


def test_never_attached(make_trainer):
    trainer = make_trainer(callbacks=[LayerPruningCallback()])
    assert_refused(trainer, errors.MPrunerError, r"trainer\.add_callback\(LayerPruningCallback\(trainer, config\)\)")


def test_added_to_another_trainer(make_trainer):
    first, second = make_trainer(), make_trainer()
    second.add_callback(LayerPruningCallback(first))
    assert_refused(second, errors.MPrunerError, "made for another Trainer than the one that is training")
    with pytest.raises(errors.MPrunerError, match="attached to another Trainer"):
        LayerPruningCallback(first).attach(second)


def test_the_config_in_the_trainers_place():
    with pytest.raises(
        TypeError, match=r"first argument of LayerPruningCallback is the Trainer, but it got a PruningC"
    ):
        LayerPruningCallback(PruningConfig())


def test_two_callbacks(make_trainer):
    trainer = make_trainer()
    add(trainer)
    add(trainer)
    assert_refused(trainer, errors.MPrunerError, "The Trainer has 2 LayerPruningCallbacks")


def test_no_evaluation_set(make_trainer):
    trainer = make_trainer()
    trainer.eval_dataset = None
    add(trainer)
    assert_refused(trainer, ValueError, r"no eval_dataset.*Pass Trainer\(\.\.\., eval_dataset=\.\.\.\)")


def test_nothing_to_judge_by(make_trainer):
    trainer = make_trainer(compute_metrics=None)
    add(trainer)
    assert_refused(trainer, ValueError, r'no compute_metrics.*PruningConfig\(metric="loss"\)')


def test_a_metric_that_is_not_produced(make_trainer):
    trainer = make_trainer()
    add(trainer, metric="bleu")
    assert_refused(trainer, ValueError, r"metric='bleu' is not among what the evaluation produced: .*'accuracy'")


def test_too_few_epochs_for_one_round(make_trainer):
    trainer = make_trainer(num_train_epochs=2)
    add(trainer, start_epoch=1, recovery_epochs=2)
    assert_refused(trainer, ValueError, r"has 6 steps \(2 epochs\).*num_train_epochs=3\)")


def test_every_layer_protected(make_trainer):
    trainer = make_trainer()
    add(trainer, protect=[1, 2, 3])
    assert_refused(trainer, ValueError, r"Every layer that could go is protected or pinned.*\[1, 2, 3\]")


def test_an_unknown_stack(make_trainer):
    trainer = make_trainer()
    add(trainer, stacks=["encoder"])
    assert_refused(trainer, ValueError, r"stacks=\['encoder'\] are no block stacks.*bert\.encoder\.layer")


def test_activations_that_are_not_numbers_name_the_layer(make_trainer):
    trainer = make_trainer()
    with torch.no_grad():
        trainer.model.bert.encoder.layer[2].output.dense.weight.fill_(float("nan"))
    add(trainer)
    assert_refused(trainer, errors.MPrunerError, r"bert\.encoder\.layer\.2")


def test_an_empty_calibration_set(make_trainer):
    trainer = make_trainer()
    trainer.add_callback(LayerPruningCallback(trainer, PruningConfig(threshold=0.0), calibration=Rows(0, 0)))
    assert_refused(trainer, errors.CalibrationError, "empty|no examples|0 examples")


def test_automatic_batch_size(make_trainer):
    trainer = make_trainer(auto_find_batch_size=True)
    add(trainer)
    assert_refused(trainer, errors.UnsupportedBackendError, "auto_find_batch_size=True restarts the training")


def test_results_before_training_begins(make_trainer):
    with pytest.raises(errors.MPrunerError, match=r"has not begun: call trainer\.train\(\) first"):
        _ = add(make_trainer()).report
