"""A cut that cannot be proved right, inside a running Trainer: the training goes on, as after a rejected round."""

from __future__ import annotations

import logging

from custom_kit import CUSTOM_STACK, make_custom
from hf_mpruner.card import ModelFacts, render_card
from hf_mpruner.cli.training import Talk
from hf_mpruner.record import PruningRecord
from trainer_kit import Scripted, Spy, add, assert_same, build_trainer, everything


def test_refused_cuts_neither_end_nor_disturb_the_training(tmp_path):
    plain = build_trainer(make_custom(fewest=3), tmp_path / "plain")
    plain.train()
    trainer = build_trainer(make_custom(fewest=3), tmp_path / "out")
    callback = add(trainer, max_granularity=2)
    trainer.train()
    assert [(r.verdict, r.refused) for r in callback.record.rounds] == [("rejected", True), ("rejected", True)]
    assert callback.record.stopped == "refused at granularity 2, the coarsest allowed"
    assert trainer.state.epoch == 3
    assert_same(everything(plain), everything(trainer))


def test_the_next_granularity_is_tried_in_the_same_epoch_and_everything_is_logged(tmp_path, caplog):
    trainer = build_trainer(make_custom(fewest=3), tmp_path / "out", compute_metrics=Scripted(0.9, 0.9))
    callback = add(trainer)
    layers, said = Spy(on_step_begin=lambda: len(trainer.model.layers)), []
    trainer.add_callback(layers)
    trainer.add_callback(Talk(said.append))
    with caplog.at_level(logging.WARNING, logger="hf_mpruner"):
        trainer.train()
    assert layers.seen["on_step_begin"] == [3] * 9
    assert [r.verdict for r in callback.record.rounds] == ["rejected", "rejected", "accepted"]
    logged = [entry for entry in trainer.state.log_history if "mpruner_round" in entry]
    assert [(e["mpruner_round"], e.get("mpruner_refused"), e.get("mpruner_accepted")) for e in logged] == [
        (1, 1.0, 0.0), (2, 1.0, 0.0), (3, None, None), (3, None, 1.0),
    ]  # fmt: skip
    assert said[:2] == ["Round 1: refused, nothing was cut.", "Round 2: refused, nothing was cut."]
    assert (
        "Round 1 refused, nothing was cut: CustomModel (model_type 'custom_kit'): cutting 'layers' to" in caplog.text
    )
    saved = PruningRecord.from_dict(callback.record.to_dict())
    assert "to layers [0, 2] cannot be proved right" in saved.rounds[1].reason
    card = render_card(callback.report, model=ModelFacts.of_model(trainer.model), title="small")
    assert r"Round 2 was refused: CustomModel (model\_type 'custom\_kit')" in card
    assert callback.plan.kept == {CUSTOM_STACK: (0, 2, 3)}


def test_a_cut_that_is_refused_after_a_rejection_ends_the_rounds(tmp_path):
    trainer = build_trainer(make_custom(fewest=3), tmp_path / "out", compute_metrics=Scripted(0.9, 0.1))
    callback = add(trainer)
    trainer.train()
    assert [(r.verdict, r.refused) for r in callback.record.rounds] == [
        ("rejected", True), ("rejected", True), ("rejected", False),
    ]  # fmt: skip
    assert len(trainer.model.layers) == 4
    assert callback.record.stopped == "rejected at granularity 3, the coarsest allowed"
