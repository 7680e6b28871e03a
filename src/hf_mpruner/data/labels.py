"""Which number a label has in the model, and what the classes of the data are called."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .loading import quiet_bars

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedConfig


def find_label_names(dataset: Dataset, column: str) -> list[str]:
    """Names of the classes in the data, in the order of their numbers (whole numbers: up to the largest one).

    Args:
        dataset (`datasets.Dataset`): the data.
        column (`str`): its label column: a class for each row, or a list of them (tags).

    Raises:
        ValueError: if the column holds neither classes nor names nor whole numbers.
    """
    if _is_class_label(dataset, column):
        return list(_feature(dataset, column).names)
    values = _values(dataset, column)
    if all(isinstance(value, str) for value in values):
        return sorted(values)
    return [str(number) for number in range(max(_whole_numbers(values, column)) + 1)]


def label_ids(dataset: Dataset, column: str, config: PreTrainedConfig) -> dict[Any, int]:
    """The model's number for each value of the label column.

    Names go first: a data set that numbers its classes differently from the model is translated by name. Whole
    numbers without names, and names that mean nothing to the model, are taken as the model's own numbers.

    Args:
        dataset (`datasets.Dataset`): the data.
        column (`str`): its label column: a class for each row, or a list of them (tags).
        config (`PreTrainedConfig`): of the model; `id2label` and `num_labels` are read.

    Returns:
        `dict`: value in the column -> class of the model, 0..num_labels-1.

    Raises:
        ValueError: for a label that the model does not have; the text gives both counts.
    """
    names = find_label_names(dataset, column)
    values = _values(dataset, column)
    has_names = _is_class_label(dataset, column) or isinstance(next(iter(values), None), str)
    of_model = {str(name).lower(): int(number) for number, name in (config.id2label or {}).items()}
    strange = [name for name in names if name.lower() not in of_model]
    if has_names and not strange:
        return {_value(dataset, column, name): of_model[name.lower()] for name in names}
    num_labels = config.num_labels or 0
    counts = f"Column '{column}' holds {len(names)} labels, the model has {num_labels}"
    if isinstance(next(iter(values), None), str):
        raise ValueError(
            f"{counts} and none of its own is named {_listed(strange)}: they are {_listed(of_model)}. "
            "Use a model that was trained for these labels, or a checkpoint without a head."
        )
    largest = max(_whole_numbers(values, column))
    if largest >= num_labels or (has_names and len(names) != num_labels):
        raise ValueError(
            f"{counts} (the largest number in the data is {largest}). "
            "Use a model that was trained for these labels, or a checkpoint without a head."
        )
    return {value: int(value) for value in values}


def _is_class_label(dataset: Dataset, column: str) -> bool:
    return type(_feature(dataset, column)).__name__ == "ClassLabel"


def _feature(dataset: Dataset, column: str) -> Any:
    """What one label is: of a column of lists that of their items."""
    feature = dataset.features[column]
    return feature.feature if _is_list(feature) else feature


def _is_list(feature: Any) -> bool:
    return type(feature).__name__ in ("List", "LargeList", "Sequence")


def _values(dataset: Dataset, column: str) -> list[Any]:
    """Each different label once."""
    if not _is_list(dataset.features[column]):
        with quiet_bars():  # a part of a data set is written anew first
            return list(dataset.unique(column))
    return list(dict.fromkeys(tag for tags in dataset[column] for tag in tags or ()))


def _value(dataset: Dataset, column: str, name: str) -> Any:
    """What stands in the column for a class of this name."""
    return _feature(dataset, column).str2int(name) if _is_class_label(dataset, column) else name


def _whole_numbers(values: Iterable[Any], column: str) -> list[int]:
    values = list(values)
    wrong = [value for value in values if isinstance(value, float) or not isinstance(value, int) or value < 0]
    if wrong or not values:
        shown = repr(wrong[0]) if wrong else "nothing"
        raise ValueError(
            f"Column '{column}' holds {shown}, which is no class: a label is a name or a whole number from 0. "
            "Name the column that holds the classes with label_column (--label_column)."
        )
    return values


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
