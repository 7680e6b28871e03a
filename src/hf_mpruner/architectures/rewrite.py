"""The config of the shortened model, and what differs from the config of the model as it is."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from .reference import ABSENT, config_nodes
from .stack import BlockStack, ConfigField


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
    """Copy a config and write the lengths and per-layer lists that remain after a cut.

    Args:
        config (`PreTrainedConfig`): left as it is.
        stacks (`Sequence[BlockStack]`): where the lengths are written.
        kept (`Mapping[str, Sequence[int]]`): by stack path, the layers that stay; other stacks stay whole.

    Returns:
        `PreTrainedConfig`: an edited copy, not yet validated.

    Example:
        >>> from transformers import Qwen3Config
        >>> count, kinds = ConfigField("num_hidden_layers"), ConfigField("layer_types")
        >>> stack = BlockStack("model.layers", "Qwen3DecoderLayer", 3, count, (kinds,))
        >>> shorten_config(Qwen3Config(num_hidden_layers=3), [stack], {"model.layers": [0, 2]}).layer_types
        ['full_attention', 'full_attention']
    """
    edited = copy.deepcopy(config)
    for stack in stacks:
        if stack.path not in kept:
            continue
        layers = kept[stack.path]
        for field in stack.per_layer:
            entries = read_field(edited, field)
            write_field_(edited, field, [entries[layer] for layer in layers])
        write_field_(edited, stack.count, len(layers))
    return edited


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
