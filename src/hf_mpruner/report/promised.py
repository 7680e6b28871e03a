"""What a run promises about the model that it kept, from its record alone."""

from __future__ import annotations

from hf_mpruner.guarantee import DropBound, promise
from hf_mpruner.record import PruningRecord, Round


def promised_bound(record: PruningRecord) -> DropBound | None:
    """The bound of the drop of the model that was kept; `None` if no round was accepted by one."""
    for round_ in reversed(record.rounds):
        if round_.verdict in ("accepted", "unjudged"):
            return bound_of(round_)
    return None


def bound_of(round_: Round) -> DropBound | None:
    """The bound that decided a round, if one did."""
    return DropBound.from_dict(round_.bound) if round_.bound else None


def promise_in_words(record: PruningRecord) -> str:
    """What is promised about the model that was kept, in one sentence; empty if nothing is, or not yet.

    Example:
        >>> promise_in_words(PruningRecord({"encoder.layer": 12}))
        ''
    """
    if not record.promise or record.metric is None or record.pending is not None:
        return ""
    return promise(
        record.metric,
        promised_bound(record),
        confidence=record.promise["confidence"],
        max_drop=record.promise["max_metric_drop"],
        greater_is_better=record.greater_is_better is not False,
        num_tests=len(record.verdicts),
    )
