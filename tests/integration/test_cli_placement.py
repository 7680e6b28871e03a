"""`hf-mpruner analyze` on a model that is not loaded whole: what is measured, what is said next, what is refused."""

from __future__ import annotations

import importlib.util
import json
import resource
import shutil
import signal
from pathlib import Path
from typing import NamedTuple, get_args

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification

from hf_mpruner import PruningPlan, measure_similarity
from hf_mpruner.cli import main, placement
from hf_mpruner.criteria import CriterionInputs, find_criterion, score_layers
from hf_mpruner.errors import CalibrationError, UnsupportedArchitectureError
from hf_mpruner.halves import measure_halves
from hf_mpruner.placement import DTYPES, Placement, measurable_stacks, unquantised
from hf_mpruner.placement.request import Quantization
from text_kit import lines, make_tokenizer

STACK = "bert.encoder.layer"


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys):
    def call(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A model (of a width that 4 bits need), and data."""
    folder = tmp_path_factory.mktemp("world")
    tokenizer = make_tokenizer(pairs=True)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "max_position_embeddings": 64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), num_hidden_layers=3, **sizes))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    Dataset.from_list([{"text": line, "label": i % 2} for i, line in enumerate(lines())]).to_csv(
        folder / "data.csv", index=False
    )
    return folder


@pytest.fixture
def analyze(run, world):
    words = ["--split", "train", "--calibration_samples", 16, "--calibration_batch_size", 8, "--threshold", 0.2]

    def call(*more):
        return run("analyze", world / "model", "--dataset", world / "data.csv", *words, *more)

    return call


def matrix(result: Result) -> list[list[float]]:
    assert result.code == 0, result.err
    return json.loads(result.out)["similarity"][STACK]["values"]


def test_a_model_on_the_disk_is_measured_like_one_in_memory(analyze, world, tmp_path):
    plain = analyze("--format", "json")
    found = analyze("--format", "json", "--device_map", '{"": "disk"}', "--output_dir", tmp_path / "out")
    assert matrix(found) == matrix(plain)
    assert json.loads(found.out)["plan"]["stacks"] == json.loads(plain.out)["plan"]["stacks"]
    apply = f"Next: hf-mpruner apply {world / 'model'} --plan {tmp_path / 'out'} --output_dir smaller"
    assert apply in found.err
    assert "Next: hf-mpruner prune" in plain.err
    assert PruningPlan.from_pretrained(tmp_path / "out").to_dict()["stacks"] == json.loads(plain.out)["plan"]["stacks"]


def test_streaming_layers_gives_the_same_similarities(analyze, monkeypatch):
    from hf_mpruner.cli import measure

    streamed = []
    whole = measure.measure_layer_by_layer
    monkeypatch.setattr(
        measure, "measure_layer_by_layer", lambda *args, **more: streamed.append(args[0]) or whole(*args, **more)
    )
    found = analyze("--format", "json", "--stream_layers")
    assert matrix(found) == matrix(analyze("--format", "json"))
    assert len(streamed) == 1
    assert all(parameter.is_meta for parameter in streamed[0].parameters())


def test_a_full_disk_for_offloaded_weights(run, world, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(world / "model", old)
    torch.save(load_file(old / "model.safetensors"), old / "pytorch_model.bin")
    (old / "model.safetensors").unlink()
    words = ["analyze", old, "--dataset", world / "data.csv", "--split", "train", "--calibration_samples", 8]
    words += ["--device_map", '{"": "disk"}', "--offload_folder", tmp_path / "offload"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        failed = run(*words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert failed.code == 1
    assert f"error: offload_folder='{tmp_path / 'offload'}' cannot hold the weights" in failed.err
    assert "pass a folder on a disk with more room" in failed.err
    assert run(*words).code == 0


def test_another_type_of_numbers(analyze):
    narrow, wide = (matrix(analyze("--format", "json", "--dtype", dtype)) for dtype in ("bfloat16", "float32"))
    assert narrow != wide
    assert torch.allclose(torch.tensor(narrow), torch.tensor(wide), atol=0.05)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dtype", "bf16"], "--dtype='bf16' is not one of auto, float32, bfloat16, float16, float64. Did you mean 'bfloat16'?"),
        (["--device_map", "everywhere"], "'everywhere' is no device. Pass one of auto, balanced, balanced_low_0, sequential"),
        (["--device_map", "xpu:7"], "there is no 'xpu:7' here. Devices: "),
        (["--device_map", '{"": "disk"'], "no JSON object"),
        (["--max_memory", "cpu=1GB"], "--max_memory says where parts of a model go, and needs device_map"),
        (["--stream_layers", "--halves"], "and --halves looks at all layers of each batch. Leave out one of them"),
        (["--stream_layers", "--rows", "tokens", "--token_groups", "batch"], "all tokens of a batch in one Gram matrix looks"),
        (["--device_map", "auto", "--max_memory", "cpu:1GB"], "--max_memory cpu:1GB: write DEVICE=SIZE"),
        (["--device_map", "auto", "--max_memory", "cpu=lots"], "'lots' is no size. Write e.g. 20GB or 500MB."),
        (["--device_map", "auto", "--max_memory", "99=1GB"], "--max_memory names 99, which is not here."),
        (["--device_map", "auto", "--offload_folder", "{world}/data.csv"], "cannot be written to (File exists)"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_before_anything_is_loaded(words, message, analyze, world):
    failed = analyze(*(word.replace("{world}", str(world)) for word in words))
    assert failed.code == 2
    assert message in failed.err


def test_without_bitsandbytes(analyze, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else found(name))
    failed = analyze("--quantization", "4bit")
    assert failed.code == 2
    assert "--quantization='4bit' needs bitsandbytes, which is not installed: pip install bitsandbytes." in failed.err


def test_a_quantised_checkpoint_is_not_quantised_again(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    config = BertConfig(quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(
        ValueError, match=r"is quantised already \(gptq\) and is loaded as it is: leave out quantization"
    ):
        Placement(quantization="8bit").arguments(config)
    assert Placement().arguments(config) == {"dtype": "auto"}


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--device_map", "auto"], "--device_map"),
        (["--halves"], "--halves"),
        (["--criterion", "tail", "--target_num_layers", "2"], "--criterion tail"),
    ],
)
def test_what_several_processes_cannot_share(words, what, analyze, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    failed = analyze(*words)
    assert failed.code == 2
    assert f"hf-mpruner analyze {what} runs in one process, but the launcher started 2" in failed.err


def test_the_words_of_help_are_those_of_the_code():
    assert placement.DTYPES == DTYPES
    assert get_args(Quantization) == placement.QUANTIZATIONS


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_quantised(bits, analyze, world, tmp_path):
    """On whatever device there is: bitsandbytes runs on the CPU, too."""
    pytest.importorskip("bitsandbytes")
    plain = analyze("--format", "json")
    found = analyze("--format", "json", "--quantization", bits, "--output_dir", tmp_path / "out")
    assert matrix(found) != matrix(plain)
    assert torch.allclose(torch.tensor(matrix(found)), torch.tensor(matrix(plain)), atol=0.2)
    assert (
        json.loads(found.out)["thresholds"][-1]["parameters"] == json.loads(plain.out)["thresholds"][-1]["parameters"]
    )
    applied = main(
        ["apply", str(world / "model"), "--plan", str(tmp_path / "out"), "--output_dir", str(tmp_path / "cut")]
    )
    assert applied == 0
    options = Placement(quantization=bits).arguments(BertConfig.from_pretrained(world / "model"))
    model = BertForSequenceClassification.from_pretrained(world / "model", **options)
    stacks = measurable_stacks(model)
    quantised = {name for name, module in model.named_modules() if "bitsandbytes" in type(module).__module__}
    assert len(quantised) == 3 * 6
    assert all(name.startswith(f"{STACK}.") for name in quantised)  # not the head, as transformers by itself would
    assert [stack.path for stack in stacks] == [STACK]
    batches = [{"input_ids": torch.arange(3, 27).view(4, 6), "labels": torch.tensor([0, 1, 0, 1])}]
    assert measure_similarity(model, batches).keys() == {STACK}
    assert len(measure_halves(model, batches).stacks[STACK].layers) == 3
    inputs = CriterionInputs(model, stacks, batches, num_removed={STACK: 1})
    for name in ("block_influence", "loss"):
        assert len(score_layers(find_criterion(name), inputs).scores[STACK].values) == 3
    for name in ("taylor", "magnitude", "laco", "mka"):
        with pytest.raises(CalibrationError, match="quantis"):
            score_layers(find_criterion(name), inputs)
    with pytest.raises(UnsupportedArchitectureError, match="is quantized"):
        PruningPlan.from_kept({STACK: [0, 1]}, stacks).preview(model)
    assert all(parameter.is_meta for parameter in unquantised(model).parameters())
