"""Each task from the command line: data in every form, a run end to end, what is asked and what is refused."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import transformers
from datasets import Dataset

from hf_mpruner.cli import main
from hf_mpruner.cli.flags import COLUMNS, TASK_NAMES
from hf_mpruner.guarantee import Outcomes
from hf_mpruner.report import PruningReport
from hf_mpruner.tasks import ALIASES, TASKS
from tasks_kit import (
    FORMATS,
    pair_rows,
    question_rows,
    save_image_model,
    save_models,
    tagged_rows,
    text_rows,
    write_rows,
)

pytestmark = pytest.mark.usefixtures("no_pictures")

# Random weights: every two layers are alike, and any drop is accepted.
EAGER = ["--threshold", "0", "--max_metric_drop", "1000", "--calibration_batch_size", "8", "--max_rounds", "1"]
ROWS = {
    "token-classification": tagged_rows,
    "question-answering": question_rows,
    "text-generation": text_rows,
    "text2text-generation": pair_rows,
    "fill-mask": text_rows,
}


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
    """`{task}` is a model, `{task}_{csv|json|parquet}` its data."""
    import datasets.config

    folder = tmp_path_factory.mktemp("tasks")
    kept, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, folder / "cache"
    save_models(folder)
    for task, make in ROWS.items():
        for kind in FORMATS:
            write_rows(make(), folder / f"{task}_{kind}", kind)
    save_image_model(folder)
    for kind in FORMATS:
        (folder / f"digits_{kind}").rename(folder / f"image-classification_{kind}")
    yield folder
    datasets.config.HF_DATASETS_CACHE = kept


@pytest.mark.parametrize(
    ("task", "kind", "auto", "metric", "stack"),
    [
        ("token-classification", "json", "AutoModelForTokenClassification", "f1", "bert.encoder.layer"),
        ("question-answering", "csv", "AutoModelForQuestionAnswering", "f1", "bert.encoder.layer"),
        ("text-generation", "parquet", "AutoModelForCausalLM", "loss", "transformer.h"),
        ("text2text-generation", "json", "AutoModelForSeq2SeqLM", "loss", "decoder.block"),
        ("fill-mask", "csv", "AutoModelForMaskedLM", "loss", "bert.encoder.layer"),
        ("image-classification", "csv", "AutoModelForImageClassification", "accuracy", "vit.layers"),
    ],
)
def test_prune_each_task(task, kind, auto, metric, stack, world, tmp_path, run):
    out = tmp_path / "smaller"
    words = ["prune", world / task, "--dataset", world / f"{task}_{kind}", *EAGER, "--recovery_epochs", "1"]
    result = run(*words, "--output_dir", out)
    assert result.code == 0, result.err
    report = PruningReport.load(out)
    assert report.record.metric == metric
    assert report.record.baseline.metric is not None
    sources = report.record.metric_sources
    assert {name: source["library"] for name, source in sources.items() if name == metric} == (
        {} if metric == "loss" else {metric: "hf_mpruner"}
    )
    assert [round_.verdict for round_ in report.record.rounds] == ["accepted"]
    assert f"{auto}.from_pretrained('{out}')" in result.err
    model = getattr(transformers, auto).from_pretrained(out)
    assert len(model.get_submodule(stack)) == len(report.plan.kept[stack]) < 4


@pytest.mark.parametrize("task", [*ROWS, "image-classification"])
def test_analyze_gives_the_same_from_every_form_of_data(task, world, run):
    found = []
    for kind in FORMATS:
        result = run("analyze", world / task, "--dataset", world / f"{task}_{kind}", "--format", "json", *EAGER[:2])
        assert result.code == 0, result.err
        found.append(json.loads(result.out)["adjacent"])
    assert found[0] == found[1] == found[2]
    stacks = ["decoder.block", "encoder.block"] if task == "text2text-generation" else list(found[0])
    assert sorted(found[0]) == stacks
    assert len(stacks) == 1 + (task == "text2text-generation")


def test_the_names_of_tasks_in_the_help_are_those_there_are():
    assert sorted(TASK_NAMES) == sorted([*TASKS, *ALIASES])
    roles = {role for task in TASKS.values() for role in task.roles}
    assert roles == set(COLUMNS)


# -- metrics --------------------------------------------------------------------------------------------------------

# Texts that are equal, as a metric of evaluate that needs no other package.
SAME = """
import datasets
import evaluate


class Same(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions, references, scale=1):
        same = sum(one == other for one, other in zip(predictions, references)) / len(references)
        return {"same": same * scale, "words": sum(len(text.split()) for text in predictions)}
"""


@pytest.fixture
def same(tmp_path):
    folder = tmp_path / "metrics" / "same"
    folder.mkdir(parents=True)
    (folder / "same.py").write_text(SAME)
    return folder


def test_a_metric_of_what_the_model_writes_decides(world, same, tmp_path, run):
    out = tmp_path / "out"
    words = ["prune", world / "text2text-generation", "--dataset", world / "text2text-generation_csv", *EAGER]
    words += [
        "--metrics",
        f"{same}:scale=2",
        "--recovery_epochs",
        "0",
        "--max_target_length",
        "4",
        "--output_dir",
        out,
    ]
    asked = run(*words)
    assert asked.code == 2
    assert "produced several metrics of its own" in asked.err
    assert "On the command line: --metric NAME" in asked.err
    result = run(
        *words, "--metric", "words", "--greater_is_better", "--task", "summarization", "--source_prefix", "is "
    )
    assert result.code == 0, result.err
    record = PruningReport.load(out).record
    assert record.metric == "words"
    assert set(record.baseline.metrics) >= {"same", "words", "loss"}
    source = record.metric_sources["same"]
    assert (source["name"], source["arguments"]) == ("same", {"scale": 2})
    assert str(same) not in (out / "report.json").read_text()
    assert record.pipeline_tag == "summarization"
    assert "pipeline_tag: summarization" in (out / "README.md").read_text()
    assert record.data["judging"]["split"] == "validation"
    assert record.baseline.num_examples == 11


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metrics", "acuracy"], "--metrics: No metric 'acuracy' could be loaded"),
        (["--metrics", "acuracy"], "Did you mean 'accuracy'?"),
        (["--metrics", "./none"], "--metrics: No metric at './none'"),
        (["--metric", "exact"], "--metric exact is not measured here (did you mean 'exact_match'?): pass one of f1, exact_match, loss, or load it from evaluate: --metrics exact"),
        (["--question_column", "asked"], "question_column='asked' is not a column of the data. Its columns are 'question', 'context', 'answers'"),
        (["--tokens_column", "question"], "--tokens_column question: question-answering reads no such column. It takes --question_column"),
        (["--training", "warmup_stepz=3"], "--training warmup_stepz=3: TrainingArguments has no field 'warmup_stepz' (did you mean 'warmup_steps'?)"),
        (["--training", "seed=3"], "--training seed=3: seed is said with --seed"),
        (["--training", "save_strategy=epoch"], "save_strategy is set by hf-mpruner prune itself"),
        (["--training", "warmup_steps"], "--training warmup_steps: write KEY=VALUE"),
        (["--training", "max_grad_norm=big"], "--training max_grad_norm=big: 'big' is no float"),
        (["--training", "bf16=perhaps"], "--training bf16=perhaps: 'perhaps' is no true or false"),
        (["--training", "optim=sdg"], "--training optim=sdg: "),
    ],
)  # fmt: skip
def test_prune_refuses_before_a_weight_is_read(words, message, world, tmp_path, run, monkeypatch):
    import evaluate

    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    task = "question-answering"
    result = run("prune", world / task, "--dataset", world / f"{task}_json", "--output_dir", tmp_path / "new", *words)
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_tags_that_the_model_does_not_have(world, tmp_path, run):
    rows = [{"tokens": ["Now", "is"], "ner_tags": [0, 6]}] * 4
    write_rows(rows, tmp_path / "data", "json")
    words = ["--dataset", tmp_path / "data", "--output_dir", tmp_path / "new"]
    result = run("prune", world / "token-classification", *words)
    assert result.code == 1
    assert "Column 'ner_tags' holds 7 labels, the model has 3 (the largest number in the data is 6)" in result.err


def test_training_settings_reach_the_trainer_and_the_record(world, tmp_path, run):
    words = ["prune", world / "fill-mask", "--dataset", world / "fill-mask_json", *EAGER, "--metric", "perplexity"]
    words += ["--training", "warmup_steps=3", "gradient_accumulation_steps=2", "--output_dir", tmp_path / "out"]
    result = run(*words)
    assert result.code == 0, result.err
    record = PruningReport.load(tmp_path / "out").record
    assert record.training["warmup_steps"] == 3
    assert record.training["gradient_accumulation_steps"] == 2
    assert record.metric == "perplexity"
    assert record.baseline.metric == pytest.approx(math.exp(record.baseline.metrics["loss"]))


def test_what_to_try_next_repeats_what_was_typed(world, run):
    data = world / "text2text-generation_json"
    words = ["--text_column", "target", "--source_prefix", "is it: ", "--stacks", "encoder.block", "--max_length", "9"]
    result = run("analyze", world / "text2text-generation", "--dataset", data, *words, "--no_stop_when_done")
    assert result.code == 0, result.err
    assert (
        f"--dataset {data} --text_column target --max_length 9 --source_prefix 'is it: ' --stacks encoder.block "
        "--no_stop_when_done --threshold 0.98 --output_dir smaller"
    ) in result.err


def test_a_head_that_is_asked_for_is_made_to_measure(world, run):
    words = ["--dataset", world / "text-generation_csv", "--task", "text-generation", "--format", "json"]
    assert "bert.encoder.layer" in json.loads(run("analyze", world / "fill-mask", *words).out)["adjacent"]


def test_a_new_head_gets_the_tags_of_the_data(world, tmp_path, run):
    words = ["prune", world / "fill-mask", "--dataset", world / "token-classification_csv", *EAGER]
    result = run(*words, "--task", "token-classification", "--start_epoch", "1", "--output_dir", tmp_path / "out")
    assert result.code == 0, result.err
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert list(config.id2label.values()) == ["B-CMP", "I-CMP", "O"]
    assert PruningReport.load(tmp_path / "out").record.metric == "f1"


@pytest.mark.slow
@pytest.mark.parametrize(("metric", "kind"), [("f1", "values"), ("exact_match", "binary")])
def test_answers_are_compared_question_by_question(metric, kind, world, tmp_path, run):
    words = sorted({word for row in text_rows() for word in row["text"].split() if word.isalpha()})
    pairs = list(itertools.islice(itertools.permutations(words, 2), 400))
    rows = [
        {
            "question": f"What is better than {second} ?",
            "context": f"{first} is better than {second} .",
            "answers": {"text": [first], "answer_start": [0]},
        }
        for first, second in pairs
    ]
    (tmp_path / "data").mkdir()
    for name, part in (("train", rows[:100]), ("validation", rows[100:])):
        Dataset.from_list(part).to_json(tmp_path / "data" / f"{name}.json")
    given = ["--dataset", tmp_path / "data", "--output_dir", tmp_path / "new", "--metric", metric]
    promised = ["--threshold", "0", "--max_metric_drop", "0.5", "--confidence", "0.9", "--recovery_epochs", "0"]
    result = run("prune", world / "question-answering", *given, *promised, "--calibration_samples", "8")
    assert result.code == 0, result.err
    record = PruningReport.load(tmp_path / "new").record
    outcomes = Outcomes.from_dict(record.baseline.outcomes)
    assert (outcomes.kind, outcomes.num_examples, outcomes.value) == (kind, 300, record.baseline.metric)
    assert outcomes.value == pytest.approx(sum(outcomes.values) / 300)
    assert all(round_.bound is not None for round_ in record.rounds)
