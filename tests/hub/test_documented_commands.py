"""Every `hf-mpruner` command of README, docs and --help is run as it is written, on small real things of these names.

`MODEL`, `DATA`, `smaller` ... are folders where the command starts; the Hub's names are on the loopback Hub.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from hf_mpruner.cli import COMMANDS, main
from hf_mpruner.cli import EXAMPLES as FRONT_EXAMPLES

ROOT = Path(__file__).parents[2]
WORDS = ("[PAD]", "[UNK]", "red", "blue", "the", "is", "a", "was")
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 4}
# Repositories of docs/cli.md -> the task whose tiny model stands in for them.
OTHERS = {
    "dslim/bert-base-NER": "token-classification",
    "deepset/bert-base-cased-squad2": "question-answering",
    "openai-community/gpt2": "text-generation",
    "google-t5/t5-small": "text2text-generation",
}
# Folders that a command writes, so that they are not there before it.
OUTPUTS = ("--output_dir", "--output")


def find_commands() -> dict[str, str]:
    """`{command: where it stands}` of pages and of every --help, each once."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").glob("*.md"))]
    texts = {page.relative_to(ROOT).as_posix(): page.read_text() for page in pages}
    texts |= {f"{name} --help": import_module(f"hf_mpruner.cli.{name}").EXAMPLES for name in COMMANDS}
    texts["--help"] = FRONT_EXAMPLES
    found: dict[str, str] = {}
    for where, text in texts.items():
        lines = [line.strip().removeprefix("$ ") for line in re.sub(r"\\\n\s*", " ", text).splitlines()]
        for line in lines:
            words = shlex.split(line, comments=True) if line.startswith("hf-mpruner ") else []
            if len(words) > 2 and words[1] in COMMANDS:
                found.setdefault(shlex.join(words[1:]), where)
    return found


FOUND = find_commands()


def make_text_data(folder: Path, text: str = "text") -> None:
    from datasets import Dataset

    rows = [{text: f"the {WORDS[2 + i % 2]} is {WORDS[2 + i % 6]}", "label": i % 2} for i in range(40)]
    folder.mkdir(parents=True)
    for name, part in {"train": rows[:24], "validation": rows[24:32], "test": rows[32:]}.items():
        Dataset.from_list(part).to_csv(folder / f"{name}.csv", index=False)


def make_text_model(folder: Path, kind: str = "BertForSequenceClassification") -> None:
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")
    torch.manual_seed(0)
    getattr(transformers, kind)(transformers.BertConfig(vocab_size=9, **SIZES)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_image_world(folder: Path) -> None:
    import numpy as np
    import torch
    from PIL import Image
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    pixels = np.random.default_rng(0).integers(0, 255, (30, 8, 8, 3), dtype=np.uint8)
    for i, values in enumerate(pixels):
        place = folder / "images" / ("train" if i < 20 else "validation") / str(i % 2)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(place / f"{i}.png")
    torch.manual_seed(0)
    config = ViTConfig(image_size=8, patch_size=4, num_labels=2, id2label={0: "0", 1: "1"}, **SIZES)
    ViTForImageClassification(config).save_pretrained(folder / "vit")
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder / "vit")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that each command starts in a copy of."""
    from hf_mpruner import PruningPlan
    from hf_mpruner.cli.models import build_empty, load_config

    folder = tmp_path_factory.mktemp("documented") / "world"
    make_text_data(folder / "DATA")
    make_text_data(folder / "rows", text="body")
    (folder / "rows" / "train.csv").rename(folder / "rows.csv")
    shutil.rmtree(folder / "rows")
    make_text_model(folder / "MODEL")
    make_image_world(folder)
    make_other_tasks(folder)
    for name in ("tasks", "sets"):  # the Hub's
        (folder / name).rename(folder.parent / name)
    shutil.copytree(folder / "MODEL", folder / "my-model")
    from hf_mpruner import find_block_stacks

    stacks = find_block_stacks(build_empty(load_config(str(folder / "MODEL"))))
    plan = PruningPlan.from_kept({"bert.encoder.layer": [0, 1, 3]}, stacks, model_type="bert")
    plan.save_pretrained(folder / "analysis")
    shutil.copy(folder / "analysis" / "pruning_plan.json", folder / "plan.json")
    words = ["apply", folder / "MODEL", "--plan", folder / "plan.json", "--output_dir", folder / "smaller"]
    assert main([str(word) for word in words]) == 0
    shutil.copytree(folder / "smaller", folder / "runs" / "pruned")
    words = ["narrow", folder / "MODEL", "--dataset", folder / "DATA", "--fraction", "0.25", "--criterion", "l1"]
    assert main([str(word) for word in (*words, "--output_dir", folder / "narrower")]) == 0
    return folder


METRIC = """
import datasets
import evaluate


class Metric(evaluate.Metric):
    def _info(self):
        value = datasets.Value("{value}")
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="",
            features=datasets.Features({{"predictions": value, "references": value}}),
        )

    def _compute(self, predictions, references, average=None):
        share = sum(p == r for p, r in zip(predictions, references)) / len(references)
        return {{name: share for name in {names}}}
"""
# Space -> what its script takes, and the names of what it returns.
METRICS = {
    "accuracy": ("int32", ["accuracy"]),
    "f1": ("int32", ["f1"]),
    "glue": ("int32", ["accuracy", "f1"]),
    "rouge": ("string", ["rouge1", "rougeL"]),
}
CONFIG = """---
configs:
- config_name: {name}
  data_files:
  - split: train
    path: train.jsonl
  - split: validation
    path: validation.jsonl
---
"""


def make_metric(value: str, names: list[str]) -> bytes:
    return METRIC.format(value=value, names=names).encode()


def make_other_tasks(folder: Path) -> None:
    """Models and data that docs/cli.md names: `hub/{repository}` for the Hub's, the others where a command starts."""
    import torch
    from datasets import Dataset
    from transformers import GPT2Config, GPT2LMHeadModel

    from tasks_kit import make_tokenizer, pair_rows, question_rows, save_models, tagged_rows, text_rows

    save_models(folder / "tasks")
    words = make_tokenizer(template=None)
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=len(words), n_embd=32, n_layer=4, n_head=4, bos_token_id=5)).save_pretrained(
        folder / "tasks" / "text-generation"
    )
    Dataset.from_list(tagged_rows()).to_json(folder / "conll.json")
    translations = [{"translation": {"en": row["source"], "de": row["target"]}} for row in pair_rows()]
    Dataset.from_list(translations).to_parquet(folder / "pairs.parquet")
    pairs = [
        {"sentence1": f"the {WORDS[2 + i % 6]}", "sentence2": " ".join(WORDS[2 : 3 + i % 5]), "label": i % 2}
        for i in range(16)
    ]
    (folder / "metrics" / "mine").mkdir(parents=True)
    (folder / "metrics" / "mine" / "mine.py").write_bytes(make_metric("int32", ["mine"]))
    dialogues = [{"dialogue": row["source"], "summary": row["target"]} for row in pair_rows()]
    sets = {
        "Salesforce/wikitext": ("wikitext-2-raw-v1", text_rows()),
        "rajpurkar/squad_v2": ("squad_v2", question_rows()),
        "knkarthick/dialogsum": ("default", dialogues),
        "nyu-mll/glue": ("mrpc", pairs),
    }
    for name, (config, rows) in sets.items():
        (folder / "sets" / name).mkdir(parents=True)
        (folder / "sets" / name / "README.md").write_text(CONFIG.format(name=config))
        for split in ("train", "validation"):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / "sets" / name / f"{split}.jsonl").write_text(lines)


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def documented_hub(hub: Any, world: Path, tmp_path: Path) -> Any:
    """The names of the Hub that the pages use; what a command before has pushed is gone."""
    hub.store.repos.clear()
    make_text_model(tmp_path / "base", "BertForMaskedLM")
    hub.add_repo("google-bert/bert-base-uncased", files_of(tmp_path / "base"))
    hub.add_repo("dair-ai/emotion", files_of(world / "DATA"), kind="dataset")
    hub.add_repo("ann/bert", files_of(tmp_path / "base"))
    repo = hub.add_repo("org/pruned-model", {"pruning_plan.json": (world / "plan.json").read_bytes()})
    for name, task in OTHERS.items():
        hub.add_repo(name, files_of(world.parent / "tasks" / task))
    for owner in (world.parent / "sets").iterdir():
        for data in owner.iterdir():
            hub.add_repo(f"{owner.name}/{data.name}", files_of(data), kind="dataset")
    for name, (value, names) in METRICS.items():
        hub.add_repo(f"evaluate-metric/{name}", {f"{name}.py": make_metric(value, names)}, kind="space")
    repo.tags["v1"] = repo.branches["main"]
    return hub


def run_command(folder, words):
    """Exit code of a command that is started in a folder, and what it says."""
    import contextlib
    import io
    import os
    from unittest.mock import patch

    from hf_mpruner.cli import main

    os.chdir(folder)
    out, err = io.StringIO(), io.StringIO()
    quick = patch(
        "hf_mpruner.report.plots.to_png", return_value=b"png"
    )  # half of a command's time, and tested elsewhere
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), quick:
        code = main(words)
    return [code, out.getvalue(), err.getvalue()]


@pytest.mark.parametrize("command", FOUND, ids=lambda command: f"{FOUND[command]}: {command[:70]}")
def test_a_documented_command_does_what_it_says(documented_hub, client, world, tmp_path, command):
    here, words = tmp_path / "here", shlex.split(command)
    shutil.copytree(world, here)
    if "images/" in words:
        shutil.rmtree(here / "MODEL")
        (here / "vit").rename(here / "MODEL")
    written = [words[words.index(flag) + 1] for flag in OUTPUTS if flag in words]
    for name in written:
        shutil.rmtree(here / name, ignore_errors=True)
    code, out, err = client.call(run_command, folder=str(here), words=words)
    assert code == 0, err
    assert out.strip()
    assert "%|" not in err, "a progress bar, although nobody looks at a terminal"
    assert all((here / name).exists() for name in written)
    pushed = [word for before, word in itertools.pairwise(words) if before == "--push_to_hub"]
    pushed += words[2:3] if words[0] == "push" else []
    if pushed and "--dry_run" not in words and "--create_pr" not in words:
        assert "model.safetensors" in documented_hub.store.repo(pushed[0]).files()


def test_commands_were_found_on_every_page_and_in_every_help():
    assert {shlex.split(command)[0] for command in FOUND} == set(COMMANDS)
    assert {"README.md", "docs/hub.md", "prune --help"} <= set(FOUND.values())
