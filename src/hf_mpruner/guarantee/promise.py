"""`promise`: one sentence that says what is promised, by how many examples, and what a tighter promise takes."""

from __future__ import annotations

import math

from .bound import DropBound


def promise(
    metric: str,
    bound: DropBound | None,
    *,
    confidence: float,
    max_drop: float,
    greater_is_better: bool,
    num_tests: int,
) -> str:
    """What holds for the model that is kept.

    Args:
        metric (`str`): its name, e.g. `"accuracy"`.
        bound (`DropBound`, *optional*): of the last accepted round; `None` if no round was accepted.
        confidence (`float`): of the whole promise, as the user stated it.
        max_drop (`float`): the largest allowed drop.
        greater_is_better (`bool`): the metric's direction.
        num_tests (`int`): rounds that were judged, accepted or not.

    Example:
        >>> promise("accuracy", None, confidence=0.95, max_drop=0.01, greater_is_better=True, num_tests=0)
        'No promise is needed: no cut was accepted, the model is the uncut one.'
    """
    if bound is None:
        judged = f" ({_rounds(num_tests)} judged)" if num_tests else ""
        return f"No promise is needed: no cut was accepted{judged}, the model is the uncut one."
    digits = max(3, 1 - math.floor(math.log10(max_drop))) if max_drop > 0 else 3
    units = (
        f"{bound.num_examples:,}"
        if bound.unit == "examples"
        else (f"{bound.num_examples:,} (in {bound.num_units:,} batches)")
    )
    up = math.ceil(round(bound.upper * 10**digits, 6)) / 10**digits
    text = (
        f"With probability {100 * confidence:g} % or more the {metric} of the model is at most {max_drop:.{digits}f} "
        f"{'lower' if greater_is_better else 'higher'} than that of the uncut model, on examples like the {units} that "
        f"judged it ({bound.method}; {_rounds(num_tests)} judged and paid for); the measured drop is "
        f"{bound.drop:.{digits}f}, its bound {up:.{digits}f}."
    )
    if bound.needed is None:
        return text
    return f"{text} About {bound.needed:,} examples would halve the distance between the two."


def _rounds(num: int) -> str:
    """The number of rounds, with its verb."""
    return f"{num} round was" if num == 1 else f"{num} rounds were"
