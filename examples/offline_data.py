"""Real data for `--offline`: what Python and scikit-learn bring along. Nothing is downloaded.

Texts are the docstrings and the source of Python's own standard library and its table of Unicode characters, images are
scikit-learn's 1,797 handwritten digits. One version of Python gives the same examples in the same order each time.
"""

from __future__ import annotations

import ast
import random
import sys
import sysconfig
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LIBRARY = Path(sysconfig.get_path("stdlib"))
# Packages that every distribution of Python has, with a hundred docstrings or more each.
PACKAGES = ("asyncio", "email", "http", "importlib", "logging", "multiprocessing", "unittest", "xml")
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "eos_token": "[EOS]",
}


def docstrings(max_per_package: int = 300) -> DatasetDict:
    """Docstrings (`text`) and the package that each is from (`label`), in three parts that share no docstring."""
    rows: list[tuple[str, int]] = []
    seen: set[str] = set()
    for label, package in enumerate(PACKAGES):
        new = [doc for doc in dict.fromkeys(_docstrings_of(package)) if len(doc) > 20 and doc not in seen]
        seen.update(new)
        rows += [(doc, label) for doc in _shuffled(new)[:max_per_package]]
    rows = _shuffled(rows)
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(PACKAGES))})
    return _three_parts({"text": [row[0] for row in rows], "label": [row[1] for row in rows]}, features)


def character_names() -> DatasetDict:
    """Names of Unicode characters (`text`) and of what each is put together of (`target`), from Python's own tables.

    "latin small letter g with breve" is "latin small letter g + combining breve".
    """
    rows = {}
    for character in map(chr, range(sys.maxunicode + 1)):
        names = [unicodedata.name(part, "") for part in (character, *unicodedata.normalize("NFD", character))]
        # Hangul has 11,172 more, all alike.
        if len(names) > 2 and all(names) and not names[0].startswith("HANGUL"):
            rows[names[0].lower()] = " + ".join(names[1:]).lower()
    texts = _shuffled(list(rows))
    return _three_parts({"text": texts, "target": [rows[text] for text in texts]})


def source_code(max_modules: int = 40) -> DatasetDict:
    """The source of modules of the standard library (`text`), a module a row."""
    files = [file for file in sorted(LIBRARY.glob("*.py")) if not file.name.startswith("_")]
    texts = [file.read_text(encoding="utf-8", errors="ignore") for file in _shuffled(files)[:max_modules]]
    return _three_parts({"text": texts})


def digits(size: int = 8) -> DatasetDict:
    """Images (`pixel_values`, of shape `(1, size, size)`, in 0..1) and the digit that each shows (`labels`)."""
    import numpy as np
    import torch
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images / 16.0).astype(np.float32)[:, None]  # (1797, 1, 8, 8)
    if size != 8:
        images = torch.nn.functional.interpolate(torch.from_numpy(images), size=size, mode="bilinear").numpy()
    order = np.random.default_rng(0).permutation(len(images))
    parts = {"train": order[:1100], "validation": order[1100:1400], "test": order[1400:]}
    return DatasetDict(
        {
            name: Dataset.from_dict({"pixel_values": images[rows], "labels": bunch.target[rows]}).with_format("torch")
            for name, rows in parts.items()
        }
    )


def train_tokenizer(texts: Sequence[str], vocab_size: int, *, form: str = "[CLS] $A [SEP]") -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of these texts; `form` says which special tokens stand around a text."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = list(SPECIAL.values())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=form, special_tokens=[(token, special.index(token)) for token in special]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def _docstrings_of(package: str) -> Iterator[str]:
    """The docstrings of a package's modules, classes and functions, in the order of its files."""
    for file in sorted((LIBRARY / package).rglob("*.py")):
        if "test" in file.relative_to(LIBRARY).parts:  # which not every distribution has
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""


def _shuffled(rows: Sequence) -> list:
    """The rows in an order that is the same each time: neighbours in a file are alike."""
    return random.Random(0).sample(list(rows), len(rows))


def _three_parts(columns: dict[str, list], features: Features | None = None) -> DatasetDict:
    """Seven tenths to train on, the rest in two halves: one to judge rounds by, one that nothing is chosen by."""
    data = Dataset.from_dict(columns, features=features)
    first, second = round(0.7 * len(data)), round(0.85 * len(data))
    return DatasetDict(
        {
            "train": data.select(range(first)),
            "validation": data.select(range(first, second)),
            "test": data.select(range(second, len(data))),
        }
    )
