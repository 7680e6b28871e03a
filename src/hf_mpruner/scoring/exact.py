"""The formulas that are computed here: fractions in 0..1, and no package for them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    """Part of the predictions (of shape `(num_examples,)`) that is right."""
    return float((predictions == references).mean())


def f1_macro(predictions: np.ndarray, references: np.ndarray) -> float:
    """F1 of each class, averaged over the classes that occur.

    Example:
        >>> round(f1_macro(np.array([0, 1, 0, 0]), np.array([0, 1, 1, 0])), 4)
        0.7333
    """
    values = []
    for label in np.union1d(predictions, references):
        hits = int(((predictions == label) & (references == label)).sum())
        values.append(2 * hits / int((predictions == label).sum() + (references == label).sum()))
    return float(np.mean(values))


def has_entities(names: Sequence[str]) -> bool:
    """Whether tags mark the beginning and the inside of entities: `B-PER`, `I-PER`, and the like."""
    return any(re.match(r"[BIES]-.", name) for name in names)


def find_entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """The entities of a sentence, as seqeval and the CoNLL script read tags in the schemes IOB1, IOB2 and IOBES.

    Args:
        tags (sequence of `str`): one for each word: `O`, or `B-`, `I-`, `E-` or `S-` before the entity's type.

    Returns:
        `set` of `(type, first word, last word)`.

    Example:
        >>> sorted(find_entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"]))
        [('LOC', 3, 3), ('LOC', 4, 4), ('PER', 0, 1)]
    """
    found, first, before, kind = set(), 0, "O", ""
    for position, tag in enumerate([*tags, "O"]):
        mark, _, name = tag.partition("-")
        new = mark != "O" and (
            mark in ("B", "S") or before in ("O", "E", "S") or name != kind
        )  # fmt: skip
        if before != "O" and (new or mark == "O"):
            found.add((kind, first, position - 1))
        if new:
            first = position
        before, kind = mark, name
    return found


def entity_scores(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 over whole entities, of all types together; 0 where there are none.

    Example:
        >>> entity_scores([["B-PER", "O", "B-LOC"]], [["B-PER", "O", "O"]])["precision"]
        0.5
    """
    return scores_of_counts(*entity_counts(predictions, references).sum(axis=0).tolist())


def entity_counts(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Entities of each sentence: found rightly, found, and there.

    Returns:
        `np.ndarray` of shape `(num_sentences, 3)`, of integers.
    """
    counts = []
    for said, right in zip(predictions, references, strict=True):
        one, other = find_entities(said), find_entities(right)
        counts.append((len(one & other), len(one), len(other)))
    return np.array(counts, dtype=int).reshape(-1, 3)


def scores_of_counts(hits: int, found: int, wanted: int) -> dict[str, float]:
    """Precision, recall and F1 of entities that were counted; 0 where there are none."""
    return {
        "f1": 2 * hits / (found + wanted) if found + wanted else 0.0,
        "precision": hits / found if found else 0.0,
        "recall": hits / wanted if wanted else 0.0,
    }


def normal_answer(text: str) -> str:
    """An answer as SQuAD compares it: in lower case, without punctuation, articles and extra spaces.

    Example:
        >>> normal_answer("The Tower,  of London")
        'tower of london'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def answer_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Exact match and F1 of words, of each answer with the nearest of the right ones; an empty answer is "none".

    Example:
        >>> answer_scores(["the red tower"], [["red tower", "a tower in red"]])
        {'exact_match': 1.0, 'f1': 1.0}
    """
    exact, overlap = [], []
    for said, right in zip(predictions, references, strict=True):
        wanted = [text for text in right if normal_answer(text)] or [""]
        exact.append(max(float(normal_answer(said) == normal_answer(text)) for text in wanted))
        overlap.append(max(_overlap(normal_answer(said).split(), normal_answer(text).split()) for text in wanted))
    return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(overlap))}


def _overlap(said: list[str], right: list[str]) -> float:
    if not said or not right:
        return float(said == right)
    common = (Counter(said) & Counter(right)).total()
    return 2 * common / (len(said) + len(right))
