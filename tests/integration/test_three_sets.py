"""A run that promises something: examples that measure layers, that choose and that judge, each read for its one use."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, Subset
from transformers import BertForSequenceClassification

from cycles_kit import save_bert
from hf_mpruner import LayerPruningCallback, PruningConfig, prune_, prune_in_cycles
from hf_mpruner.architectures import find_block_stacks
from hf_mpruner.card.prose import limits
from hf_mpruner.criteria import find_criterion, score_layers
from hf_mpruner.data import Parts
from hf_mpruner.errors import CalibrationError, MPrunerError
from hf_mpruner.guarantee import Outcomes, TestLevels, bound_drop, smallest_sample, spare_losses
from hf_mpruner.record import Measurement
from hf_mpruner.sets import check_same_examples, check_sets, find_sets, given_sets
from hf_mpruner.workbench import Workbench
from trainer_kit import Rows, accuracy, build_trainer


class Watched(Dataset):
    """Knows which of its rows were read, in which order."""

    def __init__(self, size=100, seed=1):
        self.rows, self.read = Rows(size, seed), []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.read.append(index)
        return self.rows[index]

    def taken(self):
        taken, self.read = self.read, []
        return taken


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Rows(8, 3))


@pytest.fixture
def trainer(make_bert, tmp_path):
    trainer = build_trainer(make_bert(num_labels=2), tmp_path)
    trainer.eval_dataset = Watched()
    return trainer


def searching(criterion="cka", **config):
    return PruningConfig(**{"threshold": "auto", "criterion": criterion, "calibration_samples": 16, **config})


def comparing(**config):
    return PruningConfig(calibration_samples=16, **config)


def indices(part):
    return list(part.indices)


def test_similarity_and_verdicts_read_examples_of_their_own_and_the_record_says_which(trainer):
    data = trainer.eval_dataset
    bench = Workbench(trainer, searching())
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with bench.aside():
        engine = bench.make_engine(None)
        sets = bench.sets
        assert (len(sets.calibration), sets.choosing, len(sets.judging)) == (16, None, 84)
        assert sorted(indices(sets.calibration) + indices(sets.judging)) == list(range(100))
        data.taken()
        bench.measure(find_block_stacks(trainer.model))
        assert sorted(data.taken()) == indices(sets.calibration)
        bench.evaluate()
        assert data.taken() == indices(sets.judging), "in one fixed order"
    assert torch.equal(torch.get_rng_state(), before)
    drawn = {"source": "part of the evaluation set", "drawn_from": 100, "seed": 0}
    assert engine.record.data["calibration"] == {**drawn, "num_examples": 16}
    judged = bench.judged_on("accuracy")
    assert judged.is_share
    assert {key: value for key, value in judged.data.items() if key != "digest"} == {**drawn, "num_examples": 84}
    assert "choosing" not in engine.record.data


def test_a_mixture_proposes_on_one_set_chooses_by_another_and_is_judged_by_a_third(trainer):
    data = trainer.eval_dataset
    bench = Workbench(trainer, searching("mixture", metric="accuracy"))
    with bench.aside():
        engine = bench.make_engine(None)
        engine.record.metric, engine.record.greater_is_better = "accuracy", True
        sets, stacks = bench.sets, find_block_stacks(trainer.model)
        assert [len(one) for one in (sets.calibration, sets.choosing, sets.judging)] == [16, 16, 68]
        parts = [set(indices(one)) for one in (sets.calibration, sets.choosing, sets.judging)]
        assert set.union(*parts) == set(range(100))
        data.taken()
        scores = bench._scores(find_criterion("mixture"), stacks, {stacks[0].path: 2}).scores[stacks[0].path]
        assert set(data.taken()) == parts[0] | parts[1]
        choosing = bench._scores._inputs(stacks, {})
        assert scores.details["whole"] == pytest.approx(choosing.mean_loss(), rel=1e-5)
        assert set(data.taken()) == parts[1]
        alone = bench._scores._inputs(stacks, {stacks[0].path: 2}).to_propose()
        greedy = score_layers(find_criterion("greedy_loss"), alone).scores[stacks[0].path].order[:1]
        assert set(data.taken()) == parts[0]
    (first,) = [one["layers"] for one in scores.details["proposals"] if "greedy_loss" in one["members"]][:1]
    assert tuple(first) == greedy
    drawn = {"source": "part of the evaluation set", "drawn_from": 100, "seed": 0, "num_examples": 16}
    assert engine.record.data["calibration"] == engine.record.data["choosing"] == drawn


def test_prune_halves_what_it_is_given_where_a_mixture_chooses(make_bert):
    def evaluate(model):
        return {"accuracy": 0.5}

    report = prune_(
        make_bert(4, num_labels=2), searching("mixture", confidence=None), calibration=Rows(24, 1), evaluate=evaluate
    )
    data = report.record.data
    assert (data["calibration"]["num_examples"], data["choosing"]["num_examples"]) == (12, 12)


def test_batches_that_cannot_be_halved_propose_and_choose_and_that_is_said(caplog):
    batches = iter(())
    with caplog.at_level("WARNING"):
        sets = given_sets(searching("mixture"), Parts(batches, None, None))
    assert (sets.calibration, sets.choosing) == (None, batches)
    assert "The same examples propose cuts and choose among them" in caplog.text


@pytest.mark.parametrize("name", ["loss", "taylor", "metric_drop"])
def test_what_reads_labels_is_measured_on_examples_that_choose_and_never_judge(trainer, name):
    data = trainer.eval_dataset
    bench = Workbench(trainer, searching(name, metric="accuracy"))
    with bench.aside():
        engine = bench.make_engine(None)
        engine.record.metric, engine.record.greater_is_better = "accuracy", True
        sets = bench.sets
        assert (sets.calibration, len(sets.choosing), len(sets.judging)) == (None, 16, 84)
        data.taken()
        bench._scores(find_criterion(name), find_block_stacks(trainer.model), {})
    assert set(data.taken()) == set(indices(sets.choosing))
    assert engine.record.data["choosing"]["source"] == "part of the evaluation set"
    assert "calibration" not in engine.record.data


def test_without_confidence_everything_judges(trainer):
    bench = Workbench(trainer, comparing())
    with bench.aside():
        bench.make_engine(None)
        trainer.eval_dataset.taken()
        bench.evaluate()
    assert trainer.eval_dataset.taken() == list(range(100))
    assert bench.sets.judging is None
    assert bench.judged_on("accuracy").data == {"source": "evaluation set", "num_examples": 100}
    with pytest.raises(ValueError, match="judging would not be used: sets are kept apart only with"):
        find_sets(trainer, comparing(), Parts(judging=Rows(8, 3)))


def test_what_is_given_is_taken_whole_and_only_the_rest_is_split(trainer):
    data, own, other = trainer.eval_dataset, Rows(30, 7), Rows(40, 8)
    sets = find_sets(trainer, searching(), Parts(calibration=own))
    assert sets.calibration is own
    assert sets.judging is data, "nothing else is taken from it"
    assert sets.facts["judging"]["source"] == "evaluation set"
    sets = find_sets(trainer, searching(calibration_samples=90), Parts(judging=other))
    assert (len(sets.calibration), sets.judging) == (90, other), "it judges nothing, so more of it can be used"
    sets = find_sets(trainer, searching("loss"), Parts(calibration=own))
    assert sets.choosing is own, "what layers are measured on"
    sets = find_sets(trainer, searching("loss"), Parts(calibration=own, choosing=other))
    assert sets.choosing is other
    sets = find_sets(trainer, searching(), Parts(calibration=trainer.train_dataset, judging=data))
    assert [sets.facts[role]["source"] for role in ("calibration", "judging")] == ["training set", "evaluation set"]
    with pytest.raises(CalibrationError, match=r"No examples for calibration .* all of it judges. Pass calibration="):
        find_sets(trainer, searching(), Parts(judging=data))
    with pytest.raises(ValueError, match="judging is a dict of 'a', 'b', not one data set"):
        find_sets(trainer, searching(), Parts(judging={"a": own, "b": other}))


def test_a_set_without_a_use_is_told(trainer, caplog):
    find_sets(trainer, searching(), Parts(choosing=Rows(8, 3)))
    assert "choosing is not used: criterion='cka' reads no labels" in caplog.text
    find_sets(trainer, searching("loss"), Parts(calibration=Rows(8, 3), choosing=Rows(8, 4)))
    assert "calibration is not used: criterion='loss' is measured on choosing" in caplog.text


def test_of_several_evaluation_sets_that_whose_metric_decides_is_split(trainer):
    trainer.eval_dataset = {"news": Watched(60, 1), "mail": Watched(100, 2)}
    bench = Workbench(trainer, searching(metric="mail_accuracy"))
    with bench.aside():
        bench.make_engine(None)
        found = bench.evaluate()
    assert len(bench.sets.judging) == 84
    assert "mail_accuracy" in found
    assert "news_accuracy" not in found
    assert bench.judged_on("mail_accuracy").data["num_examples"] == 84
    with pytest.raises(
        ValueError, match=r"evaluation sets 'news', 'mail', and .* PruningConfig\(metric='news_accuracy'\)"
    ):
        find_sets(trainer, searching(), Parts())
    trainer.eval_dataset = {"mail": Watched(100, 2)}
    assert len(find_sets(trainer, searching(), Parts()).judging) == 84


def test_what_cannot_be_split_is_refused(trainer, make_bert):
    trainer.eval_dataset = Stream()
    with pytest.raises(CalibrationError, match="A Stream cannot be split"):
        find_sets(trainer, searching(), Parts())
    assert find_sets(trainer, searching(), Parts(calibration=Rows(8, 3))).judging is trainer.eval_dataset
    trainer.eval_dataset = Rows(1, 3)
    with pytest.raises(CalibrationError, match=r"has 1 examples?, which leaves none for judging"):
        find_sets(trainer, searching(), Parts())


def test_where_an_evaluator_judges_nothing_is_split_off_for_it(trainer):
    trainer.evaluator = SimpleNamespace(primary_metric="cosine_accuracy")
    sets = find_sets(trainer, searching(), Parts())
    assert (len(sets.calibration), sets.judging) == (16, None)
    assert len(find_sets(trainer, searching(metric="loss"), Parts()).judging) == 84
    with pytest.raises(ValueError, match="An evaluator judges on data of its own"):
        find_sets(trainer, searching(), Parts(judging=Rows(8, 3)))
    trainer.eval_dataset = None
    sets = find_sets(trainer, searching(), Parts())
    assert (len(sets.calibration), sets.facts["calibration"]["source"]) == (16, "part of the training set")


def test_answers_that_are_read_back_need_the_whole_set(trainer, make_bert, tmp_path):
    from transformers import BertConfig, BertForQuestionAnswering

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    trainer.model = BertForQuestionAnswering(BertConfig(vocab_size=99, **sizes))
    with pytest.raises(
        CalibrationError, match=r"answers are read back from the texts of the whole set\. Pass calibration="
    ):
        find_sets(trainer, searching(), Parts())
    assert find_sets(trainer, searching(), Parts(calibration=Rows(8, 3))).judging is trainer.eval_dataset


def test_a_metric_that_could_choose_only_by_what_judges_is_refused(trainer):
    config = searching("metric_drop", metric="accuracy")
    with pytest.raises(
        CalibrationError, match="would choose by the very examples that judge, since the calibration data is"
    ):
        Workbench(trainer, config, Parts(choosing=Stream())).make_engine(None)


def test_overlaps_are_refused_before_anything_is_measured(trainer, caplog):
    data = trainer.eval_dataset
    config = searching()
    taken = Subset(data, find_sets(trainer, config, Parts()).judging.indices[:8])
    with pytest.raises(CalibrationError, match="calibration and judging share 8 of 8"):
        Workbench(trainer, config, Parts(calibration=taken)).make_engine(None)
    trainer.train_dataset = Subset(data, range(50))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        check_sets(trainer, find_sets(trainer, config, Parts()), None)
    assert "of the 84 examples that judge are also trained on" in caplog.text


def test_a_run_goes_on_with_the_examples_that_it_began_with(trainer):
    bench = Workbench(trainer, searching())
    with bench.aside():
        engine = bench.make_engine(None)
        bench.evaluate()
    record = engine.record
    record.baseline, record.data["judging"] = Measurement(1, 1, 0.5), bench.judged_on("accuracy").data
    same = find_sets(trainer, searching(), Parts())
    check_same_examples(record, same)
    assert indices(same.judging) == indices(bench.sets.judging)
    trainer.eval_dataset = Rows(100, 1)  # the same rows in another object
    check_same_examples(record, find_sets(trainer, searching(), Parts()))
    for other in (Rows(99, 1), Rows(100, 2)):
        trainer.eval_dataset = other
        with pytest.raises(MPrunerError, match="verdicts of this run so far are of other examples"):
            Workbench(trainer, searching()).make_engine(record)
    trainer.eval_dataset = Rows(100, 1)
    with pytest.raises(MPrunerError, match=r"seed: 0 \(now 1\)"):
        check_same_examples(record, find_sets(trainer, searching(seed=1), Parts()))
    with pytest.raises(MPrunerError, match=r"drawn from: 100 \(now None\)"):
        check_same_examples(record, find_sets(trainer, comparing(), Parts()))


def test_a_loader_that_the_trainer_keeps_is_not_mistaken_for_that_of_the_part(make_bert, tmp_path):
    trainer = build_trainer(
        make_bert(num_labels=2), tmp_path, dataloader_num_workers=1, dataloader_persistent_workers=True
    )
    whole = Rows(40, 1)
    trainer.eval_dataset, trainer.compute_metrics = whole, lambda p: {**accuracy(p), "count": len(p.label_ids)}
    bench = Workbench(trainer, searching())
    assert trainer.evaluate()["eval_count"] == 40
    with bench.aside():
        assert bench.evaluate()["count"] == 32
    assert trainer.evaluate()["eval_count"] == 40
    bench = Workbench(trainer, searching("metric_drop", metric="count"))
    with bench.aside():
        record = bench.make_engine(None).record
        record.metric, record.greater_is_better = "count", True
        assert bench._scores._evaluate() == 8, "the examples that choose"


def test_a_promise_is_made_on_the_part_that_judges(trainer, tmp_path):
    config = PruningConfig(threshold=0.0, max_metric_drop=0.5, confidence=0.9, calibration_samples=16, max_rounds=1)
    callback = LayerPruningCallback(trainer, config)
    trainer.add_callback(callback)
    trainer.train()
    record = callback.record
    assert [round_.verdict for round_ in record.rounds] == ["accepted"]
    assert (
        record.baseline.num_examples
        == record.rounds[0].after.num_examples
        == record.rounds[0].bound["num_examples"]
        == 84
    )
    assert [record.data[role]["num_examples"] for role in ("calibration", "judging")] == [16, 84]
    told = "same data that judged the rounds"
    assert told not in " ".join(limits(callback.report, config, None))
    page = callback.report.to_html()
    for words in (
        "part of the evaluation set, 84 examples",
        "part of the evaluation set, 16 examples",
        "drawn from 100",
    ):
        assert words in page


@pytest.mark.parametrize("start_epoch", [0, 1])
def test_a_judging_set_on_which_no_cut_could_pass_is_refused_before_any_training(trainer, start_epoch):
    trainer.eval_dataset = Rows(50, 1)
    config = PruningConfig(max_metric_drop=0.05, confidence=0.95, start_epoch=start_epoch)
    trainer.add_callback(LayerPruningCallback(trainer, config))
    needed = smallest_sample(0.05, TestLevels(0.05, 3).next([]))
    too_few = rf"40 examples are too few .* at least {needed} are needed at this confidence"
    with pytest.raises(
        MPrunerError, match=rf"{too_few}.* All 50 judge if you pass calibration=\.\.\., a part of the training set"
    ):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_judging_set_on_which_hardly_a_cut_can_pass_is_told(trainer, caplog):
    trainer.eval_dataset = Rows(100, 1)
    config = PruningConfig(max_metric_drop=0.05, confidence=0.95, calibration_samples=16, max_rounds=1)
    trainer.add_callback(LayerPruningCallback(trainer, config))
    trainer.train()
    spare = spare_losses(84, 0.05, TestLevels(0.05, 3).next([]), most=3)
    assert spare < 3
    assert f"84 examples judge: a cut that makes none of them better may make {spare or 'none'}" in caplog.text


@pytest.mark.parametrize("level", [0.025, 0.05])
def test_so_many_outcomes_may_be_lost_and_no_more(level):
    before = Outcomes("binary", (1,) * 150, 1.0, 150)
    spare = spare_losses(150, 0.1, level, most=20)
    for lost in (spare, spare + 1):
        after = Outcomes("binary", (0,) * lost + (1,) * (150 - lost), 1 - lost / 150, 150)
        bound = bound_drop(before, after, greater_is_better=True, max_drop=0.1, level=level)
        assert bound.holds == (lost == spare)
    assert 0 < spare < 15


def test_in_cycles_each_fresh_trainer_judges_by_the_same_part(tmp_path):
    source, trainers = save_bert(tmp_path / "source"), []

    def make_trainer(path):
        trainer = build_trainer(BertForSequenceClassification.from_pretrained(path), tmp_path / "training")
        trainer.eval_dataset = Watched(size)
        trainers.append(trainer)
        return trainer

    config = PruningConfig(threshold=0.0, max_metric_drop=0.5, confidence=0.9, calibration_samples=16, max_rounds=1)
    size = 100
    record = prune_in_cycles(make_trainer, source, config, output_dir=tmp_path / "out").record
    assert [round_.verdict for round_ in record.rounds] == ["accepted"]
    first, second = (trainer.eval_dataset.read for trainer in trainers)
    judged = second[-84:]  # only the first is measured on
    assert len(set(judged)) == 84
    assert judged in [first[start : start + 84] for start in range(len(first))]
    assert len(set(first) - set(judged)) == 16
    assert not set(second) - set(judged)
    assert (record.data["calibration"]["num_examples"], record.data["judging"]["drawn_from"]) == (16, 100)
    size = 99
    with pytest.raises(MPrunerError, match=r"drawn from: 100 \(now 99\)"):
        prune_in_cycles(make_trainer, source, config, output_dir=tmp_path / "out")


def test_a_training_is_not_gone_on_with_by_other_examples(make_bert, tmp_path):
    def train(data, **how):
        trainer = build_trainer(make_bert(num_labels=2), tmp_path, save_strategy="epoch")
        trainer.eval_dataset = data
        config = PruningConfig(threshold=0.0, max_metric_drop=0.5, confidence=0.9, calibration_samples=16)
        trainer.add_callback(LayerPruningCallback(trainer, config))
        trainer.train(**how)
        return trainer

    train(Rows(100, 1))
    with pytest.raises(MPrunerError, match="verdicts of this run so far are of other examples"):
        train(Rows(101, 1), resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    train(Rows(100, 1), resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
