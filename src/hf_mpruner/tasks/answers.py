"""Answers that stand in a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset as TorchDataset

from ..data import Columns, find_answer_columns, find_max_length, quiet_bars, read_answers, refuse_empty, take_columns
from ..scoring import Answers, ComputeMetrics, LoadedMetric, make_compute_metrics
from .base import Purpose, Settings, Task, refuse_other_roles

if TYPE_CHECKING:
    from transformers import EvalPrediction, PreTrainedConfig, PreTrainedModel

# Longer contexts are read in windows that overlap by so many tokens, or by a quarter of a window.
STRIDE = 128
LONGEST_ANSWER = 30
# Starts and ends of a window that are looked at, from the likeliest on.
_CANDIDATES = 20


class QuestionAnswering(Task):
    """The part of a context that answers a question, or none."""

    name, kind = "question-answering", "text"
    roles = ("question_column", "context_column", "answers_column")

    def find_columns(self, dataset: Any, named: Mapping[str, Any], *, need_label: bool) -> Columns:
        """Question, context and answers."""
        refuse_other_roles(self, named)
        return find_answer_columns(dataset, *(named.get(role) for role in self.roles), need_label=need_label)

    def take(self, dataset: Any, columns: Columns, folder: Path | None = None) -> Any:
        """Answers in SQuAD's form, also where a file has them as text."""
        taken = take_columns(dataset, columns)
        return taken if columns.label is None else read_answers(taken, columns.label)

    def prepare(
        self,
        dataset: Any,
        columns: Columns,
        model: PreTrainedModel,
        processing_class: Any,
        settings: Settings,
        purpose: Purpose,
    ) -> Any:
        """Windows of question and context with the tokens of the answer; for measuring the first of each row."""
        if not getattr(processing_class, "is_fast", False):
            raise ValueError(
                "question-answering needs a fast tokenizer, which knows where each token stands in the text, and "
                f"{type(processing_class).__name__} is none. Save one beside the model: AutoTokenizer.from_pretrained(...)."
            )
        limit = settings.max_length or find_max_length(processing_class, model.config)
        windows = Windows(processing_class, columns, limit, purpose)
        with quiet_bars():
            ready = dataset.map(windows, batched=True, with_indices=True, remove_columns=dataset.column_names)
        return JudgedWindows(ready, dataset, columns) if purpose == "judge" else ready

    def own_metrics(self, config: PreTrainedConfig) -> tuple[str, ...]:
        """F1 of words decides."""
        return ("f1", "exact_match")

    def count_examples(self, judge: Any) -> int:
        """Questions, of which long contexts make several windows."""
        return len(judge.wanted)

    def make_scorer(
        self, model: PreTrainedModel, processing_class: Any, judge: Any, metrics: Sequence[LoadedMetric] = ()
    ) -> ComputeMetrics | None:
        """Metrics of the answers that the windows' logits give."""
        return make_compute_metrics(list(metrics) or None, task=self.name, decode=partial(_answers, judge))


class Windows:
    """Turns rows into windows that the model can take, for `datasets.map`.

    Args:
        tokenizer: a fast one.
        columns (`Columns`): question, context and answers.
        limit (`int`, *optional*): tokens of a window.
        purpose: whether answers are wanted, and offsets to read them back.
    """

    def __init__(self, tokenizer: Any, columns: Columns, limit: int | None, purpose: Purpose) -> None:
        """Remember what was given."""
        self.tokenizer, self.columns, self.limit, self.purpose = tokenizer, columns, limit, purpose

    def __call__(self, batch: dict[str, list[Any]], rows: list[int]) -> dict[str, list[Any]]:
        """Encode some rows; there may be more windows than rows.

        Raises:
            ValueError: if a question leaves no room for its context.
        """
        question, context = self.columns.inputs
        for column in self.columns.inputs:
            refuse_empty(batch[column], column)
        many = self.purpose != "calibration"
        cut = {"truncation": "only_second", "max_length": self.limit} if self.limit else {}
        windows = (
            {"stride": min(STRIDE, self.limit // 4), "return_overflowing_tokens": True} if many and self.limit else {}
        )
        questions = [text.lstrip() for text in batch[question]]
        try:
            encoded = self.tokenizer(questions, batch[context], return_offsets_mapping=many, **cut, **windows)
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise ValueError(
                f"A question of column '{question}' leaves no room for its context in {self.limit} tokens "
                f"({' '.join(str(error).split())[:120]}). Pass a larger --max_length, or drop such rows with dataset.filter."
            ) from error
        inputs = dict(encoded)
        if not many:
            return inputs
        own = inputs.pop("overflow_to_sample_mapping", list(range(len(questions))))
        offsets = inputs.pop("offset_mapping")
        answers = [batch[str(self.columns.label)][row] for row in own]
        spans = [self._span(encoded, i, offsets[i], answers[i]) for i in range(len(own))]
        inputs["start_positions"], inputs["end_positions"] = ([span[side] for span in spans] for side in (0, 1))
        if self.purpose == "judge":
            inside = [[part == 1 for part in encoded.sequence_ids(i)] for i in range(len(own))]
            inputs["row"] = [rows[row] for row in own]
            inputs["none"] = [no_answer_position(ids, self.tokenizer) for ids in encoded["input_ids"]]
            inputs["offsets"] = [
                [list(pair) if kept else [-1, -1] for pair, kept in zip(offsets[i], inside[i], strict=True)]
                for i in range(len(own))
            ]
        return inputs

    def _span(self, encoded: Any, window: int, offsets: Any, answers: Mapping[str, Any]) -> tuple[int, int]:
        """First and last token of the answer; twice the token for "none here" if it is not in this window."""
        none = no_answer_position(encoded["input_ids"][window], self.tokenizer)
        if not answers["text"]:
            return none, none
        start = answers["answer_start"][0]
        end = start + len(answers["text"][0])
        inside = [token for token, part in enumerate(encoded.sequence_ids(window)) if part == 1]
        if not inside or offsets[inside[0]][0] > start or offsets[inside[-1]][1] < end:
            return none, none
        return (
            max(token for token in inside if offsets[token][0] <= start),
            min(token for token in inside if offsets[token][1] >= end),
        )


class JudgedWindows(TorchDataset):
    """The windows that judge, and what is needed to read answers back from them.

    Args:
        windows (`datasets.Dataset`): with `row`, `none` and `offsets` beside the model's inputs.
        rows (`datasets.Dataset`): what they were made of.
        columns (`Columns`): of the rows.
    """

    def __init__(self, windows: Any, rows: Any, columns: Columns) -> None:
        """Keep what the Trainer would drop."""
        self.dataset = windows.remove_columns(["row", "none", "offsets"])
        self.contexts, self.wanted = list(rows[columns.inputs[1]]), list(rows[str(columns.label)])
        self.row_of, self.none_at, self.offsets = (list(windows[name]) for name in ("row", "none", "offsets"))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[index]

    def read_answers(self, starts: np.ndarray, ends: np.ndarray) -> list[str]:
        """The answer to each row's question.

        Args:
            starts (`np.ndarray` of shape `(num_windows, positions)`): logits.
            ends (`np.ndarray` of the same shape): logits.
        """
        may_have_none = any(not answers["text"] for answers in self.wanted)
        best: dict[int, tuple[float, str]] = {}
        none: dict[int, float] = {}
        for window, row in enumerate(self.row_of[: len(starts)]):
            offsets = self.offsets[window]
            token = self.none_at[window]
            score = float(starts[window, token] + ends[window, token])
            none[row] = min(score, none.get(row, score))
            for score, first, last in likeliest_spans(starts[window], ends[window], offsets):
                if row not in best or score > best[row][0]:
                    best[row] = score, self.contexts[row][offsets[first][0] : offsets[last][1]]
        return [
            "" if row not in best or (may_have_none and none[row] > best[row][0]) else best[row][1]
            for row in range(len(self.contexts))
        ]


def likeliest_spans(starts: np.ndarray, ends: np.ndarray, offsets: Sequence[Any]) -> list[tuple[float, int, int]]:
    """Spans inside the context, of at most `LONGEST_ANSWER` tokens, from the likeliest starts and ends.

    Example:
        >>> offsets = [(-1, -1), (0, 3), (4, 9)]
        >>> likeliest_spans(np.array([9.0, 2.0, 0.0]), np.array([9.0, 1.0, 3.0]), offsets)[0]
        (5.0, 1, 2)
    """
    inside = np.array([i for i, offset in enumerate(offsets) if offset[0] >= 0], dtype=int)
    first, last = (inside[np.argsort(-side[inside], kind="stable")[:_CANDIDATES]] for side in (starts, ends))
    spans = [(float(starts[i] + ends[j]), int(i), int(j)) for i in first for j in last if i <= j < i + LONGEST_ANSWER]
    return sorted(spans, reverse=True)


def no_answer_position(ids: Sequence[int], tokenizer: Any) -> int:
    """Where "no answer here" points to: the classification token, else the first."""
    cls = tokenizer.cls_token_id
    return list(ids).index(cls) if cls is not None and cls in ids else 0


def _answers(judge: JudgedWindows, prediction: EvalPrediction) -> Answers:
    starts, ends = (np.asarray(side) for side in prediction.predictions[:2])
    return Answers(judge.read_answers(starts, ends), judge.wanted)
