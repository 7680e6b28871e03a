"""What is committed in model_cards/: each card says what its report says, each plan fits, and no machine is named."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch

from hf_mpruner import PruningConfig, PruningPlan, PruningReport, apply_plan_
from hf_mpruner.card import BEGIN, END, ModelFacts, check_card, render_card
from hf_mpruner.hub.leaks import Secrets, find_leaks

ROOT = Path(__file__).parents[2]
CARDS = ROOT / "model_cards"
NAMES = sorted(path.name for path in CARDS.iterdir() if path.is_dir())
MAKERS = {
    "bert-docstrings": ("text_classification", "offline_model_and_data"),
    "llama-python-source": ("causal_lm", "offline_model_and_data"),
    "resnet-digits": ("image_classification", "offline_model_and_data"),
    "t5-character-names": ("question_generation", "offline_model_and_data"),
    "vit-digits": ("quickstart", "digits_model_and_data"),
}
NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?")


@pytest.fixture(autouse=True)
def _examples_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    with torch.random.fork_rng(devices=[]):
        yield


def test_the_models_of_the_examples_are_all_there():
    assert sorted(MAKERS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_card_says_what_the_report_says(name):
    folder = CARDS / name
    text = (folder / "README.md").read_text()
    check_card(text)
    report = PruningReport.load(folder)
    ours = text[text.index(BEGIN) : text.index(END)]
    assert report.to_markdown() in ours, "a new form of the table? python reproduce/model_cards.py --render_only"
    pictures = sorted(f"plots/{file.name}" for file in (folder / "plots").glob("*.png"))
    again = render_card(
        report,
        model=ModelFacts.of_folder(folder),
        config=PruningConfig.from_pretrained(folder),
        title=name,
        pictures=pictures,
    )
    known = set(NUMBER.findall(again[again.index(BEGIN) : again.index(END)]))
    unknown = set(NUMBER.findall(ours[len(BEGIN) :])) - known
    assert not unknown, f"the card has numbers that its report does not have: {sorted(unknown)}"
    assert {f"]({picture})" for picture in pictures} <= set(re.findall(r"\]\(plots/[^)]*\)", ours))
    drops = [round_.drop for round_ in report.rounds if round_.verdict == "accepted"]
    assert drops
    assert max(drops) <= PruningConfig.from_pretrained(folder).max_metric_drop


@pytest.mark.parametrize("name", NAMES)
def test_what_was_printed_is_of_the_same_run(name):
    folder = CARDS / name
    printed = (folder / "printed.txt").read_text()
    report = PruningReport.load(folder)
    assert str(report.plan) in printed
    introduction = (folder / "README.md").read_text().partition(BEGIN)[0]
    quoted = re.findall(r"^- (.*)$", introduction.partition("# ")[2], re.MULTILINE)
    assert quoted
    assert all(line in printed for line in quoted)


@pytest.mark.parametrize("name", NAMES)
def test_the_index_says_what_the_report_says(name):
    (row,) = (line for line in (CARDS / "README.md").read_text().splitlines() if line.startswith(f"| [{name}]"))
    report = PruningReport.load(CARDS / name)
    before, after = report.before, report.after
    assert before is not None
    assert after is not None
    assert f"| {before.parameters:,} -> {after.parameters:,} |" in row
    assert f"| {report.record.metric} {before.metric:.4f} -> {after.metric:.4f} |" in row
    assert "; ".join(f"{stack.depth} -> {len(stack.kept)}" for stack in report.plan.stacks.values()) in row


def test_the_table_of_the_front_page_is_the_quickstarts():
    assert PruningReport.load(CARDS / "vit-digits").to_markdown() in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_the_plan_fits_the_model_of_the_script(name):
    """A fresh model of the script, cut as the plan says, has the size that the report has measured."""
    script, make = MAKERS[name]
    model = getattr(import_module(script), make)()[0]
    report, plan = PruningReport.load(CARDS / name), PruningPlan.from_pretrained(CARDS / name)
    assert plan.stacks == report.plan.stacks
    assert model.num_parameters() == report.before.parameters
    apply_plan_(model, plan)
    assert model.num_parameters() == report.after.parameters


@pytest.mark.parametrize("name", [*NAMES, "README.md"])
def test_no_machine_is_named_and_no_file_is_large(name):
    where = CARDS / name
    files = sorted(path for path in where.rglob("*") if path.is_file()) if where.is_dir() else [where]
    secrets = Secrets.of_machine(extra_paths=[ROOT])
    for file in files:
        assert file.stat().st_size < 500_000, file
        assert file.suffix in {".md", ".json", ".html", ".png", ".txt"}, file
        assert not find_leaks(file, secrets), file
        if file.suffix != ".png":
            text = file.read_text()
            assert not re.search(r"(?<![\w.])/(?:home|Users|root|tmp|var|work|mnt)/", text), file
            assert socket.gethostname() not in text or len(socket.gethostname()) < 4, file
            assert "HOSTNAME" not in os.environ or os.environ["HOSTNAME"] not in text, file
