"""Which values of a config follow a stack: looked up by name, and only where they fit what was found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PreTrainedConfig

from .reference import config_nodes
from .registry import Rules, rules_for
from .rules import Follow, Tap
from .stack import ConfigField, FollowingField


def find_follows(
    config: PreTrainedConfig, count: ConfigField, depth: int, rules: Rules | None = None
) -> tuple[FollowingField, ...]:
    """Find the config values that are rewritten when layers of a stack go.

    Args:
        config (`PreTrainedConfig`): of the model, the root.
        count (`ConfigField`): the value that decides the depth of the stack.
        depth (`int`): number of layers.
        rules (`Rules`, *optional*): what is known about names, if at hand.

    Returns:
        `tuple[FollowingField, ...]`: nothing for an entry of `depths`; what lies beside it is about stages.

    Example:
        >>> from transformers import Qwen2MoeConfig
        >>> config = Qwen2MoeConfig(num_hidden_layers=4, mlp_only_layers=[1])
        >>> [(str(f.field), f.kind) for f in find_follows(config, ConfigField("num_hidden_layers"), 4)]
        [('mlp_only_layers', 'indices'), ('layer_types', 'entries')]
    """
    if count.index is not None:
        return ()
    nodes, rules = config_nodes(config), rules or rules_for(config)
    return (*_in_node(nodes[count.node], count, depth, rules.follows), *_in_other_nodes(nodes, count, rules.taps))


def _in_node(
    node: PreTrainedConfig, count: ConfigField, depth: int, follows: Mapping[str, Follow]
) -> Iterator[FollowingField]:
    raw = vars(node)
    main = node.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    is_main = count.name == main or main not in raw or isinstance(raw[count.name], list | tuple)
    # a step says which layers have experts, so it is written before the list of exceptions is shortened
    for name in sorted(raw, key=lambda name: name in follows and follows[name].kind != "sparse_step"):
        rule = follows.get(name)
        if rule is None or not (count.name in rule.counts if rule.counts else is_main):
            continue
        if _fits(rule.kind, raw, name, depth):
            yield FollowingField(ConfigField(name, count.node), rule.kind, rule.reason)


def _fits(kind: str, raw: Mapping[str, Any], name: str, depth: int) -> bool:
    """Whether a value is of the form that its rule expects."""
    value = raw[name]
    is_list = isinstance(value, list | tuple)
    match kind:
        case "entries" | "sources" | "producers":
            return is_list and len(value) == depth
        case "backbone":
            return is_list and len(value) == depth + 1
        case "indices" | "targets":
            return bool(value) and is_list
        case "layer":
            return type(value) is int and 0 <= value < depth
        case "outputs":
            return (type(value) is int and value >= 0) or (is_list and bool(value))
        case "inputs" | "hidden_states":
            return type(value) is int or (is_list and bool(value))
        case "cycle" | "patterns":
            return bool(value) and is_list
        case "prefix" | "suffix":
            return type(value) is int and value > 0
        case "sparse_step":
            return type(value) is int and value > 1 and raw.get("mlp_only_layers") is not None
        case "sqrt_depth":
            return isinstance(value, float | int) and not isinstance(value, bool)
        case _:
            return value is not None


def _in_other_nodes(
    nodes: Mapping[str, PreTrainedConfig], count: ConfigField, taps: Mapping[str, Tap]
) -> Iterator[FollowingField]:
    """Taps into a tower, in the configs around it and beside it."""
    family = count.node.rpartition(".")[0]
    for path, node in nodes.items():
        if path == count.node or not (count.node.startswith(path) or path.rpartition(".")[0] == family):
            continue
        for name, tap in taps.items():
            if name not in vars(node) or tap.tower not in count.node:
                continue
            kind = tap.kind
            if kind == "layer_map":  # pairs: the first half is about one tower, the second about the other
                kind = "layer_map_source" if "vision" in count.node else "layer_map_target"
            if _fits(kind, vars(node), name, 0):
                yield FollowingField(ConfigField(name, path), kind, tap.reason)
