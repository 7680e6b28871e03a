"""The config of the shortened model: lengths, and every value that follows them, by kind."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from ..errors import UnsupportedArchitectureError
from .reference import ABSENT, config_nodes, plain
from .stack import BlockStack, ConfigField, FollowingField, StackCut
from .values import REWRITES, UnwritableError, as_list


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
            except UnwritableError as error:
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
        elif follow.kind == "cycle":
            facts.append(value[layer % len(value)])
        elif follow.kind == "producers":
            facts.append(value[layer : layer + 2])
        elif follow.kind in ("indices", "targets"):
            facts.append(layer in as_list(value))
        elif follow.kind == "layer_map_target":
            facts.append(layer in [pair[1] for pair in value])
        elif follow.kind == "per_layer_config":
            facts.append(value.per_layer_overrides.get(layer))
        elif follow.kind in ("backbone", "hidden_states", "inputs", "outputs", "sources", "layer_map_source", "layer"):
            facts.append(layer)  # every layer is its own kind where the distance to a tap matters
        elif follow.kind == "prefix":
            facts.append(layer < value)
    return facts


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
    values: list[tuple[Any, Any]] = []
    for change in diff_configs(old, new):
        before, after = plain(change.old), plain(change.new)
        values.append((before, after))
        if isinstance(before, tuple) and isinstance(after, tuple):
            with suppress(TypeError):  # entries that no set can hold
                values.append((frozenset(before), frozenset(after)))
            if len(before) == len(after):
                values += zip(before, after, strict=True)  # some modules keep a single entry
    return values


def _without(cut: StackCut) -> str:
    gone = [layer for layer in range(cut.depth) if layer not in cut.kept]
    return f"layer {gone[0]}" if len(gone) == 1 else f"layers {gone}"
