"""Rows of one form, whatever the file could hold: fields of structs, pictures in files, lists and answers as text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .columns import Columns, column_types
from .loading import quiet_bars

if TYPE_CHECKING:
    from datasets import Dataset


def take_columns(dataset: Dataset, columns: Columns) -> Dataset:
    """The columns that matter and no other; `"translation.en"` is field `en` of column `translation`.

    Raises:
        ValueError: if this part of the data lacks one of them.

    Example:
        >>> from datasets import Dataset
        >>> data = Dataset.from_list([{"id": 1, "pair": {"a": "x", "b": "y"}}])
        >>> take_columns(data, Columns("text", ("pair.a",))).column_names
        ['pair.a']
    """
    if any(name not in dataset.column_names for name in columns.names):
        with quiet_bars():
            dataset = dataset.flatten()
    for name in columns.names:
        if name not in dataset.column_names:
            raise ValueError(
                f"Column '{name}' is missing in the part '{dataset.split}' of the data, whose columns are "
                f"{', '.join(repr(found) for found in dataset.column_names)}. All parts need the same columns."
            )
    return dataset.select_columns(list(columns.names))


def open_images(dataset: Dataset, column: str, folder: Path | None = None) -> Dataset:
    """The column with pictures instead of the paths of their files.

    Args:
        dataset (`datasets.Dataset`): with pictures already, or with paths.
        column (`str`): which column.
        folder (`Path`, *optional*): what the paths are relative to; by default the working directory.

    Raises:
        ValueError: for a path that leads to no file.
    """
    from datasets import Image

    if column_types(dataset)[column] == "image":
        return dataset
    base = folder or Path()

    def find(name: Any) -> dict[str, str]:
        if name is None or not (base / str(name)).is_file():
            raise ValueError(
                f"Column '{column}' should hold pictures or the paths of their files, but '{name}' is no file in "
                f"'{base.resolve()}'. Write paths that are absolute, or relative to the folder of the data file."
            )
        return {column: str((base / str(name)).resolve())}

    with quiet_bars():
        return dataset.map(find, input_columns=column).cast_column(column, Image())


def split_words(dataset: Dataset, columns: Columns) -> Dataset:
    """Words and tags as lists, also where they are text: with spaces between them, or a JSON list.

    Raises:
        ValueError: for a cell that is neither, or as many words as there are not tags.

    Example:
        >>> from datasets import Dataset
        >>> data = Dataset.from_dict({"tokens": ["Ada came"], "tags": ["1 0"]})
        >>> split_words(data, Columns("text", ("tokens",), "tags"))[0]
        {'tokens': ['Ada', 'came'], 'tags': [1, 0]}
    """
    from datasets import Dataset

    types = column_types(dataset)
    words = columns.inputs[0]
    if any(types[name] == "text" for name in columns.names):
        parsed = {name: [_as_list(cell, name) for cell in dataset[name]] for name in columns.names}
        for name, rows in parsed.items():
            if name != words and all(str(item).isdigit() for row in rows for item in row):
                parsed[name] = [[int(item) for item in row] for row in rows]
        dataset = Dataset.from_dict(parsed, split=dataset.split)
    if columns.label is not None:
        for row, (tokens, tags) in enumerate(zip(dataset[words], dataset[columns.label], strict=True)):
            if tokens is None or tags is None or len(tokens) != len(tags):
                counts = ["no" if cell is None else len(cell) for cell in (tokens, tags)]
                raise ValueError(
                    f"Row {row} has {counts[0]} words in '{words}' and {counts[1]} tags in '{columns.label}': each word "
                    "needs one tag. Mend the row, or drop it with dataset.filter."
                )
    return dataset


def _as_list(cell: Any, column: str) -> list[Any]:
    if not isinstance(cell, str):
        return list(cell or ())
    if not cell.lstrip().startswith("["):
        return cell.split()
    try:
        return list(json.loads(cell))
    except ValueError as error:
        raise ValueError(
            f"Column '{column}' holds {cell[:60]!r}, which begins like a JSON list but is none ({error}). Write the words "
            'with spaces between them, or a list such as ["Ada", "came"].'
        ) from error


def read_answers(dataset: Dataset, column: str) -> Dataset:
    """Answers as SQuAD has them, `{"text": [...], "answer_start": [...]}`, also from JSON text and lists of pairs.

    Raises:
        ValueError: for a cell that is none of these.

    Example:
        >>> from datasets import Dataset
        >>> data = Dataset.from_dict({"answers": ['[{"text": "Ada", "answer_start": 4}]']})
        >>> read_answers(data, "answers")[0]["answers"] == {"text": ["Ada"], "answer_start": [4]}
        True
    """
    from datasets import Features, List, Value

    def read(cell: Any) -> dict[str, Any]:
        try:
            value = json.loads(cell) if isinstance(cell, str) else cell
            if isinstance(value, list):
                value = {key: [answer[key] for answer in value] for key in ("text", "answer_start")}
            texts, starts = list(value["text"]), [int(start) for start in value["answer_start"]]
            if len(texts) != len(starts) or not all(isinstance(text, str) for text in texts):
                raise ValueError("as many texts as starts are needed")
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"Column '{column}' holds {str(cell)[:60]!r}, which are no answers of SQuAD's form "
                f"({type(error).__name__}: {error}). Write "
                '{"text": ["the answer"], "answer_start": [12]}, counted in characters of the context.'
            ) from error
        return {column: {"text": texts, "answer_start": starts}}

    plain = {"text": List(Value("string")), "answer_start": List(Value("int64"))}
    features = Features({**dataset.features, column: plain})
    with quiet_bars():
        return dataset.map(read, input_columns=column, features=features)


def drop_blank(dataset: Dataset, column: str) -> Dataset:
    """Rows with text in them: data sets for language models have empty lines between paragraphs.

    Raises:
        ValueError: if no row has any.
    """
    with quiet_bars():
        kept = dataset.filter(lambda text: bool(text and text.strip()), input_columns=column)
    if not len(kept):
        raise ValueError(f"Column '{column}' is empty in all {len(dataset)} rows. Name the one with the text.")
    return kept
