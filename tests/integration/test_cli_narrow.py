"""`hf-mpruner narrow`: a folder with a narrower model that transformers alone loads, or nothing."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification

from hf_mpruner import WidthPlan, apply_width_plan_
from hf_mpruner.cli import main
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
