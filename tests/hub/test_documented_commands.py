"""Every `hf-mpruner` command of README, docs and --help is run as it is written, on small real things of these names.

`MODEL`, `DATA`, `smaller` ... are folders where the command starts; the Hub's names are on the loopback Hub.
"""

from __future__ import annotations

import itertools
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
    shutil.copytree(folder / "MODEL", folder / "my-model")
    from hf_mpruner import find_block_stacks

    stacks = find_block_stacks(build_empty(load_config(str(folder / "MODEL"))))
    plan = PruningPlan.from_kept({"bert.encoder.layer": [0, 1, 3]}, stacks, model_type="bert")
    plan.save_pretrained(folder / "analysis")
    shutil.copy(folder / "analysis" / "pruning_plan.json", folder / "plan.json")
    words = ["apply", folder / "MODEL", "--plan", folder / "plan.json", "--output_dir", folder / "smaller"]
    assert main([str(word) for word in words]) == 0
    shutil.copytree(folder / "smaller", folder / "runs" / "pruned")
    return folder


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
    repo.tags["v1"] = repo.branches["main"]
    return hub


def run_command(folder, words):
    """Exit code of a command that is started in a folder, and what it says."""
    import contextlib
    import io
    import os

    from hf_mpruner.cli import main

    os.chdir(folder)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
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
    assert all((here / name).exists() for name in written)
    pushed = [word for before, word in itertools.pairwise(words) if before == "--push_to_hub"]
    pushed += words[2:3] if words[0] == "push" else []
    if pushed and "--dry_run" not in words and "--create_pr" not in words:
        assert "model.safetensors" in documented_hub.store.repo(pushed[0]).files()


def test_commands_were_found_on_every_page_and_in_every_help():
    assert {shlex.split(command)[0] for command in FOUND} == set(COMMANDS)
    assert {"README.md", "docs/hub.md", "prune --help"} <= set(FOUND.values())
