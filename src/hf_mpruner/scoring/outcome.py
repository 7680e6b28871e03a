"""What a model said beside what was right, in the forms that metrics take."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .exact import accuracy, answer_scores, entity_counts, f1_macro, has_entities, scores_of_counts

if TYPE_CHECKING:
    from transformers import EvalPrediction

# Positions that the loss skips.
IGNORED = -100


def logits_of(prediction: EvalPrediction) -> Any:
    """The first of a model's outputs: encoder-decoders return more than logits."""
    said = prediction.predictions
    return said[0] if isinstance(said, tuple) else said


def form_of(feature: Any) -> str:
    """What a feature of `datasets` holds: `"list"`, `"text"`, `"struct"` or `"number"`."""
    if type(feature).__name__ in ("List", "LargeList", "Sequence"):
        return "list"
    if isinstance(feature, dict):
        return "struct"
    return "text" if "string" in str(getattr(feature, "dtype", "")) else "number"


class Outcome:
    """What a model said, and what was right."""

    def own_metrics(self) -> dict[str, float]:
        """The metrics that are computed here."""
        raise NotImplementedError

    def fitted(self, said: Any, right: Any) -> tuple[list[Any], list[Any]]:
        """Predictions and references for a metric of evaluate.

        Args:
            said (feature of `datasets`): the form of one prediction that the metric takes.
            right (feature of `datasets`): the form of one reference.
        """
        raise NotImplementedError

    def __len__(self) -> int:
        """Number of examples."""
        raise NotImplementedError

    def pick(self, said: np.ndarray, right: np.ndarray) -> Outcome:
        """Some examples' predictions beside some examples' references.

        Args:
            said (`np.ndarray` of shape `(num_picked,)`): numbers of the examples whose predictions are taken.
            right (`np.ndarray` of the same shape): of those whose references are.
        """
        raise NotImplementedError


class Classes(Outcome):
    """One class for each example.

    Args:
        prediction (`EvalPrediction`): logits of shape `(num_examples, num_labels)` and labels `(num_examples,)`.
        names (sequence of `str`): of the classes, for metrics that compare names.
    """

    def __init__(self, prediction: EvalPrediction, names: Sequence[str] = ()) -> None:
        """Take the class with the largest logit."""
        self.predictions, self.references = logits_of(prediction).argmax(-1), np.asarray(prediction.label_ids)
        self.names = names

    def __len__(self) -> int:
        return len(self.references)

    def pick(self, said: np.ndarray, right: np.ndarray) -> Classes:
        """Classes of some examples."""
        part = copy.copy(self)
        part.predictions, part.references = self.predictions[said], self.references[right]
        return part

    def hits(self, said: np.ndarray, right: np.ndarray) -> np.ndarray:
        """1 where a prediction of `said` is the reference of `right`, else 0, without picking them."""
        return (self.predictions[said] == self.references[right]).astype(float)

    def own_metrics(self) -> dict[str, float]:
        """Accuracy and macro F1."""
        one, other = self.predictions, self.references
        return {"accuracy": accuracy(one, other), "f1_macro": f1_macro(one, other)}

    def fitted(self, said: Any, right: Any) -> tuple[list[Any], list[Any]]:
        """Numbers, or names."""
        return _named(self.predictions, said, self.names), _named(self.references, right, self.names)


class Tags(Outcome):
    """One tag for each word.

    Args:
        prediction (`EvalPrediction`): logits `(num_examples, positions, num_tags)` and labels `(num_examples, positions)`
            with -100 where no word begins.
        names (sequence of `str`): of the tags.
    """

    def __init__(self, prediction: EvalPrediction, names: Sequence[str]) -> None:
        """Take the tag with the largest logit at each word."""
        self.names = names
        self._keep_words(logits_of(prediction).argmax(-1), np.asarray(prediction.label_ids))

    def _keep_words(self, said: np.ndarray, labels: np.ndarray) -> None:
        keep = labels != IGNORED
        self._said, self._labels = said, labels
        self.predictions = [row[kept] for row, kept in zip(said, keep, strict=True)]
        self.references = [row[kept] for row, kept in zip(labels, keep, strict=True)]
        self._counts: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._labels)

    def pick(self, said: np.ndarray, right: np.ndarray) -> Tags:
        """Tags of some sentences; entities of their own are counted once for all picks."""
        part = copy.copy(self)
        part._keep_words(self._said[said], self._labels[right])
        if has_entities(self.names) and np.array_equal(said, right):
            part._counts = self._entities()[said]
        return part

    def _entities(self) -> np.ndarray:
        if self._counts is None:
            self._counts = entity_counts(self._words(self.predictions), self._words(self.references))
        return self._counts

    def own_metrics(self) -> dict[str, float]:
        """Accuracy over words; over whole entities F1, precision and recall, if tags mark entities, else macro F1."""
        one, other = np.concatenate(self.predictions), np.concatenate(self.references)
        values = {"accuracy": accuracy(one, other)}
        if not has_entities(self.names):
            return {**values, "f1_macro": f1_macro(one, other)}
        return {**values, **scores_of_counts(*self._entities().sum(axis=0).tolist())}

    def fitted(self, said: Any, right: Any) -> tuple[list[Any], list[Any]]:
        """A list for each sentence where the metric takes lists, else all words in one."""
        return self._fit(self.predictions, said), self._fit(self.references, right)

    def _words(self, rows: list[np.ndarray]) -> list[list[str]]:
        return [[self.names[tag] for tag in row] for row in rows]

    def _fit(self, rows: list[np.ndarray], feature: Any) -> list[Any]:
        if form_of(feature) == "list":
            return [_named(row, feature.feature, self.names) for row in rows]
        return _named(np.concatenate(rows), feature, self.names)


class Tokens(Outcome):
    """One token for each position that counts.

    Args:
        prediction (`EvalPrediction`): token ids `(num_examples, positions)`, or logits with one dimension more; labels
            with -100 at positions that do not count.
        shift (`bool`): whether the output at a position is about the next one, as in a causal model.
    """

    def __init__(self, prediction: EvalPrediction, *, shift: bool) -> None:
        """Take the token with the largest logit, if that was not done before."""
        said, labels = logits_of(prediction), np.asarray(prediction.label_ids)
        said = said.argmax(-1) if said.ndim > labels.ndim else said
        if shift:
            said, labels = said[:, :-1], labels[:, 1:]
        self._keep_counted(said, labels)

    def _keep_counted(self, said: np.ndarray, labels: np.ndarray) -> None:
        counts = labels != IGNORED
        self._said, self._labels = said, labels
        self.predictions, self.references = said[counts], labels[counts]

    def __len__(self) -> int:
        return len(self._labels)

    def pick(self, said: np.ndarray, right: np.ndarray) -> Tokens:
        """Tokens of some texts."""
        part = copy.copy(self)
        part._keep_counted(self._said[said], self._labels[right])
        return part

    def own_metrics(self) -> dict[str, float]:
        """Accuracy."""
        return {"accuracy": accuracy(self.predictions, self.references)}

    def fitted(self, said: Any, right: Any) -> tuple[list[Any], list[Any]]:
        """Numbers, or numbers as text."""
        return _named(self.predictions, said, ()), _named(self.references, right, ())


class Texts(Outcome):
    """One text for each example.

    Args:
        prediction (`EvalPrediction`): token ids that the model generated, and labels.
        tokenizer: turns both into text.
    """

    def __init__(self, prediction: EvalPrediction, tokenizer: Any) -> None:
        """Read both as text, without special tokens and spaces around them."""
        self.predictions = self._read(logits_of(prediction), tokenizer)
        self.references = self._read(prediction.label_ids, tokenizer)

    def __len__(self) -> int:
        return len(self.references)

    def pick(self, said: np.ndarray, right: np.ndarray) -> Texts:
        """Texts of some examples."""
        part = copy.copy(self)
        part.predictions = [self.predictions[row] for row in said]
        part.references = [self.references[row] for row in right]
        return part

    def fitted(self, said: Any, right: Any) -> tuple[list[Any], list[Any]]:
        """Texts; where the metric takes several references to a prediction, a list of one."""
        references = [[text] for text in self.references] if form_of(right) == "list" else self.references
        return self.predictions, references

    @staticmethod
    def _read(ids: Any, tokenizer: Any) -> list[str]:
        ids = np.where(np.asarray(ids) == IGNORED, tokenizer.pad_token_id, ids)
        return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


class Answers(Outcome):
    """One answer for each question.

    Args:
        predictions (sequence of `str`): what the model took from the context; empty for none.
        references (sequence of `dict`): `{"text": [...], "answer_start": [...]}`, as SQuAD has them.
    """

    def __init__(self, predictions: Sequence[str], references: Sequence[dict[str, Any]]) -> None:
        """Remember both."""
        self.predictions, self.references = predictions, references

    def __len__(self) -> int:
        return len(self.references)

    def pick(self, said: np.ndarray, right: np.ndarray) -> Answers:
        """Answers to some questions."""
        return Answers([self.predictions[row] for row in said], [self.references[row] for row in right])

    def own_metrics(self) -> dict[str, float]:
        """Exact match and F1 of words, in 0..1."""
        return answer_scores(self.predictions, [answers["text"] for answers in self.references])

    def fitted(self, said: Any, right: Any) -> tuple[list[Any], list[Any]]:
        """The structs of evaluate's `squad` and `squad_v2`, or texts; of several right answers the first."""
        if form_of(said) != "struct":
            first = [(answers["text"] or [""])[0] for answers in self.references]
            return list(self.predictions), [[text] for text in first] if form_of(right) == "list" else first
        extra = {"no_answer_probability": 0.0} if "no_answer_probability" in said else {}
        predictions = [{"id": str(i), "prediction_text": text, **extra} for i, text in enumerate(self.predictions)]
        return predictions, [{"id": str(i), "answers": answers} for i, answers in enumerate(self.references)]


def _named(values: np.ndarray, feature: Any, names: Sequence[str]) -> list[Any]:
    numbers = [int(value) for value in values]
    if form_of(feature) != "text":
        return numbers
    return [names[number] if names else str(number) for number in numbers]
