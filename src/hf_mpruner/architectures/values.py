"""How each kind of config value is written for the layers that stay."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from .stack import StackCut


class UnwritableError(Exception):
    """A value has no right content for these layers; the message completes "config.name ..."."""


def _entries_(raw: dict[str, Any], name: str, cut: StackCut) -> None:
    raw[name] = [raw[name][layer] for layer in cut.kept]


def _indices_(raw: dict[str, Any], name: str, cut: StackCut) -> None:
    wanted = {layer % cut.depth for layer in raw[name]}
    raw[name] = [new for new, layer in enumerate(cut.kept) if layer in wanted]


def _outputs_(raw: dict[str, Any], name: str, cut: StackCut) -> None:
    """Taps on the output of a layer: of a removed one, on what it would have been given."""
    taps = as_list(raw[name])
    if max(taps) >= cut.depth:
        raise UnwritableError(f"= {raw[name]} names a layer that is not there")
    moved = [sum(kept <= layer % cut.depth for kept in cut.kept) - 1 for layer in taps]
    if -1 in moved or len(set(moved)) < len(moved):
        raise UnwritableError(f"= {raw[name]} would name a layer twice, or one before the first")
    raw[name] = moved if isinstance(raw[name], list | tuple) else moved[0]


def _layer_(raw: dict[str, Any], name: str, cut: StackCut) -> None:
    if raw[name] not in cut.kept:
        raise UnwritableError(f"= {raw[name]} names a layer that would go")
    raw[name] = cut.kept.index(raw[name])


def _targets_(raw: dict[str, Any], name: str, cut: StackCut) -> None:
    """Layers that something else relies on: all of them stay."""
    lost = [layer for layer in raw[name] if layer % cut.depth not in cut.kept]
    if lost:
        raise UnwritableError(f"= {raw[name]} names layer {lost[0]}, which would go")
    raw[name] = [cut.kept.index(layer % cut.depth) for layer in raw[name]]


def _hidden_states_(raw: dict[str, Any], name: str, cut: StackCut) -> None:
    """Taps on hidden states: number t is the output of layer t - 1, and 0 the input of the stack."""

    def move(tap: int) -> int:
        position = tap % (cut.depth + 1)
        new = sum(kept < position for kept in cut.kept)
        if new == len(cut.kept) and position < cut.depth:
            raise UnwritableError(f"= {tap} would be the last hidden state, which many models normalise")
        return new if tap >= 0 else new - (len(cut.kept) + 1)

    value = raw[name]
    raw[name] = [move(tap) for tap in value] if isinstance(value, list | tuple) else move(value)


def _inputs_(raw: dict[str, Any], name: str, cut: StackCut) -> None:
    """Taps counted from one on what a layer is given: number t is hidden state t - 1."""
    moved = [sum(kept < tap - 1 for kept in cut.kept) + 1 for tap in raw[name]]
    if len(set(moved)) < len(moved):
        raise UnwritableError(f"= {raw[name]} would name a layer twice")
    raw[name] = moved


def _layer_map_source_(raw: dict[str, Any], name: str, cut: StackCut) -> None:
    """Pairs that begin with a tap on a hidden state."""
    taps = {name: [pair[0] for pair in raw[name]]}
    _hidden_states_(taps, name, cut)
    raw[name] = [[tap, pair[1]] for tap, pair in zip(taps[name], raw[name], strict=True)]


def _layer_map_target_(raw: dict[str, Any], name: str, cut: StackCut) -> None:
    """Pairs that end with a layer into which something is fed."""
    lost = [pair[1] for pair in raw[name] if pair[1] not in cut.kept]
    if lost:
        raise UnwritableError(f"feeds layer {lost[0]}, which would go")
    raw[name] = [[pair[0], cut.kept.index(pair[1])] for pair in raw[name]]


def _backbone_(raw: dict[str, Any], name: str, cut: StackCut) -> None:
    """`stage_names` ("stem", "stage1", ...), and the taps of a backbone, by number and by name."""
    names = list(raw[name])
    taps = [names.index(stage) for stage in raw.get("_out_features") or []]
    moved = [sum(kept < tap for kept in cut.kept) for tap in taps]
    if len(set(moved)) < len(moved):
        raise UnwritableError(f"would tap a layer twice: {raw['_out_features']}")
    raw[name] = names[: len(cut.kept) + 1]
    raw["_out_features"], raw["_out_indices"] = [names[tap] for tap in moved], moved


def _per_layer_config_(raw: dict[str, Any], name: str, cut: StackCut) -> None:
    spec = raw[name]
    overrides = {
        new: copy.deepcopy(spec.per_layer_overrides[layer])
        for new, layer in enumerate(cut.kept)
        if layer in spec.per_layer_overrides
    }
    names = {attribute for override in overrides.values() for attribute in override} - {"skip"}
    raw[name] = replace(spec, per_layer_overrides=overrides, per_layer_attributes=names)


def _prefix_(raw: dict[str, Any], name: str, cut: StackCut) -> None:
    raw[name] = sum(layer < raw[name] for layer in cut.kept)


def _suffix_(raw: dict[str, Any], name: str, cut: StackCut) -> None:
    left = sum(layer >= cut.depth - raw[name] for layer in cut.kept)
    if left == len(cut.kept) and raw[name] < cut.depth:  # transformers 5.24 builds that for who is given the keys
        raise UnwritableError(f"= {raw[name]} would be true of all {left} layers that stay")
    raw[name] = left


def _sparse_step_(raw: dict[str, Any], name: str, cut: StackCut) -> None:
    """Layer i has experts if step divides i + 1 and it is not in `mlp_only_layers`: every one, but for a new list."""
    step, dense = raw[name], raw.get("mlp_only_layers") or []
    if step == 1 or "mlp_only_layers" not in raw:
        return
    sparse = [(layer + 1) % step == 0 and layer not in dense for layer in range(cut.depth)]
    raw[name] = 1
    raw["mlp_only_layers"] = [new for new, layer in enumerate(cut.kept) if not sparse[layer]]


def _sqrt_depth_(raw: dict[str, Any], name: str, cut: StackCut) -> None:
    raw[name] = raw[name] * (len(cut.kept) / cut.depth) ** 0.5


def _patterns_(raw: dict[str, Any], name: str, cut: StackCut) -> None:
    """`[[["global", "local"], 6]]` becomes one run of what is left, written out."""
    entries = [kind for kinds, repeats in raw[name] for _ in range(repeats) for kind in kinds]
    raw[name] = [[[entries[layer] for layer in cut.kept], 1]]


def _sources_(raw: dict[str, Any], name: str, cut: StackCut) -> None:
    sources = [raw[name][layer] for layer in cut.kept]
    lost = [source for source in sources if source is not None and source not in cut.kept]
    if lost:
        raise UnwritableError(f"names layer {lost[0]}, which would go")
    raw[name] = [None if source is None else cut.kept.index(source) for source in sources]


def _producers_(raw: dict[str, Any], name: str, cut: StackCut) -> None:
    """Kinds of layers where each `"shared"` one uses what the last other one before it has found."""
    kinds = raw[name]
    for new, layer in enumerate(cut.kept):
        if kinds[layer] == "shared":
            producer = max(other for other in range(layer) if kinds[other] != "shared")
            if producer not in cut.kept[:new]:
                raise UnwritableError(f"says that layer {layer} uses what layer {producer} finds, which would go")
    _entries_(raw, name, cut)


def _cycle_(raw: dict[str, Any], name: str, cut: StackCut) -> None:
    """A pattern that is repeated over the layers is written out."""
    cycle = raw[name]
    raw[name] = [cycle[layer % len(cycle)] for layer in cut.kept]


REWRITES: Mapping[str, Callable[[dict[str, Any], str, StackCut], None]] = {
    "entries": _entries_,
    "indices": _indices_,
    "layer": _layer_,
    "outputs": _outputs_,
    "targets": _targets_,
    "hidden_states": _hidden_states_,
    "inputs": _inputs_,
    "layer_map_source": _layer_map_source_,
    "layer_map_target": _layer_map_target_,
    "backbone": _backbone_,
    "per_layer_config": _per_layer_config_,
    "prefix": _prefix_,
    "suffix": _suffix_,
    "sparse_step": _sparse_step_,
    "sqrt_depth": _sqrt_depth_,
    "patterns": _patterns_,
    "sources": _sources_,
    "cycle": _cycle_,
    "producers": _producers_,
}
"""How each kind of value is written for the layers that stay."""


def as_list(value: Any) -> list[Any]:
    """A value that may be a single number, as a list."""
    return list(value) if isinstance(value, list | tuple | set) else [value]
