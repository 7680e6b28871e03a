"""Rounds of narrowing with a fresh Trainer each: what is kept, what is taken back, and in which numbering."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from hf_mpruner import UnsupportedBackendError, prune_width_in_rounds
from trainer_kit import Rows, Scripted, accuracy, build_trainer


def build():
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(**sizes, vocab_size=99))


def maker(folder, metric=accuracy, seen=None, **arguments):
    def make_trainer(model):
        if seen is not None:
            seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return build_trainer(model, folder, metric, num_train_epochs=1, **arguments)

    return make_trainer


def test_a_round_that_loses_too_much_is_taken_back_weights_and_all(tmp_path):
    model, seen = build(), []
    model.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    make = maker(tmp_path, Scripted(0.9, 0.88, 0.5), seen)
    report = prune_width_in_rounds(model, 0.2, 3, make_trainer=make, max_metric_drop=0.05)
    assert [one.accepted for one in report.rounds] == [True, False]
    assert [one.removed for one in report.rounds] == [
        8,
        6,
    ]  # a fifth of 20, then of the 16 that are left, of two layers
    assert model.config.intermediate_size == 16
    trained = seen[1].keys()  # of the first round, before its training
    state = model.state_dict()
    assert state.keys() == trained
    assert state["bert.encoder.layer.0.intermediate.dense.weight"].shape == (16, 16)
    assert not torch.equal(
        state["classifier.weight"], seen[1]["classifier.weight"]
    )  # the first round's training stays
    assert not model.bert.embeddings.word_embeddings.weight.requires_grad
    assert report.baseline == 0.9
    assert {unit.size for unit in report.plan.units.values()} == {20}
    assert {len(unit.kept) for unit in report.plan.units.values()} == {16}
    assert report.preview.parameters_after == sum(p.numel() for p in model.parameters())
    assert "taken back" in str(report)


def test_what_a_rejected_round_leaves_is_what_the_accepted_one_left(tmp_path):
    one, other = build(), build()
    prune_width_in_rounds(one, 0.2, 1, make_trainer=maker(tmp_path, Scripted(0.9, 0.9)), max_metric_drop=0.05)
    prune_width_in_rounds(other, 0.2, 2, make_trainer=maker(tmp_path, Scripted(0.9, 0.9, 0.1)), max_metric_drop=0.05)
    first, second = one.state_dict(), other.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert vars(one.config)["intermediate_size"] == vars(other.config)["intermediate_size"] == 16


def test_two_rounds_are_one_plan_in_the_first_numbering(tmp_path):
    model = build()
    report = prune_width_in_rounds(model, 0.25, 2, make_trainer=maker(tmp_path), criterion="l1")
    assert model.config.intermediate_size == 11  # 20 -> 15 -> 11
    assert {(unit.size, len(unit.kept)) for unit in report.plan.units.values()} == {(20, 11)}
    assert report.metric_name == "accuracy"


def test_rounds_end_where_nothing_more_can_go(tmp_path):
    model = build()
    make = maker(tmp_path, Scripted(0.9, 0.9, 0.9, 0.9, 0.9))
    report = prune_width_in_rounds(model, 0.6, 5, make_trainer=make, criterion="random", multiple_of=4)
    assert [one.removed for one in report.rounds] == [24, 8]  # 20 -> 8 -> 4, and 4 is the least multiple
    assert model.config.intermediate_size == 4


def test_a_metric_that_falls_by_less_loss_is_better(tmp_path):
    model = build()
    report = prune_width_in_rounds(
        model, 0.2, 1, make_trainer=maker(tmp_path), metric="loss", max_metric_drop=100.0, criterion="random"
    )
    assert report.rounds[0].drop == pytest.approx(report.rounds[0].metric - report.baseline)


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"rounds": 0}, ValueError, "rounds=0 is no whole number from 1"),
        ({"max_metric_drop": -1}, ValueError, "max_metric_drop=-1 is not 0 or more"),
        ({"criteria": "l1"}, TypeError, "no argument 'criteria'. Settings: criterion, what, fields"),
        ({"fraction": 2.0}, ValueError, "no fraction from 0 to 1"),
        ({"make_trainer": lambda model: model}, TypeError, "make_trainer returned BertForSequenceClassification"),
        ({"metric": "f1"}, ValueError, "metric='f1' is not among what the evaluation produced"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_trained(tmp_path, arguments, kind, text):
    model = build()
    given = {"fraction": 0.2, "rounds": 1, "make_trainer": maker(tmp_path), "calibration": Rows(8, 0), **arguments}
    with pytest.raises(kind, match=text):
        prune_width_in_rounds(model, given.pop("fraction"), given.pop("rounds"), **given)
    assert model.config.intermediate_size == 20


def test_a_trainer_of_another_model_is_refused(tmp_path):
    other = build()
    with pytest.raises(ValueError, match="trains another model"):
        prune_width_in_rounds(build(), 0.2, 1, make_trainer=lambda model: maker(tmp_path)(other))


def test_trainers_that_cannot_be_used_are_refused(tmp_path):
    def best(model):
        arguments = {"save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True}
        return maker(tmp_path, **arguments)(model)

    def split(model):
        trainer = maker(tmp_path)(model)
        trainer.is_fsdp_enabled = True
        return trainer

    def used(model):
        trainer = maker(tmp_path)(model)
        trainer.create_optimizer()
        return trainer

    for make, kind, text in [
        (best, ValueError, "load_best_model_at_end=True"),
        (split, UnsupportedBackendError, "uses FSDP or DeepSpeed"),
        (used, ValueError, "has an optimizer already"),
    ]:
        with pytest.raises(kind, match=text):
            prune_width_in_rounds(build(), 0.2, 1, make_trainer=make)
