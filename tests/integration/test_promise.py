"""Training with a promise: which weights end it, what is refused before it, and what a run that goes on must not change."""

from __future__ import annotations

import pytest
import torch
from transformers import BertForSequenceClassification, EarlyStoppingCallback

import resume_kit
from custom_kit import CustomModel, make_custom
from cycles_kit import Maker, prune, save_bert
from hf_mpruner.engine import PruningEngine
from hf_mpruner.errors import MPrunerError
from hf_mpruner.guarantee import TestLevels
from hf_mpruner.subject import trained_model
from hf_mpruner.workbench import Workbench
from promise_kit import zeros_and_ones
from trainer_kit import STACK, Spy, add, build_trainer

RIGHT, EXAMPLES = 3600, 4000
PROMISE = {"confidence": 0.95, "max_metric_drop": 0.05}
# So many that a cut could pass, and few batches of them.
ENOUGH = {"eval_rows": 120, "per_device_eval_batch_size": 120}
INPUTS = torch.randint(2, 99, (4, 8), generator=torch.Generator().manual_seed(3))


class Watch:
    """Judges models by their depth, and looks at each when it is judged and when it has its verdict."""

    def __init__(self, monkeypatch, lost):
        self.lost, self.judged, self.decided = lost, [], []
        monkeypatch.setattr(Workbench, "outcomes", self._outcomes_of, raising=False)
        decide = PruningEngine.decide

        def decide_and_look(engine, **step):
            round_ = decide(engine, **step)
            self.decided.append({name: tensor.clone() for name, tensor in engine.model.state_dict().items()})
            return round_

        monkeypatch.setattr(PruningEngine, "decide", decide_and_look)

    @property
    def _outcomes_of(self):
        def outcomes(bench, metric, like=None):
            model = trained_model(bench.trainer)
            self.judged.append(logits(model))
            return zeros_and_ones(RIGHT, EXAMPLES, self.lost[len(model.get_submodule(STACK))])

        return outcomes

    def metric(self, depth, step=0):
        return (RIGHT - self.lost[depth]) / EXAMPLES


def logits(model):
    training = model.training
    with torch.no_grad():
        found = model.eval()(INPUTS).logits
    model.train(training)
    return found


def train(monkeypatch, make_bert, folder, lost, config=None, **arguments):
    watch = Watch(monkeypatch, lost)
    model = make_bert(num_labels=2)
    trainer = build_trainer(
        model, folder, lambda _: {"accuracy": watch.metric(len(model.get_submodule(STACK)))}, **ENOUGH, **arguments
    )
    callback = add(trainer, **{**PROMISE, **(config or {})})
    trainer.train()
    return watch, trainer, callback


def assert_judged(watch, model):
    """The weights are those of the last verdict, and of an accepted model so are its outputs, to the bit."""
    ended = model.state_dict()
    assert ended.keys() == watch.decided[-1].keys()
    assert all(torch.equal(ended[name], watch.decided[-1][name]) for name in ended)


# lost outcomes by depth: only four layers to two passes; to one, and to three, is rejected
ONE_PASSES = {4: 0, 3: 400, 2: 8, 1: 400}


@pytest.mark.parametrize(
    ("config", "arguments"),
    [
        ({"recovery_epochs": 0}, {}),
        ({"recovery_epochs": 0, "start_epoch": 1}, {}),
        ({"granularity": 2, "start_epoch": 1}, {"num_train_epochs": 2}),
        ({"granularity": 2}, {"max_steps": 5}),
        ({"granularity": 2, "recovery": "lora"}, {"num_train_epochs": 4}),
        ({"granularity": 2, "freeze_untouched": True, "snapshot": "disk"}, {"num_train_epochs": 4}),
        ({"recovery_epochs": 0}, {"gradient_accumulation_steps": 2}),
    ],
)
def test_the_training_ends_with_the_weights_that_were_judged(monkeypatch, make_bert, tmp_path, config, arguments):
    settings = {"save_strategy": "epoch", **arguments}
    watch, trainer, callback = train(monkeypatch, make_bert, tmp_path, ONE_PASSES, config, **settings)
    accepted = [i for i, round_ in enumerate(callback.record.rounds) if round_.verdict == "accepted"]
    assert len(trainer.model.get_submodule(STACK)) == 2
    assert_judged(watch, trainer.model)
    (number,) = accepted
    judged = watch.judged[number - len(callback.record.rounds)]  # those before are of the uncut model
    assert torch.equal(logits(trainer.model), judged)
    saved = type(trainer.model).from_pretrained(tmp_path / f"checkpoint-{trainer.state.global_step}")
    assert torch.equal(logits(saved), judged)


def test_a_search_pays_for_the_rejections_that_it_can_have(monkeypatch, make_bert, tmp_path):
    config = {"threshold": "auto", "criterion": "tail", "recovery_epochs": 1}
    watch, trainer, callback = train(
        monkeypatch, make_bert, tmp_path, {4: 0, 3: 4, 2: 8, 1: 400}, config, num_train_epochs=8
    )
    record = callback.record
    assert [(len(round_.kept[STACK]), round_.verdict) for round_ in record.rounds] == [
        (3, "accepted"), (1, "rejected"), (2, "accepted"),
    ]  # fmt: skip
    assert record.promise["num_branches"] == record.search["num_branches"]
    levels = TestLevels(1 - 0.95, record.search["num_branches"], num_others=2)  # of 1, 2 and 3 layers, 1 opens none
    assert [round_.level for round_ in record.rounds] == [levels.next(record.verdicts[:i]) for i in range(3)]
    assert_judged(watch, trainer.model)
    assert torch.equal(logits(trainer.model), watch.judged[-1])


def test_no_step_follows_where_no_round_is_left_as_an_epoch_begins(monkeypatch, make_bert, tmp_path):
    # nothing is alike: the run is over before the first step, whose weights the baseline was measured of
    spy = Spy(on_step_end=lambda: None)
    before = make_bert(num_labels=2).state_dict()
    settings = {"save_strategy": "steps", "save_steps": 1, "callbacks": [spy]}
    watch, trainer, callback = train(
        monkeypatch, make_bert, tmp_path, ONE_PASSES, {"threshold": 1.0}, **settings
    )  # fmt: skip
    assert callback.record.stopped.startswith("no two neighbouring layers are alike")
    assert len(spy.seen["on_step_end"]) == 1
    assert torch.equal(logits(trainer.model), watch.judged[0])
    after = trainer.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(logits(type(trainer.model).from_pretrained(tmp_path / "checkpoint-1")), watch.judged[0])
    assert watch.decided == []


class Normed(CustomModel):
    """A model with buffers that each forward pass of a training moves."""

    def __init__(self, config):
        super().__init__(config)
        self.head = torch.nn.Sequential(torch.nn.BatchNorm1d(config.hidden_size), self.head)


def test_a_step_that_is_taken_back_leaves_no_buffer_moved(monkeypatch, tmp_path):
    monkeypatch.setattr(Workbench, "outcomes", lambda *_: zeros_and_ones(RIGHT, EXAMPLES))
    trainer = build_trainer(make_custom(Normed), tmp_path, lambda _: {"accuracy": 0.9}, **ENOUGH, max_grad_norm=0.0)
    add(trainer, **PROMISE, threshold=1.0)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    after = trainer.model.state_dict()
    assert trainer.state.global_step == 1
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert "head.0.num_batches_tracked" in before


def test_without_a_promise_the_training_goes_on_as_before(monkeypatch, make_bert, tmp_path):
    watch, trainer, _ = train(monkeypatch, make_bert, tmp_path, ONE_PASSES, {"confidence": None, "threshold": 1.0})
    assert trainer.state.global_step == 9
    assert watch.judged == []


def test_a_second_training_goes_on_with_the_levels_and_changes_no_weight_on_its_own(monkeypatch, make_bert, tmp_path):
    config = {"start_epoch": 1, "granularity": 2, "max_rounds": 1}
    watch, trainer, callback = train(monkeypatch, make_bert, tmp_path, ONE_PASSES, config)
    object.__setattr__(callback.config, "max_rounds", None)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    assert callback.record.verdicts == [True]
    trainer.train()  # two layers to one is rejected, with k = 2 and not again with k = 3
    record = callback.record
    assert record.verdicts[:2] == [True, False]
    levels = TestLevels(1 - 0.95, 2)
    assert [round_.level for round_ in record.rounds] == [
        levels.next(record.verdicts[:i]) for i in range(len(record.rounds))
    ]
    assert {round_.number for round_ in record.rounds} == set(range(1, len(record.rounds) + 1))
    after = trainer.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(logits(trainer.model), watch.judged[2])  # of a rehearsal, the uncut model, the first round


def test_a_run_that_was_killed_ends_with_the_same_levels_verdicts_and_bits(monkeypatch, make_bert, tmp_path):
    watch = Watch(monkeypatch, ONE_PASSES)
    settings = {"values": watch.metric, "config": PROMISE, "num_train_epochs": 8, **ENOUGH}
    run = resume_kit.lived(make_bert, tmp_path / "whole", **settings)
    levels = [round_["level"] for round_ in run.record["rounds"]]
    assert levels[:2] == [TestLevels(1 - 0.95, 3).next(verdicts) for verdicts in ([], [False])]
    assert run.record["baseline"]["outcomes"]["values"].count("1") == RIGHT
    for step in (4, 8):
        resume_kit.assert_resumes(make_bert, run, tmp_path / str(step), step, **settings)
    resume_kit.copy_checkpoints(run.folder, tmp_path / "out", 8)
    trainer, callback = resume_kit.begin(
        make_bert, tmp_path / "out", **{**settings, "config": {**PROMISE, "confidence": 0.9}}
    )
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    with pytest.raises(MPrunerError, match=r"This run began with confidence=0.95 \(now 0.9\), and \d verdicts"):
        trainer.train(resume_from_checkpoint=True)
    assert callback.engine is None
    assert trainer.model.state_dict().keys() == before.keys()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"},
            "load_best_model_at_end=True lets it choose them. Pass load_best_model_at_end=False, or confidence=None",
        ),
        ({"callbacks": [EarlyStoppingCallback()]}, "EarlyStoppingCallback lets it"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"}, "follows evaluations lets it"),
    ],
)
def test_what_lets_the_judging_examples_choose_the_weights_is_refused(
    monkeypatch, make_bert, tmp_path, arguments, told
):
    watch = Watch(monkeypatch, ONE_PASSES)
    if "callbacks" in arguments:
        arguments = {**arguments, "metric_for_best_model": "accuracy", "eval_strategy": "epoch"}
    trainer = build_trainer(make_bert(num_labels=2), tmp_path, **ENOUGH, **arguments)
    add(trainer, **PROMISE)
    with pytest.raises(ValueError, match=told):
        trainer.train()
    assert trainer.state.global_step == 0
    assert watch.judged == []


def test_a_metric_without_outcomes_is_refused_before_the_epochs_that_come_first(monkeypatch, make_bert, tmp_path):
    def none(bench, metric, like=None):
        raise MPrunerError(f"{metric} has no outcomes")

    monkeypatch.setattr(Workbench, "outcomes", none, raising=False)
    trainer = build_trainer(make_bert(num_labels=2), tmp_path, lambda _: {"accuracy": 0.9}, **ENOUGH)
    callback = add(trainer, **PROMISE, start_epoch=1)
    with pytest.raises(MPrunerError, match="accuracy has no outcomes"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert callback.record.baseline is None


def test_too_few_examples_are_told_and_nothing_is_kept(monkeypatch, make_bert, tmp_path):
    monkeypatch.setattr(f"{__name__}.RIGHT", 540)
    monkeypatch.setattr(f"{__name__}.EXAMPLES", 600)
    watch, trainer, callback = train(
        monkeypatch, make_bert, tmp_path, {4: 0, 3: 22, 2: 22, 1: 22}, num_train_epochs=8
    )  # fmt: skip
    assert [round_.verdict for round_ in callback.record.rounds] == ["rejected"] * 3
    assert all("too few examples judged" in round_.reason for round_ in callback.record.rounds)
    assert len(trainer.model.get_submodule(STACK)) == 4
    assert_judged(watch, trainer.model)


def test_in_cycles_the_model_on_the_disk_is_the_one_that_was_judged(monkeypatch, tmp_path):
    watch = Watch(monkeypatch, ONE_PASSES)
    source = save_bert(tmp_path / "source")
    maker = Maker(tmp_path / "training", watch.metric, **ENOUGH)
    report = prune(maker, source, tmp_path / "out", **PROMISE)
    record = report.record
    assert [round_.verdict for round_ in record.rounds] == ["rejected", "accepted", "rejected"]
    assert record.verdicts == [False, True, False]
    levels = TestLevels(1 - 0.95, 3)
    assert [round_.level for round_ in record.rounds] == [levels.next(record.verdicts[:i]) for i in range(3)]
    kept = BertForSequenceClassification.from_pretrained(tmp_path / "out" / "model")
    assert torch.equal(logits(kept), watch.judged[2])
    judged = len(watch.judged)
    again = prune(maker, source, tmp_path / "out", **PROMISE)  # it is over, and nothing is judged anew
    assert (again.record.verdicts, len(watch.judged)) == (record.verdicts, judged)
    with pytest.raises(MPrunerError, match=r"confidence=0.95 \(now 0.9\)"):
        prune(maker, source, tmp_path / "out", **{**PROMISE, "confidence": 0.9})
