"""The calibration sample: whatever the user has, as batches that the model takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Subset

from ..errors import CalibrationError
from ..heads import find_head
from .columns import Columns, find_columns
from .encoding import find_kind, make_encoder
from .labels import label_ids
from .loading import quiet_bars

if TYPE_CHECKING:
    from torch import nn

Collate = Callable[[list[Any]], Mapping[str, Any]]

# Dimensions of one example; a value with more of them is a batch.
_EXAMPLE_DIMS = {"input_ids": 1, "inputs_embeds": 2, "pixel_values": 3, "input_features": 2, "input_values": 1}
_LABELS = ("label", "labels", "label_ids")


def calibration_loader(
    data: Any,
    *,
    num_samples: int,
    batch_size: int,
    seed: int,
    collate_fn: Collate | None = None,
    processing_class: Any = None,
    model: nn.Module | None = None,
    keep_labels: bool = False,
) -> Iterable[Mapping[str, Any]]:
    """Batches of model inputs from a dataset, a list of examples, a DataLoader or any iterable of batches.

    Datasets and lists are sampled without replacement, by a generator of their own: the global random state is
    neither read nor changed. Batches of a sample are even, none is larger than `batch_size`. What has no length is
    read from its start, what holds batches already is handed on until `num_samples` examples are through.

    Args:
        data: a `datasets.Dataset` or `IterableDataset`, a torch dataset, a list of examples, a DataLoader, an
            iterable of batches, or one batch.
        num_samples (`int`): examples to use.
        batch_size (`int`): most examples in a batch.
        seed (`int`): draws the sample.
        collate_fn (*optional*): makes a batch of examples, which are then taken as they are.
        processing_class (*optional*): tokenizer (also pads) or image processor; needed for raw texts and images.
        model (`nn.Module`, *optional*): its `forward` says which columns to drop; labels are dropped too, unless the
            decoder is fed with them.
        keep_labels (`bool`): keep labels that the model's `forward` takes, for measures of the loss. Of raw data, classes
            for a model that classifies texts or images; what else has labels must be ready for the model.

    Returns:
        An iterable of mappings that can be iterated again and again, with the same batches in the same order.

    Raises:
        CalibrationError: if there is no example, or if the examples are nothing that a model takes.

    Example:
        >>> examples = [{"input_ids": [1, 2, 3], "text": "one two three"}] * 10
        >>> loader = calibration_loader(examples, num_samples=6, batch_size=4, seed=0)
        >>> [tuple(batch["input_ids"].shape) for batch in loader]
        [(3, 3), (3, 3)]
    """
    if isinstance(data, DataLoader):
        return _FirstBatches(data, num_samples)
    if isinstance(data, Mapping):
        data = _from_mapping(data, num_samples)
        if isinstance(data, _FirstBatches):
            return data
    if not _has_random_access(data):
        # an iterator runs dry after one round, and a stream may answer differently the second time
        if iter(data) is not data and collate_fn is None and _is_batch(next(iter(data), None)):
            return _FirstBatches(data, num_samples)
        data = _read(data, num_samples, collate_fn)
    if len(data) == 0:
        raise CalibrationError(
            "The calibration data is empty. Pass a data set with examples like those the model will see."
        )
    if collate_fn is None and _is_batch(data[0]):
        return _FirstBatches(data, num_samples)
    examples = draw_sample(data, num_samples, seed)
    if collate_fn is None:
        examples, collate_fn = _ready(examples, processing_class, model, keep_labels)
    return DataLoader(
        examples,
        batch_sampler=_even_batches(len(examples), batch_size),
        collate_fn=collate_fn,
        generator=torch.Generator().manual_seed(seed),
    )


class FirstBatch:
    """The first batch of a calibration loader, whenever it is asked for.

    Batches that the user made may come in another order when they are read once more, so the first one is kept as it
    passes: who asks for it changes nothing of what is measured.

    Args:
        loader: what `calibration_loader` returned.

    Attributes:
        batches: to iterate over instead of `loader`.

    Example:
        >>> first = FirstBatch([{"input_ids": torch.ones(1, 2), "text": ["two words"]}])
        >>> list(first())
        ['input_ids']
    """

    def __init__(self, loader: Iterable[Mapping[str, Any]]) -> None:
        """Read nothing yet."""
        self._loader = loader
        self._kept: dict[str, torch.Tensor] | None = None
        # a sample has an order of its own, and processes share it by asking the DataLoader for their part
        self.batches: Iterable[Mapping[str, Any]] = loader if isinstance(loader, DataLoader) else self

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """Each batch of the loader."""
        for batch in self._loader:
            if self._kept is None and isinstance(batch, Mapping):
                self._kept = _tensors(batch)
            yield batch

    def __call__(self) -> dict[str, torch.Tensor]:
        """Its tensors."""
        if self._kept is None:
            self._kept = _tensors(next(iter(self._loader)))
        return self._kept


def _tensors(batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}


class _FirstBatches:
    """Whole batches of a loader until `num_samples` examples are through."""

    def __init__(self, batches: Iterable[Any], num_samples: int) -> None:
        self.batches, self.num_samples = batches, num_samples

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        seen = 0
        for batch in self.batches:
            if not isinstance(batch, Mapping):
                raise CalibrationError(
                    f"A calibration batch is a {type(batch).__name__}, not a mapping of model inputs. Yield a dict such "
                    "as {'input_ids': ..., 'attention_mask': ...}, or pass the dataset itself."
                )
            yield batch
            seen += next((len(value) for value in batch.values() if isinstance(value, torch.Tensor) and value.ndim), 1)
            if seen >= self.num_samples:
                return
        if not seen:
            raise CalibrationError(
                "The calibration loader gave no batch. Is its dataset empty, or was it read before?"
            )


class _Collator:
    """Drop what the model does not take, then build the batch."""

    def __init__(self, collate: Collate, names: set[str] | None) -> None:
        self.collate, self.names = collate, names

    def __call__(self, examples: list[Mapping[str, Any]]) -> Mapping[str, Any]:
        taken = [
            {
                name: value
                for name, value in example.items()
                if (self.names is None or name in self.names) and _is_numeric(value)
            }
            for example in examples
        ]
        try:
            return self.collate(taken)
        except (ValueError, TypeError, RuntimeError) as error:
            raise CalibrationError(
                f"No batch could be made of the calibration columns {_listed(taken[0])}: {' '.join(str(error).split())} "
                "If the examples differ in length, pass processing_class=tokenizer (with a pad_token) to pad them, or "
                "a DataLoader with your own collate_fn."
            ) from error


def _from_mapping(data: Mapping[str, Any], num_samples: int) -> Any:
    """One batch of tensors stays one; columns of lists, as a tokenizer returns them, become a dataset."""
    from datasets import Dataset

    if any(isinstance(value, torch.Tensor) for value in data.values()):
        return _FirstBatches([data], num_samples)
    if data and all(isinstance(value, list) for value in data.values()):
        return Dataset.from_dict(dict(data))
    raise CalibrationError(
        f"calibration is a dict of {_listed(data)}, not one data set. Pass one of them: "
        f"calibration=data[{next(iter(data), 'train')!r}]."
    )


def _has_random_access(data: Any) -> bool:
    return hasattr(data, "__getitem__") and hasattr(data, "__len__")


def _is_batch(first: Any) -> bool:
    """Whether the first element of an iterable is a batch already, judged by its dimensions."""
    if not isinstance(first, Mapping):
        return False
    return any(_dims(first[name]) > dims for name, dims in _EXAMPLE_DIMS.items() if name in first)


def _dims(value: Any) -> int:
    if hasattr(value, "ndim"):
        return int(value.ndim)
    return 1 + _dims(value[0]) if isinstance(value, Sequence) and not isinstance(value, str) and value else 0


def _read(data: Iterable[Any], num_samples: int, collate_fn: Collate | None) -> list[Any]:
    """The start of something without a length: examples, or the batches of an iterator."""
    iterator = iter(data)
    first = next(iterator, None)
    if first is None:
        return []
    everything = chain([first], iterator)
    if collate_fn is None and _is_batch(first):
        return list(_FirstBatches(everything, num_samples))
    return list(islice(everything, num_samples))


def draw_sample(data: Any, num_samples: int, seed: int) -> Any:
    """Draw examples without replacement, by a generator of its own.

    The order is random, too: neighbours in a file are often alike, and so would be the examples of a batch.

    Args:
        data (`datasets.Dataset`, list or torch dataset): something with a length and random access.
        num_samples (`int`): examples to draw; all of them if there are fewer.
        seed (`int`): the same seed draws the same examples.

    Returns:
        A `datasets.Dataset` of a `datasets.Dataset`, else a `torch.utils.data.Subset`.

    Example:
        >>> len(draw_sample([{"input_ids": [1]}] * 5, num_samples=3, seed=0))
        3
    """
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    indices = order[:num_samples].tolist()
    return data.select(indices) if hasattr(data, "select") else Subset(data, indices)


def _even_batches(num_examples: int, batch_size: int) -> list[list[int]]:
    """As few batches as can be, of nearly one size: a last batch of one example could not be measured."""
    return [part.tolist() for part in torch.arange(num_examples).tensor_split(-(-num_examples // batch_size))]


def _ready(examples: Any, processing_class: Any, model: nn.Module | None, keep_labels: bool) -> tuple[Any, _Collator]:
    """Examples that a default collator can take, and that collator."""
    first = examples[0]
    if not isinstance(first, Mapping):
        raise CalibrationError(
            f"A calibration example is a {type(first).__name__}, not a mapping of model inputs. Give examples such as "
            "{'input_ids': [...]}, or a DataLoader with a collate_fn that returns a dict."
        )
    if not {*_EXAMPLE_DIMS, getattr(model, "main_input_name", "input_ids")} & set(first):
        if processing_class is None:
            raise CalibrationError(
                f"The calibration examples hold {_listed(first)}, which is no model input. Pass "
                "processing_class=tokenizer (or the image processor), or data that is ready for the model."
            )
        examples = _encoded(examples, processing_class, model, keep_labels)
        first = examples[0]
    return examples, _Collator(_default_collate(first, processing_class, model), _input_names(model, keep_labels))


def _encoded(examples: Any, processing_class: Any, model: nn.Module | None, keep_labels: bool) -> Any:
    from datasets import Dataset

    if not isinstance(examples, Dataset):
        examples = Dataset.from_list([examples[i] for i in range(len(examples))])
    try:
        columns = find_columns(examples, find_kind(processing_class), need_label=False)
    except ValueError as error:
        raise CalibrationError(f"{error} In Python: calibration=dataset.select_columns(['NAME']).") from error
    config: Any = getattr(model, "config", None)
    numbers = None
    if keep_labels and columns.label is not None and _is_classifier(model):
        with quiet_bars():
            numbers = label_ids(examples, columns.label, config)
    label = None if numbers is None else columns.label
    encode = make_encoder(
        processing_class, Columns(columns.kind, columns.inputs, label), config, label_numbers=numbers
    )
    return examples.with_transform(encode)


def _is_classifier(model: Any) -> bool:
    head = find_head(model.config, type(model).__name__) if hasattr(model, "config") else None
    return head is not None and head.task in ("text-classification", "image-classification")


def _default_collate(first: Mapping[str, Any], processing_class: Any, model: nn.Module | None) -> Collate:
    from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding, default_data_collator

    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if not hasattr(tokenizer, "pad_token_id"):
        return default_data_collator
    if _dims(first.get("labels", 0)):
        return DataCollatorForSeq2Seq(tokenizer, model=model)  # pads token labels, too
    return DataCollatorWithPadding(tokenizer)


def _input_names(model: nn.Module | None, keep_labels: bool) -> set[str] | None:
    """What `forward` takes, `None` if that cannot be known; labels by any name where they are kept."""
    if model is None:
        return None
    base: Any = model
    if hasattr(base, "get_base_model"):  # an adapter's forward takes anything
        base = base.get_base_model()
    named = {
        name for name, p in inspect.signature(base.forward).parameters.items() if p.kind == p.POSITIONAL_OR_KEYWORD
    }
    if getattr(getattr(base, "config", None), "is_encoder_decoder", False) or (keep_labels and "labels" in named):
        named |= set(_LABELS)
    else:
        named -= set(_LABELS)
    return named or None


def _is_numeric(value: Any) -> bool:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return not value or _is_numeric(value[0])
    return isinstance(value, bool | int | float) or (hasattr(value, "dtype") and hasattr(value, "shape"))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "nothing"
