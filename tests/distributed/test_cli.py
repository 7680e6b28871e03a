"""`accelerate launch -m hf_mpruner ...`: two processes, one that speaks and writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from hf_mpruner import PruningPlan, PruningReport

WORDS = ("[PAD]", "[UNK]", "red", "blue", "the", "is")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny classifier with its tokenizer, and data."""
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("world")
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        folder / "bert"
    )
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertForSequenceClassification(BertConfig(vocab_size=8, **sizes)).save_pretrained(folder / "bert")
    rows = [{"text": f"the {WORDS[2 + i % 2]} is {WORDS[i % 6]}", "label": i % 2} for i in range(24)]
    (folder / "data").mkdir()
    Dataset.from_list(rows[:16]).to_csv(folder / "data" / "train.csv", index=False)
    Dataset.from_list(rows[16:]).to_csv(folder / "data" / "validation.csv", index=False)
    return folder


def launch(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "MASTER_"))
    }
    environment |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    command = [sys.executable, "-m", *launcher, "-m", "hf_mpruner", *map(str, words)]
    return subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=150, check=False
    )


def test_two_processes_prune_as_one_command(world, tmp_path):
    done = launch(
        world, "prune", "bert", "--dataset", "data", "--output_dir", tmp_path / "out", "--format", "json",
        "--threshold", 0.5, "--protect", -1, "--max_metric_drop", 1, "--num_train_epochs", 1, "--distillation_weight", 0.5,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)  # once, by one process
    report = PruningReport.load(tmp_path / "out")
    assert report.record.world_size == 2
    assert printed["report"]["record"]["rounds"] == report.to_dict()["record"]["rounds"]
    assert done.stderr.count("Round 1: cut to") == 1
    kept = PruningPlan.from_pretrained(tmp_path / "out").kept["bert.encoder.layer"]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert len(model.bert.encoder.layer) == len(kept) < 4
    assert sum(p.numel() for p in model.parameters()) == report.after.parameters


@pytest.mark.slow
def test_two_processes_share_the_data_of_an_analysis(world, tmp_path, capsys, monkeypatch):
    from hf_mpruner.cli import main

    words = [
        "analyze",
        "bert",
        "--dataset",
        "data",
        "--split",
        "train",
        "--format",
        "json",
        "--calibration_batch_size",
        "4",
    ]
    done = launch(world, *words, "--output_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)  # once, by one process
    monkeypatch.chdir(world)
    assert main(words) == 0
    alone = json.loads(capsys.readouterr().out)
    assert printed["similarity"].keys() == alone["similarity"].keys()
    for path, found in printed["similarity"].items():
        assert found["num_samples"] == alone["similarity"][path]["num_samples"] == 16
        expected = torch.tensor(alone["similarity"][path]["values"], dtype=torch.float64)
        assert torch.allclose(torch.tensor(found["values"], dtype=torch.float64), expected, rtol=0, atol=1e-12)
    assert printed["plan"]["stacks"] == alone["plan"]["stacks"]
    assert PruningPlan.from_pretrained(tmp_path / "out").to_dict()["stacks"] == alone["plan"]["stacks"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["inspect", "bert"],
            "hf-mpruner inspect runs in one process, but the launcher started 2: leave out 'accelerate launch'.",
        ),
        (["prune", "bert", "--dataset", "data", "--dry_run"], "hf-mpruner prune --dry_run runs in one process"),
        (
            ["prune", "bert", "--dataset", "data", "--recovery_epochs", "0", "--output_dir", "o"],
            "hf-mpruner prune --recovery_epochs 0 runs in one process, but the launcher started 2: leave out "
            "'accelerate launch'. Or pass --recovery_epochs 1 or more.",
        ),
    ],
    ids=["inspect", "dry_run", "no recovery"],
)
def test_what_one_process_does_is_said(words, message, monkeypatch, capsys):
    from hf_mpruner.cli import main

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(words) == 2
    assert f"hf-mpruner: rank 1: error: {message}" in capsys.readouterr().err
