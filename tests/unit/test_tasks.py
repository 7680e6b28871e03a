"""What each task makes of its rows: words and labels, windows and answers, blocks, masks, decoder inputs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import (
    BertConfig,
    BertForMaskedLM,
    EvalPrediction,
    GPT2Config,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from hf_mpruner.data import Columns, calibration_loader
from hf_mpruner.scoring import find_outcomes, load_metrics
from hf_mpruner.scoring.exact import answer_scores
from hf_mpruner.tasks import Settings, find_task
from hf_mpruner.tasks.answers import likeliest_spans
from hf_mpruner.tasks.choice import TASKS
from tasks_kit import TAGS, make_tokenizer, pair_rows, question_rows, tagged_rows, text_rows

BERT = {"vocab_size": 99, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def model_like(config=None, **values):
    """What `prepare` reads of a model: its config."""
    return SimpleNamespace(config=config or BertConfig(**{**BERT, "max_position_embeddings": 32}, **values))


def prepared(task, rows, tokenizer, purpose, model=None, **settings):
    """Rows of a list as the command line makes inputs of them."""
    chosen = TASKS[task]()
    data = Dataset.from_list(rows)
    columns = chosen.find_columns(data, {}, need_label=purpose != "calibration")
    taken = chosen.take(data, columns)
    return chosen.prepare(taken, columns, model or model_like(), tokenizer, Settings(**settings), purpose)


@pytest.mark.parametrize(
    ("task", "rows"),
    [
        ("token-classification", tagged_rows),
        ("question-answering", question_rows),
        ("text-generation", text_rows),
        ("fill-mask", text_rows),
    ],
)
def test_calibration_has_a_row_for_each_row_and_nothing_of_the_labels(task, rows, tokenizer):
    ready = prepared(task, rows(), tokenizer, "calibration")
    assert len(ready) == len(rows())
    assert set(ready.column_names) <= {"input_ids", "token_type_ids", "attention_mask"}
    assert tokenizer.mask_token_id not in {token for ids in ready["input_ids"] for token in ids}


def test_a_column_of_another_task_is_refused():
    data = Dataset.from_list(pair_rows())
    with pytest.raises(
        ValueError, match=r"--tokens_column source: text2text-generation reads no such column.*--text_col"
    ):
        TASKS["text2text-generation"]().find_columns(data, {"tokens_column": "source"}, need_label=True)
    pairs = Dataset.from_list([{"sentence1": "a", "sentence2": "b"}])
    with pytest.raises(
        ValueError, match=r"fill-mask reads one text, and the data has a pair \('sentence1', 'sentence2'"
    ):
        TASKS["fill-mask"]().find_columns(pairs, {}, need_label=True)


# -- tags -----------------------------------------------------------------------------------------------------------


def test_a_tag_stands_at_the_first_token_of_its_word():
    rows = [{"tokens": ["Now", "never-ending", "better"], "ner_tags": ["O", "I-CMP", "B-CMP"]}]
    words = make_tokenizer(texts=["never - ending"])
    names = dict(enumerate(TAGS))
    model = model_like(num_labels=3, id2label=names, label2id={name: i for i, name in names.items()})
    (example,) = prepared("token-classification", rows, words, "judge", model)
    pieces = words.convert_ids_to_tokens(example["input_ids"])
    assert pieces == ["[CLS]", "Now", "never", "-", "ending", "better", "[SEP]"]
    assert example["labels"] == [-100, 0, 2, -100, -100, 1, -100]
    (cut,) = prepared("token-classification", rows, words, "judge", model, max_length=4)
    assert cut["labels"] == [-100, 0, 2, -100]


def test_tags_that_the_model_does_not_have_give_both_counts(tokenizer):
    with pytest.raises(
        ValueError, match=r"'ner_tags' holds 3 labels, the model has 2 and none of its own is named 'B-CMP'"
    ):
        prepared("token-classification", tagged_rows(), tokenizer, "train", model_like(num_labels=2))
    numbers = [{"tokens": ["Now", "is"], "ner_tags": [0, 4]}]
    with pytest.raises(ValueError, match=r"holds 5 labels, the model has 2 \(the largest number in the data is 4\)"):
        prepared("token-classification", numbers, tokenizer, "train", model_like(num_labels=2))


def test_classes_of_tags_are_translated_by_name(tokenizer):
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=["O", "B-CMP", "I-CMP"]))})
    data = Dataset.from_dict({"tokens": [["better", "than"]], "ner_tags": [[1, 2]]}, features=features)
    task = TASKS["token-classification"]()
    columns = task.find_columns(data, {}, need_label=True)
    assert task.find_label_names(data, columns) == ["O", "B-CMP", "I-CMP"]
    model = model_like(num_labels=3, id2label={0: "I-CMP", 1: "O", 2: "B-CMP"})
    ready = task.prepare(data, columns, model, tokenizer, Settings(), "judge")
    assert ready[0]["labels"] == [-100, 2, 0, -100]


def test_entities_decide_only_if_tags_mark_them():
    task = TASKS["token-classification"]()
    assert task.own_metrics(BertConfig(id2label=dict(enumerate(TAGS))))[0] == "f1"
    assert task.own_metrics(BertConfig(id2label={0: "NOUN", 1: "VERB"}))[0] == "accuracy"
    assert task.processor_options(GPT2Config()) == {"add_prefix_space": True}


@pytest.mark.parametrize("task", ["token-classification", "question-answering"])
def test_a_slow_tokenizer_is_refused(task):
    rows = tagged_rows if task == "token-classification" else question_rows
    with pytest.raises(ValueError, match=f"{task} needs a fast tokenizer.*SimpleNamespace is none"):
        prepared(task, rows(), SimpleNamespace(is_fast=False), "train")


# -- answers --------------------------------------------------------------------------------------------------------


def long_rows():
    """Answers in the first and in a later window, and a question without one."""
    context = " ".join(row["text"] for row in text_rows()[:7])
    rows = [
        {"question": "What is better ?", "context": context, "answers": {"text": [answer], "answer_start": [start]}}
        for answer in ("Beautiful", "Sparse is better", "nested")
        if (start := context.find(answer)) >= 0
    ]
    return [*rows, {**rows[0], "answers": {"text": [], "answer_start": []}}]


@pytest.mark.parametrize("max_length", [32, 16])
def test_logits_at_the_labels_give_the_answers_back(max_length, tokenizer):
    judge = prepared("question-answering", long_rows(), tokenizer, "judge", max_length=max_length)
    assert len(long_rows()) == 4
    assert len(judge) > 2 * len(long_rows())
    width = max(len(example["input_ids"]) for example in judge)
    starts, ends = np.zeros((2, len(judge), width))
    for window, example in enumerate(judge):
        starts[window, example["start_positions"]] = ends[window, example["end_positions"]] = 9.0
        if example["start_positions"]:  # a window without the answer is less sure of that
            starts[window] *= 2
    said = judge.read_answers(starts, ends)
    assert said == ["Beautiful", "Sparse is better", "nested", ""]
    scorer = TASKS["question-answering"]().make_scorer(model_like(), tokenizer, judge)
    assert scorer(EvalPrediction((starts, ends), None)) == {"exact_match": 1.0, "f1": 1.0}
    assert TASKS["question-answering"]().count_examples(judge) == 4


def test_where_all_questions_have_answers_none_is_left_without(tokenizer):
    judge = prepared("question-answering", question_rows()[:2], tokenizer, "judge")
    logits = np.zeros((2, 32))
    logits[:, 0] = 9.0
    assert all(judge.read_answers(logits, logits))


def test_outcomes_are_of_questions_and_not_of_their_windows(tokenizer):
    judge = prepared("question-answering", long_rows() * 5, tokenizer, "judge", max_length=32)
    scorer = TASKS["question-answering"]().make_scorer(model_like(), tokenizer, judge)
    width = max(len(example["input_ids"]) for example in judge)
    prediction = EvalPrediction(tuple(np.random.default_rng(0).normal(size=(2, len(judge), width))), None)
    whole = scorer(prediction)
    said = judge.read_answers(*prediction.predictions)
    for metric, kind in (("f1", "values"), ("exact_match", "binary")):
        outcomes = find_outcomes(scorer.scored(prediction, metric), metric, whole[metric])
        assert (outcomes.kind, outcomes.num_examples) == (kind, 20)
        pairs = zip(said, judge.wanted, strict=True)
        assert outcomes.values == pytest.approx(
            [answer_scores([one], [right["text"]])[metric] for one, right in pairs]
        )
        assert len(set(outcomes.values)) >= 2


def test_training_windows_hold_nothing_else(tokenizer):
    ready = prepared("question-answering", question_rows(), tokenizer, "train")
    names = {"input_ids", "attention_mask", "start_positions", "end_positions"}
    assert set(ready.column_names) == names
    first = ready[0]
    span = first["input_ids"][first["start_positions"] : first["end_positions"] + 1]
    assert tokenizer.decode(span) == "Beautiful"
    assert ready[len(ready) - 1]["start_positions"] == 0


def test_a_question_without_room_for_its_context(tokenizer):
    rows = [{**question_rows()[0], "question": "what is better " * 10}]
    with pytest.raises(
        ValueError, match=r"A question of column 'question' leaves no room for its context in 16 tokens"
    ):
        prepared("question-answering", rows, tokenizer, "train", max_length=16)


def test_spans_end_after_they_begin_and_stay_in_the_context():
    offsets = [[-1, -1], [0, 2], [3, 5], [-1, -1]]
    spans = likeliest_spans(np.array([9.0, 0.0, 5.0, 9.0]), np.array([9.0, 5.0, 0.0, 9.0]), offsets)
    assert sorted((first, last) for _, first, last in spans) == [(1, 1), (1, 2), (2, 2)]


# -- language models ------------------------------------------------------------------------------------------------


def test_blocks_hold_all_tokens_in_order(tokenizer):
    plain = make_tokenizer(template=None)
    ready = prepared("text-generation", text_rows(), plain, "train", max_length=16)
    tokens = [token for row in text_rows() for token in plain(row["text"])["input_ids"]]
    joined = [token for block in ready["input_ids"] for token in block]
    assert {len(block) for block in ready["input_ids"]} == {16}
    assert joined == tokens[: len(tokens) // 16 * 16]
    assert ready["labels"] == ready["input_ids"]
    assert len(prepared("text-generation", text_rows()[:1], plain, "train", max_length=999)) == 1


def test_lines_without_text_are_no_examples(tokenizer):
    rows = [{"text": "Now is better"}, {"text": " "}, {"text": ""}, {"text": None}]
    assert len(prepared("fill-mask", rows, tokenizer, "calibration")) == 1
    with pytest.raises(ValueError, match="Column 'text' is empty in all 3 rows"):
        prepared("fill-mask", rows[1:], tokenizer, "calibration")


def test_masks_that_judge_are_drawn_once(tokenizer, tmp_path):
    judge = prepared("fill-mask", text_rows(), tokenizer, "judge")
    again = prepared("fill-mask", text_rows(), tokenizer, "judge")
    other = prepared("fill-mask", text_rows(), tokenizer, "judge", seed=1)
    assert judge["input_ids"] == again["input_ids"] != other["input_ids"]
    assert all(any(label != -100 for label in labels) for labels in judge["labels"])
    config = BertConfig(**{**BERT, "vocab_size": len(tokenizer), "max_position_embeddings": 32})
    trainer = Trainer(
        BertForMaskedLM(config),
        TrainingArguments(tmp_path, report_to="none", disable_tqdm=True, use_cpu=True),
        eval_dataset=judge,
        data_collator=TASKS["fill-mask"]().make_collator(None, tokenizer),
    )
    assert trainer.evaluate()["eval_loss"] == trainer.evaluate()["eval_loss"]


def test_masks_that_train_are_drawn_anew_and_never_missing(tokenizer):
    train = prepared("fill-mask", text_rows(), tokenizer, "train")
    short = prepared("fill-mask", [{"text": "Now"}] * 20, tokenizer, "train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert len({str(train[0]["labels"]) for _ in range(20)}) > 1
        assert all(short[i]["labels"][1] == tokenizer("Now")["input_ids"][1] for i in range(len(short)))


def test_a_tokenizer_without_a_mask(tokenizer):
    bare = make_tokenizer()
    bare.mask_token = None
    with pytest.raises(ValueError, match=r"fill-mask needs a tokenizer with a mask token, and this \w+ has none"):
        prepared("fill-mask", text_rows(), bare, "judge")


def test_metrics_of_a_language_model_see_tokens(tokenizer):
    task = TASKS["fill-mask"]()
    assert task.make_scorer(model_like(), tokenizer, None) is None
    assert task.trainer_options([]) == {}
    tokens = task.trainer_options(["accuracy"])["preprocess_logits_for_metrics"]
    assert tokens((torch.eye(3)[None], torch.zeros(1)), None).tolist() == [[0, 1, 2]]


# -- text to text ---------------------------------------------------------------------------------------------------


def test_the_decoder_is_fed_with_the_target():
    words = make_tokenizer(template="$A [EOS]")
    config = T5Config(
        vocab_size=len(words),
        d_model=8,
        d_kv=4,
        d_ff=8,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        pad_token_id=0,
    )
    model = T5ForConditionalGeneration(config)
    settings = {"source_prefix": "better : ", "max_length": 6, "max_target_length": 3}
    ready = prepared("text2text-generation", pair_rows()[:6], words, "calibration", model, **settings)
    assert all(words.decode(ids).startswith("better") for ids in ready["input_ids"])
    assert max(map(len, ready["input_ids"])) == 6
    assert max(map(len, ready["labels"])) == 3
    (batch,) = calibration_loader(ready, num_samples=6, batch_size=6, seed=0, processing_class=words, model=model)
    labels = batch["labels"]
    shifted = torch.cat([torch.zeros(6, 1, dtype=torch.long), labels[:, :-1].clamp(min=0)], dim=1)
    assert torch.equal(batch["decoder_input_ids"], shifted)
    # a metric makes the model write, the loss alone does not
    task = TASKS["text2text-generation"]()
    limits = Settings(max_target_length=7)
    assert task.training_options(limits, [])["predict_with_generate"] is False
    options = task.training_options(limits, load_metrics(lambda prediction: {"x": 1.0}))
    assert options == {"predict_with_generate": True, "generation_max_length": 7}


def test_a_tokenizer_of_many_languages_must_know_which(tokenizer):
    many = SimpleNamespace(src_lang="en_XX", tgt_lang=None)
    with pytest.raises(
        ValueError,
        match=r"SimpleNamespace marks the languages .* tgt_lang is not set.*src_lang='en_XX', tgt_lang='de_DE'",
    ):
        prepared("text2text-generation", pair_rows(), many, "train")


def test_what_the_hub_calls_a_text_to_text_model_is_said_by_the_user():
    config = T5Config(architectures=["T5ForConditionalGeneration"])
    assert find_task(config).pipeline_tag is None
    task = find_task(config, "summarization")
    assert (task.name, task.pipeline_tag) == ("text2text-generation", "summarization")
    assert find_task(BertConfig(architectures=["BertForQuestionAnswering"])).pipeline_tag == "question-answering"


def test_columns_of_a_task_are_named(tokenizer):
    task = TASKS["text2text-generation"]()
    data = Dataset.from_list([{"translation": {"de": "Jetzt", "en": "Now"}}])
    columns = task.find_columns(
        data, {"text_column": ["translation.en"], "target_column": "translation.de"}, need_label=True
    )
    assert columns == Columns("text", ("translation.en",), "translation.de")
    assert task.take(data, columns)[0] == {"translation.en": "Now", "translation.de": "Jetzt"}
