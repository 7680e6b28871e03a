"""Columns of all roles: found by type and name, asked for where several could be meant; rows of one form."""

from __future__ import annotations

import pytest
from datasets import ClassLabel, Dataset, Features, List, Translation, Value

from hf_mpruner.data import (
    Columns,
    column_types,
    find_answer_columns,
    find_target_columns,
    find_token_columns,
    open_images,
    read_answers,
    split_words,
    take_columns,
)

ANSWERS = {"text": ["Ada"], "answer_start": [0]}


def test_types_of_columns_from_features_and_from_an_example():
    features = Features(
        {
            "tokens": List(Value("string")),
            "ner_tags": List(ClassLabel(names=["O"])),
            "ids": List(Value("int64")),
            "scores": List(Value("float32")),
            "answers": {"text": List(Value("string")), "answer_start": List(Value("int32"))},
            "translation": Translation(["de", "en"]),
            "meta": {"url": Value("string"), "n": Value("int64")},
        }
    )
    data = Dataset.from_dict({name: [] for name in features}, features=features)
    assert column_types(data) == {
        "tokens": "words", "ner_tags": "classes", "ids": "classes", "scores": "other", "answers": "answers",
        "translation.de": "text", "translation.en": "text", "meta.url": "text", "meta.n": "number",
    }  # fmt: skip
    row = {"tokens": ["a"], "ids": [1], "scores": [0.5], "answers": [ANSWERS], "none": None, "empty": []}
    types = {"tokens": "words", "ids": "classes", "scores": "other", "answers": "answers"}
    assert column_types([row]) == {**types, "none": "other", "empty": "other"}
    assert column_types([]) == {}


@pytest.mark.parametrize(
    ("find", "row", "found"),
    [
        (find_token_columns, {"id": "1", "tokens": ["a"], "ner_tags": [0]}, (("tokens",), "ner_tags")),
        (find_token_columns, {"words": ["a"], "labels": ["O"]}, (("words",), "labels")),
        (find_token_columns, {"tokens": "a b", "tags": "O O", "source": "x"}, (("tokens",), "tags")),
        (find_answer_columns, {"id": "1", "title": "t", "context": "c", "question": "q", "answers": ANSWERS}, (("question", "context"), "answers")),
        (find_answer_columns, {"passage": "c", "query": "q", "answer": "{}"}, (("query", "passage"), "answer")),
        (find_target_columns, {"id": "1", "article": "a", "highlights": "b"}, (("article",), "highlights")),
        (find_target_columns, {"document": "a", "summary": "b", "title": "c"}, (("document",), "summary")),
    ],
)  # fmt: skip
def test_roles_are_found(find, row, found):
    assert find([row]) == Columns("text", *found)


@pytest.mark.parametrize(
    ("find", "row", "named", "message"),
    [
        (find_token_columns, {"tokens": ["a"], "ner_tags": [0], "pos_tags": [0]}, {}, r"2 columns could be the label \('ner_tags', 'pos_tags'\).*--label_column ner_tags"),
        (find_token_columns, {"tokens": ["a"], "words": ["b"], "tags": [0]}, {}, r"2 columns could be the tokens \('tokens', 'words'\).*--tokens_column tokens"),
        (find_token_columns, {"text": "a b", "label": 0}, {}, r"No column looks like the tokens. The columns are 'text', 'label'"),
        (find_token_columns, {"tokens": ["a"], "label": 0}, {}, r"No column looks like the label"),
        (find_token_columns, {"tokens": ["a"], "tags": [0]}, {"tokens_column": "word"}, "tokens_column='word' is not a column of the data. Its columns are 'tokens', 'tags'"),
        (find_answer_columns, {"question": "q", "text": "c", "answers": ANSWERS}, {}, "No column looks like the context.*--context_column question"),
        (find_answer_columns, {"question": "q", "context": "c"}, {}, "No column looks like the answers.*'question', 'context'"),
        (find_answer_columns, {"question": "q", "context": "c"}, {"answers_column": "gold"}, "answers_column='gold' is not a column"),
        (find_target_columns, {"a": "x", "b": "y"}, {}, r"2 columns could be the text \('a', 'b'\).*--text_column a"),
        (find_target_columns, {"a": "x", "b": "y", "c": "z"}, {"text_column": ["a"]}, r"2 columns could be the target \('b', 'c'\)"),
        (find_target_columns, {"a": "x", "b": "y"}, {"text_column": ["a", "b"]}, r"text_column names 2 columns \('a', 'b'\): pass the source text"),
        (find_target_columns, {"a": "x"}, {}, "No column looks like the target"),
        (find_target_columns, {"a": "x"}, {"target_column": "z"}, "target_column='z' is not a column of the data. Its columns are 'a'"),
    ],
)  # fmt: skip
def test_what_is_ambiguous_or_missing_is_asked_for(find, row, named, message):
    with pytest.raises(ValueError, match=message):
        find([row], **named)


def test_one_name_is_enough_where_one_other_text_is_left():
    assert find_target_columns([{"a": "x", "b": "y"}], text_column=["b"]) == Columns("text", ("b",), "a")
    assert find_target_columns([{"a": "x", "b": "y"}], target_column="b") == Columns("text", ("a",), "b")


def test_labels_are_optional_for_measuring():
    assert find_token_columns([{"tokens": ["a"]}], need_label=False).label is None
    assert find_answer_columns([{"question": "q", "context": "c"}], need_label=False).label is None


# -- rows of one form -----------------------------------------------------------------------------------------------


def test_a_part_of_the_data_without_the_column():
    data = Dataset.from_list([{"text": "a"}])
    with pytest.raises(
        ValueError, match=r"Column 'label' is missing in the part 'None' of the data, whose columns are 'text'"
    ):
        take_columns(data, Columns("text", ("text",), "label"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"tokens": ["a b"], "tags": ["O"]}, "Row 0 has 2 words in 'tokens' and 1 tags in 'tags': each word needs one tag"),
        ({"tokens": [["a"], ["b"]], "tags": [[0], None]}, "Row 1 has 1 words in 'tokens' and no tags in 'tags'"),
        ({"tokens": ["['a' 'b']"], "tags": ["O O"]}, r"Column 'tokens' holds \"\['a' 'b'\]\", which begins like a JSON list"),
    ],
)  # fmt: skip
def test_words_and_tags_that_do_not_fit(rows, message):
    with pytest.raises(ValueError, match=message):
        split_words(Dataset.from_dict(rows), Columns("text", ("tokens",), "tags"))


def test_words_as_json_and_tags_as_numbers():
    data = Dataset.from_dict({"tokens": ['["a", "b c"]', "d"], "tags": ["[0, 1]", "1"]})
    ready = split_words(data, Columns("text", ("tokens",), "tags"))
    assert ready[:] == {"tokens": [["a", "b c"], ["d"]], "tags": [[0, 1], [1]]}


@pytest.mark.parametrize(
    "cell", ['{"text": ["Ada"], "answer_start": [0]}', '[{"text": "Ada", "answer_start": 0}]', ANSWERS, [{"text": "Ada", "answer_start": 0}]],
)  # fmt: skip
def test_answers_of_every_form(cell):
    assert read_answers(Dataset.from_list([{"answers": cell}]), "answers")[0]["answers"] == ANSWERS


@pytest.mark.parametrize(
    "cell", ["Ada", '{"text": ["Ada"]}', '{"text": ["Ada"], "answer_start": []}', '{"text": [1], "answer_start": [0]}', None]
)  # fmt: skip
def test_what_is_no_answer(cell):
    data = Dataset.from_dict({"answers": [cell]}, features=Features({"answers": Value("string")}))
    with pytest.raises(ValueError, match=rf"Column 'answers' holds .{str(cell)[:6]}.*no answers of SQuAD's form"):
        read_answers(data, "answers")


def test_pictures_that_are_not_there(tmp_path):
    data = Dataset.from_dict({"file_name": ["no.png"]})
    with pytest.raises(
        ValueError, match=rf"Column 'file_name' should hold pictures.*'no.png' is no file in '{tmp_path}'"
    ):
        open_images(data, "file_name", tmp_path)
