"""Find a data set by name: a Hub id, a folder, a file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

# The packaged builder of `datasets` that reads a single file of this kind.
_BUILDERS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}


# What `datasets` says about a split, or a part of one, without rows.
_WITHOUT_ROWS = "corresponds to no data"


def load_data(
    name_or_path: str | os.PathLike[str], *, config_name: str | None = None, split: str | None = None
) -> Dataset | DatasetDict:
    """Load a data set, wherever it lies.

    Args:
        name_or_path (`str` or path): what exists on this machine goes first: a folder that `save_to_disk` wrote, a
            folder of CSV, JSON, Parquet or image files (sorted into splits by their names), or one such file.
            Everything else is a Hub id, such as `"dair-ai/emotion"`.
        config_name (`str`, *optional*): the configuration (subset) of a data set that has several.
        split (`str`, *optional*): one split, or a slice of one: `"train"`, `"train[:80%]"`. All of them by default.

    Returns:
        `datasets.DatasetDict` of all splits, or the `datasets.Dataset` of the split that was named.

    Raises:
        FileNotFoundError: if there is no data of that name; the text says what was tried.
        ValueError: for a split or a configuration that the data set does not have; the text lists those it has. And
            for data without a single row.
    """
    loaded = _load(os.fspath(name_or_path), config_name, split)
    if not sum(len(part) for part in (loaded.values() if isinstance(loaded, dict) else [loaded])):
        raise ValueError(_no_rows(os.fspath(name_or_path), split))
    return loaded


def _load(name: str, config_name: str | None, split: str | None) -> Dataset | DatasetDict:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    path = Path(name)
    with quiet_bars():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return _saved_split(path, split)
        if path.is_file() and not path.stat().st_size:
            raise ValueError(_no_rows(name, None))
        if path.is_file() and path.suffix.lower() not in _BUILDERS:
            raise ValueError(
                f"'{name}' ends in '{path.suffix}', which is no data file that can be read here. Pass a file that "
                f"ends in {', '.join(_BUILDERS)}, or the folder that holds your images."
            )
        if not path.exists() and _is_path(name):
            raise FileNotFoundError(f"No data at '{name}': there is no such file or folder.")
        # An absolute path: a folder called "csv" must not be taken for the builder of that name.
        where = str(path.resolve()) if path.is_dir() else name
        arguments: dict[str, object] = {"path": where, "name": config_name}
        if path.is_file():
            delimiter = {"sep": "\t"} if path.suffix.lower() == ".tsv" else {}
            arguments = {"path": _BUILDERS[path.suffix.lower()], "data_files": str(path.resolve()), **delimiter}
        try:
            return load_dataset(**arguments, split=split)
        except (FileNotFoundError, ConnectionError) as error:
            tried = "the folder holds no data files" if path.is_dir() else "no such file or folder here, and no"
            tried += "" if path.is_dir() else " data set of that name could be read from the Hub"
            raise FileNotFoundError(f"No data at '{name}': {tried} ({_first_line(error)}).") from error
        except StopIteration as error:  # how `datasets` reads JSON files without a line
            raise ValueError(_no_rows(name, split)) from error
        except DatasetGenerationError as error:
            cause = error.__cause__ or error
            raise ValueError(f"Data set '{name}' could not be read: {_first_line(cause)}.") from error
        except ValueError as error:
            raise _split_error(name, arguments, split, error) from error


def _saved_split(path: Path, split: str | None) -> Dataset | DatasetDict:
    from datasets import load_from_disk

    has_splits = (path / "dataset_dict.json").is_file()
    folder = path
    if has_splits and split is not None:
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        if split not in splits:
            raise ValueError(_unknown_split(str(path), split, splits))
        folder = path / split
    try:
        saved = load_from_disk(str(folder))
    except IndexError as error:  # how some versions of `datasets` read a table without rows
        if has_splits and split is None:
            raise ValueError(
                f"Data set '{path}' has a split without rows: name the one to load, split='train'."
            ) from error
        raise ValueError(_no_rows(str(path), split if has_splits else None)) from error
    if not has_splits and split is not None and str(saved.split) != split:
        raise ValueError(_unknown_split(str(path), split, [str(saved.split)]))
    return saved


def _split_error(name: str, arguments: dict[str, object], split: str | None, error: ValueError) -> ValueError:
    """Say which splits there are, if it was the split that is wrong; else hand on the first line."""
    from datasets import load_dataset

    if _WITHOUT_ROWS in str(error):
        return ValueError(_no_rows(name, split))
    if split is None or "split" not in str(error).lower():
        return ValueError(f"Data set '{name}' could not be loaded: {_first_line(error)}")
    try:
        splits = list(load_dataset(**arguments))
    except ValueError as second:
        return ValueError(_no_rows(name, None) if _WITHOUT_ROWS in str(second) else _first_line(second))
    return ValueError(_unknown_split(name, split, splits))


def _no_rows(name: str, split: str | None) -> str:
    where = f" in '{split}'" if split else ""
    return f"Data set '{name}' has no rows{where}. Pass data with examples."


def _unknown_split(name: str, split: str, splits: list[str]) -> str:
    listed = ", ".join(f"'{found}'" for found in splits)
    if len(splits) > 1:
        return f"Data set '{name}' has no split '{split}'. Its splits are {listed}: name one of them."
    return (
        f"Data set '{name}' has no split '{split}', only {listed}. Name it, or name two parts of it: "
        f"'{splits[0]}[:80%]' and '{splits[0]}[80%:]'."
    )


def _is_path(name: str) -> bool:
    """Whether a name that does not exist here can only be a path, so that the Hub need not be asked."""
    path = Path(name)
    return path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2 or path.suffix.lower() in _BUILDERS


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


@contextmanager
def quiet_bars() -> Iterator[None]:
    """Show the progress bars of `datasets` only where someone looks at a terminal."""
    import datasets

    hidden = not sys.stderr.isatty() and not datasets.are_progress_bars_disabled()
    if hidden:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if hidden:
            datasets.enable_progress_bars()
