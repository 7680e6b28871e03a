"""What Trainers of other libraries do their own way: their batches, what they gather between two logs, their evaluators."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .subject import trained_model

if TYPE_CHECKING:
    from transformers import Trainer

# What trl (`_metrics`) and sentence-transformers (`accum_loss_components`) gather between two calls of `log`.
_BOOKS = ("_metrics", "accum_loss_components")
# What a batch without padding says of its sequences, for kernels that take them apart themselves.
_BORDERS = ("position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")

# What sentence-transformers puts into a batch beside its columns.
_NO_COLUMNS = ("dataset_name", "prompt", "task", "return_loss")

Batch = Mapping[str, Any]


class UnflattenedBatches:
    """A collate function whose batches without padding are taken apart into their sequences.

    trl's packing and `padding_free` put all sequences of a batch into one row, with `position_ids` that begin anew.
    Padded and masked again, each token sees what it saw there, and each sequence is an example.

    Args:
        collate (callable): makes a batch of examples.
    """

    def __init__(self, collate: Callable[[list[Any]], Batch]) -> None:
        """Remember the function."""
        self.collate = collate

    def __call__(self, examples: list[Any]) -> Batch:
        """Make a batch of inputs (examples, positions)."""
        return unflatten(self.collate(examples))


def unflatten(batch: Batch) -> Batch:
    """A batch whose sequences follow each other in one row, as a padded batch; any other is handed on.

    Args:
        batch (`Mapping[str, Any]`): flattened if its `input_ids` and `position_ids` have shape (1, positions) and there
            is no `attention_mask`.

    Returns:
        `Mapping[str, Any]`: `input_ids` and `attention_mask` of shape (sequences, longest).

    Example:
        >>> batch = {"input_ids": torch.tensor([[7, 8, 9, 5]]), "position_ids": torch.tensor([[0, 1, 2, 0]])}
        >>> unflatten(batch)["input_ids"].tolist()
        [[7, 8, 9], [5, 0, 0]]
    """
    ids, positions = batch.get("input_ids"), batch.get("position_ids")
    one_row = isinstance(ids, Tensor) and isinstance(positions, Tensor) and ids.shape == positions.shape
    if not one_row or "attention_mask" in batch or cast(Tensor, ids).shape[:-1] != (1,):
        return batch
    starts = (cast(Tensor, positions)[0] == 0).nonzero().flatten().tolist()
    parts = [cast(Tensor, ids)[0, begin:end] for begin, end in zip(starts, [*starts[1:], None], strict=True)]
    rest = {name: value for name, value in batch.items() if name not in (*_BORDERS, "input_ids", "labels")}
    return {
        **{name: value for name, value in rest.items() if not name.startswith("max_length_")},
        "input_ids": pad_sequence(parts, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(part) for part in parts], batch_first=True),
    }


class FeatureBatches:
    """Batches of a sentence-transformers Trainer as the transformers model takes them: one for each column of texts.

    A cross-encoder's batches hold texts, which its losses put together: the first column with each of the others.

    Args:
        batches (`Iterable[Mapping]`): with columns such as `anchor_input_ids` and `positive_input_ids`, or of texts.
        split (callable): the Trainer's `collect_features`.
        encode (callable): the model's `preprocess`, for pairs of texts.
        names (`set[str]`): what the model's `forward` takes.
    """

    def __init__(
        self,
        batches: Iterable[Batch],
        split: Callable[[Any], Any],
        encode: Callable[[list[Any]], Batch],
        names: set[str],
    ) -> None:
        """Remember what was given."""
        self.batches, self.split, self.encode, self.names = batches, split, encode, names

    def __iter__(self) -> Iterator[Batch]:
        """Each batch's columns in turn; a batch without such columns is handed on as it is."""
        for batch in self.batches:
            for feature in self._features(batch):
                yield {name: value for name, value in unflatten(feature).items() if name in self.names}

    def _features(self, batch: Batch) -> Iterator[Batch]:
        columns = self.split({name: value for name, value in batch.items() if name not in _NO_COLUMNS})[0]
        if not columns or all(isinstance(column, Tensor) for column in columns):
            yield batch
        elif isinstance(columns[0], list):
            first, *others = columns
            for other in others:
                sides = [(a, b) for a, many in zip(first, other, strict=True) for b in _listed(many)]
                yield self.encode(sides)
        else:
            yield from columns


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def as_model_inputs(trainer: Trainer, batches: Iterable[Batch]) -> Iterable[Batch]:
    """Batches of a Trainer's collator as its transformers model takes them."""
    split, encode = getattr(trainer, "collect_features", None), getattr(trainer.model, "preprocess", None)
    if split is None or encode is None:
        return batches
    return FeatureBatches(batches, split, encode, set(inspect.signature(trained_model(trainer).forward).parameters))


def evaluator_of(trainer: Trainer) -> Any:
    """The `evaluator` of a sentence-transformers Trainer; `None` without one."""
    return getattr(trainer, "evaluator", None)


def evaluator_name(trainer: Trainer) -> str | None:
    """Class of the evaluator of a sentence-transformers Trainer; `None` without one."""
    evaluator = evaluator_of(trainer)
    evaluator = evaluator._evaluator if isinstance(evaluator, _Unwritten) else evaluator
    return None if evaluator is None else type(evaluator).__name__


@contextmanager
def keep_books(trainer: Trainer) -> Iterator[None]:
    """Let a Trainer begin with empty books, and give it back its own.

    What trl and sentence-transformers gather between two logs, and the results in a model card, are the run's own. An
    evaluator writes no files meanwhile.
    """
    kept = {name: getattr(trainer, name) for name in _BOOKS if isinstance(getattr(trainer, name, None), dict)}
    for name, books in kept.items():
        setattr(trainer, name, {mode: _emptied(values) for mode, values in books.items()})
    evaluator = evaluator_of(trainer)
    if evaluator is not None:
        kept["evaluator"] = evaluator
        setattr(trainer, "evaluator", _Unwritten(evaluator))  # noqa: B010 - no attribute of transformers' class
    card = getattr(trainer.model, "model_card_data", None)
    results = {
        name: copy.deepcopy(value) if isinstance(value, list) else copy.copy(value)
        for name in ("eval_results_dict", "training_logs")
        if (value := getattr(card, name, None)) is not None
    }
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(trainer, name, value)
        for name, value in results.items():
            setattr(card, name, value)


def _emptied(values: Any) -> Any:
    """A container of the same kind with nothing in it; a defaultdict keeps what it makes."""
    empty = copy.copy(values)
    empty.clear()
    return empty


class _Unwritten:
    """An evaluator that is told of no folder, so that it writes no line into the run's own tables."""

    def __init__(self, evaluator: Any) -> None:
        self._evaluator = evaluator

    def __call__(self, model: Any, output_path: str | None = None, **kwargs: Any) -> Any:
        return self._evaluator(model, output_path=None, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._evaluator, name)
