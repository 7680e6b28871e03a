"""Columns to model inputs, with the model's own tokenizer or image processor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset as TorchDataset

from .columns import Columns, ModelKind
from .labels import label_ids
from .loading import quiet_bars

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedConfig, PreTrainedModel

# Tokenizers without a limit say 10**30; no model reads a million positions.
_NO_LIMIT = 1_000_000

Batch = dict[str, list[Any]]


def preprocess(
    dataset: Dataset,
    processing_class: Any,
    columns: Columns,
    model: PreTrainedModel | None = None,
    *,
    max_length: int | None = None,
) -> Any:
    """Turn raw columns into model inputs and `labels`; padding is left to the collator.

    Texts are tokenised once (`map`, cached by `datasets`). Images are processed when they are read, since their
    pixels would fill the disk.

    Args:
        dataset (`datasets.Dataset`): raw data.
        processing_class (tokenizer, image processor or processor): the model's.
        columns (`Columns`): from `find_columns`.
        model (`PreTrainedModel`, *optional*): its config says how many positions, image channels and which labels it
            has. Without it labels are left out.
        max_length (`int`, *optional*): texts are cut to so many tokens; by default to the longest that tokenizer and
            model take.

    Returns:
        A data set for a Trainer, whose examples hold `input_ids` ... or `pixel_values`, and `labels`.

    Raises:
        ValueError: for an empty cell or a label that the model does not have.
    """
    config = None if model is None else model.config
    numbers = None if config is None or columns.label is None else label_ids(dataset, columns.label, config)
    encode = make_encoder(processing_class, columns, config, max_length, numbers)
    if columns.kind == "image":
        return ImagesWhenRead(dataset.with_transform(encode))
    with quiet_bars():
        return dataset.map(encode, batched=True, remove_columns=dataset.column_names)


class ImagesWhenRead(TorchDataset):
    """Images that are processed when they are read.

    A `datasets.Dataset` with a transform would do the same, but a Trainer drops its image column: it looks at the
    columns before the transform.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[index]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        return self.dataset.__getitems__(indices)


def find_max_length(processing_class: Any, config: PreTrainedConfig | None = None) -> int | None:
    """Longest text in tokens that tokenizer and model both take, `None` if neither has a limit.

    A tokenizer without a limit of its own leaves it to the config, two positions less than it has: RoBERTa and its
    kin keep two of them for padding.
    """
    limit = getattr(_part(processing_class, "text"), "model_max_length", None) or _NO_LIMIT
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return limit if limit < _NO_LIMIT else None
    return min(limit, positions) if limit < _NO_LIMIT else positions - 2


def find_kind(processing_class: Any) -> ModelKind:
    """What a tokenizer, image processor or processor reads.

    Raises:
        ValueError: if it is none of these.
    """
    names = set(getattr(processing_class, "model_input_names", ()))
    if "input_ids" in names or hasattr(processing_class, "pad_token_id"):
        return "text"
    if "pixel_values" in names:
        return "image"
    raise ValueError(
        f"processing_class={type(processing_class).__name__} reads neither text nor images (its inputs are "
        f"{', '.join(sorted(names)) or 'not named'}). Pass a tokenizer or an image processor, or data that is ready "
        "for the model."
    )


def make_encoder(
    processing_class: Any,
    columns: Columns,
    config: PreTrainedConfig | None = None,
    max_length: int | None = None,
    label_numbers: Mapping[Any, int] | None = None,
) -> Callable[[Batch], Batch]:
    """The function that turns raw columns (name -> values) into model inputs, for `map` and `with_transform`."""
    part = _part(processing_class, columns.kind)
    limit = max_length or find_max_length(processing_class, config)
    mode = "L" if getattr(config, "num_channels", 3) == 1 else "RGB"

    def encode(batch: Batch) -> Batch:
        for column in columns.inputs:
            refuse_empty(batch[column], column)
        inputs = [batch[column] for column in columns.inputs]
        if columns.kind == "image":
            encoded = dict(part([image.convert(mode) for image in inputs[0]], return_tensors="pt"))
        else:
            # without a limit `truncation=True` would only warn
            encoded = dict(part(*inputs, truncation=limit is not None, max_length=limit))
        if label_numbers is not None and columns.label is not None:
            encoded["labels"] = [_label_number(value, label_numbers, columns.label) for value in batch[columns.label]]
        return encoded

    return encode


def refuse_empty(values: list[Any], column: str) -> None:
    """Refuse cells without a value.

    Raises:
        ValueError: says how many there are.
    """
    empty = sum(value is None for value in values)
    if empty:
        raise ValueError(
            f"Column '{column}' is empty (None) in {empty} of {len(values)} examples. Drop them first: "
            f"dataset.filter(lambda example: example['{column}'] is not None)."
        )


def _label_number(value: Any, numbers: Mapping[Any, int], column: str) -> int:
    if value not in numbers:
        raise ValueError(
            f"Column '{column}' holds {value!r}, which is none of the {len(numbers)} labels of the model: "
            f"{', '.join(repr(label) for label in numbers)}. Drop these examples first, e.g. with dataset.filter."
        )
    return numbers[value]


def _part(processing_class: Any, kind: ModelKind) -> Any:
    """The tokenizer or image processor inside a processor, or the object itself."""
    return getattr(processing_class, "tokenizer" if kind == "text" else "image_processor", processing_class)
