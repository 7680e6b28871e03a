"""Seven tiny models and real data for each: the Zen of Python, which is where Python is, and handwritten digits."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[EOS]"]
TAGS = ("O", "B-CMP", "I-CMP")
FORMATS = ("csv", "json", "parquet")


def zen_lines() -> list[str]:
    """Its twenty lines, with a space before each full stop and comma."""
    with contextlib.redirect_stdout(io.StringIO()):
        import this  # it prints itself
    text = codecs.decode(this.s, "rot13").replace(".", " .").replace(",", " ,")
    return [line for line in text.splitlines() if line.strip()]


def tagged_rows() -> list[dict[str, Any]]:
    """Words of each line; "better than" is a comparison."""
    rows = []
    for line in zen_lines():
        words = line.split()
        marks = ["B-CMP" if w == "better" else "I-CMP" if w == "than" and i else "O" for i, w in enumerate(words)]
        rows.append({"tokens": words, "ner_tags": marks})
    return rows


def question_rows() -> list[dict[str, Any]]:
    """ "Simple is better than complex ." asks what is better than complex; the last one has no answer."""
    rows = []
    for line in zen_lines():
        if " is better than " in line:
            first, _, second = line.partition(" is better than ")
            answers = {"text": [first], "answer_start": [0]}
            rows.append({"question": f"What is better than {second}", "context": line, "answers": answers})
    rows.append(
        {"question": "What is ugly ?", "context": rows[0]["context"], "answers": {"text": [], "answer_start": []}}
    )
    return rows


def text_rows() -> list[dict[str, Any]]:
    return [{"text": line} for line in zen_lines()]


def pair_rows() -> list[dict[str, Any]]:
    """The first half of a line, and the second."""
    halves = [(line.split()[: len(line.split()) // 2], line.split()[len(line.split()) // 2 :]) for line in zen_lines()]
    return [{"source": " ".join(one), "target": " ".join(other)} for one, other in halves if one]


def write_rows(rows: list[dict[str, Any]], folder: Path, kind: str) -> Path:
    """`train` and `validation` files of one kind; a CSV file has lists with spaces, and structs as JSON."""
    folder.mkdir(parents=True)
    if kind == "csv":
        rows = [{name: as_text(value) for name, value in row.items()} for row in rows]
    for name, part in (("train", rows), ("validation", rows[: len(rows) // 2 + 1])):
        getattr(Dataset.from_list(part), f"to_{kind}")(folder / f"{name}.{kind}")
    return folder


def as_text(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return json.dumps(value) if isinstance(value, dict) else value


def make_tokenizer(*, template: str | None = "[CLS] $A [SEP]", texts: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator([*zen_lines(), *texts], trainers.WordLevelTrainer(special_tokens=SPECIAL))
    if template:
        pair = f"{template} $B [SEP]" if "SEP" in template else None
        known = [(token, SPECIAL.index(token)) for token in SPECIAL if token in template]
        words.post_processor = processors.TemplateProcessing(single=template, pair=pair, special_tokens=known)
    named = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4, "eos": 5}
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        model_max_length=32,
        **{f"{name}_token": SPECIAL[number] for name, number in named.items()},
    )


def save_models(folder: Path) -> None:
    """One model of four layers for each task that reads text, with its tokenizer, in a folder of the task's name."""
    bert_words, plain, ending = make_tokenizer(), make_tokenizer(template=None), make_tokenizer(template="$A [EOS]")
    size = len(bert_words)
    bert = {
        "vocab_size": size, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
        "num_hidden_layers": 4, "max_position_embeddings": 32, "pad_token_id": 0,
    }  # fmt: skip
    names = dict(enumerate(TAGS))
    tagger = BertConfig(**bert, num_labels=3, id2label=names, label2id={name: i for i, name in names.items()})
    gpt = GPT2Config(vocab_size=size, n_embd=32, n_layer=4, n_head=4, n_positions=32, bos_token_id=5, eos_token_id=5)
    t5 = T5Config(
        vocab_size=size, d_model=32, d_kv=8, d_ff=64, num_layers=4, num_decoder_layers=4, num_heads=4,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=5,
    )  # fmt: skip
    made = {
        "token-classification": (BertForTokenClassification, tagger, bert_words),
        "question-answering": (BertForQuestionAnswering, BertConfig(**bert), bert_words),
        "fill-mask": (BertForMaskedLM, BertConfig(**bert), bert_words),
        "text-generation": (GPT2LMHeadModel, gpt, plain),
        "text2text-generation": (T5ForConditionalGeneration, t5, ending),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for task, (model_class, config, tokenizer) in made.items():
            model_class(config).save_pretrained(folder / task)
            tokenizer.save_pretrained(folder / task)


def save_image_model(folder: Path) -> None:
    """A ViT of four layers, and pictures of two digits as files that a table names."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits(n_class=2)
    (folder / "pictures").mkdir(parents=True)
    rows = []
    for i in range(24):
        Image.fromarray((digits.images[i] * 15).astype(np.uint8)).save(folder / "pictures" / f"{i}.png")
        rows.append({"file_name": f"../pictures/{i}.png", "label": int(digits.target[i])})
    for kind in FORMATS:
        write_rows(rows, folder / f"digits_{kind}", kind)
    config = ViTConfig(
        hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=4,
        image_size=8, patch_size=4, num_labels=2, id2label={0: "0", 1: "1"},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ViTForImageClassification(config).save_pretrained(folder / "image-classification")
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder / "image-classification")
