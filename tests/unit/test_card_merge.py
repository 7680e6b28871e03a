"""Our card in one that a person has written in: nothing of theirs is lost, and what the Hub refuses is found before."""

from __future__ import annotations

import json
import random
import re

import pytest
import yaml
from huggingface_hub import ModelCard

from hf_mpruner.card import BEGIN, END, check_card, merge_card
from hf_mpruner.card.check import _LICENSES
from hf_mpruner.card.front import read_metadata, split_card, written_note
from hub.cards import LICENSES, check
from hub.test_cards_and_journal import GOOD, REFUSED


def index(value, dataset="glue", metric="accuracy"):
    result = {
        "task": {"type": "text-classification"},
        "dataset": {"type": dataset, "name": dataset},
        "metrics": [{"type": metric, "value": value}],
    }
    return [{"name": "m", "results": [result]}]


def ours(text="measured", **metadata):
    """A card as `render_card` makes it, with little in it."""
    values = {"library_name": "transformers", "tags": ["pruned"], **metadata}
    front = yaml.safe_dump(values, sort_keys=False)
    return f"---\n{front}---\n\n# small\n\n{BEGIN}\n{written_note(values)}\n\n{text}\n\n{END}\n"


A = ours("first", license="mit", **{"model-index": index(0.9)})
B = ours("second", base_model="a/b", base_model_relation="finetune", **{"model-index": index(0.8)})
# Cards that a person may have; no two of a kind.
THEIRS = {
    "nothing but metadata": "---\nlicense: apache-2.0\n---",
    "a text at the end of the metadata": "---\n# why\nmine: |\n  one\n  two\n---\n# Mine\n",
    "false as a value": "---\nmodel-index: no\nwidget: no\n---\n# Mine\n",
    "text only": "# Mine\n\nWritten by hand.\n",
    "no newline at the end": "# Mine",
    "metadata with comments": "---\n# why\nlicense: apache-2.0 # mine\ntags:\n- x\n# below\nother: [1, 2]\n---\n# Mine\n",
    "metadata in one line": '---\n{"license": "apache-2.0", "tags": "x"}\n---\n# Mine\n',
    "empty metadata": "---\n---\n# Mine\n",
    "only a comment": "---\n# nothing yet\n---\n# Mine\n",
    "CRLF": "---\r\nlicense: apache-2.0\r\ntags:\r\n- x\r\n---\r\n# Mine\r\n\r\nText.\r\n",
    "CRLF without metadata": "# Mine\r\n\r\nText.\r\n",
    "both line endings": "# Mine\r\n\nText.\n",
    "keys that are no strings": "---\nno: 1\n2: x\nlicense: apache-2.0\n---\n# Mine\n",
    "anchors": "---\ntags: &t\n- x\nmore: *t\n---\n# Mine\n",
    "results of their own": f"---\n{yaml.safe_dump({'model-index': index(0.5, 'other')})}---\n# Mine\n",
    "the same result measured by them": f"---\n{yaml.safe_dump({'model-index': index(0.5)})}---\n# Mine\n",
    "a model-index that is none": "---\nmodel-index: later\n---\n# Mine\n",
    "nulls": "---\nlicense:\ntags:\nbase_model: ''\n---\n# Mine\n",
    "another base": "---\nbase_model: c/d\n---\n# Mine\n",
    "around our section": f"---\ntags: [x]\n---\nAbove.\n{BEGIN}\nold\n{END}\nBelow, <b>bold</b>.\n",
    "two sections": f"One.\n{BEGIN}\nold\n{END}\nTwo.\n{BEGIN}\nold\n{END}\nThree.\n",
    "a section without its end": f"One.\n{BEGIN}\nold, and what they wrote below\n",
    "an end without a section": f"One.\n{END}\nTwo.\n",
    "a rule, not metadata": "# Mine\n\n---\n\nlicense: none\n\n---\n",
    "emoji and unicode": "---\ntags: ['é🤗']\n---\n# Möin 🤗\n",
    "a byte order mark": "\ufeff---\nlicense: apache-2.0\n---\n# Mine\n",
    "one of ours": A,
    "one of ours with words around": A.replace("# small\n", "# My title\n\nMy words.\n") + "\nMore.\n",
    "one of ours, edited inside": A.replace("first", "they changed this"),
}


def outside(text):
    """The text without metadata and without our sections."""
    return re.sub(f"{BEGIN}((?!{BEGIN}).)*?{END}", "", split_card(text).body, flags=re.DOTALL)


@pytest.mark.parametrize("theirs", THEIRS.values(), ids=THEIRS)
def test_nothing_of_theirs_is_lost(theirs):
    once = merge_card(theirs, A)
    twice = merge_card(once, B)
    assert merge_card(once, A) == once
    assert merge_card(twice, B) == twice
    old = read_metadata(theirs)
    for text, words in ((once, "first"), (twice, "second")):
        assert outside(text).startswith(outside(theirs))
        assert outside(text)[len(outside(theirs)) :].strip() == ""
        assert text.count(words) == 1
        for key, value in read_metadata(theirs).items():
            if key == "tags" and value:
                assert read_metadata(text)[key][:1] == (value if isinstance(value, list) else [value])
            elif (
                (key != "model-index" or value is False) and value not in (None, "") and not theirs.startswith(A[:40])
            ):
                assert read_metadata(text)[key] == value
        assert "pruned" in read_metadata(text)["tags"]
        assert read_metadata(text)["library_name"] == "transformers"
    assert once.count("\r\n") == 0 or "\r\n" in theirs
    if old.get("license"):
        assert read_metadata(twice)["license"] == old["license"]


VALUES = [
    "x", "'no'", "no", "1.0", "null", "''", "[a, b]", "[a,\n  b]", "\n- a\n- b", "\n  - a  # c\n  - b", "{a: 1}", "\n  a: 1\n  b:\n  - 2",
    "|\n  text\n  more", ">-\n  fold\n  ed", "2020-01-01", '"q: #"',
]  # fmt: skip
KEYS = [*read_metadata(A), *read_metadata(B), "datasets", "widget", "bar baz", "1", "no", "'quoted'"]
LINES = [
    "# Title",
    "",
    "text",
    "---",
    BEGIN,
    END,
    "```yaml\na: 1\n```",
    "<!-- c -->",
    "- item",
    "a: b",
    "  indented",
    "é🤗",
]


def random_card(rng):
    front = ""
    for key in rng.sample(sorted(set(KEYS)), rng.randrange(6)):
        value = rng.choice(VALUES)
        front += rng.choice(["", "", "# comment\n", "\n", "  # indented\n"])
        front += f"{key}:{'' if value.startswith(chr(10)) else ' '}{value}{rng.choice(['', ' # c'])}\n"
    body = "\n".join(rng.choice(LINES) for _ in range(rng.randrange(9))) + rng.choice(["", "\n", "\n\n\n"])
    card = rng.choice(["---\n{}---\n{}", "\n---\n{}---\n{}"]).format(front, body) if rng.random() < 0.8 else f"{body}."
    return card.replace("\n", rng.choice(["\n", "\n", "\r\n"]))


@pytest.mark.parametrize("seed", range(2))
def test_nothing_of_random_cards_is_lost(seed):
    rng = random.Random(seed)
    for _ in range(50):
        theirs = random_card(rng)
        try:
            old = read_metadata(theirs)
        except ValueError:
            continue
        once = merge_card(theirs, A)
        twice = merge_card(once, B)
        assert merge_card(once, A) == once
        assert merge_card(twice, B) == twice
        assert outside(twice).startswith(outside(theirs))
        assert outside(twice)[len(outside(theirs)) :].strip() == ""
        new = read_metadata(twice)
        for key, value in old.items():
            if value not in (None, "", [], {}) and key != "tags":
                assert new[key] == value, theirs
        have = old.get("tags")
        have = have if isinstance(have, list) else [] if have in (None, "", {}) else [have]
        assert new["tags"][: len(have)] == have


def test_without_a_card_it_is_ours():
    assert merge_card(None, A) == merge_card("", A) == merge_card(" \n", A) == A


def test_lines_and_comments_of_their_metadata_stay_where_they_are():
    merged = merge_card(THEIRS["metadata with comments"], A)
    assert merged.startswith(
        "---\n# why\nlicense: apache-2.0 # mine\ntags:\n- x\n- pruned\n# below\nother: [1, 2]\nlibrary_name: transformers\n"
    )


def test_line_endings_stay():
    merged = merge_card(THEIRS["CRLF"], A)
    assert merged.count("\n") == merged.count("\r\n")


def test_results_of_an_earlier_card_of_ours_go_and_those_of_others_stay():
    other = index(0.5, "other")
    merged = merge_card(f"---\n{yaml.safe_dump({'model-index': other})}---\n# Mine\n", A)
    assert [r["metrics"][0]["value"] for r in read_metadata(merged)["model-index"][0]["results"]] == [0.5, 0.9]
    again = merge_card(merged, B)
    assert [r["metrics"][0]["value"] for r in read_metadata(again)["model-index"][0]["results"]] == [0.5, 0.8]
    assert read_metadata(merge_card(again, ours()))["model-index"] == other


def test_their_own_value_for_the_same_thing_is_kept():
    merged = merge_card(THEIRS["the same result measured by them"], A)
    assert read_metadata(merged)["model-index"] == index(0.5)
    assert read_metadata(merge_card(merged, B))["model-index"] == index(0.5)
    changed = A.replace("value: 0.9", "value: 0.7")
    assert read_metadata(merge_card(changed, B))["model-index"] == index(0.7)


def test_a_value_of_ours_that_nobody_changed_is_replaced_and_a_changed_one_is_not():
    first = ours(pipeline_tag="text-classification", base_model="a/b")
    second = ours(pipeline_tag="fill-mask", base_model="c/d")
    assert read_metadata(merge_card(first, second)) == read_metadata(second)
    edited = first.replace("base_model: a/b", "base_model: e/f")
    assert read_metadata(merge_card(edited, second))["base_model"] == "e/f"
    # theirs by chance the same as ours: it stays theirs
    merged = merge_card("---\nbase_model: a/b\n---\n# Mine\n", first)
    assert read_metadata(merge_card(merged, second))["base_model"] == "a/b"


def test_a_relation_is_not_claimed_of_another_base():
    merged = merge_card(THEIRS["another base"], B)
    assert read_metadata(merged)["base_model"] == "c/d"
    assert "base_model_relation" not in read_metadata(merged)
    assert read_metadata(merge_card("---\nbase_model: a/b\n---\n", B))["base_model_relation"] == "finetune"


@pytest.mark.parametrize(
    ("front", "message"),
    [
        ("a: [1", r"is no YAML: while parsing a flow sequence.*Correct it by hand; nothing was changed"),
        ("just words", r"is 'just words', not keys and values"),
        ("- a", r"is \['a'\], not keys and values"),
        ("v: !!python/object/apply:numpy.float64 [1]", "is no YAML: could not determine a constructor"),
    ],
)
def test_metadata_that_cannot_be_read_is_an_error_and_no_loss(front, message):
    with pytest.raises(ValueError, match=message):
        merge_card(f"---\n{front}\n---\n# Mine\n", A)


def test_ours_must_have_a_section():
    with pytest.raises(ValueError, match=r"has no section between '<!-- hf_mpruner: begin -->'"):
        merge_card("# Mine\n", "# Yours\n")


# -- cards that transformers writes by itself ------------------------------------------------------------------------


def hub_default():
    from huggingface_hub import ModelCardData
    from transformers.utils import hub

    description = "This is the model card of a 🤗 transformers model that has been pushed on the Hub."
    assert description in open(hub.__file__, encoding="utf-8").read()  # noqa: PTH123, SIM115
    data = ModelCardData(library_name="transformers", tags=["mine"])
    return str(
        ModelCard.from_template(
            data, model_description=f"{description} This model card has been automatically generated."
        )
    )


def trainer_default(tmp_path, make_bert, **kwargs):
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    data = Dataset.from_dict({"input_ids": [[1, 2]] * 4, "labels": [0, 1, 2, 0]})
    args = TrainingArguments(tmp_path, num_train_epochs=1, report_to="none", disable_tqdm=True, eval_strategy="epoch")
    trainer = Trainer(
        make_bert(1), args, train_dataset=data, eval_dataset=data, compute_metrics=lambda _: {"accuracy": 0.25}
    )
    trainer.train()
    trainer.create_model_card(**kwargs)
    return (tmp_path / "README.md").read_text(encoding="utf-8")


def test_an_untouched_default_card_of_push_to_hub_is_replaced():
    merged = merge_card(hub_default(), A)
    assert split_card(merged).body == split_card(A).body.replace(" library_name=617d3bbd", "")  # which is theirs
    assert read_metadata(merged)["tags"] == ["mine", "pruned"]
    assert merge_card(merged, A) == merged


def test_an_untouched_card_of_a_trainer_is_replaced(tmp_path, make_bert):
    text = trainer_default(tmp_path, make_bert, tags="mine", finetuned_from="a/b", dataset="glue")
    assert "fine-tuned version of [a/b]" in text
    assert "| 1.0 " in text
    merged = merge_card(text, A)
    assert "More information needed" not in merged
    assert split_card(merged).body.startswith("\n# small")
    assert {"mine", "pruned"} <= set(read_metadata(merged)["tags"])
    for old, new in (
        ("### Framework versions", "Do not use it for medicine.\n\n### Framework versions"),
        ("### Training results\n", "### Training results\n\n- On my own test set: 0.5\n"),
        ("- seed: 42\n", "- seed: 42\n- note: not for medicine\n"),
        ("More information needed", "My words.\n\nMore information needed"),
        ("More information needed", "My words."),
        ("# test", "# My title, test"),
    ):
        edited = text.replace(old, new, 1)
        assert edited != text
        assert split_card(merge_card(edited, A)).body.startswith(split_card(edited).body)
    end = f"{text}\nBelow.\n"
    assert split_card(merge_card(end, A)).body.startswith(split_card(end).body)


@pytest.mark.parametrize("odd", ["model-index: later", "eval_results: 3", "1: 2", "base_model: [1, {a: b}]"])
def test_metadata_that_no_library_writes_is_a_person_s(odd):
    theirs = hub_default().replace("---\n", f"---\n{odd}\n", 1)
    merged = merge_card(theirs, A)
    assert f"{odd}\n" in merged
    assert merge_card(merged, A) == merged


def test_a_word_in_a_default_card_and_it_is_theirs():
    text = hub_default().replace("[More Information Needed]", "I made this.", 1)
    assert "I made this." in merge_card(text, A)


# -- what the Hub refuses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", REFUSED, ids=REFUSED.values())
def test_what_the_hub_refuses_is_found(content):
    with pytest.raises(ValueError, match=r"The Hub would refuse this README|no YAML|not keys and values") as error:
        check_card(content)
    if "The Hub would" in str(error.value):  # the same key is named
        assert REFUSED[content].partition('"')[2].partition('"')[0] in str(error.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            {"base_model": "./out"},
            r"base_model is './out', which is no model id of the Hub \('owner/name'\): leave it",
        ),
        ({"datasets": ["/var/x"]}, r"datasets\[0\] is '/var/x', which is no dataset id"),
        ({"base_model_relation": "pruned"}, "base_model_relation is 'pruned', not one of adapter, merge"),
        ({"pipeline_tag": None}, "pipeline_tag is None, not text: write it in quotes, or leave it out"),
        ({"tags": ["a", 1]}, r"tags\[1\] is 1, not text"),
        ({"language": [False]}, r"language\[0\] is False, not an ISO 639 code such as 'en'"),
        (
            {"license": "mine"},
            "license is 'mine', which is none of the Hub's: write 'other', and its name as license_name",
        ),
        ({"model-index": {"a": 1}}, r"model-index is \{'a': 1\}, not a list of models"),
        ({"model-index": [{"name": "m"}]}, r"model-index\[0\].results is missing: write it, or leave the result out"),
        (
            {"model-index": index(float("nan"))},
            r"model-index\[0\].results\[0\].metrics\[0\].value is nan, not a number",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_refusal_says_the_value_and_what_to_do(metadata, message):
    with pytest.raises(ValueError, match=message):
        check_card(f"---\n{yaml.safe_dump(metadata)}---\n")


def test_good_metadata_passes():
    for text in (GOOD, GOOD.replace("\n", "\r\n"), "# Only text\n", A, B):
        check_card(text)
        assert check(text)[0] == []
    assert LICENSES <= _LICENSES
    check_card(f"---\n{json.dumps({'language': ['no', 'pt-BR'], 'license': ['mit', 'other']})}\n---\n")
