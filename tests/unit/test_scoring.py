"""Metrics by name, folder, object and function; the forms they take; what they give as plain floats."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import datasets
import evaluate
import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from hf_mpruner import make_compute_metrics
from hf_mpruner.scoring import Answers, load_metrics
from hf_mpruner.scoring.compute import plain_floats
from hf_mpruner.scoring.exact import answer_scores, entity_scores, find_entities
from hf_mpruner.scoring.library import split_spec
from tasks_kit import make_tokenizer

LOGITS = np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0], [3.0, 1.0]])
CLASSES = EvalPrediction(LOGITS, np.array([0, 1, 1, 0]))
TAGS = ("O", "B-PER", "I-PER")

SCRIPT = """
import datasets
import evaluate


class Mine(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="",
            features=datasets.Features({"predictions": datasets.Value("int32"), "references": datasets.Value("int32")}),
        )

    def _compute(self, predictions, references, scale=1):
        import numpy

        hits = numpy.float64(sum(p == r for p, r in zip(predictions, references)) * scale)
        return {"hits": hits, "parts": {"first": numpy.int64(predictions[0])}, "all": [1, 2], "config": self.config_name}
"""


class Recorded(evaluate.Metric):
    """Keeps what it was given, in the form that its features ask for."""

    def __init__(self, prediction, reference, **kwargs):
        self.forms = datasets.Features({"predictions": prediction, "references": reference})
        super().__init__(**kwargs)

    def _info(self):
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=self.forms)

    def _compute(self, predictions, references):
        self.seen = predictions, references
        return {"seen": len(predictions)}


def recorded(prediction, reference):
    return Recorded(prediction, reference, keep_in_memory=True)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "mine.py").write_text(SCRIPT)
    return folder


# -- where a metric comes from ------------------------------------------------------------------------------------


def test_a_folder_is_loaded_with_arguments_and_its_numbers_are_plain(mine):
    compute = make_compute_metrics(f"{mine}:scale=10")
    values = compute(CLASSES)
    assert values == {"hits": 30.0, "parts_first": 0.0}
    assert all(type(value) is float for value in values.values())
    source = {
        "name": "mine",
        "config": None,
        "arguments": {"scale": 10},
        "library": f"evaluate {evaluate.__version__}",
    }
    assert compute.sources == {"hits": source, "parts_first": source}
    json.dumps(compute.sources)


def test_the_configuration_goes_into_the_record(mine):
    (metric,) = load_metrics(f"{mine}/mine.py:strict")
    assert metric.compute.config_name == "strict"
    assert metric.source["config"] == "strict"


def test_several_metrics_and_one_key_twice(mine):
    def accuracy(prediction):
        return {"accuracy": torch.tensor(0.25), "hits": 1}

    compute = make_compute_metrics([str(mine), accuracy, recorded(datasets.Value("int32"), datasets.Value("int32"))])
    values = compute(CLASSES)
    assert values == {"hits": 3.0, "parts_first": 0.0, "accuracy": 0.25, "accuracy_hits": 1.0, "seen": 4.0}
    assert compute.sources["accuracy_hits"] == {"name": "accuracy", "config": None, "arguments": {}, "library": "user"}


def test_without_a_name_the_metrics_are_those_computed_here():
    compute = make_compute_metrics()
    assert compute(CLASSES) == {"accuracy": 0.75, "f1_macro": pytest.approx(0.7333, abs=1e-4)}
    assert compute.sources["accuracy"]["library"] == "hf_mpruner"
    # of an encoder-decoder the logits come first
    assert compute(EvalPrediction((LOGITS, np.zeros((4, 2))), CLASSES.label_ids))["accuracy"] == 0.75


@pytest.mark.parametrize(
    ("metrics", "error", "message"),
    [
        ("acuracy", FileNotFoundError, r"No metric 'acuracy' could be loaded.*Did you mean 'accuracy'\?.*Space evaluate-metric/acuracy.*Without a network name a folder"),
        ("ann/speed", FileNotFoundError, r"No metric 'ann/speed' could be loaded.*\(Space ann/speed\)"),
        ("./nothing", FileNotFoundError, r"No metric at './nothing': a metric is a folder that holds.*'nothing/nothing.py'"),
        (7, ValueError, "metrics=7 is no metric: pass a name, a folder"),
    ],
)  # fmt: skip
def test_metrics_that_nobody_knows(metrics, error, message, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    with pytest.raises(error, match=message):
        make_compute_metrics(metrics)


def test_a_script_that_needs_a_package_says_so(mine):
    (mine / "mine.py").write_text(SCRIPT.replace("import evaluate\n", "import evaluate\nimport no_such_package\n", 1))
    with pytest.raises(ImportError, match=r"Metric '.*mine' needs packages that are not installed: .*no_such_package"):
        make_compute_metrics(str(mine))


def test_a_folder_that_hides_a_name_is_not_taken_for_it(mine, monkeypatch):
    monkeypatch.chdir(mine.parent)
    with pytest.raises(ValueError, match=r"'mine' is a folder of the working directory.*'./mine' for the folder"):
        make_compute_metrics("mine")
    assert make_compute_metrics("./mine")(CLASSES)["hits"] == 3.0


def test_without_evaluate_a_name_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "evaluate", None)
    with pytest.raises(ImportError, match=r"Metric 'accuracy' .*pip install 'hf_mpruner\[evaluate\]'"):
        make_compute_metrics("accuracy")
    assert make_compute_metrics()(CLASSES)["accuracy"] == 0.75


def test_an_evaluate_that_is_too_old_says_which_to_install(monkeypatch):
    def load(*args, **kwargs):
        raise AttributeError("module 'huggingface_hub.hf_api' has no attribute 'HfFolder'")

    monkeypatch.setattr(evaluate, "load", load)
    with pytest.raises(ImportError, match=r"could not load 'accuracy' .*HfFolder.*pip install -U 'evaluate>=0\.4\.6'"):
        make_compute_metrics("accuracy")


def test_a_name_with_a_colon_that_exists_is_a_path(tmp_path):
    odd = tmp_path / "a:b=c"
    odd.mkdir()
    assert split_spec(str(odd)) == (str(odd), None, {})
    expected = ("f1", "strict", {"average": None, "beta": 0.5, "zero": True, "labels": "x"})
    assert split_spec("f1:strict,average=none,beta=0.5,zero=true,labels=x") == expected


# -- what a metric is given, and gives ----------------------------------------------------------------------------


def test_classes_as_numbers_or_names():
    numbers = recorded(datasets.Value("int32"), datasets.Value("string"))
    make_compute_metrics(numbers, label_names=["cold", "warm"])(CLASSES)
    assert numbers.seen == ([0, 1, 0, 0], ["cold", "warm", "warm", "cold"])
    make_compute_metrics(numbers)(CLASSES)
    assert numbers.seen[1] == ["0", "1", "1", "0"]


def test_tags_by_sentence_or_all_in_one():
    logits = np.eye(3)[[[0, 1, 2, 0], [1, 0, 0, 0]]]
    prediction = EvalPrediction(logits, np.array([[-100, 1, 2, 0], [1, -100, 0, -100]]))
    words = datasets.List(datasets.Value("string"))
    by_sentence, flat = recorded(words, words), recorded(datasets.Value("int32"), datasets.Value("int32"))
    values = make_compute_metrics([by_sentence, flat, None], task="token-classification", label_names=TAGS)(prediction)
    assert by_sentence.seen == ([["B-PER", "I-PER", "O"], ["B-PER", "O"]],) * 2
    assert flat.seen == ([1, 2, 0, 1, 0],) * 2
    assert {key: values[key] for key in ("accuracy", "f1", "precision", "recall")} == dict.fromkeys(
        ("accuracy", "f1", "precision", "recall"), 1.0
    )
    plain = make_compute_metrics(task="token-classification", label_names=["NOUN", "VERB", "X"])(prediction)
    assert plain == {"accuracy": 1.0, "f1_macro": 1.0}


@pytest.mark.parametrize(("task", "accuracy"), [("text-generation", 0.5), ("fill-mask", 1 / 3)])
def test_tokens_are_compared_where_they_count(task, accuracy):
    said = np.array([[5, 6, 7, 9]])
    labels = np.array([[4, 5, -100, 3]]) if task == "text-generation" else np.array([[5, -100, 8, 1]])
    compute = make_compute_metrics(task=task)
    assert compute(EvalPrediction(said, labels)) == {"accuracy": pytest.approx(accuracy)}
    assert compute(EvalPrediction(np.eye(10)[said], labels)) == {"accuracy": pytest.approx(accuracy)}


def test_texts_with_one_reference_or_a_list_of_them():
    tokenizer = make_tokenizer(template="$A [EOS]")
    ids = tokenizer(["Now is better than never", "Flat is better"], padding=True, return_tensors="np").input_ids
    labels = np.where(ids == tokenizer.pad_token_id, -100, ids)
    text = datasets.Value("string")
    single, several = recorded(text, text), recorded(text, datasets.List(text))
    compute = make_compute_metrics([single, several], task="text2text-generation", processing_class=tokenizer)
    assert compute(EvalPrediction(ids, labels)) == {"seen": 2.0, "recorded_seen": 2.0}
    wanted = ["Now is better than never", "Flat is better"]
    assert single.seen == (wanted, wanted)
    assert several.seen == (wanted, [[text] for text in wanted])


def test_answers_as_squad_takes_them():
    text, number = datasets.Value("string"), datasets.Value("int32")
    answers = {"text": datasets.List(text), "answer_start": datasets.List(number)}
    squad = recorded({"id": text, "prediction_text": text}, {"id": text, "answers": answers})
    plain = recorded(text, text)
    wanted = [{"text": ["Ada", "Ada L."], "answer_start": [3, 3]}, {"text": [], "answer_start": []}]
    compute = make_compute_metrics([squad, plain, None], decode=lambda _: Answers(["ada", ""], wanted))
    assert compute(CLASSES) == {"seen": 2.0, "recorded_seen": 2.0, "exact_match": 1.0, "f1": 1.0}
    assert squad.seen[0][0] == {"id": "0", "prediction_text": "ada"}
    assert squad.seen[1][1] == {"id": "1", "answers": wanted[1]}
    assert plain.seen == (["ada", ""], ["Ada", ""])


def test_what_a_metric_says_has_its_name_and_the_way_to_pass_arguments(mine):
    with pytest.raises(ValueError, match=r"Metric 'mine' could not judge.*'wide'.*e\.g\. 'mine:average=macro'"):
        make_compute_metrics(f"{mine}:wide=1")(CLASSES)


def test_a_script_that_lacks_a_file_is_not_called_missing(mine):
    (mine / "mine.py").write_text("raise FileNotFoundError('words.txt')")
    with pytest.raises(FileNotFoundError, match=r"Metric '.*mine' could not be loaded: its script needs.*words\.txt"):
        make_compute_metrics(str(mine))


@pytest.mark.parametrize(
    ("metrics", "options", "message"),
    [
        (lambda prediction: 0.5, {}, r"Metric '<lambda>' returned 0.5, without a number: return a dict"),
        (lambda prediction: {"all": [1, 2]}, {}, r"returned \{'all': \[1, 2\]\}, without a number"),
    ],
)
def test_what_is_no_number_is_refused(metrics, options, message):
    with pytest.raises(ValueError, match=message):
        make_compute_metrics(metrics, **options)(CLASSES)


def test_a_metric_that_takes_something_else_is_refused():
    class Scores(Recorded):
        def _info(self):
            names = {"prediction_scores": datasets.Value("float"), "references": datasets.Value("int32")}
            return evaluate.MetricInfo(
                description="", citation="", inputs_description="", features=datasets.Features(names)
            )

    metric = Scores(datasets.Value("int32"), datasets.Value("int32"), keep_in_memory=True)
    with pytest.raises(
        ValueError, match="'scores' takes prediction_scores, references, not predictions and references"
    ):
        make_compute_metrics(metric)(CLASSES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "question-answering"}, "task='question-answering': predictions of this task are not read here"),
        ({"task": "token-classification"}, r"task='token-classification' needs label_names=\[...\]"),
        (
            {"task": "text2text-generation"},
            "no metric of texts is computed here. Name one of evaluate, e.g. metrics='rouge'",
        ),
        ({"task": "text2text-generation", "metrics": len}, "task='text2text-generation' needs processing_class=tok"),
    ],
)
def test_tasks_that_need_more_say_what(options, message):
    with pytest.raises(ValueError, match=message):
        make_compute_metrics(**options)


# -- formulas ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "entities"),
    [  # values of seqeval 1.2.2 for the same tags
        (["B-PER", "I-PER", "O"], {("PER", 0, 1)}),
        (["I-PER", "I-PER", "B-PER"], {("PER", 0, 1), ("PER", 2, 2)}),
        (["B-PER", "I-LOC", "I-LOC"], {("PER", 0, 0), ("LOC", 1, 2)}),
        (["S-LOC", "I-LOC", "E-LOC", "I-LOC"], {("LOC", 0, 0), ("LOC", 1, 2), ("LOC", 3, 3)}),
        (["O", "O"], set()),
    ],
)
def test_entities(tags, entities):
    assert find_entities(tags) == entities


def test_scores_without_entities_and_answers():
    assert entity_scores([["O"]], [["O"]]) == {"f1": 0.0, "precision": 0.0, "recall": 0.0}
    assert answer_scores([""], [["Ada"]]) == {"exact_match": 0.0, "f1": 0.0}
    assert answer_scores(["Ada came"], [["Ada", "she came in"]])["f1"] == pytest.approx(2 / 3)


def test_plain_floats_leave_out_what_is_none():
    values = {"a": True, "b": np.float32(0.5), "c": {"d": np.array(2)}, "e": "text", "f": np.array([1.0]), "g": None}
    assert plain_floats(values) == {"a": 1.0, "b": 0.5, "c_d": 2.0}
    assert plain_floats([1.0]) == {}
