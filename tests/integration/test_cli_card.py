"""`hf-mpruner card`: the card again from a folder, what a person wrote kept, folders that do not fit refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from hf_mpruner.artifacts import write_artifacts
from hf_mpruner.card.front import read_metadata
from hf_mpruner.cli import main
from hf_mpruner.config import PruningConfig
from hf_mpruner.oneshot import prune_
from hf_mpruner.plan import PruningPlan, StackPlan

STACK = "bert.encoder.layer"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a pruned model, as `prune` writes it."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 99}
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=4, num_labels=3, **sizes)).eval()
    config = PruningConfig(threshold=0.0, protect=["2"])
    generator = torch.Generator().manual_seed(0)
    examples = [{"input_ids": torch.randint(1, 99, (6,), generator=generator)} for _ in range(16)]
    report = prune_(model, config, calibration=examples)
    return write_artifacts(tmp_path_factory.mktemp("made") / "small", model=model, report=report, config=config)


@pytest.fixture
def folder(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "small")
    return tmp_path / "small"


@pytest.fixture
def run(capsys):
    def call(*words):
        code = main(["card", *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def contents(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_folder_comes_out_as_it_was(folder, run):
    before = contents(folder)
    code, out, err = run(folder)
    assert (code, err) == (0, f"Next: hf-mpruner push {folder} NAMESPACE/NAME\n")
    assert contents(folder) == before
    assert str(folder / "README.md") in out.splitlines()
    assert str(folder / "plots" / "layers.png") in out.splitlines()


def test_lost_card_page_and_plots_are_made_again(folder, run):
    before = contents(folder)
    (folder / "README.md").unlink()
    (folder / "report.html").unlink()
    shutil.rmtree(folder / "plots")
    assert run(folder)[0] == 0
    assert contents(folder) == before


def test_metadata_of_the_user(folder, run):
    words = [
        "--license",
        "mit",
        "--language",
        "en",
        "no",
        "--tags",
        "mine",
        "--base_model",
        "google-bert/bert-base-cased",
    ]
    code, _, err = run(folder, *words, "--repo_id", "ann/tiny")
    assert (code, err) == (0, f"Next: hf-mpruner push {folder} ann/tiny\n")
    text = (folder / "README.md").read_text()
    metadata = read_metadata(text)
    assert (metadata["license"], metadata["language"]) == ("mit", ["en", "no"])
    assert (metadata["base_model"], metadata["base_model_relation"]) == ("google-bert/bert-base-cased", "finetune")
    assert "mine" in metadata["tags"]
    assert 'from_pretrained("ann/tiny")' in text
    assert "hf-mpruner apply google-bert/bert-base-cased --plan ann/tiny --output_dir out" in text
    # said once is enough
    assert run(folder, "--repo_id", "ann/tiny")[0] == 0
    assert (folder / "README.md").read_text().count("google-bert/bert-base-cased") == text.count(
        "google-bert/bert-base-cased"
    )


def test_what_a_person_wrote_stays_and_is_said(folder, run):
    text = (folder / "README.md").read_text().replace("# small\n", "# Mine\n\nMy words.\n")
    (folder / "README.md").write_text(text.replace("---\n", "---\nlicense: apache-2.0\n", 1))
    code, _, err = run(folder, "--license", "mit")
    assert code == 0
    assert "README.md already said license: 'apache-2.0', which was kept. Change it there by hand." in err
    assert "# Mine\n\nMy words.\n" in (folder / "README.md").read_text()
    (folder / "README.md").write_text("---\nlicense: mine\n---\n# Mine\n")
    code, _, err = run(folder)
    assert code == 0
    assert "Warning: The Hub would refuse this README.md: license is 'mine'" in err


def test_dry_run_and_output_leave_the_folder_alone(folder, run, tmp_path):
    before = contents(folder)
    code, out, err = run(folder, "--license", "mit", "--dry_run")
    assert (code, "Dry run: nothing was written" in err) == (0, True)
    assert read_metadata(out)["license"] == "mit"
    code, text, _ = run(folder, "--license", "mit", "--output", tmp_path / "card.md")
    assert (code, text.strip()) == (0, str(tmp_path / "card.md"))
    assert (tmp_path / "card.md").read_text() == out.removesuffix("\n")
    assert contents(folder) == before
    code, values, _ = run(folder, "--license", "mit", "--dry_run", "--format", "json")
    assert json.loads(values) == {"written": [], "card": out.removesuffix("\n")}


def test_a_record_alone_is_enough(folder, run):
    before = (folder / "README.md").read_bytes()
    for name in ("report.json", "pruning_plan.json", "README.md"):
        (folder / name).unlink()
    assert run(folder)[0] == 0
    assert (folder / "README.md").read_bytes() == before


def damage_report(folder):
    (folder / "report.json").unlink()
    (folder / "pruning_record.json").unlink()


def damage_depths(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))


def damage_class(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "distilbert", "architectures": ["DistilBertForSequenceClassification"]}
    (folder / "config.json").write_text(json.dumps(config))


def damage_plan(folder):
    PruningPlan({STACK: StackPlan(4, (0, 1))}).save_pretrained(folder)


def damage_names(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["architectures"]
    (folder / "config.json").write_text(json.dumps(config))


REFUSED = {
    "no report": (damage_report, 2, "has no report.json and no pruning_record.json, and no narrowing_report.json: a card says only what was measured"),
    "not a report": (lambda f: (f / "report.json").write_text("{}"), 2, "is none of hf_mpruner's: KeyError('record')"),
    "no model": (lambda f: (f / "config.json").unlink(), 1, "there is no config.json. Pass the folder that save_pretrained"),
    "no class": (damage_names, 1, "names no class ('architectures' is None)"),
    "other depths": (
        damage_depths, 1,
        "leaves 2 layers in 'bert.encoder.layer', but the model there (BertForSequenceClassification) has 3 layers: they "
        "are not of one run. Put the report.json that belongs to this model beside it.",
    ),
    "another model": (damage_class, 1, "(DistilBertForSequenceClassification) has no such stack"),
    "another plan": (
        damage_plan, 1,
        "keeps [0, 1] of 'bert.encoder.layer', but the report there keeps [0, 2] of 'bert.encoder.layer': they are not",
    ),
    "metadata that is no YAML": (
        lambda f: (f / "README.md").write_text("---\na: [1\n---\n"), 1, "is no YAML: while parsing",
    ),
    "another encoding": (
        lambda f: (f / "README.md").write_bytes(b"\xff\xfe"), 1, "README.md' is not in UTF-8",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "code", "message"), REFUSED.values(), ids=REFUSED)
def test_a_folder_that_does_not_fit_is_refused_and_left_alone(damage, code, message, folder, run):
    damage(folder)
    before = contents(folder)
    found, out, err = run(folder)
    assert (found, out) == (code, "")
    assert message in err
    assert err.count("\n") == 1
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repo_id", "./small"], "repo_id='./small' is a path"),
        (["--base_model", "/tmp/x"], "--base_model /tmp/x is no model id of the Hub (OWNER/NAME). Leave it out"),
        (["--license", "Apache2"], "none of the Hub's (did you mean 'apache-2.0'?): write 'other'"),
        (["--license", "mine"], "license is 'mine', which is none of the Hub's: write 'other'"),
        (["--language", "english"], "language[0] is 'english', not an ISO 639 code"),
    ],
)
def test_words_that_the_hub_does_not_take(words, message, folder, run):
    before = contents(folder)
    code, _, err = run(folder, *words)
    assert code == 2
    assert message in err
    assert contents(folder) == before


def test_no_folder(tmp_path, run):
    code, _, err = run(tmp_path / "nothing")
    assert code == 2
    assert f"'{tmp_path / 'nothing'}' is no folder. Name the one that hf-mpruner prune or apply wrote." in err
