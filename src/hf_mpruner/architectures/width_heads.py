"""Attention heads, found by experiment: fewer heads of the same size, whole groups of a key-value head and its queries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from .blueprint import Blueprint
from .reference import config_nodes
from .stack import ConfigField
from .width import WidthGroup, WidthSlice, WidthUnit
from .width_trial import AxisChange, block_of, common_path, counts_heads, group_by_reader, kind_of, try_values

# Many models read a size of heads by this name where the config has one, and else divide the width by their number.
_HEAD_SIZE = "head_dim"


def find_head_groups(blueprint: Blueprint) -> tuple[list[WidthGroup], list[str]]:
    """The attentions whose number of heads a config can lower without making the heads wider.

    Args:
        blueprint (`Blueprint`): of the model.

    Returns:
        `tuple[list[WidthGroup], list[str]]`: groups in the order of the config, and one sentence for each refusal.
    """
    groups: list[WidthGroup] = []
    refusals: list[str] = []
    for path, node in config_nodes(blueprint.config).items():
        taken: set[str] = set()
        for queries, keys in _candidates(node):
            if taken & {queries, keys}:
                continue
            found = _read(blueprint, path, queries, keys)
            if isinstance(found, WidthGroup):
                groups.append(found)
                taken |= {field.name for field in found.fields}
            elif found:
                refusals.append(found)
        refusals = [] if taken else refusals
    if not groups and not refusals:
        refusals += _divided(blueprint)
    return groups, list(dict.fromkeys(refusals))


def _candidates(node: PreTrainedConfig) -> Iterator[tuple[str, str | None]]:
    """Pairs of query heads and key-value heads, and values that may count both."""
    values = {name: value for name, value in vars(node).items() if type(value) is int and counts_heads(name)}
    for name, value in values.items():
        for other, fewer in values.items():
            if other != name and 1 < fewer <= value and value % fewer == 0:
                yield name, other
    for name, value in values.items():
        if value > 1:
            yield name, None


def _read(blueprint: Blueprint, path: str, queries: str, keys: str | None) -> WidthGroup | str | None:
    """The attentions that these values decide; why they cannot be narrowed; or `None` for values that count no heads."""
    node = config_nodes(blueprint.config)[path]
    number, size = vars(node)[queries], vars(node)[keys or queries]
    fields = {ConfigField(queries, path): number // size, **({ConfigField(keys, path): 1} if keys else {})}
    title = " and ".join(f"config.{field} = {vars(node)[field.name]}" for field in fields)
    why: str | None = None
    for added in _head_sizes(node, path, number):
        if added and try_values(blueprint, added) != []:
            continue
        changes = _lower(blueprint, fields, size, added)
        if not changes:
            continue
        units = group_by_reader(changes)
        if isinstance(units, str):
            why = f"{title} cannot be lowered for single attentions: {units}"
            continue
        faults = [_find_fault(blueprint, reader, unit, number // size, bool(keys)) for reader, unit in units.items()]
        fault = next((one for one in faults if one is not None), None)
        if fault is None:
            found = tuple(_unit(reader, size, unit) for reader, unit in units.items())
            return WidthGroup("heads", fields, size, found, _ties(found), dict(added))
        why = f"{title} cannot be lowered: {fault}" if fault else why
    return why


def _head_sizes(node: PreTrainedConfig, path: str, number: int) -> list[dict[ConfigField, int]]:
    """What to write beside the number of heads: nothing, or the size that they have now, where none is written."""
    width = getattr(node, "hidden_size", None)
    known = vars(node).get(_HEAD_SIZE) is not None or _HEAD_SIZE in node.attribute_map
    if known or type(width) is not int or width % number:
        return [{}]
    return [{}, {ConfigField(_HEAD_SIZE, path): width // number}]


def _lower(
    blueprint: Blueprint, fields: Mapping[ConfigField, int], size: int, added: Mapping[ConfigField, Any]
) -> list[AxisChange] | None:
    """What fewer heads change: one fewer, or as few as a config takes that wants its width to be a multiple of them."""
    for left in range(size - 1, 0, -1):
        values = {**added, **{field: left * one for field, one in fields.items()}}
        changes = try_values(blueprint, values, size - left)
        if isinstance(changes, str):
            continue
        fits = changes and {"in", "out"} <= {change.role for change in changes}
        inside = fits and all(block_of(one.path) and one.old == size * one.each for one in changes or ())
        return changes if inside else None
    return None


def _unit(reader: str, size: int, members: Sequence[AxisChange]) -> WidthUnit:
    each = next(change.each for change in members if change.role == "out")
    slices = tuple(WidthSlice(one.path, one.name, one.axis, each=one.each) for one in members)
    return WidthUnit(reader, size, each, slices, block_of(reader))


def _find_fault(
    blueprint: Blueprint, reader: str, members: Sequence[AxisChange], ratio: int, paired: bool
) -> str | None:
    """Why the heads of one attention cannot go one by one; `""` if these are no heads."""
    model = blueprint.reference
    each = next(change.each for change in members if change.role == "out")
    if each % ratio or each == ratio:
        return ""
    head = each // ratio
    weights = [change for change in members if change.role == "in" and change.name == "weight"]
    queries = [change for change in weights if change.each == each]
    keys = [change for change in weights if change.each == head] if ratio > 1 else queries[1:]
    for change in members:
        module = model.get_submodule(change.path)
        allowed = {each, head, ratio, 1}
        if isinstance(module, nn.LayerNorm) or "Norm" in type(module).__name__:
            return (
                f"'{change.full}' normalises over all heads at once ({kind_of(model, change)}), so fewer heads would give "
                "the others other values"
            )
        bare = not change.role and (isinstance(module, nn.Embedding) or module is _around(model, members))
        if change.each not in allowed or not (change.role or bare):
            what = "queries, keys and values in one" if change.role == "in" else f"a {kind_of(model, change)}"
            return f"'{change.full}' holds {what}; which of it is whose is not known"
    if len(keys) >= 2:
        return None
    return _find_single_key(model, reader, head, paired)


def _find_single_key(model: nn.Module, reader: str, head: int, paired: bool) -> str | None:
    """`None` for multi-query attention, in which one key-value head serves all query heads."""
    if paired:
        return ""
    beside = model.get_submodule(reader.rpartition(".")[0])
    single = [child for child in beside.children() if isinstance(child, nn.Linear) and child.out_features == head]
    if len(single) == 2:
        return None
    return f"it counts only part of what '{reader}' reads, and which key-value heads serve which queries is not known"


def _around(model: nn.Module, members: Sequence[AxisChange]) -> nn.Module:
    return model.get_submodule(common_path(change.path for change in members if change.role))


def _ties(units: Sequence[WidthUnit]) -> tuple[frozenset[str], ...]:
    """Attentions of which one holds something for all: the relative position bias of T5 lies in the first layer."""
    alike: dict[str, list[WidthUnit]] = {}
    for unit in units:
        block, rest = unit.block, unit.path[len(unit.block) :]
        alike.setdefault(f"{block.rpartition('.')[0]}.*{rest}", []).append(unit)
    tied = []
    for members in alike.values():
        holds = {tuple((one.path[len(u.block) :], one.name) for one in u.slices) for u in members}
        if len(holds) > 1:
            tied.append(frozenset(unit.path for unit in members))
    return tuple(tied)


def _divided(blueprint: Blueprint) -> list[str]:
    """Counts of heads after which a model divides its width: fewer heads would be wider ones."""
    found = []
    for path, node in config_nodes(blueprint.config).items():
        for name, value in vars(node).items():
            if type(value) is int and value > 1 and counts_heads(name):
                found.append(
                    f"config.{ConfigField(name, path)} = {value} divides a width among the heads: with fewer heads each "
                    "would be wider, and no value of this config holds the size of a head"
                )
    return found
