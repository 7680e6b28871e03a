"""The card: every number in it is the report's, its code runs, the Hub takes it, and what is not known is not there."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from hf_mpruner.card import BEGIN, END, ModelFacts, check_card, merge_card, render_card
from hf_mpruner.card.front import read_metadata, split_card
from hf_mpruner.config import PruningConfig
from hf_mpruner.record import Measurement, PruningRecord, Round
from hf_mpruner.report import PruningReport
from hub.cards import check
from report_kit import bert_report, build_report
from text_kit import make_tokenizer

STACK = "bert.encoder.layer"
BERT = ModelFacts(
    "BertForSequenceClassification", "AutoModelForSequenceClassification", "transformers", "text-classification",
    "text-classification", "bert", "AutoTokenizer",
)  # fmt: skip
GOLDEN = Path(__file__).parent / "card_small.md"
PICTURES = [
    "plots/similarity_round_1_bert.encoder.layer.png",
    "plots/similarity_round_2_bert.encoder.layer.png",
    "plots/similarity_after_bert.encoder.layer.png",
    "plots/layers.png",
    "plots/metric.png",
]
FACTS = {
    "source_revision": "abc1def",
    "config": PruningConfig(threshold=0.97, max_metric_drop=0.02, seed=3, protect=["0"]).to_dict(),
    "stopped": "rejected at granularity 3, the coarsest allowed",
    "data": {
        "calibration": {
            "source": "training set",
            "dataset": "dair-ai/emotion",
            "split": "train",
            "num_examples": 1024,
        },
        "judging": {"dataset": "dair-ai/emotion", "config": "split", "split": "validation", "num_examples": 2000},
        "training": {"source": "training set", "num_examples": 16000},
    },
    "training": {
        "learning_rate": 5e-05, "per_device_train_batch_size": 16, "optimizer": "AdamW", "weight_decay": 0.0, "seed": 7,
    },
    "versions": {"python": "3.11.9", "hf_mpruner": "0.1.0", "torch": "2.13.0"},
    "device": "CPU (AMD EPYC 7)",
    "latency": {"batch_size": 8, "shape": {"input_ids": [8, 128]}, "repeats": 20, "dtype": "float32", "threads": 2},
}  # fmt: skip


def full_report(**facts):
    """`bert_report` with everything that a record can know."""
    report = bert_report(halfwidth=0.011, **{**FACTS, **facts})
    for measured, latency in zip(
        [report.before, *(r.after for r in report.rounds)], (9.125, 6.0, 7.5, 5.25), strict=True
    ):
        measured.latency_seconds, measured.num_examples = latency / 1000, 2000
        measured.metrics = {"accuracy": measured.metric, "f1_macro": measured.metric - 0.05, "own_score": 0.5}
    return report


def render(report=None, **kwargs):
    given = {"model": BERT, "title": "bert-small", "repo_id": "ann/bert-small", "pictures": PICTURES, **kwargs}
    return render_card(report or full_report(), **given)


def text_of(card):
    return split_card(card).body


def test_the_whole_text_of_a_small_report():
    """`GOLDEN` is this card; {table} is the report's own, which has tests of its own."""
    report = full_report()
    card = render(report, license="apache-2.0", language="en")
    assert card.replace(report.to_markdown(), "{table}") == GOLDEN.read_text(encoding="utf-8")


# -- numbers ---------------------------------------------------------------------------------------------------------

NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
# Numbers that are the card's own words: the paper's, of which layers are counted from 0, and the code's.
FIXED = ["2408.13482", "2024", "hu2024mpruner", "from 0.", "max_new_tokens=20", "argmax(-1)"]


def random_report(seed):
    """A run in which no two numbers are alike, and none is like one of the card's own words."""
    rng = random.Random(seed)
    metric = [round(rng.uniform(0.5, 0.9), 6) for _ in range(4)]
    size = [rng.randrange(10**6, 10**8) for _ in range(4)]
    depth = rng.randrange(9, 17)
    kept = [list(range(depth))]
    for _ in range(2):
        kept.append(sorted(rng.sample(kept[-1], len(kept[-1]) - 2)))

    def measured(i):
        low, high = metric[i] - rng.uniform(0.01, 0.05), metric[i] + rng.uniform(0.01, 0.05)
        seconds, latency = rng.uniform(1, 99), rng.uniform(0.01, 0.09)
        metrics = {"accuracy": metric[i], "f1": rng.uniform(0, 1)}
        return Measurement(
            size[i], size[i] * 4, metric[i], seconds, metrics, rng.randrange(10**3, 10**4), [low, high], latency,
            [latency / 2, latency * 2], rng.uniform(0.001, 0.009), None, size[i] * 5,
            {"bytes_per_token": rng.randrange(1000) * 1000, "constant_bytes": rng.randrange(1, 1000), "dtype": "float"},
        )  # fmt: skip

    baseline = measured(0)
    rounds = []
    for number, verdict in ((1, "accepted"), (2, rng.choice(["accepted", "rejected", "unjudged"]))):
        after = measured(number)
        drop = None if verdict == "unjudged" else baseline.metric - after.metric
        rounds.append(
            Round(
                number, rng.choice([1, 2, 3]), {STACK: kept[number]}, {STACK: []}, {}, after, verdict, drop, "", 10, rng.randrange(10**5),
                1.0, 2.0,
            )
        )  # fmt: skip
    config = PruningConfig(
        threshold=round(rng.uniform(0.9, 1), 5), max_metric_drop=round(rng.uniform(0, 0.1), 5), seed=rng.randrange(10**6),
        calibration_samples=rng.randrange(10**4), lora_rank=rng.randrange(1, 99),
    )  # fmt: skip
    data = {
        role: {"source": f"{role} set", "num_examples": rng.randrange(10**4, 10**6)}
        for role in ("calibration", "judging", "training")
    }
    record = PruningRecord(
        {STACK: depth}, "bert", "a/b", "0f3c", config.to_dict(), "accuracy", True, baseline, 1, rounds, "it was over",
        rng.choice([1, rng.randrange(2, 9)]), None, data,
        {"learning_rate": rng.uniform(0, 1e-3), "weight_decay": rng.uniform(0, 1), "max_steps": rng.randrange(10**6)},
        {"torch": "2.13.0"}, "CPU",
        {"batch_size": rng.randrange(1, 99), "shape": {"input_ids": [rng.randrange(99), rng.randrange(999)]}, "repeats": rng.randrange(99),
         "num_tokens": rng.randrange(1, 999)},
        round(rng.uniform(0.8, 0.99), 2),
    )  # fmt: skip
    return PruningReport(record)


def rate(value):
    return f"{round(value):,}" if value >= 1000 else f"{value:.4g}"


def accounted(report):
    """Every number that a card of this report may show, computed here from the record."""
    record = report.record
    kept = next((r for r in reversed(record.rounds) if r.verdict in ("accepted", "unjudged")), None)
    before, after = record.baseline, kept.after if kept else record.baseline
    depth = record.depths[STACK]
    layers = kept.kept[STACK] if kept else list(range(depth))
    removed = [layer for layer in range(depth) if layer not in layers]
    found = {str(depth), str(len(layers)), str(len(removed)), *map(str, range(depth))}
    found |= {f"{a}-{b}" for a in range(depth) for b in range(a + 2, depth) if all(
        set(range(a, b + 1)) <= set(run) for run in [layers if a in layers else removed]
    )}  # fmt: skip
    found |= {f"{1 - after.parameters / before.parameters:.1%}".rstrip("%"), f"{record.confidence * 100:.0f}"}
    for m in [before, *(r.after for r in record.rounds)]:
        found |= {f"{m.parameters:,}", f"{m.num_bytes / 1e6:.1f}", f"{m.metric:.4f}", f"{m.evaluation_seconds:.2f}"}
        found |= {f"{bound:.4f}" for bound in m.interval} | {f"{m.latency_seconds * 1000:.2f}", f"{m.num_examples:,}"}
        found |= {f"{m.single_latency_seconds * 1000:.2f}", f"{m.saved_bytes / 1e6:.1f}"}
        found |= {rate(record.latency[name] / m.latency_seconds) for name in ("batch_size", "num_tokens")}
        found |= {f"{m.cache['bytes_per_token'] / 1000:.1f}", str(m.cache["constant_bytes"])}
        found |= {f"{m.latency_seconds * 1000:.1f}", f"{(m.interval[1] - m.interval[0]) / 2:.4f}"}
    for r in record.rounds:
        found |= {str(r.number), str(r.granularity), f"{r.decided_at_step:,}"}
        found |= set() if r.drop is None else {f"{abs(r.drop):.4f}", f"{r.drop:.4f}"}
    found |= {f"{part['num_examples']:,}" for part in record.data.values()} | {str(record.world_size)}
    found |= {str(value) for values in (record.config, record.training) for value in values.values()}
    found |= {
        str(record.latency["batch_size"]),
        str(record.latency["repeats"]),
        *map(str, record.latency["shape"]["input_ids"]),
    }
    return found | {str(sum(r.drop is not None for r in record.rounds)), "2.13.0", "2.13"}


@pytest.mark.parametrize("seed", range(12))
def test_every_number_is_the_report_s(seed):
    report = random_report(seed)
    text = text_of(render(report, pictures=()))
    text = re.sub(r"<!-- hf_mpruner: metadata .*?-->", "", text)
    for words in FIXED:
        text = text.replace(words, "")
    shown = {number.rstrip(",") for number in NUMBER.findall(text.replace("`0f3c`", ""))}
    shown |= set(re.findall(r"\b\d+-\d+\b", text))
    spans = {part for number in shown if re.fullmatch(r"\d+-\d+", number) for part in number.split("-")}
    known = accounted(report)
    # a number after a dash is that of a span: "2-4" is seen as 2, -4 and 2-4
    assert {n for n in shown if n not in known and n.lstrip("-+") not in known | spans} == set()
    kept = next(r for r in reversed(report.record.rounds) if r.verdict in ("accepted", "unjudged"))
    before, after = report.record.baseline, kept.after
    for needed in (
        f"{before.parameters:,} -> {after.parameters:,} parameters ({1 - after.parameters / before.parameters:.1%} fewer)",
        f"{before.metric:.4f} -> {after.metric:.4f}",
        f"interval after pruning {after.interval[0]:.4f} to {after.interval[1]:.4f}",
        f"{before.latency_seconds * 1000:.2f} ms -> {after.latency_seconds * 1000:.2f} ms",
        f"{after.num_examples:,} examples",
    ):
        assert needed in text
    if kept.drop is not None:
        assert f"({'worse' if kept.drop > 0 else 'better'} by {abs(kept.drop):.4f})" in text


def test_numbers_of_the_metadata():
    values = read_metadata(render())["model-index"][0]["results"][0]["metrics"]
    assert values == [
        {"type": "accuracy", "value": 0.9325, "name": "accuracy"},
        {"type": "f1", "value": 0.8825, "name": "f1_macro"},
    ]


# -- code ------------------------------------------------------------------------------------------------------------


def tiny(task):
    """A tiny model of a task, and what is saved beside it."""
    import transformers as t

    words = make_tokenizer(pairs=True)
    words.mask_token = "[MASK]"
    size = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 1}
    size |= {"vocab_size": len(words)}
    labels = {"id2label": {0: "a", 1: "b", 2: "c"}}
    image = {**size, "image_size": 8, "patch_size": 4, **labels}
    t5 = t.T5Config(
        vocab_size=len(words), d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0, pad_token_id=0,
        eos_token_id=4,
    )  # fmt: skip
    pictures = {"size": {"height": 8, "width": 8}}
    return {
        "text-classification": lambda: (t.BertForSequenceClassification(t.BertConfig(**size, **labels)), words),
        "several labels": lambda: (
            t.BertForSequenceClassification(t.BertConfig(**size, **labels, problem_type="multi_label_classification")),
            words,
        ),
        "regression": lambda: (t.BertForSequenceClassification(t.BertConfig(**size, num_labels=1)), words),
        "token-classification": lambda: (t.BertForTokenClassification(t.BertConfig(**size, **labels)), words),
        "question-answering": lambda: (t.BertForQuestionAnswering(t.BertConfig(**size)), words),
        "image-classification": lambda: (
            t.ViTForImageClassification(t.ViTConfig(**image)),
            t.ViTImageProcessorPil(**pictures),
        ),
        "grey images": lambda: (
            t.ViTForImageClassification(t.ViTConfig(**image, num_channels=1)),
            t.ViTImageProcessorPil(**pictures, image_mean=[0.5], image_std=[0.5]),
        ),
        "text-generation": lambda: (t.LlamaForCausalLM(t.LlamaConfig(**size, pad_token_id=0)), words),
        "fill-mask": lambda: (t.BertForMaskedLM(t.BertConfig(**{**size, "vocab_size": len(words) + 1})), words),
        "text2text-generation": lambda: (t.T5ForConditionalGeneration(t5), words),
        "no task": lambda: (t.BertModel(t.BertConfig(**size)), words),
    }[task]()


# Its name here -> the head that is found.
TASKS = {
    "text-classification": "text-classification", "several labels": "text-classification", "regression": "text-classification",
    "token-classification": "token-classification", "question-answering": "question-answering",
    "image-classification": "image-classification", "grey images": "image-classification",
    "text-generation": "text-generation", "fill-mask": "fill-mask", "text2text-generation": "text2text-generation",
    "no task": None,
}  # fmt: skip
OUTPUT = {
    "question-answering": "",
    "no task": "",
    "several labels": "[",
    "token-classification": "[",
    "regression": "[",
}


@pytest.mark.parametrize("with_processor", [True, False], ids=["with its processor", "alone"])
@pytest.mark.parametrize("task", TASKS)
def test_the_code_runs(task, with_processor, tmp_path, monkeypatch, capsys):
    model, processor = tiny(task)
    processor = processor if with_processor else None
    model.save_pretrained(tmp_path)
    if processor is not None:
        processor.save_pretrained(tmp_path)
    facts = ModelFacts.of_folder(tmp_path)
    live = ModelFacts.of_model(model, processor)
    assert dataclasses.replace(live, config={}) == dataclasses.replace(facts, config={})
    assert render(model=live) == render(model=facts)
    assert facts.task == TASKS[task]
    (code,) = re.findall(r"## Use\n\n```python\n(.*?)```", render(model=facts), re.DOTALL)
    assert 'from_pretrained("ann/bert-small")' in code
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(code.replace("ann/bert-small", "."), {})
    printed = capsys.readouterr().out
    assert printed.endswith("\n") == (task != "no task")  # what an untrained model writes may be nothing
    assert printed.startswith(OUTPUT.get(task, ""))
    assert "Processor" in code or "Tokenizer" in code or not with_processor or task == "no task"
    # and with nothing said about where it is, it is the folder that the card lies in
    assert render(model=facts, repo_id=None).count('from_pretrained(".")') == render(model=facts).count(
        '("ann/bert-small")'
    )


def test_the_plan_is_replayed_by_the_code(tmp_path, monkeypatch, make_bert):
    make_bert(6).save_pretrained(tmp_path / "base")
    report = full_report()
    report.plan.save_pretrained(tmp_path / "small")
    (code,) = re.findall(r"## Reproduce.*?```python\n(.*?)```", render(report), re.DOTALL)
    assert 'from_pretrained("google-bert/bert-base-uncased", revision="abc1def")' in code
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code.replace("google-bert/bert-base-uncased", "base").replace("ann/bert-small", "small"), names)
    assert len(names["model"].bert.encoder.layer) == 5
    assert (
        "hf-mpruner apply google-bert/bert-base-uncased --revision abc1def --plan ann/bert-small --output_dir out"
        in render()
    )


def test_training_is_named_only_where_there_was_some():
    told = "without the training that followed it:"
    assert told in render()
    report = full_report()
    for round_ in report.rounds:
        round_.recovery_seconds = round_.decided_at_step = 0
    card = render(report)
    assert told not in card
    assert "The same cut on a fresh copy of the original model:\n" in card
    assert "Nothing trained between a cut and its verdict." in card
    assert "AdamW" not in card.partition("<details><summary>All settings")[0]


def test_without_a_base_on_the_hub_the_code_says_what_is_missing(make_bert):
    report = full_report(source_model=None)
    card = render(report)
    assert "The model it was pruned from is not on the Hub, or its name there is not known." in card
    assert "base_model" not in read_metadata(card)
    assert "hf-mpruner apply" not in card
    assert 'apply_plan_(original, PruningPlan.from_pretrained("ann/bert-small"))' in card
    for path in ("/home/ann/bert", "./bert", "a/b/c", ""):
        assert render(full_report(source_model=path)) == card
    assert read_metadata(render(report, base_model="a/b"))["base_model"] == "a/b"


def test_models_that_transformers_does_not_have(make_bert, tmp_path):
    from custom_kit import make_custom

    own = ModelFacts.of_model(make_custom())
    assert (own.loader, own.module) == ("CustomModel", "custom_kit")
    assert "from custom_kit import CustomModel\n" in render(model=own)

    Script = type("Script", (type(make_bert()),), {"__module__": "__main__"})
    script = ModelFacts.of_model(Script(make_bert().config))
    assert script.loader is None
    assert "The class `Script` is defined in its author's own script" in render(model=script)

    config = {"architectures": ["Net"], "model_type": "net", "auto_map": {"AutoModelForCausalLM": "modeling_net.Net"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    brought = ModelFacts.of_folder(tmp_path)
    assert brought.auto_class == "AutoModelForCausalLM"
    assert 'AutoModelForCausalLM.from_pretrained("ann/bert-small", trust_remote_code=True)' in render(model=brought)


@pytest.mark.parametrize(
    ("front", "base"),
    [
        ("base_model: a/b", "a/b"),
        ("base_model: [a/b]", "a/b"),
        ("base_model: [a/b, c/d]", None),
        ("a: [1", None),
        ("a: 1", None),
    ],
)
def test_the_base_that_a_folder_s_card_names(front, base, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertModel"], "model_type": "bert"}))
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# Mine\n")
    facts = ModelFacts.of_folder(tmp_path)
    assert facts.base_model == base
    text = text_of(render(full_report(source_model=None), model=facts))
    assert ("pruned from [a/b](https://huggingface.co/a/b)" in text) == (base is not None)


def test_folders_without_a_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"No model in '{tmp_path}': there is no config.json"):
        ModelFacts.of_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config.json' names no class \('architectures' is None\)"):
        ModelFacts.of_folder(tmp_path)


# -- metadata --------------------------------------------------------------------------------------------------------


def test_metadata_is_what_the_hub_takes(hub):
    card = render(license="apache-2.0", language=["en", "no"], tags=["mine"], datasets=["a/b", "/var/data", "c"])
    data = read_metadata(card)
    assert check(card) == ([], [])
    assert ModelCard(card).data.to_dict() == data
    assert str(ModelCard(card)) == card
    assert data["base_model_relation"] == "finetune"
    assert data["datasets"] == ["a/b", "c", "dair-ai/emotion"]
    assert data["tags"] == ["pruned", "layer-pruning", "hf_mpruner", "mpruner", "cka", "mine"]
    assert "- 'no'\n" in card
    assert data["model-index"][0]["results"][0]["dataset"] == {
        "type": "dair-ai/emotion", "name": "dair-ai/emotion", "config": "split", "split": "validation",
    }  # fmt: skip
    body = json.dumps({"content": card, "repoType": "model"}).encode()
    request = urllib.request.Request(f"{hub.url}/api/validate-yaml", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        assert json.load(answer)["errors"] == []


def test_values_are_those_of_python():
    report = full_report()
    report.after.metric, report.after.metrics = (
        np.float64(0.93),
        {"accuracy": np.float32(0.93), "f1": np.float64("nan")},
    )
    report.record.training["learning_rate"] = np.float64(1e-4)
    metrics = read_metadata(render(report))["model-index"][0]["results"][0]["metrics"]
    assert [type(metric["value"]) for metric in metrics] == [float]
    assert "!!" not in render(report)
    assert "np." not in render(report)


@pytest.mark.parametrize(
    ("facts", "model"),
    [
        ({"data": {"judging": {"source": "evaluation set", "num_examples": 9}}}, BERT),
        ({"data": {"judging": {"dataset": "/home/ann/data", "num_examples": 9}}}, BERT),
        ({"data": {}}, BERT),
        ({}, dataclasses.replace(BERT, task=None)),
    ],
    ids=["no data set of the Hub", "a path", "no data", "no task"],
)
def test_no_results_without_a_data_set_of_the_hub_and_a_task(facts, model):
    data = read_metadata(render(full_report(**facts), model=model))
    assert "model-index" not in data
    assert data["metrics"] == ["accuracy", "f1"]


def test_metrics_that_the_hub_does_not_know_are_in_the_text_only():
    report = full_report(metric="own_score")
    for measured in (report.before, *(r.after for r in report.rounds)):
        measured.metrics = {"own_score": measured.metric}
    card = render(report)
    assert {"metrics", "model-index"} & set(read_metadata(card)) == set()
    assert r"**own\_score**: 0.9400 -> 0.9325" in card


# -- what is not known, and what must be said ------------------------------------------------------------------------

EMPTY = {
    "source_model": None, "source_revision": None, "config": {}, "metric": None, "greater_is_better": None,
    "baseline": None, "rounds": [], "stopped": None, "data": {}, "training": {}, "versions": {}, "device": None,
    "latency": {}, "similarity_after": {}, "world_size": 1,
}  # fmt: skip


@pytest.mark.parametrize("missing", [*EMPTY, "everything", "measurements"])
def test_what_is_not_known_is_not_there(missing):
    report = full_report()
    if missing == "measurements":
        report.record.baseline = Measurement(6500, 26000)
        for round_ in report.rounds:
            round_.after, round_.drop, round_.similarity = Measurement(5500, 22000), None, {}
    elif missing == "everything":
        report = PruningReport(PruningRecord(**{**EMPTY, "depths": {STACK: 6}}))
    else:
        setattr(report.record, missing, EMPTY[missing])
    card = render(report, pictures=(), repo_id=None)
    check_card(card)
    text = text_of(card)
    for word in ("None", "nan", "null", "unknown", "TODO", "[]", "{}", "()", "``"):
        assert word not in text.replace("torch.no_grad()", "").replace(".item()", "").replace("```", ""), word
    assert "\n\n\n" not in text
    assert text.count("<details>") == text.count("</details>")


ROLES = ("calibration", "judging")
ALL_KEPT = [({STACK: [0, 2, 4]}, "rejected", 0.8)]
SAID = {
    "pending": ([({STACK: [0, 2]}, "pending", None)], {}, "> Training goes on. Round 1 has been cut and is not judged yet"),
    "unfinished": (ALL_KEPT, {"stopped": None}, "> Training goes on, and further rounds may follow."),
    "unjudged": ([({STACK: [0, 2]}, "unjudged", None)], {}, "> No evaluation judged this cut: how well"),
    "nothing removed": (ALL_KEPT, {}, "none of its 6 layers was removed."),
    "same data": (
        ALL_KEPT, {"data": {role: {"dataset": "a/b", "split": "test"} for role in ROLES}},
        "chosen on the same data that judged",
    ),
    "the evaluation set chose": (
        ALL_KEPT, {"data": {role: {"source": "evaluation set"} for role in ROLES}},
        "chosen on the same data that judged",
    ),
    "a sample of the evaluation set chose": (
        ALL_KEPT,
        {"data": {"calibration": {"source": "sample of the evaluation set"}, "judging": {"source": "evaluation set"}}},
        "chosen on the same data that judged",
    ),
    "within noise": ([({STACK: [0, 2]}, "accepted", 0.935)], {"halfwidth": 0.02}, "half the width of its 95% interval"),
    "no interval": ([({STACK: [0, 2]}, "accepted", 0.9)], {}, "is chance is not known: no interval was computed"),
    "nothing measured": ([({STACK: [0, 2]}, "unjudged", None)], {"baseline": None}, "No metric was measured."),
    "trained on": ([({STACK: [0, 2]}, "accepted", 0.9)], {}, "It was measured at training step 15. If training went on"),
    "a plan": ([({STACK: [0, 2]}, "unjudged", None)], {"config": {}}, "Reason of round 1."),
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_what_must_be_said(name):
    rounds, facts, words = SAID[name]
    told = render(build_report({STACK: 6}, rounds, **{"stopped": "it was over", **facts}))
    assert words in told
    calm = render(
        build_report(
            {STACK: 6}, [({STACK: [0, 2]}, "accepted", 0.9)], halfwidth=0.001, stopped="it was over",
            config=PruningConfig(stop_when_done=True).to_dict(), source_model="a/b",
            data={"calibration": {"source": "given by the user"}, "judging": {"source": "given by the user"}},
        )
    )  # fmt: skip
    assert words not in calm
    assert "WARNING" not in calm


def test_a_round_that_is_being_recovered_is_what_the_weights_are():
    rounds = [({STACK: [0, 1, 2, 3]}, "accepted", 0.93), ({STACK: [0, 1]}, "pending", None)]
    card = render(build_report({STACK: 6}, rounds))
    assert card.index("WARNING") < card.index(
        "BertForSequenceClassification`, pruned" if False else "4 of 6 layers removed"
    )
    assert f"| `{STACK}` | 6 | 2 | 2-5 | 0, 1 |" in card
    assert "**Size**" not in card
    assert "## Reproduce" not in card
    assert {"metrics", "model-index"} & set(read_metadata(card)) == set()


def test_a_better_metric_is_not_called_worse():
    card = render(build_report({STACK: 6}, [({STACK: [0, 2]}, "accepted", 0.96)]))
    assert "0.9400 -> 0.9600 (better by 0.0200)" in card
    lower = build_report(
        {STACK: 6},
        [({STACK: [0, 2]}, "accepted", 0.5)],
        metric="loss",
        greater_is_better=False,
        config=FACTS["config"],
    )
    lower.rounds[0].drop = 0.5 - 0.94
    assert "**loss**: 0.9400 -> 0.5000 (better by 0.4400)" in render(lower)
    assert "A round was kept if `loss` (smaller is better) was worse" in render(lower)


def test_pictures_stand_side_by_side():
    card = render()
    row = f"| ![similarity round 1 {STACK}]({PICTURES[0]}) | ![similarity after {STACK}]({PICTURES[2]}) |"
    assert row in card
    assert card.count(PICTURES[1]) == 1
    assert card.index("<details><summary>Similarity in every round") < card.index(PICTURES[1])
    assert "![](" not in card
    assert "plots" not in render(pictures=())


# -- names that may be anything --------------------------------------------------------------------------------------

NASTY = {
    "pipe": "a|b", "colon": "a: b", "hash": "# a", "braces": "{{ a }} {% b %}", "backticks": "a `b` ``c``", "comment": END,
    "begin": BEGIN, "markup": "<b>*a* _b_ [c](d)", "quotes": "\"a\" 'b'", "lines": "a\n---\nb", "unicode": "é🤗",
    "tag": "!!python/object a", "digits": "0123", "no": "no",
}  # fmt: skip


@pytest.mark.parametrize("name", NASTY.values(), ids=NASTY)
def test_names_do_no_harm(name):
    facts = {
        "data": {"judging": {"source": name, "split": name}, "calibration": {"dataset": name, "split": name}},
        "training": {name: name, "optimizer": name}, "versions": {name: name}, "device": name, "stopped": name, "source_revision": name,
    }  # fmt: skip
    report = full_report(**facts)
    report.rounds[0].refused, report.rounds[0].reason = True, name
    card = render(report, title=name, tags=[name])
    check_card(card)
    assert read_metadata(card)["tags"][-1] == name
    body = text_of(card)
    assert body.count(BEGIN) == body.count(END) == 1
    assert re.findall(r"^#+ .*", body, re.MULTILINE)[1:] == re.findall(r"^#+ .*", text_of(render()), re.MULTILINE)[1:]
    assert merge_card(card, card) == card
    assert merge_card(f"Mine.\n\n{card}", card).startswith("---\n")


def test_tables_keep_their_columns():
    report = build_report({"a|b": 3}, [({"a|b": [0]}, "accepted", 0.9)], metric="c|d|e")
    tables = re.findall(r"(?:^\|.*\n)+", render(report, pictures=()), re.MULTILINE)
    assert [len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) for table in tables] == [1, 1]
    assert r"a\|b" in tables[0] and r"c\|d\|e" in tables[0]  # noqa: PT018
    assert "**c\\|d\\|e**: 0.9400 -> 0.9000" in render(report)


def test_metadata_of_the_user_is_checked():
    with pytest.raises(ValueError, match="license is 'mine', which is none of the Hub's"):
        render(license="mine")
    with pytest.raises(ValueError, match=r"language\[0\] is 'english', not an ISO 639 code"):
        render(language="english")


def test_a_card_is_short():
    text = text_of(render(full_report(), pictures=()))
    visible = re.sub(r"<details>.*?</details>|```bibtex.*?```", "", text, flags=re.DOTALL)
    assert len(visible.splitlines()) < 100
    assert text.index("parameters (") < text.index("## Use") < text.index("## Measured")
    assert yaml.safe_load(split_card(render()).yaml)["library_name"] == "transformers"
