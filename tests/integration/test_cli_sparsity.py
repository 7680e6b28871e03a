"""`hf-mpruner sparsity`: what is measured, what is kept, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from hf_mpruner import PruningPlan, apply_plan_, find_block_stacks, sparsify_
from hf_mpruner.cli import main, sweep
from text_kit import lines, make_tokenizer


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A classifier, the same with fewer layers, and data of real lines: does a line have more than six words?"""
    tokenizer = make_tokenizer(pairs=True)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3}
    model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **sizes))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)  # so that zeros matter to random weights
    for name in ("dense", "smaller"):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        if name == "dense":
            apply_plan_(model, PruningPlan.from_kept({"bert.encoder.layer": [0, 2]}, find_block_stacks(model)))
    rows = [{"text": line, "label": int(len(line.split()) > 6)} for line in lines()]
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        Dataset.from_list(rows[split == "validation" :: 2]).to_csv(tmp_path / "data" / f"{split}.csv", index=False)
    return tmp_path


@pytest.fixture
def call(world: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*words: object, model: str = "dense") -> tuple[int, str, str]:
        capsys.readouterr()
        flags = ["--dataset", world / "data", "--pruned", world / "smaller"]
        code = main(["sparsity", str(world / model), *map(str, [*flags, *words])])
        return (code, *capsys.readouterr())

    return run


def test_each_cell_is_what_the_functions_give(call, world):
    code, out, err = call("--sparsities", 0.5, 0.25, "--format", "json", "--output_dir", world / "out")
    assert code == 0, err
    cells = json.loads(out)["cells"]
    assert [(cell["model"], cell["asked"]) for cell in cells] == [
        (who, asked) for who in ("original", "pruned") for asked in (0.0, 0.25, 0.5)
    ]
    assert [cell["sparsity"] for cell in cells] == [0.0, 0.25, 0.5] * 2
    assert [sum(cell["layers"].values()) for cell in cells] == [3, 3, 3, 2, 2, 2]
    assert all(cell["interval"][0] <= cell["value"] <= cell["interval"][1] for cell in cells)
    # the last cell by hand
    model = AutoModelForSequenceClassification.from_pretrained(world / "smaller").eval()
    tokenizer = make_tokenizer(pairs=True)
    train, judge = (Dataset.from_csv(str(world / "data" / f"{split}.csv")) for split in ("train", "validation"))
    sparsify_(model, 0.5, calibration=train.remove_columns("label"), processing_class=tokenizer, batch_size=16)
    with torch.no_grad():
        losses = [
            model(**tokenizer(row["text"], return_tensors="pt"), labels=torch.tensor([row["label"]])).loss
            for row in judge
        ]
    assert float(sum(losses) / len(losses)) == pytest.approx(cells[-1]["metrics"]["loss"], abs=1e-5)
    assert cells[-1]["metrics"]["loss"] != pytest.approx(cells[-3]["metrics"]["loss"], abs=1e-4)
    assert "| pruned | 2 |" in (world / "out" / "sparsity.md").read_text()
    assert json.loads((world / "out" / "sparsity.json").read_text())["cells"] == cells
    # the weights on the disk are as they were
    again = AutoModelForSequenceClassification.from_pretrained(world / "dense")
    assert not (again.bert.encoder.layer[0].output.dense.weight == 0).any()


def test_what_is_finished_is_not_measured_again_and_what_has_changed_is(call, world, monkeypatch):
    measured = []
    inner = sweep._Model.measure

    def measure(self, sparsity, stacks):
        measured.append((self._who, sparsity))
        if len(measured) == 3:
            raise KeyboardInterrupt
        return inner(self, sparsity, stacks)

    monkeypatch.setattr(sweep._Model, "measure", measure)
    words = ["--sparsities", 0.5, "--output_dir", world / "out"]
    assert call(*words)[0] == 130
    code, out, err = call(*words)
    assert code == 0, err
    assert measured == [("original", 0.0), ("original", 0.5), ("pruned", 0.0), ("pruned", 0.0), ("pruned", 0.5)]
    assert err.count("measured before") == 2
    assert call(*words)[1] == out  # to the last digit of the seconds
    assert len(measured) == 5
    call("--sparsities", 0.5, 0.75, "--output_dir", world / "out")
    assert measured[5:] == [("original", 0.75), ("pruned", 0.75)]
    call(*words, "--method", "magnitude")  # the dense ones are the same
    assert measured[7:] == [("original", 0.5), ("pruned", 0.5)]
    model = AutoModelForSequenceClassification.from_pretrained(world / "smaller")
    with torch.no_grad():
        model.classifier.weight.mul_(-1)
    model.save_pretrained(world / "smaller")
    call(*words)
    assert measured[9:] == [("pruned", 0.0), ("pruned", 0.5)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sparsities", "1.5"], "outside 0..1"),
        (["--pattern", "2:4", "--sparsities", "0.4"], "sparsity=0.5"),
        (["--pattern", "rows"], "'unstructured'"),
        (["--method", "wonder"], "wanda, magnitude"),
        (["--calibration_split", "none"], "--calibration_split none"),
        (["--calibration_samples", "0"], "below 1"),
        (["--metric", "bleu"], "accuracy, f1_macro, loss"),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_code_two(call, words, said):
    code, out, err = call(*words)
    assert code == 2
    assert not out
    assert said in err
    assert err.count("\n") == 1


def test_a_folder_with_a_model_and_a_head_of_chance_are_refused(call, world):
    code, _, err = call("--output_dir", world / "smaller")
    assert code == 2
    assert "holds a model" in err
    model = AutoModelForSequenceClassification.from_pretrained(world / "dense")
    model.bert.save_pretrained(world / "bare")
    make_tokenizer(pairs=True).save_pretrained(world / "bare")
    code, _, err = call("--task", "text-classification", model="bare")
    assert code == 2
    assert "no trained head" in err


def test_a_pattern_has_its_own_sparsity(call):
    code, out, err = call("--pattern", "1:4", "--method", "magnitude", "--format", "json")
    assert code == 0, err
    assert [cell["asked"] for cell in json.loads(out)["cells"]] == [0.0, 0.75] * 2


def test_flags_stand_in_a_file(call, world):
    (world / "sweep.yaml").write_text("sparsities: [0.25]\nmethod: magnitude\nskip: [attention.output.dense]\n")
    code, out, err = call("--config", world / "sweep.yaml", "--format", "json")
    assert code == 0, err
    values = json.loads(out)
    assert values["method"] == "magnitude"
    assert [cell["asked"] for cell in values["cells"]] == [0.0, 0.25] * 2
    assert any("skip=" in why for why in values["cells"][1]["left_out"].values())
