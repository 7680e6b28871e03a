"""Feed-forward neurons, found by experiment: lower one config value by one, and see which projections lose one neuron."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedConfig

from ..errors import UnsupportedArchitectureError
from .blueprint import Blueprint
from .reference import config_nodes
from .stack import ConfigField
from .width import WidthGroup, WidthSlice, WidthUnit
from .width_trial import AxisChange, axis_changes, block_of, counts_heads, group_by_reader, kind_of, try_values

# Factors by which a model multiplies its width to get that of its feed-forward: nothing else counts the neurons then.
_LARGEST_RATIO = 16


def find_neuron_groups(blueprint: Blueprint) -> tuple[list[WidthGroup], list[str]]:
    """The feed-forwards whose size a config value decides, and why others have none.

    Args:
        blueprint (`Blueprint`): of the model.

    Returns:
        `tuple[list[WidthGroup], list[str]]`: groups in the order of the config, and one sentence for each refusal.
    """
    groups: list[WidthGroup] = []
    refusals: list[str] = []
    for field, size, value in _candidates(blueprint):
        if value is None and any(field.node == other.node for group in groups for other in group.fields):
            continue  # the value that counts them was found, so none that is left out does
        changes = try_values(blueprint, {field: size - 1})
        if not isinstance(changes, list) or not _may_be_neurons(changes, size):
            continue
        found = _read_units(blueprint, field, size, changes)
        if isinstance(found, str):
            refusals.append(found)
            continue
        if value is None and try_values(blueprint, {field: size}) != []:
            continue  # what stands there for `None` is another number
        groups.append(_with_layers(blueprint, WidthGroup("neurons", {field: 1}, size, found)))
    if not groups:
        refusals += _ratios(blueprint)
    return groups, refusals


def _candidates(blueprint: Blueprint) -> Iterator[tuple[ConfigField, int, Any]]:
    """Values that equal a length of some parameter in a block, or half of one; then values that are left out.

    Equality only narrows, the experiment decides.
    """
    lengths = _lengths(blueprint)
    wanted = lengths | {length // 2 for length in lengths if length % 2 == 0}
    nodes = config_nodes(blueprint.config)
    for path, node in nodes.items():
        for name, value in vars(node).items():
            if type(value) is int and value > 1 and value in wanted and not counts_heads(name):
                yield ConfigField(name, path), value, value
    for path, node in nodes.items():
        for name, value in vars(node).items():
            if value is None and _is_own(node, name) and not counts_heads(name):
                for length in sorted(lengths, reverse=True):
                    yield ConfigField(name, path), length, None


def _is_own(node: Any, name: str) -> bool:
    """Whether a config class brings a value itself, and it is no token, as `n_inner` of GPT-2."""
    return not name.startswith("_") and not name.endswith("_id") and not hasattr(PreTrainedConfig, name)


def _lengths(blueprint: Blueprint) -> set[int]:
    named = blueprint.reference.named_parameters(remove_duplicate=False)
    return {length for name, parameter in named if block_of(name) for length in parameter.shape if length > 2}


def _may_be_neurons(changes: Sequence[AxisChange], size: int) -> bool:
    """Whether all that changes lies in blocks, where something is written and read that loses one of `size`."""
    inside = all(block_of(change.path) for change in changes)
    roles = {change.role for change in changes}
    through = {"in", "out"} <= roles or _of_experts(changes)
    return bool(changes) and inside and through and any((one.old, one.each) == (size, 1) for one in changes)


def _of_experts(changes: Sequence[AxisChange]) -> bool:
    return any("expert" in change.path and not change.role and change.axis for change in changes)


def _read_units(
    blueprint: Blueprint, field: ConfigField, size: int, changes: Sequence[AxisChange]
) -> tuple[WidthUnit, ...] | str:
    """The feed-forwards that a value decides, or why it cannot be lowered."""
    head = f"config.{field} = {size}"
    strange = next((change for change in changes if not change.role), None)
    if strange is not None:
        kind = kind_of(blueprint.reference, strange)
        what = (
            "experts that lie in one tensor, each with neurons of its own"
            if _of_experts([strange])
            else f"'{strange.full}' of a {kind}, which is no projection into or out of a feed-forward"
        )
        return f"{head} counts {what}"
    odd = next((one for one in changes if one.each not in ((1,) if one.role == "out" else (1, 2))), None)
    if odd is not None or any(change.old != size * change.each for change in changes):
        return f"{head} is not the number of neurons: '{(odd or changes[0]).full}' follows it otherwise"
    units = group_by_reader(changes)
    if isinstance(units, str):
        return f"{head} does not count the neurons of single feed-forwards: {units}"
    order = {path: place for place, (path, _) in enumerate(blueprint.reference.named_modules(remove_duplicate=False))}
    for reader, members in units.items():
        late = next((one for one in members if order[one.path] > order[reader]), None)
        if late is not None:  # the width between blocks, of a model that has nothing around them
            return (
                f"{head} does not count neurons: '{reader}' stands before '{late.path}', so it does not read from it"
            )
    return tuple(
        WidthUnit(path, size, 1, tuple(_slice(change) for change in members), block_of(path))
        for path, members in units.items()
    )


def _slice(change: AxisChange) -> WidthSlice:
    return WidthSlice(change.path, change.name, change.axis, parts=change.each)


def _with_layers(blueprint: Blueprint, group: WidthGroup) -> WidthGroup:
    """The group with the layer number of each unit, if the model honours a size for each layer in its config."""
    (field,) = group.fields
    node = config_nodes(blueprint.config)[field.node]
    depth = getattr(node, "num_hidden_layers", None)
    if not hasattr(type(node), "per_layer_config") or type(depth) is not int:
        return group
    layers: dict[str, int] = {}
    for layer in range(depth):
        reached = _readers_at(blueprint, field, layer, group.size)
        if len(reached) != 1 or reached & layers.keys():
            return group
        layers |= dict.fromkeys(reached, layer)
    if layers.keys() != {unit.path for unit in group.units}:
        return group
    return replace(group, per_layer=True, units=tuple(replace(unit, layer=layers[unit.path]) for unit in group.units))


def _readers_at(blueprint: Blueprint, field: ConfigField, layer: int, size: int) -> set[str]:
    """The feed-forwards that get narrower when `per_layer_config` says so of one layer."""
    edited = copy.deepcopy(blueprint.config)
    try:
        config_nodes(edited)[field.node].per_layer_config = {layer: {field.name: size - 1}}
        changes = axis_changes(blueprint.reference, blueprint.rebuild(edited))
    except (UnsupportedArchitectureError, ValueError, AttributeError, RuntimeError):
        return set()
    return {change.path for change in changes or () if change.role == "out"}


def _ratios(blueprint: Blueprint) -> list[str]:
    """Values that decide the size of feed-forwards as a factor of something else."""
    found = []
    for path, node in config_nodes(blueprint.config).items():
        for name, value in vars(node).items():
            if type(value) not in (int, float) or not 1 < value <= _LARGEST_RATIO or "head" in name:
                continue
            field = ConfigField(name, path)
            changes = try_values(blueprint, {field: value / 2 if type(value) is float else value - 1})
            if not isinstance(changes, list) or not changes or not all(block_of(change.path) for change in changes):
                continue
            roles = {change.role for change in changes}
            if {"in", "out"} <= roles and len({change.each for change in changes}) < len(changes):
                found.append(
                    f"config.{field} = {value} is a factor of another width ('{changes[0].full}' follows it), not a number "
                    "of neurons, so the config cannot say how many stay"
                )
    return found
