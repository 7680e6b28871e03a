"""`hf-mpruner narrow`: a folder with a narrower model that transformers alone loads, or nothing."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification

from hf_mpruner import PruningPlan, WidthPlan, apply_width_plan_, find_block_stacks
from hf_mpruner.card import ModelFacts
from hf_mpruner.card.front import read_metadata
from hf_mpruner.cli import main
from hf_mpruner.narrowing import NarrowingReport, NarrowingRound, render_narrowing_card
from text_kit import lines, make_tokenizer


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("narrow")
    tokenizer = make_tokenizer(pairs=True)
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(**sizes, vocab_size=len(tokenizer), pad_token_id=0))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"text": line, "label": number % 2} for number, line in enumerate(lines())]
    Dataset.from_list(rows).to_csv(folder / "rows.csv", index=False)
    return folder


def run(world, *words):
    return main(["narrow", str(world / "model"), "--dataset", str(world / "rows.csv"), *map(str, words)])


def test_a_narrower_model_is_written_and_its_plan_replays_it(world, tmp_path, capsys):
    folder = tmp_path / "narrower"
    assert run(world, "--fraction", 0.25, "--multiple_of", 4, "--output_dir", folder, "--format", "json") == 0
    printed = json.loads(capsys.readouterr().out)
    narrowed = BertForSequenceClassification.from_pretrained(folder)
    assert narrowed.config.intermediate_size == 20  # 18 of 24, up to a multiple of 4
    assert printed["preview"]["parameters_after"] == sum(p.numel() for p in narrowed.parameters())
    assert json.loads((folder / "narrowing_report.json").read_text())["plan"] == printed["plan"]
    assert (folder / "tokenizer_config.json").is_file()
    fresh = BertForSequenceClassification.from_pretrained(world / "model")
    plan = WidthPlan.from_pretrained(folder)
    assert plan.source_model is None  # a folder of this machine says nothing elsewhere
    apply_width_plan_(fresh, plan)
    for one, other in zip(fresh.parameters(), narrowed.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.fixture(scope="module")
def narrower(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("narrowed") / "narrower"
    assert run(world, "--fraction", 0.25, "--criterion", "l1", "--output_dir", folder) == 0
    return folder


@pytest.mark.parametrize("name", ["", "width_plan.json"])
def test_a_plan_is_replayed_without_data(world, narrower, tmp_path, capsys, name):
    words = ["narrow", world / "model", "--plan", narrower / name]
    assert main([*map(str, words), "--dry_run"]) == 0
    assert "24 -> 18 in each of 2 layers" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert main([*map(str, words), "--output_dir", str(tmp_path / "again"), "--format", "json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["data"] == {}
    for file in ("model.safetensors", "width_plan.json", "config.json", "tokenizer.json"):
        assert (tmp_path / "again" / file).read_bytes() == (narrower / file).read_bytes()
    assert json.loads((tmp_path / "again" / "narrowing_report.json").read_text())["preview"] == printed["preview"]


def test_a_plan_that_does_not_fit_is_refused_before_weights_are_read(world, narrower, tmp_path, capsys):
    (tmp_path / "config").mkdir()
    shutil.copy(narrower / "config.json", tmp_path / "config")  # no weights there
    assert (
        main(["narrow", str(tmp_path / "config"), "--plan", str(narrower), "--output_dir", str(tmp_path / "out")]) == 1
    )
    assert "has 18 there. Was it applied already?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_plan_of_layers_is_sent_to_apply(world, tmp_path, capsys):
    stacks = find_block_stacks(BertForSequenceClassification.from_pretrained(world / "model"))
    PruningPlan.from_kept({"bert.encoder.layer": [0]}, stacks).save_pretrained(tmp_path)
    assert main(["narrow", str(world / "model"), "--plan", str(tmp_path), "--dry_run"]) == 2
    assert "holds a plan of layers, which apply takes: hf-mpruner apply" in capsys.readouterr().err


def test_the_card_says_what_was_measured_and_its_code_runs(world, narrower, tmp_path, capsys, monkeypatch):
    card = (narrower / "README.md").read_text()
    report = NarrowingReport.load(narrower)
    assert report == NarrowingReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert f"{report.preview.parameters_before:,} -> {report.preview.parameters_after:,} parameters" in card
    assert "12 of 48 feed-forward neurons removed, chosen by `l1`" in card
    assert "| feed-forward neurons | 2 | 24 | 18 |" in card
    assert "No evaluation judged this" in card
    assert "sample of the split train" in card
    monkeypatch.chdir(narrower)
    namespace = {"original": BertForSequenceClassification.from_pretrained(world / "model")}
    for block in re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL):
        exec(block, namespace)
    assert namespace["original"].config.intermediate_size == 18
    folder = shutil.copytree(narrower, tmp_path / "narrower")
    (folder / "README.md").write_text(card + "\nWords of a person.\n")
    assert main(["card", str(folder), "--repo_id", "ann/small", "--license", "mit", "--base_model", "ann/bert"]) == 0
    card = (folder / "README.md").read_text()
    assert "Words of a person." in card
    assert 'from_pretrained("ann/small")' in card
    assert "hf-mpruner narrow ann/bert --plan ann/small --output_dir out" in card
    assert "license: mit" in card
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "intermediate_size": 24}))
    capsys.readouterr()
    assert main(["card", str(folder)]) == 1
    assert "leaves 18 of 24 neurons that" in capsys.readouterr().err


def test_a_card_of_rounds_has_their_metric(world, narrower):
    report = NarrowingReport.load(narrower)
    rounds = tuple(NarrowingRound(n + 1, 6, 900 - n, 0.75 - n / 4, n / 4, n == 0) for n in range(2))
    judged = {"judging": {"source": "evaluation set", "dataset": "ann/rows", "split": "test", "num_examples": 8}}
    report = replace(report, rounds=rounds, metric_name="accuracy", baseline=0.75, data=judged)
    card = render_narrowing_card(report, model=ModelFacts.of_folder(narrower), title="small")
    assert "**accuracy**: 0.7500 -> 0.7500 (better by 0.0000) on 8 examples of [ann/rows]" in card
    assert "| round 2 | 899 | 0.5000 | +0.2500 | taken back |" in card
    assert "No evaluation judged this" not in card
    metadata = read_metadata(card)
    assert metadata["metrics"] == ["accuracy"]
    assert metadata["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.75


def test_a_dry_run_writes_nothing(world, tmp_path, capsys):
    assert run(world, "--fraction", 0.5, "--criterion", "l1", "--dry_run") == 0
    assert "24 -> 12 in each of 2 layers" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--fraction", 0.5], 2, "--output_dir is missing"),
        (["--fraction", 1.5, "--dry_run"], 2, "no fraction from 0 to 1"),
        (["--fraction", 0.5, "--criterion", "cca", "--dry_run"], 2, "'cca' is not known. Did you mean 'cka'?"),
        (
            ["--fraction", 0.5, "--plan", "narrower", "--dry_run"],
            2,
            "--dataset is for measuring, and --plan says what goes",
        ),
        (["--plan_revision", "v1", "--dry_run"], 2, "--plan_revision is of a plan from the Hub"),
        (["--fraction", 0.5, "--what", "heads", "--dry_run"], 1, "divides a width among the heads"),
    ],
)
def test_wrong_use_ends_before_the_data_is_read(world, capsys, words, code, text):
    missing = ["narrow", str(world / "model"), "--dataset", str(world / "missing.csv"), *map(str, words)]
    assert main(missing) == code
    assert text in capsys.readouterr().err


def test_inspect_says_what_could_get_narrower(world, capsys):
    assert main(["inspect", str(world / "model"), "--width"]) == 0
    printed = capsys.readouterr().out
    assert "narrower: 24 neurons in each of 2 layers, by intermediate_size" in printed
    assert "not narrower: config.num_attention_heads = 2 divides a width" in printed
    assert main(["inspect", str(world / "model"), "--format", "json"]) == 0
    assert "width" not in json.loads(capsys.readouterr().out)
