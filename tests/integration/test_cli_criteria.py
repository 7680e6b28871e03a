"""Criteria and numbers of layers on the command line: the whole road, a dry run, an analysis and its plan, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification

from hf_mpruner.cli import main
from hf_mpruner.plan import PruningPlan
from hf_mpruner.report import PruningReport
from text_kit import lines, make_tokenizer

pytestmark = pytest.mark.usefixtures("no_pictures")

STACK = "bert.encoder.layer"
QUICK = ["--calibration_samples", "16", "--calibration_batch_size", "8", "--max_metric_drop", "1"]


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys):
    def call(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    tokenizer = make_tokenizer(pairs=True)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "max_position_embeddings": 64}
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), num_hidden_layers=4, **sizes))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"text": line, "label": i % 2} for i, line in enumerate(lines())]
    (folder / "data").mkdir()
    Dataset.from_list(rows[:24]).to_csv(folder / "data" / "train.csv", index=False)
    Dataset.from_list(rows[24:40]).to_csv(folder / "data" / "validation.csv", index=False)
    Dataset.from_list([{"text": row["text"]} for row in rows]).to_csv(folder / "unlabelled.csv", index=False)
    return folder


@pytest.mark.parametrize(
    ("criterion", "recovery_epochs"),
    [("greedy_loss", 1), ("block_influence", 0), ("metric_drop", 1), ("loss", 0), ("mixture", 1)],
)
def test_prune_takes_the_whole_road(criterion, recovery_epochs, world, tmp_path, run):
    out = tmp_path / "smaller"
    result = run(
        "prune", world / "model", "--dataset", world / "data", "--criterion", criterion, "--target_num_layers", 2,
        "--recovery_epochs", recovery_epochs, "--output_dir", out, *QUICK,
    )  # fmt: skip
    assert result.code == 0, result.err
    assert f"layers are scored by {criterion} on 16 examples" in result.err
    report = PruningReport.load(out)
    assert report.record.stopped == "target reached"
    assert len(BertForSequenceClassification.from_pretrained(out).get_submodule(STACK)) == 2
    (round_,) = report.rounds
    assert round_.scores["criterion"] == round_.criterion == criterion
    assert f"chosen by `{criterion}`" in (out / "README.md").read_text()
    assert (out / "plots" / f"scores_round_1_{STACK}.png").is_file()
    if criterion == "loss":  # one for each layer
        assert round_.scores["cost"]["forward_passes"] == 4.0


def test_an_analysis_prints_scores_and_a_plan_that_apply_takes(world, tmp_path, run):
    where = ["--dataset", world / "data", "--target_num_layers", 2, "--layers_per_round", 1, *QUICK[:4]]
    table = run(
        "analyze", world / "model", *where, "--criterion", "greedy_loss", "--output_dir", tmp_path / "analysis"
    )
    assert table.code == 0, table.err
    assert f"{STACK}: greedy_loss" in table.out
    assert table.out.count("  goes") == 2
    assert table.out.count("  stays") == 2
    assert "cost: 7 forward passes over the calibration data" in table.out  # four layers, then three
    assert "4 -> 2 layers, without" in table.out
    assert sorted(file.name for file in (tmp_path / "analysis").iterdir()) == [
        "pruning_plan.json", "scores.json", f"scores_{STACK}.png",
    ]  # fmt: skip
    assert "--threshold" not in table.err
    values = json.loads(run("analyze", world / "model", *where, "--criterion", "greedy_loss", "--format", "json").out)
    plan = PruningPlan.from_pretrained(tmp_path / "analysis")
    assert values["plan"]["stacks"] == plan.to_dict()["stacks"]
    assert values["scores"][STACK]["order"] == sorted(
        plan.stacks[STACK].removed, key=values["scores"][STACK]["order"].index
    )
    applied = run("apply", world / "model", "--plan", tmp_path / "analysis", "--output_dir", tmp_path / "smaller")
    assert applied.code == 0, applied.err
    (round_,) = PruningReport.load(tmp_path / "smaller").rounds
    assert round_.criterion == "greedy_loss"
    assert round_.scores["scores"][STACK]["values"] == values["scores"][STACK]["values"]
    card = (tmp_path / "smaller" / "README.md").read_text()
    assert "chosen by `greedy_loss`" in card
    assert "CKA)" not in card


def test_an_analysis_by_cka_has_its_matrix_and_without_a_number_its_thresholds(world, tmp_path, run):
    where = ["--dataset", world / "data", *QUICK[:4]]
    by_number = run(
        "analyze", world / "model", *where, "--target_num_layers", 3, "--output_dir", tmp_path / "analysis"
    )
    assert by_number.code == 0, by_number.err
    assert {"similarity_bert.encoder.layer.json", "scores.json"} <= {f.name for f in (tmp_path / "analysis").iterdir()}
    assert "threshold" in run("analyze", world / "model", *where).out


def test_a_dry_run_shows_the_first_round_and_writes_nothing(world, tmp_path, run):
    words = ["--dataset", world / "data", "--target_num_layers", 1, "--layers_per_round", 2, "--dry_run", *QUICK]
    result = run("prune", world / "model", *words, "--criterion", "tail", "--format", "quiet")
    assert (result.code, result.out) == (0, f"{STACK}: 4 -> 2 layers, without 2-3\n")


def test_a_plan_for_a_limit_that_apply_takes(world, tmp_path, run):
    where = ["--dataset", world / "data", "--criterion", "tail", *QUICK[:4]]
    by_size = run("analyze", world / "model", *where, "--target_size", "80%", "--output_dir", tmp_path / "analysis")
    assert by_size.code == 0, by_size.err
    assert "--target_size 80%" in by_size.err  # the command to type next
    applied = run("apply", world / "model", "--plan", tmp_path / "analysis", "--output_dir", tmp_path / "smaller")
    assert applied.code == 0, applied.err
    before, after = (
        (folder / "model.safetensors").stat().st_size for folder in (world / "model", tmp_path / "smaller")
    )
    assert after <= 0.8 * before
    by_time = run("analyze", world / "model", *where, "--target_latency", "10s", "--target_num_layers", "3")
    assert by_time.code == 0, by_time.err
    assert "4 -> 3 layers" in by_time.out


@pytest.mark.parametrize(("data", "judge"), [("data", "loss"), ("unlabelled.csv", "output_change")])
def test_a_mixture_is_judged_by_labels_where_there_are_any(data, judge, world, run):
    words = ["--dataset", world / data, "--criterion", "mixture", "--target_num_layers", 3, *QUICK[:4]]
    split = [] if data == "data" else ["--split", "train"]
    result = run("analyze", world / "model", *words, *split, "--format", "json")
    assert result.code == 0, result.err
    details = json.loads(result.out)["scores"][STACK]["details"]
    assert details["judged_by"] == judge
    table = run("analyze", world / "model", *words, *split).out
    assert f"{STACK}: as {details['proposals'][0]['members'][0]}" in table


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--criterion", "tail", "--target_parameters", "1"], 2, "--target_parameters='1' cannot be reached"),
        (["--criterion", "tail", "--target_size", "5 apples"], 2, "target_size='5 apples' is no limit"),
        (["--criterion", "greedy_los", "--target_num_layers", "2"], 2, "Did you mean 'greedy_loss'? Known criteria: "),
        (["--criterion", "loss"], 2, "does not say how many go: pass target_num_layers=6"),
        (["--criterion", "loss", "--target_num_layers", "9"], 2, "'bert.encoder.layer' has only 4 layers"),
        (["--criterion", "tail", "--target_num_layers", "1", "--protect", "0", "1"], 2, "so at most 2 can go"),
        (
            ["--criterion", "metric_drop", "--target_num_layers", "2"],
            2,
            "nothing evaluates here. hf-mpruner prune can.",
        ),
    ],
)
def test_analyze_refuses(words, code, message, world, run):
    result = run("analyze", world / "model", "--dataset", world / "data", *words, *QUICK[:4])
    assert (result.code, result.out) == (code, "")
    assert message in result.err


def test_prune_refuses_before_anything_is_trained(world, tmp_path, run):
    where = ["prune", world / "model", "--dataset", world / "data", "--output_dir", tmp_path / "out"]
    unknown = run(*where, "--criterion", "nothing", "--target_num_layers", 2)
    assert unknown.code == 2
    assert "Known criteria" in unknown.err
    too_few = run(*where, "--criterion", "tail", "--target_num_layers", 2, "--protect", "0", "1", "2", *QUICK)
    assert too_few.code == 1
    assert "so at most 1 can go" in too_few.err
    unlabelled = run("analyze", world / "model", "--dataset", world / "unlabelled.csv", "--split", "train",
                     "--criterion", "loss", "--target_num_layers", 2)  # fmt: skip
    assert unlabelled.code == 2
    assert not (tmp_path / "out").exists()


def test_auto_shows_a_plan_for_every_number_and_finds_the_number_by_training(run, world, tmp_path):
    auto = [world / "model", "--dataset", world / "data", *QUICK, "--threshold", "auto", "--criterion", "cka"]
    shown = run("analyze", *auto, "--output_dir", tmp_path / "analysis", "--protect", "-1")
    assert shown.code == 0, shown.err
    assert "at most 3 times" in shown.out
    listed = json.loads(run("analyze", *auto, "--protect", "-1", "--format", "json").out)
    plans = [one["removed"][STACK] for one in listed["candidates"]]
    assert [len(plan) for plan in plans] == [1, 2, 3]
    assert set(plans[0]) < set(plans[1]) < set(plans[2]) == {0, 1, 2}
    assert 0 not in plans[1]  # the first layer of a cluster stays; only of all three it goes, too
    sizes = [one["parameters"] for one in listed["candidates"]]
    assert sizes == sorted(sizes, reverse=True)
    assert PruningPlan.from_pretrained(tmp_path / "analysis").stacks[STACK].removed == tuple(plans[0])

    dry = run("prune", *auto, "--protect", "-1", "--dry_run", "--format", "json")
    assert json.loads(dry.out)["plan"]["stacks"][STACK]["kept"] == [
        layer for layer in range(4) if layer not in plans[0]
    ]

    found = run("prune", *auto, "--batch_size", 16, "--output_dir", tmp_path / "smaller")
    assert found.code == 0, found.err
    record = PruningReport.load(tmp_path / "smaller").record
    assert record.search["numbers"] == [1, 2, 3]
    assert len(record.rounds) <= record.search["most_recoveries"] == 3
    assert record.stopped.startswith(("no further layer can go", "the search is over"))  # the epochs were enough
    assert "may need" not in found.err
    assert f"recoveries: {len(record.rounds)} of at most 3" in found.out


@pytest.fixture
def many_rows(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for split, first, last in (("train", 0, 24), ("validation", 100, 180), ("test", 200, 240)):
        rows = [{"text": f"{lines()[i % 24]} {i}", "label": i % 2} for i in range(first, last)]
        Dataset.from_list(rows).to_csv(folder / f"{split}.csv", index=False)
    return folder


PROMISED = ["--confidence", "0.9", "--max_metric_drop", "0.5", "--calibration_samples", "16", "--max_rounds", "1"]


def test_with_a_promise_labels_that_choose_are_taken_from_the_examples_that_judge(world, many_rows, tmp_path, run):
    words = ["prune", world / "model", "--dataset", many_rows, *PROMISED, "--layers_per_round", 1]
    for epochs, flags, role, split, numbers in (
        (1, ["--criterion", "loss"], "choosing", "validation", (16, 64)),
        (0, ["--criterion", "loss", "--choosing_split", "test"], "choosing", "test", (16, 80)),
        (0, ["--criterion", "cka"], "calibration", "train", (16, 80)),
        (0, ["--criterion", "cka", "--calibration_split", "validation"], "calibration", "validation", (16, 64)),
    ):
        out = tmp_path / f"{'-'.join(flags)}{epochs}"
        result = run(*words, *flags, "--recovery_epochs", epochs, "--output_dir", out)
        assert result.code == 0, result.err
        assert f"on {numbers[0]} examples, {numbers[1]} judge." in result.err
        assert "Warning" not in result.err
        record = PruningReport.load(out).record
        assert record.baseline.num_examples == record.rounds[0].bound["num_examples"] == numbers[1]
        assert (record.data[role]["split"], record.data["judging"]["split"]) == (split, "validation")
        assert record.data[role].get("drawn_from") == (80 if split == "validation" else None)
        assert {"calibration", "choosing"} & set(record.data) == {role}
        assert "same data that judged" not in (out / "README.md").read_text()


def test_a_split_to_choose_by_that_nothing_chooses_by_is_refused(world, many_rows, tmp_path, run):
    words = [
        "prune",
        world / "model",
        "--dataset",
        many_rows,
        "--choosing_split",
        "other",
        "--output_dir",
        tmp_path / "o",
    ]
    refused = run(*words, "--criterion", "loss", "--layers_per_round", 1)
    assert (refused.code, "nothing is kept apart" in refused.err) == (2, True)
    refused = run(*words, *PROMISED)
    assert (refused.code, "--criterion cka reads no labels" in refused.err) == (2, True)
