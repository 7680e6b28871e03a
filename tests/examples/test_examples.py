"""The scripts of examples/, run offline on small real data: a smaller model comes out, with the numbers that were printed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageClassification, EvalPrediction, Trainer, TrainingArguments
from transformers.utils import logging as chatter

from hf_mpruner import PruningPlan, PruningReport

pytestmark = pytest.mark.usefixtures("no_pictures")

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "offline_data")
# Nothing is learnt in so short a time, so whatever a cut costs is allowed: what is tested is that all parts fit.
QUICK = ["--offline", "--epochs", "1", "--threshold", "0.5", "--max_metric_drop", "9"]
QUICK_RUNS = {
    "text_classification": ["--recovery_epochs", "1", "--max_examples", "96"],
    "question_generation": ["--recovery_epochs", "1", "--max_examples", "48"],
    "causal_lm": ["--recovery_epochs", "1", "--max_examples", "24"],
    "multi_gpu": ["--recovery_epochs", "1", "--max_examples", "64"],
    "push_to_hub": ["--max_examples", "96"],
}
AUTO_CLASSES = {
    "question_generation": "AutoModelForSeq2SeqLM",
    "image_classification": "AutoModelForImageClassification",
    "causal_lm": "AutoModelForCausalLM",
}


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Scripts may be imported by name, and what they set for the whole process ends with the test."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    verbosity, threads = chatter.get_verbosity(), torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        yield
    chatter.set_verbosity(verbosity)
    torch.set_num_threads(threads)


def script(name: str) -> ModuleType:
    return import_module(name)


def check_output(printed: str, folder: Path, auto_class: str = "AutoModelForSequenceClassification") -> PruningReport:
    """The report that was printed is the one in the folder, and the model there is the one that it tells of."""
    import transformers

    report = PruningReport.load(folder)
    assert str(report) in printed
    assert str(report.plan) in printed
    plan = PruningPlan.from_pretrained(folder)
    assert plan.stacks == report.plan.stacks
    assert plan.num_removed > 0
    model = getattr(transformers, auto_class).from_pretrained(folder)
    assert report.before is not None
    assert report.after is not None
    assert sum(parameter.numel() for parameter in model.parameters()) == report.after.parameters
    assert report.after.parameters < report.before.parameters
    for path, stack in plan.stacks.items():
        assert len(model.get_submodule(path)) == len(stack.kept) <= stack.depth
    assert (folder / "README.md").read_text().startswith("---\n")
    return report


@pytest.mark.parametrize("name", QUICK_RUNS)
def test_a_quick_run_gives_a_smaller_model_that_loads(name, tmp_path, capsys):
    script(name).main([*QUICK, *QUICK_RUNS[name], "--output_dir", str(tmp_path)])
    printed = capsys.readouterr().out
    report = check_output(printed, tmp_path / "model", AUTO_CLASSES.get(name, "AutoModelForSequenceClassification"))
    if name == "question_generation":
        assert report.record.metric == "bleu"
        assert ("METEOR is left out" in printed) != ("meteor on" in printed)
    if name == "push_to_hub":
        assert f"hf-mpruner push {tmp_path / 'model'} you/smaller-model --private" in printed


def test_what_was_printed_of_the_test_images_is_what_the_saved_model_does(tmp_path, capsys):
    module = script("image_classification")
    module.main([*QUICK, "--recovery_epochs", "1", "--max_examples", "300", "--output_dir", str(tmp_path)])
    printed = capsys.readouterr().out
    report = check_output(printed, tmp_path / "model", "AutoModelForImageClassification")
    after = re.search(r"accuracy on (\d+) test images: ([\d.]+) before, ([\d.]+) after", printed)
    assert after
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "model")
    args = TrainingArguments(str(tmp_path / "again"), use_cpu=True, report_to="none", disable_tqdm=True)
    trainer = Trainer(model, args, compute_metrics=module.accuracy)
    _, _, data = module.offline_model_and_data()
    assert int(after[1]) == 300
    assert f"{trainer.predict(data['test'].select(range(300))).metrics['test_accuracy']:.4f}" == after[3]
    assert f"{trainer.predict(data['validation']).metrics['test_accuracy']:.4f}" == f"{report.after.metric:.4f}"


def test_recovery_by_lora_leaves_an_ordinary_checkpoint(tmp_path, capsys):
    pytest.importorskip("peft")
    more = ["--lora", "--metric", "perplexity", "--max_metric_drop", "1e6"]
    script("causal_lm").main([*QUICK, *QUICK_RUNS["causal_lm"], *more, "--output_dir", str(tmp_path)])
    report = check_output(capsys.readouterr().out, tmp_path / "model", "AutoModelForCausalLM")
    assert report.record.config["recovery"] == "lora"
    assert report.record.metric == "perplexity"
    assert not (tmp_path / "model" / "adapter_config.json").exists()


def run(*words: str, timeout: int = 300) -> str:
    """A command in a process of its own, as a user starts it; its stdout."""
    done = subprocess.run(
        words, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_a_model_class_of_ones_own_in_its_own_process(tmp_path):
    words = [sys.executable, str(EXAMPLES / "custom_architecture.py"), *QUICK, "--recovery_epochs", "1"]
    printed = run(*words, "--max_examples", "96", "--output_dir", str(tmp_path))
    report = PruningReport.load(tmp_path / "model")
    assert str(report) in printed
    kept = report.plan.stacks["layers"].kept
    assert 0 < len(kept) < 8
    assert f"dilations of the layers that stayed: {[2 ** (layer % 4) for layer in kept]}" in printed


@pytest.mark.slow
def test_two_processes_under_accelerate(tmp_path):
    launch = ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0", str(EXAMPLES / "multi_gpu.py")]
    os.environ["ACCELERATE_USE_CPU"] = "true"
    try:
        printed = run(
            sys.executable, "-m", "accelerate.commands.launch", *launch, *QUICK, "--recovery_epochs", "1",
            "--max_examples", "128", "--output_dir", str(tmp_path),
        )  # fmt: skip
    finally:
        del os.environ["ACCELERATE_USE_CPU"]
    assert "in 2 processes" in printed
    assert check_output(printed, tmp_path / "model").record.world_size == 2


@pytest.mark.slow
def test_the_push_reaches_a_hub(hub, client, tmp_path):
    def push(examples, output_dir, words):
        import contextlib
        import io
        import sys

        sys.path.insert(0, examples)
        from push_to_hub import main

        with contextlib.redirect_stdout(io.StringIO()) as printed:
            main([*words, "--output_dir", output_dir, "--repo_id", "ann/smaller", "--private"])
        return printed.getvalue()

    words = [*QUICK, *QUICK_RUNS["push_to_hub"]]
    printed = client.call(push, examples=str(EXAMPLES), output_dir=str(tmp_path), words=words)
    files = hub.store.repo("ann/smaller").files()
    assert {"README.md", "model.safetensors", "pruning_plan.json", "report.json", "tokenizer.json"} <= set(files)
    assert f"{hub.url}/ann/smaller" in printed


@pytest.mark.slow
@pytest.mark.parametrize("name", [*QUICK_RUNS, "image_classification", "quickstart"])
def test_the_whole_offline_run_keeps_its_promise(name, tmp_path, capsys):
    options = script(name).parse_options([] if name == "quickstart" else ["--offline"])
    script(name).main([*([] if name == "quickstart" else ["--offline"]), "--output_dir", str(tmp_path)])
    auto_class = "AutoModelForImageClassification" if name == "quickstart" else AUTO_CLASSES.get(name)
    report = check_output(
        capsys.readouterr().out, tmp_path / "model", auto_class or "AutoModelForSequenceClassification"
    )
    accepted = [round_ for round_ in report.rounds if round_.verdict == "accepted"]
    assert accepted
    assert all(round_.drop <= options.max_metric_drop for round_ in accepted)


def save_for_loading(name, folder):
    """The offline model and data as a user's own folders, so that the code for the Hub loads them; the arguments."""
    model, processor, data = script(name).offline_model_and_data()
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    data = data.map(lambda row: row)  # without its format
    if name == "image_classification":
        from PIL import Image

        for part in ("train", "validation"):  # the test part is then a half of the other
            for number, (pixels, label) in enumerate(zip(*data[part].with_format("numpy")[:40].values(), strict=True)):
                file = folder / "data" / part / str(label) / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((pixels[0] * 255).astype("uint8")).save(file)
        return []
    if name == "question_generation":
        del data["test"]  # as SQuAD has none
        data = data.map(
            lambda row: {"context": row["text"], "question": row["target"], "answers": {"text": [row["text"][:9]]}},
            remove_columns=["text", "target"],
        )
    for part, rows in data.items():
        (folder / "data").mkdir(exist_ok=True)
        rows.select(range(min(60, len(rows)))).to_parquet(folder / "data" / f"{part}.parquet")
    return ["--dataset_config", ""] if name == "causal_lm" else []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text_classification", "question_generation", "image_classification", "causal_lm"])
def test_what_is_loaded_by_name_is_pruned_the_same_way(name, tmp_path, capsys):
    more = save_for_loading(name, tmp_path)
    if name == "image_classification":  # its images have three channels there
        from transformers import ResNetConfig, ResNetForImageClassification

        small = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[3, 3], layer_type="basic", num_labels=4)
        ResNetForImageClassification(small).save_pretrained(tmp_path / "model")
    if name == "causal_lm":
        more += ["--block_size", "32"]
    words = [word for word in QUICK if word != "--offline"] + ["--recovery_epochs", "1", "--max_examples", "20", *more]
    where = [
        "--model",
        str(tmp_path / "model"),
        "--dataset",
        str(tmp_path / "data"),
        "--output_dir",
        str(tmp_path / "o"),
    ]
    script(name).main([*words, *where])
    check_output(
        capsys.readouterr().out, tmp_path / "o" / "model", AUTO_CLASSES.get(name, "AutoModelForSequenceClassification")
    )


def test_metrics_of_text_are_perfect_for_the_right_text_and_see_no_padding(monkeypatch):
    module = script("question_generation")

    class NoSynonyms:  # instead of WordNet, which is downloaded
        @staticmethod
        def synsets(word):
            return []

    monkeypatch.setattr(module, "meteor_score", partial(module.meteor_score, wordnet=NoSynonyms))
    tokenizer = script("offline_data").train_tokenizer(["one small step for a man"], vocab_size=300, form="$A [EOS]")
    right, wrong = (tokenizer(text)["input_ids"] for text in ("one small step for a man", "for a small one, a step"))
    padded = np.array([right + [-100] * 3])
    perfect = module.text_metrics(tokenizer, meteor=True)(EvalPrediction(np.array([right]), padded))
    assert perfect["bleu"] == pytest.approx(1.0)
    assert perfect["rougeL"] == 1.0
    assert perfect["meteor"] > 0.99
    other = module.text_metrics(tokenizer, meteor=False)(EvalPrediction(np.array([wrong]), padded))
    assert set(other) == {"bleu", "rougeL"}
    assert 0 < other["rougeL"] < 1


def test_without_wordnet_meteor_is_left_out_and_it_is_said_how_to_get_it(monkeypatch, capsys):
    module = script("question_generation")

    def missing():
        raise LookupError("wordnet")

    monkeypatch.setattr(module.nltk.corpus, "wordnet", SimpleNamespace(ensure_loaded=missing))
    monkeypatch.setattr(module.nltk, "download", lambda *_, **__: pytest.fail("nothing may be downloaded offline"))
    assert module.has_wordnet(may_download=False) is False
    assert "python -m nltk.downloader wordnet" in capsys.readouterr().out
    monkeypatch.setattr(module.nltk, "download", lambda name, quiet: name == "wordnet")
    assert module.has_wordnet(may_download=True) is True


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_says_what_it_does_and_what_is_the_default(name, capsys):
    module = script(name)
    with pytest.raises(SystemExit) as end:
        module.main(["--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert module.__doc__.splitlines()[0] in printed
    assert "--max_metric_drop" in printed
    commands = re.findall(rf"^ +.*examples/{name}\.py(.*?)(?:  #.*)?$", module.__doc__, re.MULTILINE)
    assert commands
    for command in commands:
        module.parse_options(command.replace(" (all of it but the push)", "").split())


def test_offline_changes_defaults_only(monkeypatch):
    parse = script("text_classification").parse_options
    assert parse([]).learning_rate == 5e-5
    assert parse(["--offline"]).learning_rate == 1e-3
    assert parse(["--offline", "--learning_rate", "0.5"]).learning_rate == 0.5
    monkeypatch.setattr(sys, "argv", ["text_classification.py", "--offline"])
    assert parse(None).learning_rate == 1e-3


def test_offline_texts_are_the_same_each_time_and_no_part_knows_another():
    data = script("offline_data")
    for make in (data.docstrings, data.character_names, data.source_code):
        one, other = make(), make()
        assert {name: part["text"] for name, part in one.items()} == {n: part["text"] for n, part in other.items()}
        texts = [text for part in one.values() for text in part["text"]]
        assert len(set(texts)) == len(texts) == sum(one.num_rows.values()) > 30
    names = dict(zip(*script("offline_data").character_names()["train"].to_dict().values(), strict=True))
    assert all(len(parts.split(" + ")) > 1 for parts in names.values())


def test_the_notebook_runs(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    shutil.copy(EXAMPLES / "offline_data.py", tmp_path)
    notebook = nbformat.read(EXAMPLES / "pruning_tour.ipynb", as_version=4)
    kept = [[output.output_type for output in cell.outputs] for cell in notebook.cells if cell.cell_type == "code"]
    assert all(kept), "a cell was never run: python reproduce/notebook.py"
    shown = str(
        [
            [{**output.get("data", {}), "image/png": ""}, output.get("text")]
            for cell in notebook.cells
            for output in cell.get("outputs", [])
        ]
    )
    assert not re.findall(r"(?<![\w.])/\w+/\w+", shown), "a path of the machine it ran on"
    for cell in notebook.cells:  # long enough to see that it runs
        cell.source = re.sub(r"EPOCHS = \d+", "EPOCHS = 2", cell.source)
        cell.source = cell.source.replace("max_metric_drop=0.02, recovery_epochs=3", "max_metric_drop=1.0")
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(tmp_path))
    page = (tmp_path / "pruning-tour-out" / "report.html").read_text()
    assert "vit.layers" in page
    plan = PruningPlan.from_pretrained(tmp_path / "pruning-tour-out" / "model")
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "pruning-tour-out" / "model")
    assert len(model.vit.layers) == len(plan.stacks["vit.layers"].kept) < 6
