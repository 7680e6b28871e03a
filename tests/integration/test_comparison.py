"""`compare_criteria` on tiny models: every figure of the table can be had by hand, and nothing is computed twice."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from transformers import BertForSequenceClassification, set_seed

from cycles_kit import save_bert
from hf_mpruner import Comparison, MPrunerError, PruningConfig, PruningPlan, apply_plan_, compare_criteria
from hf_mpruner import find_block_stacks as stacks_of
from hf_mpruner.comparison import run as run_module
from hf_mpruner.criteria import Criterion
from trainer_kit import STACK, Rows, build_trainer

CONFIG = PruningConfig(metric="loss", calibration_samples=8, calibration_batch_size=4, recovery_epochs=1)


class First(Criterion):
    """Removes the first layers, and keeps what it saw."""

    name = "first"

    def __init__(self, name="first", values=(0.0, 1.0, 2.0, 3.0), needs=frozenset({"data"})):
        self.name, self.values, self.needs, self.seen = name, values, needs, []

    def score(self, inputs):
        if self.needs:
            self.seen.append((inputs.seed, [batch["input_ids"].tolist() for batch in inputs.each_batch()]))
        return {STACK: self.values}


class Spoils(First):
    """Leaves every weight of the model at zero, which it must not."""

    def score(self, inputs):
        with torch.no_grad():
            for parameter in inputs.model.parameters():
                parameter.zero_()
        return {STACK: self.values}


class Chance(First):
    def score(self, inputs):
        return {STACK: torch.rand(4, generator=torch.Generator().manual_seed(inputs.seed))}


class Measures(First):
    """Asks for the loss and for the metric."""

    needs = frozenset({"loss", "metric"})

    def score(self, inputs):
        self.seen.append((inputs.mean_loss(), inputs.evaluate()))
        return {STACK: self.values}


class Fails(First):
    def score(self, inputs):
        raise RuntimeError("there is no\n such thing")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("source"), 4)


class Script:
    """A user's `make_trainer`."""

    def __init__(self, folder, **arguments):
        self.folder, self.arguments, self.calls = folder, arguments, []

    def __call__(self, path, seed):
        self.calls.append(seed)
        model = BertForSequenceClassification.from_pretrained(path)
        arguments = {"logging_strategy": "no", "learning_rate": 1e-2, **self.arguments}
        return build_trainer(model, self.folder, **{"seed": seed, **arguments})


@pytest.fixture
def script(tmp_path):
    return Script(tmp_path / "training")


@pytest.fixture
def trained(monkeypatch):
    """Plans and seeds that were trained, by the seed."""
    seeds, original = [], run_module.recover

    def count(trainer, seed, epochs):
        seeds.append(seed)
        return original(trainer, seed, epochs)

    monkeypatch.setattr(run_module, "recover", count)
    return seeds


def compare(script, source, output_dir, criteria, num_layers=(3, 2), seeds=(0, 1), config=CONFIG, **more):
    return compare_criteria(
        script, source, config, criteria=criteria, num_layers=num_layers, seeds=seeds,
        **{"calibration": Rows(12, 3), "output_dir": output_dir, **more},
    )  # fmt: skip


def by_hand(script, source, kept, seed, trains):
    """The loss of a model that was cut, and trained, without any comparison."""
    set_seed(seed)
    trainer = script(source, seed)
    apply_plan_(trainer.model, PruningPlan.from_kept({STACK: kept}, stacks_of(trainer.model)))
    if trains:
        set_seed(seed)
        trainer.args.num_train_epochs = 1
        trainer.train()
    return trainer.evaluate()["eval_loss"]


def test_every_figure_is_what_one_would_get_by_hand(script, source, tmp_path):
    first, chance = First(), Chance("chance")
    found = compare(script, source, tmp_path / "out", ["tail", first, chance])
    drawn = [row.kept for row in found.rows if row.criterion == "chance"]
    assert drawn[0][0] != drawn[0][1] or drawn[1][0] != drawn[1][1], "seeds draw alike"
    kept = {"tail": ([0, 1, 2], [0, 1]), "first": ([1, 2, 3], [2, 3])}
    for row in found.rows:
        if row.criterion in kept:
            assert row.kept == ({STACK: kept[row.criterion][row.target == "2"]},) * 2
        for place, seed in enumerate(found.seeds):
            layers = row.kept[place][STACK]
            assert row.before[place] == by_hand(script, source, layers, seed, trains=False)
            if row.target == "2":  # how deep the cut is makes no difference to the recovery
                assert row.after[place] == by_hand(script, source, layers, seed, trains=True)
    assert found.uncut.before[0] == by_hand(script, source, range(4), 0, trains=False)
    assert found.uncut.after == tuple(by_hand(script, source, range(4), seed, trains=True) for seed in (0, 1))
    assert len(set(found.uncut.after)) == 2, "a seed must change the recovery"
    assert [row.num_layers for row in found.rows] == [{STACK: 3}] * 3 + [{STACK: 2}] * 3


def test_all_criteria_see_the_same_examples_and_each_seed_draws_others(script, source, tmp_path):
    one, other = First("one"), First("other")
    compare(
        script,
        source,
        tmp_path / "out",
        [one, other],
        num_layers=[2],
        config=dataclasses.replace(CONFIG, recovery_epochs=0),
    )
    assert one.seen == other.seen
    assert [seed for seed, _ in one.seen] == [0, 1]
    assert one.seen[0][1] != one.seen[1][1]
    assert [len(batch) for batch in one.seen[0][1]] == [4, 4]


def test_what_chooses_is_measured_on_the_calibration_sample(script, source, tmp_path):
    looked = []

    def evaluate_sample(trainer, sample):
        looked.append([row["input_ids"].tolist() for row in sample])
        return {"loss": trainer.evaluate(sample)["eval_loss"]}

    measures, saw = Measures("measures"), First("saw")
    options = {"config": dataclasses.replace(CONFIG, recovery_epochs=0), "num_layers": [2], "seeds": [5]}
    compare(script, source, tmp_path / "out", [measures, saw], evaluate_sample=evaluate_sample, **options)
    (loss, metric) = measures.seen[0]
    assert loss == pytest.approx(-metric, abs=1e-6)  # a loss: higher is better
    assert looked[0] == [row for batch in saw.seen[0][1] for row in batch]
    again = Measures("again")
    compare(script, source, tmp_path / "out", [again], **options)
    assert again.seen == measures.seen


def test_same_layers_are_judged_and_trained_once(script, source, tmp_path, trained):
    found = compare(script, source, tmp_path / "out", [First("one"), "tail", First("other", (0.5, 0.7, 9.0, 9.9))])
    assert len(trained) == 2 * (1 + 2 + 2), "uncut, two depths of one, two of tail; each with two seeds"
    one, other = (next(row for row in found.rows if row.criterion == name) for name in ("one", "other"))
    assert one.after == other.after
    assert found.twins(one) == ["other"]
    assert found.behind_best(max((one, other), key=lambda row: found.at(3).index(row))).mean >= 0


def test_a_finished_cell_is_not_computed_again_and_more_may_be_asked_for(script, source, tmp_path, trained):
    compare(script, source, tmp_path / "out", ["tail"], num_layers=[3])
    before = len(trained)
    again = compare(script, source, tmp_path / "out", ["tail"], num_layers=[3])
    assert len(trained) == before
    more = compare(script, source, tmp_path / "out", ["tail", First()], num_layers=[3, 2], seeds=[0, 1, 2])
    assert len(trained) == before + 1 + 1 + 3 + 3 + 3
    assert more.rows[0].after[:2] == again.rows[0].after
    assert Comparison.load(tmp_path / "out") == more


def test_scores_of_other_code_or_of_fewer_removals_are_not_taken_for_its_own(script, source, tmp_path, monkeypatch):
    options = {"config": dataclasses.replace(CONFIG, recovery_epochs=0), "seeds": [0]}
    first = First()
    compare(script, source, tmp_path / "out", [first], num_layers=[3], **options)
    compare(script, source, tmp_path / "out", [first], num_layers=[3], **options)
    assert len(first.seen) == 1
    compare(script, source, tmp_path / "out", [first], num_layers=[2], **options)
    assert len(first.seen) == 2
    monkeypatch.setattr(run_module, "code_of", lambda criterion: "other")
    compare(script, source, tmp_path / "out", [first], num_layers=[2], **options)
    assert len(first.seen) == 3


@pytest.mark.parametrize(
    "moment", ["judge", *(pytest.param(moment, marks=pytest.mark.slow) for moment in ("score", "train", "write"))]
)
def test_a_run_that_was_interrupted_goes_on_to_the_same_table(script, source, tmp_path, monkeypatch, moment):
    criteria = [First(), Chance("chance")]
    config = dataclasses.replace(CONFIG, recovery_epochs=1)
    whole = compare(script, source, tmp_path / "whole", criteria, num_layers=[2], config=config)
    calls = [0]

    def interrupt(original, at):
        def call(*args, **kwargs):
            calls[0] += 1
            if calls[0] == at:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        name, at = {"score": ("score", 2), "train": ("recover", 3), "judge": ("judge", 4), "write": ("judge", 6)}[
            moment
        ]
        patch.setattr(run_module, name, interrupt(getattr(run_module, name), at))
        with pytest.raises(KeyboardInterrupt):
            compare(script, source, tmp_path / "out", criteria, num_layers=[2], config=config)
    found = compare(script, source, tmp_path / "out", criteria, num_layers=[2], config=config)
    assert timeless(found) == timeless(whole)


def timeless(comparison):
    def strip(row):
        scoring = {key: value for key, value in row.scoring.items() if key != "seconds"}
        return dataclasses.replace(row, latency_seconds=None, recovery_seconds=None, scoring=scoring)

    return strip(comparison.uncut), [strip(row) for row in comparison.rows]


def test_a_criterion_that_fails_or_spoils_its_model_is_its_own_rows_only(script, source, tmp_path):
    options = {"num_layers": [2], "seeds": [0]}
    alone = compare(script, source, tmp_path / "alone", [First()], **options)
    needy = First("needy", needs=frozenset({"gradients", "metric"}))
    needy.values = (float("nan"),) * 4
    found = compare(script, source, tmp_path / "out", [Fails("fails"), Spoils("spoils"), needy, First()], **options)
    rows = {row.criterion: row for row in found.rows}
    assert rows["fails"].failed == "with seed 0: RuntimeError: there is no such thing"
    assert "score of layer 0" in rows["needy"].failed
    assert rows["spoils"].after == rows["first"].after == alone.rows[0].after
    assert [row.criterion for row in found.at(2)][-2:] == ["fails", "needy"]
    assert "fails failed at 2: with seed 0: RuntimeError: there is no such thing" in str(found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"criteria": ["cka", "block_influense"]}, r"block_influense.*Did you mean 'block_influence'"),
        ({"criteria": []}, "criteria is empty"),
        ({"num_layers": [5]}, "has only 4 layers"),
        ({"num_layers": [4]}, "removes no layer"),
        ({"num_layers": ["encoder:2"]}, r"'encoder' is no block stack.*bert\.encoder\.layer"),
        ({"num_layers": [1], "config": PruningConfig(protect=[0, 1])}, "at most 2 can go"),
        ({"seeds": 0}, "seeds is empty"),
        ({"calibration": None}, "calibration is missing: first measure on data"),
        ({"calibration": []}, "calibration data is empty"),
        ({"calibration": iter([])}, "read once only"),
        ({"config": PruningConfig(target_size="50%")}, r"PruningConfig\(target_size='50%'.*numbers of layers"),
        ({"config": PruningConfig(target_num_layers=[3])}, r"makes no use of PruningConfig\(target_num_layers.*num_layers="),
    ],
)  # fmt: skip
def test_what_no_criterion_could_do_is_refused_before_anything_is_computed(
    script, source, tmp_path, trained, change, message
):
    arguments = {"criteria": [First()], "num_layers": [2], "seeds": [0], **change}
    with pytest.raises((ValueError, MPrunerError), match=message):
        compare(script, source, tmp_path / "out", **arguments)
    assert not trained
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, r"a function of one folder only.*make_trainer\(path, seed\)"),
        (lambda path, seed: path, "returned str, not a Trainer"),
        (lambda path, seed: Script("t", seed=7)(path, seed), r"seed=7.*seed=seed"),
        (lambda path, seed: Script("t", data_seed=7)(path, seed), r"data_seed=7.*data_seed=seed"),
    ],
)  # fmt: skip
def test_a_function_that_makes_no_fair_trainer_is_refused(make, source, tmp_path, monkeypatch, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((TypeError, ValueError), match=f"(?s){message}"):
        compare(make, source, tmp_path / "out", ["tail"])


def test_a_function_that_loads_another_model_is_refused(source, tmp_path):
    other = save_bert(tmp_path / "other", 4, seed=8)
    with pytest.raises(MPrunerError, match="has other values"):
        compare(lambda path, seed: Script(tmp_path)(other, seed), source, tmp_path / "out", ["tail"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"config": dataclasses.replace(CONFIG, calibration_samples=6)}, r"config.calibration_samples=8 \(now 6\)"),
        ({"calibration": Rows(12, 4)}, "data.calibration.digest="),
        ({"script": {"learning_rate": 1e-3}}, r"training.learning_rate=0.01 \(now 0.001\)"),
    ],
)  # fmt: skip
def test_a_folder_with_other_settings_is_refused(script, source, tmp_path, change, told):
    options = {"num_layers": [3], "seeds": [0]}
    compare(script, source, tmp_path / "out", ["tail"], **options)
    kept = sorted(path.name for path in (tmp_path / "out").rglob("*"))
    other = Script(tmp_path / "training", **change.pop("script", {}))
    with pytest.raises(MPrunerError, match=f"holds a comparison with other settings.*{told}"):
        compare(other, source, tmp_path / "out", ["tail"], **options, **change)
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == kept


def test_examples_that_choose_and_judge_are_warned_of(script, source, tmp_path, caplog):
    options = {"num_layers": [3], "seeds": [0], "config": dataclasses.replace(CONFIG, recovery_epochs=0)}
    found = compare(script, source, tmp_path / "out", ["tail"], calibration=Rows(16, 1), **options)
    assert "16 of the examples that choose the layers are also among those that judge" in caplog.text
    assert not found.recovers
    assert found.rows[0].after == ()
    assert "after" not in str(found).splitlines()[0]


def test_the_random_state_is_left_alone(script, source, tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    compare(script, source, tmp_path / "out", ["tail"], num_layers=[3], seeds=[0])
    assert torch.equal(torch.rand(1), expected)


def test_cells_are_plain_files_and_nothing_else_is_left(script, source, tmp_path):
    compare(script, source, tmp_path / "out", ["tail"], num_layers=[3], seeds=[0])
    names = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert [name for name in names if not name.startswith("cells/")] == ["comparison.json", "comparison_settings.json"]
    assert len(names) == 2 + 1 + 2 + 2
    for name in names:
        text = (tmp_path / "out" / name).read_text()
        json.loads(text)
        assert str(tmp_path) not in text


def test_a_depth_may_name_stacks_of_an_encoder_decoder(tmp_path):
    from datasets import Dataset
    from transformers import T5Config, T5ForConditionalGeneration, Trainer, TrainingArguments

    sizes = {"vocab_size": 20, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "decoder_start_token_id": 0}
    torch.manual_seed(0)
    T5ForConditionalGeneration(T5Config(num_layers=3, num_decoder_layers=4, **sizes)).save_pretrained(tmp_path / "t5")
    rows = Dataset.from_list([{"input_ids": [3, 4, 5, i], "labels": [6, i]} for i in range(7, 19)])

    def make(path, seed):
        args = TrainingArguments(str(tmp_path / "t"), seed=seed, report_to="none", use_cpu=True, disable_tqdm=True)
        model = T5ForConditionalGeneration.from_pretrained(path)
        return Trainer(model, args, train_dataset=rows.select(range(8)), eval_dataset=rows.select(range(8, 12)))

    config = PruningConfig(metric="loss", calibration_samples=8, calibration_batch_size=4, recovery_epochs=0)
    found = compare_criteria(
        make, tmp_path / "t5", config, criteria=["tail", "cka", "loss"], seeds=1, calibration=rows.select(range(8)),
        num_layers=["decoder.block:2", ["encoder.block:2", "decoder.block:3"], 2], output_dir=tmp_path / "out",
    )  # fmt: skip
    assert not [row.failed for row in found.rows if row.failed]
    tail = {row.target: row.kept[0] for row in found.rows if row.criterion == "tail"}
    assert tail == {
        "decoder.block:2": {"encoder.block": [0, 1, 2], "decoder.block": [0, 1]},
        "encoder.block:2,decoder.block:3": {"encoder.block": [0, 1], "decoder.block": [0, 1, 2]},
        "2": {"encoder.block": [0, 1], "decoder.block": [0, 1]},
    }
    assert found.targets == ("decoder.block:2", "encoder.block:2,decoder.block:3", "2")
    assert found.rows[1].scoring["forward_passes"] == 1.0


def test_examples_without_labels_do_for_those_that_need_no_loss(script, source, tmp_path):
    rows = [{name: value for name, value in row.items() if name != "labels"} for row in Rows(12, 3)]
    options = {"num_layers": [3], "seeds": [0], "config": dataclasses.replace(CONFIG, recovery_epochs=0)}
    found = compare(script, source, tmp_path / "out", ["block_influence", "loss", "tail"], calibration=rows, **options)
    failed = {row.criterion: row.failed for row in found.rows if row.failed}
    assert set(failed) == {"loss"}
    assert "with seed 0" in failed["loss"]
    assert "loss" in failed["loss"]
