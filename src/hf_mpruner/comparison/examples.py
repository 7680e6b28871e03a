"""Which examples a data set holds: a digest to know it again by, and what two of them have in common."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from hf_mpruner.runtime import keep_rng_state

# Examples of a data set that its digest is of, and that are looked for in another one.
_DIGESTED, _COMPARED = 256, 5000


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
    if isinstance(data, Mapping) and data and all(_is_readable(part) for part in data.values()):
        return {str(name): fingerprint(part) for name, part in data.items()}
    if not _is_readable(data):
        return {"kind": type(data).__name__}
    total = hashlib.sha256()
    with _settled():
        for index in _spread(len(data), _DIGESTED):
            total.update(_digest(data[index]))
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
    if isinstance(judging, Mapping) and judging and all(_is_readable(part) for part in judging.values()):
        return max(count_shared(data, part) for part in judging.values())
    if not _is_readable(data) or not _is_readable(judging):
        return 0
    if data is judging:
        return len(data)
    with _settled():
        known = {_digest(_fed(judging[index])) for index in range(min(len(judging), _COMPARED))}
        return sum(_digest(_fed(data[index])) in known for index in range(min(len(data), _COMPARED)))


@contextmanager
def _settled() -> Iterator[None]:
    """Examples that are drawn when they are read are drawn alike each time, and the random state is left alone."""
    with keep_rng_state():
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        yield


def _is_readable(data: Any) -> bool:
    return hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, Mapping | str)


def _spread(length: int, number: int) -> list[int]:
    return list(range(length)) if length <= number else [i * length // number for i in range(number)]


def _fed(example: Any) -> Any:
    """What the model reads of an example; all of it, if that cannot be known."""
    if isinstance(example, Mapping):
        for name in ("input_ids", "pixel_values", "input_features", "input_values", "text"):
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
    else:
        total.update(type(value).__name__.encode())


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
