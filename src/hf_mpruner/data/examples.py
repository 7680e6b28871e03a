"""Which examples a data set holds: a digest to know it again by, and what two of them have in common."""

from __future__ import annotations

import hashlib
import pickle
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset, Subset

from ..runtime import keep_rng_state

# Rows of a data set that its digest is of, and that are looked for in another one: of `datasets`, which reads many at
# once and undecoded, as far as they have so many bytes together, and of anything else.
_DIGESTED, _COMPARED, _COMPARED_AT_LEAST, _COMPARED_SLOWLY = 256, 10_000, 500, 2_000
_BYTES, _BYTES_AT_ONCE = 2e8, 1e6
# What a model reads of an example, by the names of transformers; the first that is there.
_FED = ("input_ids", "pixel_values", "input_features", "input_values", "text")


class Overlap(NamedTuple):
    """What two data sets have in common.

    Args:
        rows (`int`): of the smaller one that are in the other, too; an estimate where `sampled`.
        of (`int`): rows of the smaller one.
        sampled (`bool`): whether not all rows were compared.
        repeated (`float`): share of the rows of the larger one that occur more than once in it; so many are in both of two
            sets that were drawn at random from one.
    """

    rows: int
    of: int
    sampled: bool = False
    repeated: float = 0.0


def fingerprint(data: Any) -> Any:
    """What tells a data set from another one: its length, and a digest of examples from all over it.

    Args:
        data: a dataset, a dict of them, or anything else, of which only the type is told: what can be read once only must
            not be read here.

    Returns:
        plain values, ready for JSON; equal for equal examples, wherever they lie.

    Example:
        >>> fingerprint([{"input_ids": [1, 2]}]) == fingerprint([{"input_ids": [1, 3]}])
        False
    """
    if isinstance(data, Mapping) and data and all(is_readable(part) for part in data.values()):
        return {str(name): fingerprint(part) for name, part in data.items()}
    if not is_readable(data):
        return {"kind": type(data).__name__}
    total = hashlib.sha256()
    with keep_rng_state():
        for index in _spread(len(data), _DIGESTED):
            total.update(_digest(_settled_row(data, index)))
    return {"examples": len(data), "digest": total.hexdigest()[:16]}


def count_shared(data: Any, judging: Any) -> int:
    """How many of a data set's examples are among those that judge, by what the model is fed with.

    Args:
        data: a dataset; of anything else 0 is returned.
        judging: a dataset, or a dict of them.

    Example:
        >>> count_shared([{"input_ids": [1]}, {"input_ids": [2]}], [{"input_ids": [2]}, {"input_ids": [3]}])
        1
    """
    if isinstance(judging, Mapping) and judging and all(is_readable(part) for part in judging.values()):
        return max(count_shared(data, part) for part in judging.values())
    return find_overlap(data, judging).rows


def find_overlap(first: Any, second: Any) -> Overlap:
    """How many rows of the smaller of two data sets are in the other one, too.

    `Subset`s of one data set are compared by their indices. Else rows are equal if what the model reads of them is, by
    SHA-256: the `input_ids`, the pixels or the text, or the whole row if it has none of these. Up to 10,000 rows of a
    `datasets.Dataset` (500 at least where rows are large) and 2,000 of anything else are read; of more, a sample that is drawn alike each time, and what is
    found is scaled up.

    Args:
        first: a dataset; what has no length or no random access shares no rows.
        second: the same.

    Example:
        >>> rows = [{"input_ids": [i]} for i in range(10)]
        >>> find_overlap(rows[:6], rows[4:])
        Overlap(rows=2, of=6, sampled=False, repeated=0.0)
    """
    if not is_readable(first) or not is_readable(second):
        return Overlap(0, 0)
    (root, mine), (other_root, others) = _unwrapped(first), _unwrapped(second)
    of = min(len(mine), len(others))
    if root is other_root:
        return Overlap(min(len(set(mine) & set(others)), of), of)
    if len(mine) > len(others):
        root, mine, other_root, others = other_root, others, root, mine
    known, looked = Counter(_digests(other_root, others)), list(_digests(root, mine))
    read = known.total()
    found, twice = sum(digest in known for digest in looked), sum(n for n in known.values() if n > 1)
    of_mine, of_others = len(mine) / max(len(looked), 1), len(others) / max(read, 1)
    rows = min(round(found * of_mine * of_others), of)
    return Overlap(rows, of, of_mine * of_others > 1, min(twice * of_others / max(read, 1), 1.0))


def _digests(data: Any, indices: Sequence[int]) -> Iterator[bytes]:
    """Digests of what the model reads of each row, or of a sample of the rows."""
    most = _most(data)
    if len(indices) > most:
        indices = [indices[place] for place in sorted(random.Random(0).sample(range(len(indices)), most))]
    if (stored := _stored(data)) is not None:
        at_once = max(int(_BYTES_AT_ONCE / _row_bytes(stored)), 1)
        for start in range(0, len(indices), at_once):
            for row in stored[list(indices[start : start + at_once])].to_pylist():
                yield _digest(_fed(row))
        return
    with keep_rng_state():
        for index in indices:
            yield _digest(_fed(_settled_row(data, index)))


def _most(data: Any) -> int:
    """How many rows are compared."""
    stored = _stored(data)
    if stored is None:
        return _COMPARED_SLOWLY
    return min(_COMPARED, max(int(_BYTES / _row_bytes(stored)), _COMPARED_AT_LEAST))


def _stored(data: Any) -> Any:
    """What a `datasets.Dataset` has of its rows, before any transform: the column that the model reads, if it is known."""
    from datasets import Dataset

    if not isinstance(data, Dataset):
        return None
    fed = [name for name in _FED if name in data.column_names][:1]
    return (data.select_columns(fed) if fed else data).with_format("arrow")


def _row_bytes(stored: Any) -> float:
    return max(stored.data.nbytes / max(stored.data.num_rows, 1), 1.0)


def _unwrapped(data: Any) -> tuple[Any, Sequence[int]]:
    """The data set under any number of `Subset`s, and which of its rows these are."""
    indices: Sequence[int] = range(len(data))
    while isinstance(data, Subset):
        data, indices = data.dataset, [int(data.indices[index]) for index in indices]
    return data, indices


def _settled_row(data: Any, index: int) -> Any:
    """A row; what is drawn while it is read is drawn alike each time."""
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)  # torch.manual_seed, which sees to accelerators too, takes far longer
    return data[index]


def is_readable(data: Any) -> bool:
    """Whether data has a length and random access, as a list and a map-style data set have."""
    random_access = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    return random_access and not isinstance(data, Mapping | str | IterableDataset)


def _spread(length: int, number: int) -> list[int]:
    return list(range(length)) if length <= number else [i * length // number for i in range(number)]


def _fed(example: Any) -> Any:
    """What the model reads of an example; all of it, if that cannot be known."""
    if isinstance(example, Mapping):
        for name in _FED:
            if name in example:
                return example[name]
    return example


def _digest(value: Any) -> bytes:
    total = hashlib.sha256()
    _add(total, value)
    return total.digest()


def _add(total: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        for name in sorted(map(str, value)):
            total.update(name.encode())
            _add(total, value[name])
    elif isinstance(value, str | bytes | int | float | bool) or value is None:
        total.update(repr(value).encode())
    elif (numbers := _numbers(value)) is not None:
        total.update(f"{numbers.dtype} {numbers.shape}".encode())
        total.update(np.ascontiguousarray(numbers))
    elif isinstance(value, list | tuple):
        for one in value:
            _add(total, one)
            total.update(b",")
    elif hasattr(value, "tobytes"):  # pictures
        total.update(value.tobytes())
    else:  # an object of the user's own, such as a graph
        total.update(type(value).__name__.encode())
        with suppress(Exception):
            total.update(pickle.dumps(value))


def _numbers(value: Any) -> np.ndarray | None:
    """Numbers in one form, whether they come as a tensor, an array or lists; `None` for anything else."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.double() if value.is_floating_point() else value
    elif not isinstance(value, list | tuple | np.ndarray):
        return None
    try:
        array = np.asarray(value)
    except ValueError:  # lists of several lengths
        return None
    if array.dtype.kind in "biu":
        return array.astype(np.int64)
    return array.astype(np.float64) if array.dtype.kind == "f" else None
