"""Limits on parameters, bytes and time, and the criterion `mixture`, in a Trainer, in a search, in cycles and after a kill."""

from __future__ import annotations

import copy

import pytest
import torch

from cycles_kit import Maker, prune, save_bert
from hf_mpruner import LayerPruningCallback, PruningConfig, PruningPlan, apply_plan_, find_block_stacks, prune_
from hf_mpruner.architectures import count_parameters, parameters_after
from resume_kit import assert_resumes, lived, pending_at
from trainer_kit import STACK, Rows, add, build_trainer

LENIENT = {"max_metric_drop": 1.0, "calibration_batch_size": 8}


def without(model, *layers):
    copied = copy.deepcopy(model)
    kept = [layer for layer in range(len(model.get_submodule(STACK))) if layer not in layers]
    apply_plan_(copied, PruningPlan.from_kept({STACK: kept}, find_block_stacks(model)))
    return copied


# -- limits -----------------------------------------------------------------------------------------------------------


def test_a_trainer_reaches_a_limit_in_rounds(make_bert, tmp_path):
    model = make_bert(num_labels=2)
    limit = count_parameters(without(model, 2, 3))
    trainer = build_trainer(model, tmp_path)
    callback = add(trainer, criterion="tail", target_parameters=limit, layers_per_round=1, **LENIENT)
    trainer.train()
    assert [len(round_.kept[STACK]) for round_ in callback.record.rounds] == [3, 2]
    assert callback.record.stopped == "target reached"
    assert count_parameters(model) == limit
    assert callback.record.target["num_layers"] == {STACK: 2}
    assert f"target_parameters={limit} reached: {limit:,} parameters" in str(callback.report)
    assert callback.report.to_dict()["targets"] == {
        f"target_parameters={limit}": f"reached: {limit:,} parameters, at most {limit:,} parameters"
    }


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"target_parameters": "10"}, "'10' cannot be reached"),
        ({"target_latency": "0.00001ms"}, "cannot be reached"),
        ({"target_size": "1GB"}, "Nothing has to go"),
        ({"target_num_layers": 4, "target_size": "50%"}, "contradicts target_size='50%'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(make_bert, tmp_path, config, says):
    trainer = build_trainer(make_bert(num_labels=2), tmp_path)
    trainer.evaluate = lambda *_, **__: pytest.fail("evaluated")
    add(trainer, criterion="tail", **config)
    with pytest.raises(ValueError, match=says):
        trainer.train()
    assert trainer.state.global_step == 0
    assert len(trainer.model.get_submodule(STACK)) == 4


def test_a_run_within_a_time_that_is_gone_on_with_is_not_timed_anew(make_bert, tmp_path, monkeypatch):
    from hf_mpruner import latency

    def scripted(model, given, *_):
        return 0.01 * len(model.get_submodule(STACK))

    monkeypatch.setattr(latency, "_seconds", scripted)
    config = {"criterion": "tail", "target_latency": "60%", **LENIENT}
    run = lived(make_bert, tmp_path / "whole", config=config)
    assert run.record["target"]["num_layers"] == {STACK: 2}
    assert [verdict for verdict, *_ in run.verdicts] == ["accepted"]
    step = next(step for step in (2, 4, 6, 8) if pending_at(run.folder, step))
    monkeypatch.setattr("hf_mpruner.targets.ModelEdit", lambda *_, **__: pytest.fail("cut to be timed"))
    assert_resumes(make_bert, run, tmp_path / "out", step, config=config)


def test_a_search_ends_where_the_model_is_small_enough(make_bert):
    model = make_bert(8)
    sizes = [parameters_after(model, {STACK: range(8 - removed)})[0] for removed in range(6)]
    config = PruningConfig(threshold="auto", criterion="tail", target_parameters=sizes[5], calibration_samples=16)
    report = prune_(model, config, calibration=Rows(16, 0), evaluate=lambda _: {"accuracy": 0.9})
    assert report.record.search["numbers"] == [1, 2, 3, 4, 5]
    assert [8 - len(round_.kept[STACK]) for round_ in report.rounds] == [1, 3, 5]
    assert report.record.stopped == "target reached"


@pytest.mark.slow
def test_cycles_reach_a_limit(tmp_path):
    source = save_bert(tmp_path / "source")
    maker = Maker(tmp_path / "training", metric=lambda depth: 0.9)
    config = {"criterion": "tail", "target_size": "60%", "layers_per_round": 1, "target_latency": "10s"}
    report = prune(maker, source, tmp_path / "out", **config)
    assert report.record.stopped == "target reached"
    assert report.record.kept[STACK] == list(range(report.record.target["num_layers"][STACK]))
    assert report.after.saved_bytes <= 0.6 * report.before.saved_bytes
    with pytest.raises(ValueError, match="cannot be reached"):
        prune(maker, source, tmp_path / "other", criterion="tail", target_size="1%")


# -- mixture ----------------------------------------------------------------------------------------------------------


def test_each_round_of_a_trainer_takes_the_proposal_that_measures_best(make_bert, tmp_path):
    trainer = build_trainer(make_bert(num_labels=2), tmp_path)
    callback = add(trainer, criterion="mixture", target_num_layers=2, layers_per_round=1, **LENIENT)
    trainer.train()
    before = [0, 1, 2, 3]
    for round_ in callback.record.rounds:
        scores = round_.scores["scores"][STACK]
        assert scores["layers"] == before
        best, *others = scores["details"]["proposals"]
        assert scores["details"]["judged_by"] == "loss"
        assert scores["details"]["left_out"] == {}
        assert all(best["value"] <= other["value"] for other in others)
        after = [layer for place, layer in enumerate(before) if place not in best["layers"]]
        assert round_.kept[STACK] == after
        before = after
    assert len(before) == 2
    assert callback.record.stopped == "target reached"
    members = callback.record.rounds[0].scores["scores"][STACK]["details"]["proposals"][0]["members"]
    words = f"{STACK}: as {', '.join(members[:-1]) + ' and ' if members[1:] else ''}{members[-1]} propose"
    assert f"round 1: {words}" in str(callback.report)
    assert words in callback.report.to_html()


def test_without_labels_a_trainer_still_chooses(make_bert, tmp_path):
    trainer = build_trainer(make_bert(num_labels=2), tmp_path, num_train_epochs=1)
    unlabelled = [{"input_ids": row["input_ids"]} for row in Rows(8, 2).rows]
    config = PruningConfig(criterion="mixture", target_num_layers=3, **LENIENT)
    callback = LayerPruningCallback(trainer, config, calibration=unlabelled)
    trainer.add_callback(callback)
    trainer.train()
    details = callback.record.rounds[0].scores["scores"][STACK]["details"]
    assert (details["judged_by"], list(details["left_out"])) == ("output_change", ["taylor"])


@pytest.mark.slow
def test_a_run_by_a_mixture_ends_with_the_same_bits_after_a_kill(make_bert, tmp_path):
    config = {"criterion": "mixture", "target_num_layers": 1, "max_rounds": 2}
    run = lived(make_bert, tmp_path / "whole", config=config, num_train_epochs=4)
    assert [verdict for verdict, *_ in run.verdicts] == ["rejected", "accepted"]
    assert_resumes(make_bert, run, tmp_path / "out", 4, config=config, num_train_epochs=4)


def test_the_loss_in_cycles_must_be_the_models_own(tmp_path):
    maker = Maker(tmp_path / "training", label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="'mixture' measures the model's own loss"):
        prune(maker, save_bert(tmp_path / "source"), tmp_path / "out", criterion="mixture", target_num_layers=2)


def test_stacks_lose_layers_where_the_loss_says_so():
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "decoder_start_token_id": 0}
    model = T5ForConditionalGeneration(T5Config(num_layers=4, num_decoder_layers=4, **sizes)).eval()
    model.generation_config.use_cache = False  # else a decoder may not be deeper than its encoder
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():  # what the decoder's last layers add is large, so they are missed
        for block in model.decoder.block[2:]:
            for weight in block.parameters():
                weight.mul_(6)
    rows = [
        {"input_ids": torch.randint(2, 64, (6,), generator=draw), "labels": torch.randint(2, 64, (4,), generator=draw)}
        for _ in range(16)
    ]
    losses = iter([0.5] * 9)
    config = PruningConfig(threshold="auto", max_rounds=2, metric="loss", calibration_batch_size=4)
    assert config.criterion == "mixture"
    report = prune_(model, config, calibration=rows, evaluate=lambda _: {"loss": next(losses)})
    second = report.rounds[1]
    harms, taken = {}, {}
    for path, scores in second.scores["scores"].items():
        details = scores["details"]
        best = {}
        for proposal in details["proposals"]:
            best.setdefault(proposal["num_removed"], proposal["value"] - details["whole"])
        harms[path] = {0: 0.0, **best}
        taken[path] = len(scores["layers"]) - len(second.kept[path])
    assert sum(taken.values()) == 2
    encoder, decoder = "encoder.block", "decoder.block"
    costs = {number: harms[encoder][number] + harms[decoder][2 - number] for number in (0, 1, 2)}
    assert len(set(costs.values())) == 3
    assert costs[taken[encoder]] == min(costs.values())
