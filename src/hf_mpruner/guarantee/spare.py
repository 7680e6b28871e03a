"""How many outcomes a cut may lose before no promise can be made of it."""

from __future__ import annotations

from .proportions import PairedTest


def spare_losses(num_examples: int, max_drop: float, level: float, most: int) -> int:
    """How many examples may get worse, and none better, in a cut that still passes.

    Args:
        num_examples (`int`): of the judging set, with 0/1 outcomes; on which a cut that changes none passes.
        max_drop (`float`): the largest allowed drop, above 0.
        level (`float`): of the test, between 0 and 1.
        most (`int`): more than these are not looked for.

    Example:
        >>> spare_losses(2_000, max_drop=0.01, level=0.05, most=3)
        3
    """
    for lost in range(1, most + 1):
        if lost > num_examples or not PairedTest(num_examples, lost, 0, level).rejects(max_drop):
            return lost - 1
    return most
