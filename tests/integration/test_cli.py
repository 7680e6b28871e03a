"""The command line as it is typed: what goes to stdout and stderr, what is written, how it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Value
from transformers import BertConfig, ClapConfig, PerceiverConfig, WhisperConfig

from hf_mpruner.cli import main
from hf_mpruner.config import PruningConfig
from hf_mpruner.errors import UnsupportedArchitectureError
from hf_mpruner.halves import HalvesReport
from hf_mpruner.plan import PruningPlan
from hf_mpruner.report import PruningReport
from hf_mpruner.tasks import find_task

pytestmark = pytest.mark.usefixtures("no_pictures")

BERT = {"vocab_size": 8, "max_position_embeddings": 16, "num_labels": 2}
# Random weights: every two layers are alike, and any drop is accepted, unless a test says otherwise.
EAGER = ["--threshold", "0.2", "--max_metric_drop", "1", "--calibration_batch_size", "8"]


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    def call(*words: object) -> Result:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A text model, its base without a head, an image model, and data for each."""
    import datasets.config

    folder = tmp_path_factory.mktemp("world")
    kept, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, folder / "cache"
    _text_world(folder)
    _image_world(folder)
    yield folder
    datasets.config.HF_DATASETS_CACHE = kept


def _text_world(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertForMaskedLM, BertForSequenceClassification, PreTrainedTokenizerFast

    words = ("[PAD]", "[UNK]", "red", "blue", "the", "a", "is", "was")
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")
    config = BertConfig(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=4, **BERT)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, model_class in (("bert", BertForSequenceClassification), ("base", BertForMaskedLM)):
            model_class(config).save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
    generator = np.random.default_rng(0)
    rows = [
        {"text": " ".join([*generator.choice(words[4:], size=1 + i % 5), words[2 + i % 2]]), "label": i % 2}
        for i in range(48)
    ]
    (folder / "text").mkdir()
    Dataset.from_list(rows[:32]).to_csv(folder / "text" / "train.csv", index=False)
    Dataset.from_list(rows[32:]).to_csv(folder / "text" / "validation.csv", index=False)
    Dataset.from_list(rows).to_parquet(folder / "rows.parquet")
    empty = Dataset.from_dict({"text": [], "label": []}).cast_column("text", Value("string"))
    DatasetDict(train=empty, validation=empty).save_to_disk(folder / "empty")


def _image_world(folder: Path) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    digits = load_digits(n_class=2)
    for i in range(36):
        place = folder / "digits" / ("train" if i < 24 else "validation") / str(digits.target[i])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[i] * 15).astype(np.uint8)).save(place / f"{i}.png")
    config = ViTConfig(
        hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=4,
        image_size=8, patch_size=4, num_labels=2, id2label={0: "0", 1: "1"},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ViTForImageClassification(config).save_pretrained(folder / "vit")
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder / "vit")


# -- the front door -------------------------------------------------------------------------------------------------


def in_a_process(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hf_mpruner", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_help_loads_nothing_heavy():
    script = (
        "import sys\nfrom hf_mpruner.cli import main\nassert main(['--help']) == 0\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "hf-mpruner prune   MODEL --dataset" in done.stdout
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize("command", ["inspect", "analyze", "prune", "apply"])
def test_help_of_a_command_shows_examples(command, run):
    result = run(command, "--help")
    assert result.code == 0
    assert f"usage: hf-mpruner {command} MODEL" in result.out
    assert f"examples:\n  hf-mpruner {command} " in result.out


def test_every_field_of_the_config_is_a_flag(run):
    import dataclasses

    text = run("prune", "--help").out
    missing = [f.name for f in dataclasses.fields(PruningConfig) if f"--{f.name}" not in text]
    assert not missing
    assert "--no_stop_when_done" in text


def test_version_and_nothing(run):
    from hf_mpruner import __version__

    assert run("--version") == (0, f"{__version__}\n", "")
    assert run().code == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prun"], r"'prun' is no command (did you mean 'prune'?). Commands: inspect, analyze, compare, prune"),
        (["inspect"], "the following arguments are required: MODEL. See hf-mpruner inspect --help."),
        (["inspect", "m", "--formt", "json"], "unknown argument --formt (did you mean '--format'?)"),
        (["analyze", "m"], "the following arguments are required: --dataset"),
        (["analyze", "m", "--dataset", "d", "--threshold", "98"], "for 98 % pass threshold=0.98"),
        (
            ["analyze", "m", "--dataset", "d", "--threshold", "x"],
            "argument --threshold: invalid number or auto value: 'x'",
        ),
        (["prune", "m", "--dataset", "d"], "--output_dir is missing"),
        (
            ["prune", "m", "--dataset", "d", "--dry_run", "--start_epoch", "2", "--recovery_epochs", "0"],
            "--start_epoch 2 trains but --recovery_epochs 0 does not",
        ),
        (
            ["prune", "m", "--dataset", "d", "--dry_run", "--num_train_epochs", "2", "--recovery-epochs", "3"],
            "--num_train_epochs 2 is too few for one round: --start_epoch 0 and --recovery_epochs 3 need 3",
        ),
        (
            ["prune", "m", "--dataset", "d", "--dry_run", "--config", "no.json"],
            "--config no.json: there is no such file",
        ),
    ],
    ids=lambda value: " ".join(value[-3:]) if isinstance(value, list) else "",
)
def test_wrong_use_is_one_line_and_code_2(words, message, run):
    result = run(*words)
    assert result.code == 2
    assert message in result.err
    assert result.err.startswith("hf-mpruner: error: ")
    assert result.err.count("\n") == 1
    assert result.out == ""


def test_interrupt_and_unforeseen_errors(monkeypatch, run):
    import hf_mpruner.cli.inspect as command

    def fail(args: object) -> int:
        raise error

    monkeypatch.setattr(command, "run", fail)
    error: BaseException = KeyboardInterrupt()
    assert run("inspect", "m").code == 130
    error = ZeroDivisionError("division\nby zero")
    result = run("inspect", "m")
    assert result.code == 1
    assert "ZeroDivisionError: division by zero Set HF_MPRUNER_DEBUG=1 for the whole trace." in result.err
    monkeypatch.setenv("HF_MPRUNER_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["inspect", "m"])


def test_a_reader_that_leaves_is_no_failure(world):
    command = [sys.executable, "-m", "hf_mpruner", "inspect", world / "bert"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        talk = process.stderr.read()
    assert process.returncode == 0
    assert "BrokenPipe" not in talk


def test_verbosity_of_transformers_is_put_back(world, run):
    from transformers.utils import logging as chatter

    chatter.set_verbosity_info()
    run("inspect", world / "bert")
    assert chatter.get_verbosity() == chatter.INFO
    chatter.set_verbosity_warning()


# -- inspect --------------------------------------------------------------------------------------------------------


def test_inspect_reads_only_the_config(world, tmp_path, run):
    (tmp_path / "config.json").write_text((world / "bert" / "config.json").read_text())
    result = run("inspect", tmp_path, "--format", "json")
    assert result.code == 0
    facts = json.loads(result.out)
    (stack,) = facts["stacks"]
    assert (stack["path"], stack["depth"], stack["count"]) == ("bert.encoder.layer", 4, "num_hidden_layers")
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(world / "bert")
    assert facts["parameters"] == model.num_parameters()
    assert stack["block_parameters"] == [sum(p.numel() for p in b.parameters()) for b in model.bert.encoder.layer]


def test_inspect_says_what_is_pinned_and_why(tmp_path, run):
    from transformers import ResNetConfig

    ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[2, 3], architectures=["ResNetForImageClassification"]
    ).save_pretrained(tmp_path)
    table = run("inspect", tmp_path).out
    assert "resnet.encoder.stages.1.layers 0 stays: it opens a stage" in table
    paths = "resnet.encoder.stages.0.layers\nresnet.encoder.stages.1.layers\n"
    assert run("inspect", tmp_path, "--format", "quiet") == (0, paths, "")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: "/nowhere/model", "No model at '/nowhere/model': there is no such folder."),
        (
            lambda p: "nobody/nothing",
            "No model at 'nobody/nothing': it is no folder with a config.json, and no Hub id",
        ),
        (lambda p: p, "the folder holds no config.json"),
        (
            lambda p: _config(p, architectures=["BertForTeleportation"]),
            "names the class BertForTeleportation, which transformers",
        ),
        (lambda p: _config(p, auto_map={"AutoConfig": "x.Config"}, model_type="own"), "brings Python code of its own"),
        (lambda p: _config(p, num_hidden_layers=1), "has no block stack that hf_mpruner can cut"),
    ],
    ids=["path", "hub", "folder", "class", "code", "no stack"],
)
def test_inspect_of_what_is_no_model(make, message, tmp_path, run):
    result = run("inspect", make(tmp_path))
    assert result.code == 1
    assert message in result.err
    assert result.err.count("\n") == 1


def _config(folder: Path, **values: object) -> Path:
    settings = {"model_type": "bert", "architectures": ["BertForMaskedLM"], **values}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


# -- analyze --------------------------------------------------------------------------------------------------------


def test_analyze_writes_matrices_pictures_and_a_plan(world, tmp_path, run):
    out = tmp_path / "analysis"
    words = [
        "analyze",
        world / "bert",
        "--dataset",
        world / "text",
        *EAGER[:2],
        "--output_dir",
        out,
        "--protect",
        "-1",
    ]
    result = run(*words, "--format", "json")
    assert result.code == 0, result.err
    assert sorted(entry.name for entry in out.iterdir()) == [
        "pruning_plan.json",
        "similarity_bert.encoder.layer.json",
        "similarity_bert.encoder.layer.png",
    ]
    values = json.loads(result.out)
    plan = PruningPlan.from_pretrained(out)
    assert values["plan"] == plan.to_dict()
    assert plan.kept == {"bert.encoder.layer": (0, 3)}
    assert plan.source_model is None
    assert str(world) not in (out / "pruning_plan.json").read_text()
    assert [choice["threshold"] for choice in values["thresholds"]] == [0.99, 0.98, 0.95, 0.9, 0.2]
    matrix = values["similarity"]["bert.encoder.layer"]
    assert matrix["num_samples"] == 16
    assert values["adjacent"]["bert.encoder.layer"] == [matrix["values"][i][i + 1] for i in range(3)]
    table = run(*words)
    assert "0.2 *" in table.out
    assert "--threshold 0.2 --output_dir smaller" in table.err


@pytest.mark.parametrize("criterion", [(), ("--criterion", "block_influence", "--target_num_layers", "2")])
def test_analyze_says_what_it_cost(criterion, world, tmp_path, run):
    out = tmp_path / "analysis"
    words = ["analyze", world / "bert", "--dataset", world / "text", *criterion, "--profile", "--output_dir", out]
    result = run(*words, "--calibration_batch_size", "4", "--format", "json")
    assert result.code == 0, result.err
    values = json.loads(result.out)["profile"]
    assert values == json.loads((out / "profile.json").read_text())
    assert list(values["seconds"]) == [
        "reading data", "loading the model", "plain passes of this profile", "measuring",
        *([] if criterion else ["clusters and plans"]), "writing",
    ]  # fmt: skip
    assert (values["forward_passes"], values["examples"]) == (4, 16)
    assert (values["plain"]["batches"], values["plain"]["examples"], len(values["plain"]["seconds"])) == (4, 16, 3)
    table = run(*words).out
    assert "measuring: 1 forward pass, 16 examples" in table
    assert ("scoring" if criterion else "similarity") in table.partition("measuring: ")[2]
    assert (values["plain"]["ratio"] is None) == bool(criterion)


@pytest.mark.parametrize("criterion", [(), ("--criterion", "tail", "--target_num_layers", "2")])
def test_analyze_measures_halves_beside_the_rest(criterion, world, tmp_path, run):
    words = ["analyze", world / "bert", "--dataset", world / "text", *criterion, "--halves"]
    result = run(*words, "--output_dir", tmp_path / "out", "--format", "json")
    assert result.code == 0, result.err
    halves = HalvesReport.from_dict(json.loads(result.out)["halves"])
    (stack,) = halves.stacks.values()
    assert [list(layer) for layer in stack.layers] == [["attention", "feed_forward"]] * 4
    assert HalvesReport.from_dict(json.loads((tmp_path / "out" / "halves.json").read_text())) == halves
    plain = run(*words)
    assert plain.out.count("\nbert.encoder.layer (post-norm blocks)\n") == 1
    assert "Measured, not done: transformers" in plain.out
    without = json.loads(run(*words[:-1], "--format", "json").out)
    assert "halves" not in without
    assert without["plan"]["stacks"] == json.loads(result.out)["plan"]["stacks"]


def test_analyze_without_matplotlib_claims_no_heat_maps(world, tmp_path, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run("analyze", world / "bert", "--dataset", world / "text", "--output_dir", tmp_path)
    assert result.code == 0
    assert (
        f"Wrote matrices and the plan to {tmp_path}, but no heat maps: for those, pip install 'hf_mpruner[plots]'"
        in (result.err)
    )
    assert "heat maps and the plan" not in result.err
    assert not list(tmp_path.glob("*.png"))


def test_analyze_images_and_a_masked_model(world, run):
    result = run("analyze", world / "vit", "--dataset", world / "digits", "--threshold", "0", "--format", "quiet")
    assert result == (0, "vit.layers: 4 -> 1 layers, without 1-3\n", "")
    assert run("analyze", world / "base", "--dataset", world / "rows.parquet", "--split", "train[:8]").code == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--dataset", "{w}/nothing"], 1, "No data at '{w}/nothing': there is no such file or folder."),
        (["--dataset", "{w}/text", "--split", "dev"], 2, "--split dev: Data set '{w}/text' has no split 'dev'. Its splits are 'train', 'validation'"),
        (["--dataset", "{w}/rows.parquet"], 2, "only 'train'. Name it, or name two parts of it"),
        (["--dataset", "{w}/text", "--text_column", "body"], 2, "text_column='body' is not a column of the data. Its columns are 'text', 'label'"),
        (["--dataset", "{w}/text", "--output_dir", "{w}/bert"], 2, "holds a model ('config.json'): a plan beside it would not be its own"),
        (["--dataset", "{w}/text", "--output_dir", "{w}/rows.parquet"], 2, "is a file. Pass a folder"),
        (["--dataset", "{w}/text", "--stacks", "decoder.block"], 2, "--stacks decoder.block: no stack of this model. Its stacks are: bert.encoder.layer"),
        (["--dataset", "{w}/text", "--protect", "9"], 1, "protect entry '9' names no layer"),
        (["--dataset", "{w}/text", "--split", "train[:0]"], 2, '--split train[:0]: Data set'),
        (["--dataset", "{w}/empty", "--split", "train"], 2, "--split train: Data set '{w}/empty' has no rows in 'train'"),
    ],
)  # fmt: skip
def test_analyze_refuses(words, code, message, world, run):
    result = run("analyze", world / "bert", *(word.format(w=world) for word in words))
    assert result.code == code
    assert message.format(w=world) in result.err
    assert result.out == ""


def test_analyze_of_an_encoder_decoder_without_a_head(tmp_path, run):
    from transformers import T5Config

    T5Config(architectures=["T5Model"]).save_pretrained(tmp_path)
    result = run("analyze", tmp_path, "--dataset", "d")
    assert result.code == 1
    assert (
        "not a t5 model without a head for a task here: its decoder needs targets. Name the task with --task"
        in result.err
    )


def test_analyze_without_a_tokenizer(world, tmp_path, run):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((world / "bert" / name).read_bytes())
    result = run("analyze", tmp_path, "--dataset", world / "text")
    assert result.code == 1
    assert f"No tokenizer at '{tmp_path}'" in result.err
    assert "tokenizer.save_pretrained" in result.err


# -- prune ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recovery_epochs", [0, 1])
def test_prune_text(recovery_epochs, world, tmp_path, run):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    out = tmp_path / "smaller"
    words = ["prune", world / "bert", "--dataset", world / "text", *EAGER, "--recovery_epochs", recovery_epochs]
    before = (world / "bert" / "model.safetensors").read_bytes()
    result = run(*words, "--output_dir", out, "--max_rounds", 1, "--granularity", 2)
    assert result.code == 0, result.err
    assert "original                   4" in result.out
    assert f"from_pretrained('{out}')" in result.err
    assert ("Round 1: accepted" in result.err) == (recovery_epochs == 1)
    assert {entry.name for entry in out.iterdir()} >= {
        "README.md", "config.json", "model.safetensors", "tokenizer.json", "report.json",
        "pruning_plan.json", "pruning_config.json", "pruning_record.json", "plots",
    }  # fmt: skip
    report = PruningReport.load(out)
    assert report.plan.kept == {"bert.encoder.layer": (0, 2)}
    assert report.record.metric == "accuracy"
    assert report.to_markdown() in (out / "README.md").read_text()
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model.config.num_hidden_layers == 2
    logits = model(**AutoTokenizer.from_pretrained(out)("the red", return_tensors="pt")).logits
    assert logits.isfinite().all()
    assert (world / "bert" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("recovery_epochs", [0, 1])
def test_prune_with_a_promise(recovery_epochs, world, tmp_path, run):
    words = ["prune", world / "bert", "--dataset", world / "text", *EAGER[:2], "--calibration_batch_size", 8]
    words += ["--recovery_epochs", recovery_epochs, "--confidence", 0.9, "--granularity", 2, "--max_rounds", 1]
    few = run(*words, "--max_metric_drop", 0.02, "--output_dir", tmp_path / "few")
    assert few.code in (1, 2)
    assert "16 examples are too few" in few.err
    assert not (tmp_path / "few").exists()
    result = run(*words, "--max_metric_drop", 0.5, "--output_dir", tmp_path / "smaller")
    assert result.code == 0, result.err
    report = PruningReport.load(tmp_path / "smaller")
    (round_,) = report.rounds
    assert round_.bound["num_examples"] == 16
    assert round_.bound["counts"].keys() == {"worse", "better", "same"}
    assert report.record.promise == {"confidence": 0.9, "max_metric_drop": 0.5, "num_branches": 2}
    assert round_.verdict == "accepted"
    assert "promise: With probability 90 % or more the accuracy of the model is at most 0.500 lower" in result.out
    assert "**Promise**: With probability 90 % or more" in (tmp_path / "smaller" / "README.md").read_text()
    assert (f"at most {round_.bound['upper']:+.4f})." in result.err) == (recovery_epochs == 1)


def test_prune_images_in_a_process_keeps_stdout_for_data(world, tmp_path):
    from transformers import AutoModelForImageClassification

    out = tmp_path / "smaller"
    done = in_a_process(
        "prune", world / "vit", "--dataset", world / "digits", *EAGER, "--max_rounds", 1, "--batch_size", 8,
        "--output_dir", out, "--format", "json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["plan"]["stacks"]["vit.layers"]["kept"] == [0]
    assert "%|" not in done.stderr, "a progress bar where no terminal is"
    assert AutoModelForImageClassification.from_pretrained(out).config.num_hidden_layers == 1


def test_the_same_examples_that_choose_and_judge_are_pointed_out(world, tmp_path, run):
    words = ["prune", world / "bert", "--dataset", world / "text", *EAGER, "--recovery_epochs", 0, "--output_dir"]
    assert (
        "Warning: 'train' judges and is also used before" in run(*words, tmp_path / "a", "--eval_split", "train").err
    )
    result = run(*words, tmp_path / "b")
    assert "similarity is measured on 32 examples, 16 judge." in result.err
    assert "Warning" not in result.err


def test_prune_trains_a_new_head_first(world, tmp_path, run):
    from transformers import AutoModelForSequenceClassification

    words = ["prune", world / "base", "--dataset", world / "text", *EAGER, "--output_dir", tmp_path / "out"]
    asked = run(*words)
    assert asked.code == 2
    assert (
        "has a head for fill-mask, and the data has labels ('label'): say which task is meant, --task fill"
        in asked.err
    )
    words += ["--task", "text-classification"]
    result = run(*words)
    assert result.code == 2
    assert "has no trained head for text-classification: 4 weights are new (bert.pooler.dense.bias" in result.err
    assert "Pass --start_epoch N" in result.err
    assert not (tmp_path / "out").exists()
    result = run(*words, "--start_epoch", 1, "--max_rounds", 1)
    assert result.code == 0, result.err
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config.id2label == {0: "0", 1: "1"}


def test_dry_run_writes_nothing(world, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("prune", world / "bert", "--dataset", world / "text", *EAGER, "--dry_run", "--output_dir", "out")
    assert result.code == 0, result.err
    assert "bert.encoder.layer  4 -> 1 layers, without 1-3" in result.out
    assert "parameters" in result.out
    assert list(tmp_path.iterdir()) == []


def test_the_plan_of_a_dry_run_is_that_of_the_first_round(world, tmp_path, run):
    words = ["prune", world / "bert", "--dataset", world / "text", *EAGER[2:]]
    words += ["--recovery_epochs", 0, "--format", "json"]
    values = json.loads(run("analyze", *words[1:4], "--split", "train", "--format", "json").out)
    threshold = np.median(values["adjacent"]["bert.encoder.layer"])
    words += ["--threshold", threshold, "--max_rounds", 1]
    dry = json.loads(run(*words, "--dry_run").out)["plan"]
    real = json.loads(run(*words, "--output_dir", tmp_path / "out").out)
    assert dry["stacks"] == real["plan"]["stacks"]
    measured = real["report"]["record"]["rounds"][0]["similarity"]
    assert dry["evidence"]["similarity"] == measured


def test_nothing_to_cut_is_said(world, tmp_path, run):
    words = ["--threshold", "1", "--recovery_epochs", "0", "--output_dir", tmp_path / "out"]
    result = run("prune", world / "bert", "--dataset", world / "text", *words)
    assert result.code == 0, result.err
    assert "No layer was removed: no two neighbouring layers are alike at threshold 1." in result.err
    assert "Try a lower --threshold" in result.err


def test_config_file_and_flags(world, tmp_path, run):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"threshold": 0.2, "protect": ["1"], "metric": "f1_macro", "max_metric_drop": 1.0}))
    words = ["prune", world / "bert", "--dataset", world / "text", "--recovery_epochs", 0, "--config"]
    result = run(*words, config, "--protect", "2", "-1", "--output_dir", tmp_path / "out")
    assert result.code == 0, result.err
    saved = PruningConfig.from_pretrained(tmp_path / "out")
    assert (saved.threshold, saved.protect, saved.metric, saved.recovery_epochs) == (0.2, ["2", "-1"], "f1_macro", 0)
    assert saved.stop_when_done is True
    again = run(*words, tmp_path / "out", "--dry_run", "--format", "quiet")
    assert again.out == "bert.encoder.layer: 4 -> 3 layers, without 1\n"
    config.write_text('{"treshold": 0.9}')
    assert "unknown key 'treshold' (did you mean 'threshold'?)" in run(*words, config, "--dry_run").err
    config.write_text("[1]")
    assert "holds a list, not the names of flags and their values" in run(*words, config, "--dry_run").err
    config.write_text("{")
    assert "is no JSON: " in run(*words, config, "--dry_run").err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--output_dir", "{w}/bert"], 2, "is the folder of the model that is read, '{w}/bert'. Pass another one"),
        (["--output_dir", "{w}/vit"], 2, "holds another model ('config.json', 'model.safetensors'). Pass another folder with --output_dir, or --overwrite"),
        (["--output_dir", "{w}/text", "--overwrite"], 2, "is not empty ('train.csv', 'validation.csv') and holds no model"),
        (["--output_dir", "{w}/new", "--eval_split", "test"], 2, "--eval_split test: Data set '{w}/text' has no split 'test'"),
        (["--output_dir", "{w}/new", "--metric", "acuracy"], 2, "--metric acuracy is not measured here (did you mean 'accuracy'?): pass one of accuracy, f1_macro, loss"),
        (["--output_dir", "{w}/new", "--label_column", "mood"], 2, "label_column='mood' is not a column"),
        (["--output_dir", "{w}/new", "--task", "image-classification"], 2, "--task image-classification: a bert model has no head for it, only for 'text-classification', 'token-classification', 'question-answering'"),
        (["--output_dir", "{w}/new", "--protect", "0", "1", "2", "3"], 1, "Every layer that could go is protected or pinned"),
        (["--dataset", "{w}/empty", "--output_dir", "{w}/new"], 2, "--train_split train: Data set '{w}/empty' has no rows in 'train'"),
        (["--dataset", "{w}/digits", "--output_dir", "{w}/new"], 2, "No column looks like the text. The columns are 'image', 'label'"),
    ],
)  # fmt: skip
def test_prune_refuses_before_work_is_lost(words, code, message, world, run):
    result = run("prune", world / "bert", "--dataset", world / "text", *EAGER, *(w.format(w=world) for w in words))
    assert result.code == code, result.err
    assert message.format(w=world) in result.err
    assert not (world / "new").exists()


def test_a_model_for_other_labels(world, tmp_path, run):
    data = [{"text": "the red", "label": i % 5} for i in range(10)]
    Dataset.from_list(data).to_csv(tmp_path / "train.csv", index=False)
    words = ["--dataset", tmp_path, "--eval_split", "train", "--output_dir", tmp_path / "out"]
    result = run("prune", world / "bert", *words)
    assert result.code == 1
    assert "Column 'label' holds 5 labels, the model has 2 (the largest number in the data is 4)" in result.err


def test_a_model_without_a_task_and_one_with_two():
    with pytest.raises(ValueError, match=r"perceiver model can do 'text-classification', 'image-class.*with --task"):
        find_task(PerceiverConfig())
    assert find_task(PerceiverConfig(), "image-classification").kind == "image"
    assert find_task(BertConfig(architectures=["BertForMaskedLM"])).name == "fill-mask"
    whisper = WhisperConfig(architectures=["WhisperForConditionalGeneration"])
    with pytest.raises(UnsupportedArchitectureError, match=r"whisper model is for automatic-speech.* 'text-classif"):
        find_task(whisper)
    with pytest.raises(UnsupportedArchitectureError, match="A clap model has no head for a task here"):
        find_task(ClapConfig())
    with pytest.raises(ValueError, match=r"--task sumarization: there is no such task here \(did you mean 'summ"):
        find_task(BertConfig(), "sumarization")
