"""What a cut would rewrite, as data and as text: one trial cut of each stack, proved on the meta device."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from hf_mpruner.architectures import BlockStack, ConfigEdit, CutProof, Examination, prove_cut
from hf_mpruner.errors import UnsupportedArchitectureError

_VALUE_WIDTH = 60


def describe_rewrites(model: PreTrainedModel, found: Examination, stack: BlockStack) -> dict[str, Any]:
    """What removing the middle of a stack would write: config attributes, module attributes, whatever else moves.

    Args:
        model (`PreTrainedModel`): on any device, the meta device included; read, not changed.
        found (`Examination`): of this model.
        stack (`BlockStack`): one of its stacks.

    Returns:
        `dict`: plain values, ready for JSON. `removed` names the layers; `refused` says why there is nothing else, or
        is `None`.
    """
    removed = middle_layers(stack)
    kept = [layer for layer in range(stack.depth) if layer not in removed]
    facts: dict[str, Any] = {"removed": list(removed), "refused": None}
    try:
        proof = prove_cut(model, found, {stack.path: kept})
    except UnsupportedArchitectureError as error:
        return {**facts, "refused": " ".join(str(error).split())}
    return {
        **facts,
        "config": _config_rows(proof.configs),
        "modules": _module_rows(proof, stack),
        "lists": {path: len(cut.kept) for path, cut in proof.cuts.items()},
        "moved": [f"{move.source} -> {move.target}" for move in proof.moves],
        "shortened": [f"{part.path}.{part.name}".lstrip(".") for part in proof.slices],
        "rebuilt": list(proof.swaps),
        "warning": proof.warning,
    }


def middle_layers(stack: BlockStack) -> tuple[int, ...]:
    """The layers of a trial cut: one from the middle, a whole run where layers go in runs, else the last.

    Example:
        >>> from hf_mpruner.architectures import ConfigField
        >>> middle_layers(BlockStack("h", "Block", 5, ConfigField("n_layer"), pinned={2: "owns the bias"}))
        (1,)
    """
    period, free = stack.period, set(stack.prunable)
    starts = sorted(range(stack.depth - period), key=lambda start: abs(start - (stack.depth - period) / 2))
    for start in starts:
        run = tuple(range(start, start + period))
        if free.issuperset(run):
            return run
    return (max(free),)


def rewrite_lines(path: str, facts: Mapping[str, Any]) -> list[str]:
    """The same as text: a heading, then a line for each thing that is written."""
    layers = ", ".join(map(str, facts["removed"]))
    heading = f"{path} without {layers}" if len(facts["removed"]) < 2 else f"{path} without {layers} together"
    if facts["refused"]:
        return [f"{heading}: refused: {facts['refused']}"]
    lines = [f"{heading} would rewrite"]
    for row in facts["config"]:
        objects = row["objects"]
        name = f"{objects[0]}.{row['name'].partition('.')[2]}" if len(objects) == 1 else row["name"]
        copies = f" (in {len(objects)} config objects)" if len(objects) > 1 else ""
        lines.append(f"  {name}: {_brief(row['old'])} -> {_brief(row['new'])}{copies}")
    for row in facts["modules"]:
        change = f": {_brief(row['old'])} -> {_brief(row['new'])}" if "old" in row else ""
        lines.append(f"  {row['name']} on {row['count']} module{'s' * (row['count'] > 1)}{change}")
    lines += [
        f"  {follower}: {length} entries stay" for follower, length in facts["lists"].items() if follower != path
    ]
    lines += [f"  {move} (moves)" for move in facts["moved"]]
    lines += [f"  {name}: loses the room of the removed layers" for name in facts["shortened"]]
    lines += [f"  {len(facts['rebuilt'])} modules without weights, as the new config builds them"] * bool(
        facts["rebuilt"]
    )
    lines += [f"  warning: {facts['warning']}"] * bool(facts["warning"])
    return lines


def _config_rows(edits: Iterable[ConfigEdit]) -> list[dict[str, Any]]:
    """One row for each change of an attribute, with the config objects that need it."""
    rows: dict[str, dict[str, Any]] = {}
    for edit in edits:
        name = ".".join(part for part in (edit.holder, edit.node, edit.name) if part)
        row = {"name": name, "old": plain_json(edit.old), "new": plain_json(edit.new)}
        where = ".".join(part for part in (edit.path, edit.holder) if part)
        rows.setdefault(repr(row), {**row, "objects": []})["objects"].append(where)
    return list(rows.values())


def _module_rows(proof: CutProof, stack: BlockStack) -> list[dict[str, Any]]:
    """One row for each attribute, with how many modules have it; values where they all change alike.

    The stack's own attributes are named as in a block, others by path, with `*` for the numbers of other blocks.
    """
    groups: dict[str, list[Any]] = {}
    for edit in proof.values:
        inside = edit.path.removeprefix(f"{stack.path}.")
        place = inside.partition(".")[2] if inside != edit.path else re.sub(r"\b\d+\b", "*", edit.path)
        groups.setdefault(f"{place}.{edit.name}".lstrip("."), []).append(edit)
    rows = []
    for name, edits in groups.items():
        row: dict[str, Any] = {"name": name, "count": len(edits), "modules": [edit.path for edit in edits]}
        changes = [[plain_json(edit.old), plain_json(edit.new)] for edit in edits]
        if all(change == changes[0] for change in changes):
            row["old"], row["new"] = changes[0]
        rows.append(row)
    return rows


def plain_json(value: Any) -> Any:
    """A value as JSON can hold it: numbers that are none and objects of other kinds become text.

    Example:
        >>> plain_json({"rope": (1, float("inf"))})
        {'rope': [1, 'inf']}
    """
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain_json(item) for item in value]
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def _brief(value: Any) -> str:
    text = repr(value)
    if isinstance(value, list) and len(text) > _VALUE_WIDTH:
        return f"{len(value)} entries"
    return text if len(text) <= _VALUE_WIDTH else f"{text[: _VALUE_WIDTH - 3]}..."
