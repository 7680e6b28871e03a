"""Which columns of a data set hold the input and the label, and which number a label has in the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedConfig

ModelKind = Literal["text", "image"]

# Names that data sets on the Hub give their texts. A pair goes before the single columns that it contains.
_TEXT_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
)
_TEXTS = ("text", "sentence", "content", "review", "document", "tweet", "title")
_LABELS = ("target", "class", "category")


@dataclass(frozen=True)
class Columns:
    """The columns that matter.

    Args:
        kind (`"text"` or `"image"`): what the inputs are.
        inputs (`tuple[str, ...]`): one text column, the two of a sentence pair, or one image column.
        label (`str`, *optional*): the column with the class.
    """

    kind: ModelKind
    inputs: tuple[str, ...]
    label: str | None = None


def find_columns(
    dataset: Any,
    model_kind: ModelKind,
    text_column: str | Sequence[str] | None = None,
    label_column: str | None = None,
    image_column: str | None = None,
    *,
    need_label: bool = True,
) -> Columns:
    """Find the input and the label column by type and usual names; columns that are named are taken as they are.

    Args:
        dataset (`datasets.Dataset` or any sequence of mappings): only its features or its first example are read.
        model_kind (`"text"` or `"image"`): what the model reads.
        text_column (`str` or two of them, *optional*): the text, or the two texts of a sentence pair.
        label_column (`str`, *optional*): the class.
        image_column (`str`, *optional*): the image.
        need_label (`bool`): whether a data set without a label is an error.

    Raises:
        ValueError: if a named column does not exist, or if none or several could be meant; the text lists the
            columns and says what to type.

    Example:
        >>> find_columns([{"sentence": "good", "label": 1, "idx": 7}], "text")
        Columns(kind='text', inputs=('sentence',), label='label')
    """
    types = column_types(dataset)
    named = [text_column] if isinstance(text_column, str) else list(text_column or ())
    for flag, column in [
        *(("text_column", c) for c in named),
        ("label_column", label_column),
        ("image_column", image_column),
    ]:
        if column is not None and column not in types:
            raise ValueError(f"{flag}='{column}' is not a column of the data. Its columns are {_listed(types)}.")
    if len(named) > 2:
        raise ValueError(f"text_column names {len(named)} columns: pass one text, or the two of a sentence pair.")
    label = label_column or _find_label(types, need_label)
    inputs: tuple[str, ...]
    if model_kind == "image":
        inputs = (image_column or _only("image", [c for c, t in types.items() if t == "image"], types),)
    else:
        inputs = tuple(named) or _find_texts({c: t for c, t in types.items() if c != label}, types)
    return Columns(model_kind, inputs, label)


def column_types(dataset: Any) -> dict[str, str]:
    """Each column as `"text"`, `"image"`, `"class"`, `"number"` or `"other"`, from the features or the first example."""
    features = getattr(dataset, "features", None)
    if features is None:
        first = next(iter(dataset), None)
        return {name: _value_type(value) for name, value in (first or {}).items()}
    return {name: _feature_type(feature) for name, feature in features.items()}


def _feature_type(feature: Any) -> str:
    kind = type(feature).__name__
    if kind in ("Image", "ClassLabel"):
        return {"Image": "image", "ClassLabel": "class"}[kind]
    dtype = str(getattr(feature, "dtype", "")) if kind == "Value" else ""
    if "string" in dtype:
        return "text"
    return "number" if dtype.startswith(("int", "uint", "float", "bool")) else "other"


def _value_type(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, int | float):
        return "number"
    return "image" if type(value).__module__.startswith("PIL.") else "other"


def _find_label(types: dict[str, str], need_label: bool) -> str | None:
    by_name = [column for column in ("label", "labels") if column in types]
    by_type = [column for column, kind in types.items() if kind == "class"]
    usual = [column for column in _LABELS if column in types]
    hits = by_name or by_type or usual
    if len(hits) != 1 and not need_label:
        return None
    return _only("label", hits, types)


def _find_texts(candidates: dict[str, str], types: dict[str, str]) -> tuple[str, ...]:
    texts = [column for column, kind in candidates.items() if kind == "text"]
    pairs = [pair for pair in _TEXT_PAIRS if set(pair) <= set(texts)]
    if len(pairs) == 1:
        return pairs[0]
    usual = [column for column in texts if column in _TEXTS]
    return (_only("text", usual if len(usual) == 1 else texts, types),)


def _only(what: str, hits: Sequence[str], types: dict[str, str]) -> str:
    if len(hits) == 1:
        return hits[0]
    several = f"{len(hits)} columns could be the {what} ({_listed(hits)})"
    example = next(iter([*hits, *types]), "NAME")
    raise ValueError(
        f"{several if hits else f'No column looks like the {what}'}. The columns are {_listed(types)}: name one, "
        f"{what}_column='{example}' (--{what}_column {example})."
    )


def find_label_names(dataset: Dataset, column: str) -> list[str]:
    """Names of the classes in the data, in the order of their numbers (whole numbers: up to the largest one).

    Raises:
        ValueError: if the column holds neither classes nor names nor whole numbers.
    """
    if _is_class_label(dataset, column):
        return list(dataset.features[column].names)
    values = dataset.unique(column)
    if all(isinstance(value, str) for value in values):
        return sorted(values)
    return [str(number) for number in range(max(_whole_numbers(values, column)) + 1)]


def label_ids(dataset: Dataset, column: str, config: PreTrainedConfig) -> dict[Any, int]:
    """The model's number for each value of the label column.

    Names go first: a data set that numbers its classes differently from the model is translated by name. Whole
    numbers without names, and names that mean nothing to the model, are taken as the model's own numbers.

    Args:
        dataset (`datasets.Dataset`): the data.
        column (`str`): its label column.
        config (`PreTrainedConfig`): of the model; `id2label` and `num_labels` are read.

    Returns:
        `dict`: value in the column -> class of the model, 0..num_labels-1.

    Raises:
        ValueError: for a label that the model does not have; the text gives both counts.
    """
    names = find_label_names(dataset, column)
    values = dataset.unique(column)
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
    return type(dataset.features[column]).__name__ == "ClassLabel"


def _value(dataset: Dataset, column: str, name: str) -> Any:
    """What stands in the column for a class of this name."""
    return dataset.features[column].str2int(name) if _is_class_label(dataset, column) else name


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
