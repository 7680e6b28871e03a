"""Parameter groups that a cut has emptied: put into an optimizer and its scheduler that were built without them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_mpruner.optimizer.wrappers import find_schedulers, unwrap_optimizer


def cannot_insert(optimizer: Any, scheduler: Any, saved: Mapping[str, Any], num_groups: int) -> str:
    """Why dropped groups cannot be put back, in words; empty if they can.

    Args:
        optimizer: the live one, or accelerate's wrapper of it, with the groups that stayed.
        scheduler (*optional*): the live one.
        saved (`Mapping`): what `OptimizerEdit.describe` gave in the process that made the cut.
        num_groups (`int`): how many groups there were before the cut.
    """
    groups = unwrap_optimizer(optimizer).param_groups
    stayed = num_groups - len(saved["groups"])
    if len(groups) != stayed:
        return f"it has {len(groups)} groups, but {stayed} had stayed"
    schedulers = list(find_schedulers(scheduler))
    for number, name, values in saved["lists"]:
        live = getattr(schedulers[number], name, None) if number < len(schedulers) else None
        if not isinstance(live, list) or len(live) != stayed:
            return f"its scheduler has no list '{name}' of {stayed} entries"
        if values is None and any(entry is not live[0] for entry in live):
            return f"the functions in '{name}' of {type(schedulers[number]).__name__} differ from group to group"
    return ""


def insert_dropped_groups(optimizer: Any, scheduler: Any, saved: Mapping[str, Any]) -> None:
    """Make room for dropped groups, in their old places, still without parameters, and for them in the scheduler.

    Args:
        optimizer: as in `cannot_insert`, which must have found nothing.
        scheduler (*optional*): the live one. Functions are not saved: one that all groups share is taken.
        saved (`Mapping`): as in `cannot_insert`.
    """
    groups = unwrap_optimizer(optimizer).param_groups
    for position in sorted(saved["groups"]):
        options = saved["groups"][position]
        groups.insert(
            position, {"params": [], **({"param_names": []} if "param_names" in groups[0] else {}), **options}
        )
    schedulers = list(find_schedulers(scheduler))
    lists = {id(getattr(schedulers[number], name)): (number, name, values) for number, name, values in saved["lists"]}
    for number, name, values in lists.values():
        live = getattr(schedulers[number], name)
        shared = live[0] if values is None else None
        for position in sorted(saved["groups"]):
            live.insert(position, shared if values is None else values[position])
