"""One data set in three parts, of which each has one use: to measure layers, to choose among cuts, to judge them."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import Subset

from ..errors import CalibrationError
from .examples import find_overlap, is_readable

logger = logging.getLogger(__name__)

# At most this share of a set is taken from those that judge, for each of the other two uses.
LARGEST_SHARE = 0.2
# Of two sets that the user gave, this share of the smaller may be equal by coincidence, as short texts are.
COINCIDENCE = 0.01


class Parts(NamedTuple):
    """Examples by their use, which share none: parts of one data set, or data sets that a user gave.

    Args:
        calibration (*optional*): for measures that read no labels; `None` if no example was asked for.
        choosing (*optional*): for what is chosen by a loss or a metric; `None` if no example was asked for.
        judging (*optional*): of a split all other examples, in the order of the data set; `None` if there are none.
    """

    calibration: Any = None
    choosing: Any = None
    judging: Any = None


def split_parts(dataset: Any, *, seed: int, calibration: int, choosing: int) -> Parts:
    """Split a data set at random into examples for calibration, for choosing, and for judging.

    The split follows from the length, the sizes and the seed, so it is the same on every process and in a run that is gone
    on with; the random state of torch is neither read nor changed. It is not stratified: a promise about unseen data needs
    judging examples that are drawn as these are, and the other two parts only choose.

    Args:
        dataset: a `datasets.Dataset`, a torch dataset with a length, or a list.
        seed (`int`): draws the parts.
        calibration (`int`): how many examples that part gets.
        choosing (`int`): the same.

    Returns:
        `Parts`: each a `datasets.Dataset` of a `datasets.Dataset`, else a `torch.utils.data.Subset`; in all three the
        examples are in the order that they have in `dataset`.

    Raises:
        CalibrationError: for data without a length or without random access.
        ValueError: for more examples than there are.

    Example:
        >>> parts = split_parts(list(range(10)), seed=0, calibration=2, choosing=3)
        >>> [len(part) for part in parts], sorted(row for part in parts for row in part)
        ([2, 3, 5], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    if not is_readable(dataset):
        raise CalibrationError(
            f"A {type(dataset).__name__} cannot be split into parts that calibrate, choose and judge, since it has no length or "
            "no random access. Give the parts by hand, each a data set of its own: calibration=..., choosing=... and "
            "judging=..., or pass a data set with a length."
        )
    total = len(dataset)
    if min(calibration, choosing) < 0 or calibration + choosing > total:
        raise ValueError(
            f"{calibration} examples for calibration and {choosing} for choosing cannot be taken from {total}: ask for fewer, "
            "0 or more of each."
        )
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = order[:calibration], order[calibration : calibration + choosing], order[calibration + choosing :]
    return Parts(*(_take(dataset, sorted(indices)) for indices in chosen))


def _take(dataset: Any, indices: Sequence[int]) -> Any:
    if not indices:
        return None
    return dataset.select(indices) if hasattr(dataset, "select") else Subset(dataset, indices)


def size_parts(total: int, num_samples: int, *, calibration: bool, choosing: bool, judging: bool) -> tuple[int, int]:
    """How many examples of a set calibrate and how many choose; the rest judges, if any of them is to judge.

    Args:
        total (`int`): examples of the set.
        num_samples (`int`): the most that calibrate, and the most that choose.
        calibration (`bool`): whether that part is to be made of it.
        choosing (`bool`): the same.
        judging (`bool`): the same.

    Returns:
        two `int`, of which each is 0 for a part that is not to be made.

    Example:
        >>> size_parts(1_000, 512, calibration=True, choosing=True, judging=True)
        (200, 200)
        >>> size_parts(1_000, 512, calibration=True, choosing=False, judging=False)
        (512, 0)
    """
    shares = LARGEST_SHARE if judging else 1 / max(calibration + choosing, 1)
    size = min(num_samples, max(int(total * shares), 1))
    return size * calibration, size * choosing


def check_disjoint(sets: Mapping[str, Any], made: Collection[str] = ()) -> None:
    """Refuse data sets that share examples, where each is to have one use.

    The same object, and `Subset`s of one data set with common indices, are found by what they are; else rows are compared
    by what the model reads of them. Some may be equal by coincidence, which is a warning with the number: one row, or 1 % of the
    smaller set, or twice as many as rows are repeated within the larger set itself. Sets that cannot be read beforehand are not
    compared.

    Args:
        sets (`Mapping[str, Any]`): by the names of the arguments that they were given as; `None` is left out.
        made (`Collection[str]`): names of those that are parts of one split, which need no comparison with each other.

    Raises:
        CalibrationError: naming two sets, and how many rows they share.
    """
    given = [(name, data) for name, data in sets.items() if data is not None]
    for (name, data), (other, other_data) in itertools.combinations(given, 2):
        if name in made and other in made:
            continue
        if data is other_data:
            raise CalibrationError(
                f"{name} and {other} are the same data set, but what measures, what chooses and what judges must share no "
                f"example. Pass two sets, or leave {name} out: it is then split off the evaluation set."
            )
        found = find_overlap(data, other_data)
        number = f"about {found.rows:,}" if found.sampled else f"{found.rows:,}"
        if found.rows > max(1, COINCIDENCE * found.of, 2 * found.repeated * found.of):
            raise CalibrationError(
                f"{name} and {other} share {number} of {found.of:,} examples, but what measures, what chooses and what judges "
                f"must share none. Take them out of one of the two, or leave {name} out: it is then split off the evaluation set."
            )
        if found.rows:
            logger.warning(
                "%s of %s examples of %s and %s are equal. Where that is no coincidence, take them out of one of the two.",
                number, f"{found.of:,}", name, other,
            )  # fmt: skip


def warn_of_trained(training: Any, judging: Any) -> None:
    """Say how many of the examples that judge are also trained on: a promise is then about examples that are known by heart.

    Args:
        training: the training set; what cannot be read beforehand is not looked at.
        judging: the examples that judge.
    """
    found = find_overlap(judging, training)
    if not found.rows:
        return
    logger.warning(
        "%s%s of the %s examples that judge are also trained on, so what is promised of the accuracy on new data may not hold. "
        "Take them out of the training set.",
        "About " if found.sampled else "", f"{found.rows:,}", f"{len(judging):,}",
    )  # fmt: skip
