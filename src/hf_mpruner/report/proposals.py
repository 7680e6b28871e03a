"""Whose proposal a round took, of several criteria, and what the others measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def proposals_in_words(values: Mapping[str, Any], kept: Mapping[str, Sequence[int]]) -> list[str]:
    """A sentence for each stack that lost layers; none if no criteria made proposals.

    Args:
        values (`Mapping`): `Round.scores`, of a run whose criterion is `mixture`.
        kept (`Mapping[str, Sequence[int]]`): original numbers of the layers that stay in each stack.

    Example:
        >>> proposals = [
        ...     {"num_removed": 1, "layers": [1], "members": ["greedy_loss", "tail"], "value": 0.52},
        ...     {"num_removed": 1, "layers": [0], "members": ["cka"], "value": 0.75},
        ... ]
        >>> details = {"judged_by": "loss", "whole": 0.5, "left_out": {}, "proposals": proposals}
        >>> values = {"scores": {"layers": {"layers": [0, 4], "values": [1.0, 0.0], "details": details}}}
        >>> proposals_in_words(values, {"layers": [0]})
        ['layers: as greedy_loss and tail propose, with a loss of 0.52 after 0.5; cka proposed 0.75']
    """
    found = []
    for path, one in (values.get("scores") or {}).items():
        details = one.get("details") or {}
        gone = [place for place, layer in enumerate(one["layers"]) if layer not in kept[path]]
        alike = [plan for plan in details.get("proposals", ()) if plan["num_removed"] == len(gone)]
        taken = next((plan for plan in alike if plan["layers"] == gone), None)
        if taken is None or "judged_by" not in details:
            continue
        judge = details["judged_by"].replace("output_change", "change of the output")
        value = f"a {judge} of {taken['value']:.4g} after {details['whole']:.4g}"
        others = [f"{_named(plan['members'])} proposed {_value(plan)}" for plan in alike if plan is not taken]
        without = [f"{name} could not propose" for name in details["left_out"]]
        verb = "propose" if len(taken["members"]) > 1 else "proposes"
        words = f"{path}: as {_named(taken['members'])} {verb}, with {value}"
        found.append("; ".join([words, *others, *without]))
    return found


def _value(plan: Mapping[str, Any]) -> str:
    return "one without a finite value" if plan["value"] is None else f"{plan['value']:.4g}"


def _named(members: Sequence[str]) -> str:
    return ", ".join(members[:-1]) + (" and " if members[1:] else "") + members[-1]
