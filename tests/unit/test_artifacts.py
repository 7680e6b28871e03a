"""The output folder: what is in it, that it is the live model, and every folder that is refused."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hf_mpruner.artifacts import check_saved_model, find_pictures, write_artifacts
from hf_mpruner.card import check_card
from hf_mpruner.config import PruningConfig
from hf_mpruner.errors import MPrunerError
from hf_mpruner.heads import find_auto_class
from hf_mpruner.oneshot import prune_
from hf_mpruner.plan import PruningPlan
from hf_mpruner.report import PruningReport
from hf_mpruner.storage import check_output_dir

CONFIG = PruningConfig(threshold=0.0, protect=["2"])


@pytest.fixture
def pruned(make_bert):
    model = make_bert()
    generator = torch.Generator().manual_seed(0)
    examples = [{"input_ids": torch.randint(1, 99, (6,), generator=generator)} for _ in range(16)]
    return model, prune_(model, CONFIG, calibration=examples)


def write(folder: Path, pruned: tuple, **kwargs: object) -> Path:
    model, report = pruned
    return write_artifacts(folder, model=model, report=report, config=CONFIG, **kwargs)


def test_folder_is_complete_and_loads_without_us(pruned, tmp_path, weight_digest):
    folder = write(tmp_path / "out", pruned)
    model, report = pruned
    assert sorted(entry.name for entry in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "plots",
        "pruning_config.json",
        "pruning_plan.json",
        "pruning_record.json",
        "report.html",
        "report.json",
    ]
    assert (folder / "plots" / "similarity_round_1_bert.encoder.layer.png").is_file()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"], "a draft was left behind"
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    assert weight_digest(loaded) == weight_digest(model)
    assert PruningPlan.from_pretrained(folder) == report.plan
    assert PruningConfig.from_pretrained(folder) == CONFIG
    assert PruningReport.load(folder).to_dict() == report.to_dict()


def test_the_card_says_what_was_measured_and_its_code_runs(pruned, tmp_path, monkeypatch, make_bert):
    folder = write(tmp_path / "small", pruned)
    text = (folder / "README.md").read_text()
    _, report = pruned
    check_card(text)
    assert "\n# small\n" in text
    assert report.to_markdown() in text
    assert "2 of 4 layers removed" in text
    assert "| `bert.encoder.layer` | 4 | 2 | 1, 3 | 0, 2 |" in text
    assert str(tmp_path) not in text
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
    assert "plots/similarity_round_1_bert.encoder.layer.png" in pictures
    for picture in pictures:
        assert (folder / picture).is_file()
    monkeypatch.chdir(folder)
    names = {"original": make_bert()}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    assert names["model"].config.num_hidden_layers == 2
    assert len(names["original"].bert.encoder.layer) == 2


@pytest.mark.parametrize(
    "theirs",
    ["# Mine\n\nMy words.\n", "---\nlicense: mit # mine\n---\n\n# Mine\r\n\r\nMy words.\r\n"],
    ids=["text", "more"],
)
def test_overwriting_keeps_what_a_person_wrote_in_the_card(theirs, pruned, tmp_path):
    folder = write(tmp_path / "out", pruned)
    (folder / "README.md").write_bytes(theirs.encode())
    write(folder, pruned, overwrite=True)
    text = (folder / "README.md").read_bytes().decode()
    assert theirs[theirs.index("# Mine") :] in text
    assert "2 of 4 layers removed" in text
    write(folder, pruned, overwrite=True)
    assert (folder / "README.md").read_bytes().decode() == text


@pytest.mark.parametrize(
    "theirs", [b"---\na: [1\n---\n# Mine\n", "# Gr\u00fc\u00dfe\n".encode("latin-1")], ids=["YAML", "latin-1"]
)
def test_a_card_that_cannot_be_read_stays_beside_the_new_one(theirs, pruned, tmp_path, caplog):
    folder = write(tmp_path / "out", pruned)
    (folder / "README.md").write_bytes(theirs)
    write(folder, pruned, overwrite=True)
    assert (folder / "README.before.md").read_bytes() == theirs
    check_card((folder / "README.md").read_text())
    assert "The README.md that was there is now README.before.md: " in caplog.text


def test_a_card_that_fails_costs_no_model(pruned, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("hf_mpruner.artifacts.render_card", lambda *args, **kwargs: 1 / 0)
    folder = write(tmp_path / "out", pruned)
    assert AutoModelForSequenceClassification.from_pretrained(folder).config.num_hidden_layers == 2
    assert not (folder / "README.md").exists()
    assert f"its card is not: division by zero. Try again: hf-mpruner card {folder}" in caplog.text


def test_pictures_of_before_are_named_where_nothing_can_be_drawn(tmp_path):
    assert find_pictures(tmp_path) == []
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "layers.png").touch()
    assert find_pictures(tmp_path) == ["plots/layers.png"]


def test_processor_goes_with_the_model(pruned, tmp_path):
    from transformers import ViTImageProcessorPil

    write(tmp_path / "out", pruned, processing_class=ViTImageProcessorPil())
    assert "image_mean" in json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())


def test_random_state_is_untouched(pruned, tmp_path):
    before = torch.get_rng_state()
    write(tmp_path / "out", pruned)
    assert torch.equal(before, torch.get_rng_state())


def test_overwrite_replaces_the_whole_folder(pruned, tmp_path):
    folder = write(tmp_path / "out", pruned)
    (folder / "old.txt").write_text("old")
    with pytest.raises(
        FileExistsError, match=r"holds another model \('config.json', 'model.safetensors'\).*--overwrite"
    ):
        write(folder, pruned)
    write(folder, pruned, overwrite=True)
    assert not (folder / "old.txt").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_is_used(pruned, tmp_path):
    (tmp_path / "out").mkdir()
    assert (write(tmp_path / "out", pruned) / "config.json").is_file()


def test_failure_leaves_the_old_folder_and_nothing_else(pruned, tmp_path):
    folder = write(tmp_path / "out", pruned)
    digest = (folder / "model.safetensors").read_bytes()
    model, _ = pruned
    model.config.num_labels = 7  # what is saved is then not what is in memory
    with pytest.raises(MPrunerError, match="The saved BertForSequenceClassification is not the model in memory"):
        write(folder, pruned, overwrite=True)
    assert (folder / "model.safetensors").read_bytes() == digest
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda model: model.classifier.bias.data.add_(1), "another classifier.bias"),
        (lambda model: model.classifier.bias.data[0].neg_(), "another classifier.bias"),  # 0.0 became -0.0
        (lambda model: model.classifier.half(), "another classifier.weight"),
        (lambda model: model.bert.encoder.layer.pop(1), "an unknown bert.encoder.layer.3.attention"),
        (lambda model: model.register_parameter("extra", torch.nn.Parameter(torch.ones(1))), "no extra"),
    ],
    ids=["value", "sign of zero", "type", "layer gone", "new parameter"],
)
def test_a_file_that_is_not_the_live_model_is_noticed(damage, message, make_bert, tmp_path):
    model = make_bert()
    model.save_pretrained(tmp_path)
    check_saved_model(model, tmp_path)
    damage(model)
    with pytest.raises(MPrunerError, match=message):
        check_saved_model(model, tmp_path)


def test_half_precision_is_saved_as_it_is(make_bert, tmp_path):
    model = make_bert().bfloat16()
    model.save_pretrained(tmp_path)
    check_saved_model(model, tmp_path)


# -- folders that are refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["config.json", "model-00001-of-00002.safetensors", "checkpoint-500"])
def test_a_folder_with_another_model(file, tmp_path):
    (tmp_path / file).touch()
    with pytest.raises(FileExistsError, match=rf"holds another model \('{file}'\)"):
        check_output_dir(tmp_path)
    assert check_output_dir(tmp_path, overwrite=True) == tmp_path


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_people_s_files_are_never_replaced(overwrite, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"is not empty \('thesis.tex'\).*--output_dir .*/pruned"):
        check_output_dir(tmp_path, overwrite=overwrite)


def test_the_input_model_is_never_replaced(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    for folder in (tmp_path / "model", tmp_path):
        with pytest.raises(ValueError, match=r"is the folder of the model that is read.*-pruned"):
            check_output_dir(folder, source=tmp_path / "model", overwrite=True)


def test_a_file_and_a_mount_point(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file' is a file\. Pass a folder"):
        check_output_dir(tmp_path / "file" / "out")
    with pytest.raises(ValueError, match=r"output_dir='/' is a mount point.*--output_dir /pruned"):
        check_output_dir("/")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="nothing can be written there"):
        check_output_dir(tmp_path / "out")


# -- parts ----------------------------------------------------------------------------------------------------------


def test_auto_class_and_own_class(make_vit):
    assert find_auto_class(make_vit()) == ("AutoModelForImageClassification", "transformers")

    class Own(type(make_vit())):
        pass

    assert find_auto_class(Own(make_vit().config)) == ("Own", __name__)
