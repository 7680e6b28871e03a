"""`hf-mpruner apply`: a plan carried out on a saved model, exactly, with everything refused before weights are read."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, BertForMaskedLM

from hf_mpruner import PruningPlan, apply_plan_, find_block_stacks
from hf_mpruner.cli import main
from hf_mpruner.report import PruningReport

pytestmark = pytest.mark.usefixtures("no_pictures")

STACK = "bert.encoder.layer"


@pytest.fixture
def run(capsys):
    def call(*words):
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def source(tmp_path, make_bert):
    """A saved model, and a plan for it."""
    model = make_bert()
    model.save_pretrained(tmp_path / "model")
    PruningPlan.from_kept({STACK: [0, 2]}, find_block_stacks(model), model_type="bert").save_pretrained(
        tmp_path / "plan"
    )
    return tmp_path / "model"


def test_the_result_is_that_of_apply_plan(source, tmp_path, run, make_bert, weight_digest):
    code, out, err = run(
        "apply", source, "--plan", tmp_path / "plan", "--output_dir", tmp_path / "out", "--format", "json"
    )
    assert code == 0, err
    expected = make_bert()
    apply_plan_(expected, PruningPlan.from_pretrained(tmp_path / "plan"))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert weight_digest(loaded) == weight_digest(expected)
    assert json.loads(out)["plan"]["stacks"] == {STACK: {"depth": 4, "kept": [0, 2]}}
    report = PruningReport.load(tmp_path / "out")
    assert (report.before.metric, report.after.metric) == (None, None)
    assert report.after.parameters == sum(p.numel() for p in expected.parameters()) < report.before.parameters
    assert PruningPlan.from_pretrained(tmp_path / "out").kept == {STACK: (0, 2)}
    assert not (tmp_path / "out" / "pruning_config.json").exists()
    assert "nothing was trained or measured since" in err
    assert "no tokenizer or image processor beside it" in err


@pytest.mark.parametrize("road", [[], ["--in_memory"]])
def test_weights_in_several_files(road, source, tmp_path, run, make_bert, weight_digest):
    plan = PruningPlan.from_pretrained(tmp_path / "plan")
    words = ["apply", source, "--plan", tmp_path / "plan", "--output_dir", tmp_path / "out", *road]
    code, _, err = run(*words, "--max_shard_size", "lots")
    assert (code, "--max_shard_size lots is no size. Write e.g. 5GB or 500MB." in err) == (2, True)
    assert not (tmp_path / "out").exists()
    code, _, err = run(*words, "--max_shard_size", "30KB")
    assert code == 0, err
    expected = make_bert()
    apply_plan_(expected, plan)
    files = [load_file(file) for file in sorted((tmp_path / "out").glob("*.safetensors"))]
    assert len(files) > 1
    assert all(sum(tensor.nbytes for tensor in file.values()) <= 30_000 for file in files)
    found = {name: tensor for file in files for name, tensor in file.items()}
    assert found.keys() == expected.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.state_dict().items())
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert weight_digest(loaded) == weight_digest(expected)


def test_a_plan_of_an_output_folder_replays(source, tmp_path, run):
    run("apply", source, "--plan", tmp_path / "plan", "--output_dir", tmp_path / "out")
    code, _, err = run("apply", source, "--plan", tmp_path / "out", "--output_dir", tmp_path / "again")
    assert code == 0, err
    first, second = (tmp_path / name / "model.safetensors" for name in ("out", "again"))
    assert first.read_bytes() == second.read_bytes()


def test_the_tokenizer_goes_along(source, tmp_path, run):
    from tokenizers import Tokenizer, models
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"[UNK]": 0, "red": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]").save_pretrained(source)
    code, _, err = run("apply", source, "--plan", tmp_path / "plan", "--output_dir", tmp_path / "out")
    assert code == 0, err
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("red")["input_ids"] == [1]
    assert "no tokenizer" not in err


def test_dry_run_reads_no_weights(source, tmp_path, run):
    (source / "model.safetensors").unlink()
    code, out, err = run("apply", source, "--plan", tmp_path / "plan", "--dry_run")
    assert code == 0, err
    assert "4 -> 2 layers, without 1, 3" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("road", [[], ["--in_memory"]])
def test_what_cannot_be_done_is_refused_before_weights_are_read(road, source, tmp_path, run, make_bert, monkeypatch):
    if road:
        (source / "model.safetensors").unlink()
    else:  # of which only the header is read
        monkeypatch.setattr("hf_mpruner.slicing.cut.write_tensors_of", None)
    other = make_bert(num_hidden_layers=6)
    plan = PruningPlan.from_kept({STACK: [0, 2]}, find_block_stacks(other), model_type="bert")
    plan.save_pretrained(tmp_path / "other")
    words = ["apply", source, *road, "--output_dir", tmp_path / "out", "--plan"]
    cases = [
        (["apply", source, *road, "--plan", tmp_path / "plan"], 2, "--output_dir is missing"),
        ([*words, tmp_path / "other"], 1, f"This plan is for 6 layers of '{STACK}', but the model has 4 there"),
        ([*words, tmp_path / "nothing"], 1, "No pruning_plan.json at"),
        (
            ["apply", source, *road, "--output_dir", source, "--plan", tmp_path / "plan"],
            2,
            "is the folder of the model that is read",
        ),
    ]
    for case, expected, message in cases:
        code, _, err = run(*case)
        assert (code, message in err) == (expected, True), err
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_there_are_not_made_up(source, tmp_path, run):
    model = BertForMaskedLM.from_pretrained(source)
    model.save_pretrained(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    code, _, err = run("apply", tmp_path / "base", "--plan", tmp_path / "plan", "--output_dir", tmp_path / "out")
    assert code == 2
    assert "parameters of BertForSequenceClassification" in err
    assert "which would be random" in err
    assert not (tmp_path / "out").exists()


def test_half_precision_stays(tmp_path, run, make_bert):
    model = make_bert().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    PruningPlan.from_kept({STACK: [0]}, find_block_stacks(model)).save_pretrained(tmp_path / "plan")
    code, _, err = run("apply", tmp_path / "model", "--plan", tmp_path / "plan", "--output_dir", tmp_path / "out")
    assert code == 0, err
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype="auto")
    assert loaded.dtype == torch.bfloat16


def test_both_roads_write_the_same_folder(source, tmp_path, run):
    for name, road in (("disk", []), ("memory", ["--in_memory"])):
        code, _, err = run(
            "apply", source, "--plan", tmp_path / "plan", "--output_dir", tmp_path / name / "out", *road
        )
        assert code == 0, err
    disk, memory = (
        {
            file.relative_to(tmp_path / name): file.read_bytes()
            for file in (tmp_path / name).rglob("*")
            if file.is_file()
        }
        for name in ("disk", "memory")
    )
    assert disk.keys() == memory.keys()
    assert [str(name) for name in disk if disk[name] != memory[name]] == []


def test_what_names_do_not_say_is_refused_with_the_flag_to_type(source, tmp_path, run, make_bert):
    stacks = find_block_stacks(make_bert())
    merged = PruningPlan.from_kept({STACK: [0, 2, 3]}, stacks, merged={STACK: {0: {1: 1.0}}})
    merged.save_pretrained(tmp_path / "merged")
    words = ["apply", source, "--plan", tmp_path / "merged", "--output_dir", tmp_path / "out"]
    code, _, err = run(*words)
    assert code == 2
    assert "weights become sums of weights" in err
    assert "--in_memory" in err
    assert not (tmp_path / "out").exists()
    code, _, err = run(*words, "--in_memory")
    assert code == 0, err
    assert "Weights are merged as the plan says" in err
