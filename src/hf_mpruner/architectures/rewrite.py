"""The config of the shortened model: lengths, and every value that follows them, by kind."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedConfig

from ..errors import UnsupportedArchitectureError
from .reference import ABSENT, config_nodes, plain
from .stack import BlockStack, ConfigField, FollowingField, StackCut


@dataclass(frozen=True)
class ConfigChange:
    """One raw attribute that differs between two configs of the same class.

    Args:
        node (`str`): dotted path of the config node, `""` for the config itself.
        name (`str`): raw attribute name on that node.
        old: value before the cut.
        new: value after the cut.
    """

    node: str
    name: str
    old: Any
    new: Any


def read_field(config: PreTrainedConfig, field: ConfigField) -> Any:
    """Value of a config field.

    Args:
        config (`PreTrainedConfig`): the root that `field.node` starts from.
        field (`ConfigField`): which value.

    Returns:
        The raw value.

    Example:
        >>> from transformers import ResNetConfig
        >>> read_field(ResNetConfig(), ConfigField("depths", index=2))
        6
    """
    value = vars(config_nodes(config)[field.node])[field.name]
    return value if field.index is None else value[field.index]


def write_field_(config: PreTrainedConfig, field: ConfigField, value: Any) -> None:
    """Write a config field, past the setters: half-written configs do not validate, whole ones are validated later.

    Args:
        config (`PreTrainedConfig`): changed in place; a list that holds the field is replaced, not edited.
        field (`ConfigField`): which value.
        value: the new value.
    """
    raw = vars(config_nodes(config)[field.node])
    if field.index is None:
        raw[field.name] = value
        return
    items = list(raw[field.name])
    items[field.index] = value
    raw[field.name] = items


def shorten_config(
    config: PreTrainedConfig, stacks: Sequence[BlockStack], kept: Mapping[str, Sequence[int]]
) -> PreTrainedConfig:
    """Copy a config and write the lengths, and what follows them, that remain after a cut.

    Args:
        config (`PreTrainedConfig`): left as it is.
        stacks (`Sequence[BlockStack]`): where the lengths are written.
        kept (`Mapping[str, Sequence[int]]`): by stack path, the layers that stay; other stacks stay whole.

    Returns:
        `PreTrainedConfig`: an edited copy, not yet validated.

    Raises:
        UnsupportedArchitectureError: a value cannot be written for these layers.

    Example:
        >>> from transformers import Qwen3Config
        >>> count, kinds = ConfigField("num_hidden_layers"), FollowingField(ConfigField("layer_types"), "entries")
        >>> stack = BlockStack("model.layers", "Qwen3DecoderLayer", 3, count, (kinds,))
        >>> shorten_config(Qwen3Config(num_hidden_layers=3), [stack], {"model.layers": [0, 2]}).layer_types
        ['full_attention', 'full_attention']
    """
    edited = copy.deepcopy(config)
    nodes = config_nodes(edited)
    for stack in stacks:
        if stack.path not in kept:
            continue
        cut = StackCut(stack.depth, tuple(kept[stack.path]))
        for follow in stack.follows:
            try:
                REWRITES[follow.kind](vars(nodes[follow.field.node]), follow.field.name, cut)
            except _Unwritable as error:
                raise UnsupportedArchitectureError(
                    f"{stack.path!r} without {_without(cut)}: config.{follow.field} {error} ({follow.reason})"
                ) from error
        if type(read_field(edited, stack.count)) is int:
            write_field_(edited, stack.count, len(cut.kept))
    return edited


def facts_of_layer(config: PreTrainedConfig, follows: Sequence[FollowingField], layer: int) -> list[Any]:
    """What the following values say about one layer, so that layers alike can share a trial.

    Args:
        config (`PreTrainedConfig`): of the model as it is.
        follows (`Sequence[FollowingField]`): values that follow the stack.
        layer (`int`): number of the layer.

    Returns:
        `list`: one plain value for each field.

    Example:
        >>> from transformers import Qwen2MoeConfig
        >>> config = Qwen2MoeConfig(num_hidden_layers=4, mlp_only_layers=[1])
        >>> dense = FollowingField(ConfigField("mlp_only_layers"), "indices")
        >>> facts_of_layer(config, [dense], 0), facts_of_layer(config, [dense], 1)
        ([False], [True])
    """
    facts: list[Any] = []
    for follow in follows:
        value = read_field(config, follow.field)
        if follow.kind == "entries":
            facts.append(value[layer])
        elif follow.kind == "producers":
            facts.append(value[layer : layer + 2])
        elif follow.kind == "indices":
            facts.append(layer in _as_list(value))
        elif follow.kind == "layer_map_target":
            facts.append(layer in [pair[1] for pair in value])
        elif follow.kind == "per_layer_config":
            facts.append(value.per_layer_overrides.get(layer))
        elif follow.kind in ("backbone", "hidden_states", "inputs", "outputs", "sources", "layer_map_source"):
            facts.append(layer)  # every layer is its own kind where the distance to a tap matters
        elif follow.kind == "prefix":
            facts.append(layer < value)
    return facts


class _Unwritable(Exception):
    """A value has no right content for these layers; the message completes "config.name ..."."""


def _entries_(raw: dict[str, Any], name: str, cut: StackCut) -> None:
    raw[name] = [raw[name][layer] for layer in cut.kept]


def _indices_(raw: dict[str, Any], name: str, cut: StackCut) -> None:
    wanted = {layer % cut.depth for layer in raw[name]}
    raw[name] = [new for new, layer in enumerate(cut.kept) if layer in wanted]


def _outputs_(raw: dict[str, Any], name: str, cut: StackCut) -> None:
    """Taps on the output of a layer: of a removed one, on what it would have been given."""
    moved = [sum(kept <= layer % cut.depth for kept in cut.kept) - 1 for layer in _as_list(raw[name])]
    if -1 in moved or len(set(moved)) < len(moved):
        raise _Unwritable(f"= {raw[name]} would name a layer twice, or one before the first")
    raw[name] = moved if isinstance(raw[name], list | tuple) else moved[0]


def _hidden_states_(raw: dict[str, Any], name: str, cut: StackCut) -> None:
    """Taps on hidden states: number t is the output of layer t - 1, and 0 the input of the stack."""

    def move(tap: int) -> int:
        position = tap % (cut.depth + 1)
        new = sum(kept < position for kept in cut.kept)
        if new == len(cut.kept) and position < cut.depth:
            raise _Unwritable(f"= {tap} would be the last hidden state, which many models normalise")
        return new if tap >= 0 else new - (len(cut.kept) + 1)

    value = raw[name]
    raw[name] = [move(tap) for tap in value] if isinstance(value, list | tuple) else move(value)


def _inputs_(raw: dict[str, Any], name: str, cut: StackCut) -> None:
    """Taps counted from one on what a layer is given: number t is hidden state t - 1."""
    moved = [sum(kept < tap - 1 for kept in cut.kept) + 1 for tap in raw[name]]
    if len(set(moved)) < len(moved):
        raise _Unwritable(f"= {raw[name]} would name a layer twice")
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
        raise _Unwritable(f"feeds layer {lost[0]}, which would go")
    raw[name] = [[pair[0], cut.kept.index(pair[1])] for pair in raw[name]]


def _backbone_(raw: dict[str, Any], name: str, cut: StackCut) -> None:
    """`stage_names` ("stem", "stage1", ...), and the taps of a backbone, by number and by name."""
    names = list(raw[name])
    taps = [names.index(stage) for stage in raw.get("_out_features") or []]
    moved = [sum(kept < tap for kept in cut.kept) for tap in taps]
    if len(set(moved)) < len(moved):
        raise _Unwritable(f"would tap a layer twice: {raw['_out_features']}")
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
    raw[name] = sum(layer >= cut.depth - raw[name] for layer in cut.kept)


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
        raise _Unwritable(f"names layer {lost[0]}, which would go")
    raw[name] = [None if source is None else cut.kept.index(source) for source in sources]


def _producers_(raw: dict[str, Any], name: str, cut: StackCut) -> None:
    """Kinds of layers where each `"shared"` one uses what the last other one before it has found."""
    kinds = raw[name]
    for new, layer in enumerate(cut.kept):
        if kinds[layer] == "shared":
            producer = max(other for other in range(layer) if kinds[other] != "shared")
            if producer not in cut.kept[:new]:
                raise _Unwritable(f"says that layer {layer} uses what layer {producer} finds, which would go")
    _entries_(raw, name, cut)


def _cycle_(raw: dict[str, Any], name: str, cut: StackCut) -> None:
    """A pattern that is repeated over the layers is written out."""
    cycle = raw[name]
    raw[name] = [cycle[layer % len(cycle)] for layer in cut.kept]


REWRITES: Mapping[str, Callable[[dict[str, Any], str, StackCut], None]] = {
    "entries": _entries_,
    "indices": _indices_,
    "outputs": _outputs_,
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


def diff_configs(old: PreTrainedConfig, new: PreTrainedConfig) -> Iterator[ConfigChange]:
    """Raw attributes that differ, through nested configs.

    Args:
        old (`PreTrainedConfig`): before.
        new (`PreTrainedConfig`): after; the same class, with the same nested configs.

    Yields:
        `ConfigChange`: one for each attribute, with the values as they are in the two configs.

    Example:
        >>> from transformers import BertConfig
        >>> [(c.name, c.old, c.new) for c in diff_configs(BertConfig(), BertConfig(num_hidden_layers=7))]
        [('num_hidden_layers', 12, 7)]
    """
    new_nodes = config_nodes(new)
    for path, node in config_nodes(old).items():
        before, after = vars(node), vars(new_nodes[path])
        for name in {**before, **after}:
            a, b = before.get(name, ABSENT), after.get(name, ABSENT)
            if not isinstance(a, PreTrainedConfig) and a != b:
                yield ConfigChange(path, name, a, b)


def rewritten_values(old: PreTrainedConfig, new: PreTrainedConfig) -> list[tuple[Any, Any]]:
    """The values that a cut rewrites, before and after, as `describe_modules` shows copies of them.

    Args:
        old (`PreTrainedConfig`): before.
        new (`PreTrainedConfig`): after.

    Returns:
        `list[tuple[Any, Any]]`: plain values.
    """
    return [(plain(change.old), plain(change.new)) for change in diff_configs(old, new)]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | set) else [value]


def _without(cut: StackCut) -> str:
    gone = [layer for layer in range(cut.depth) if layer not in cut.kept]
    return f"layer {gone[0]}" if len(gone) == 1 else f"layers {gone}"
