"""What users know about models of their own: rules for one model type beside those that ship."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from transformers import PreTrainedConfig

from .reference import config_nodes
from .rules import (
    FOLLOWS,
    NO_BLOCKS,
    POSITION_ATTRIBUTES,
    REVIEWED_CODE,
    TAPS,
    TYPE_FOLLOWS,
    TYPE_REFUSALS,
    UNRELATED_LISTS,
    Follow,
    Reviewed,
    Tap,
)

_REASON = "registered for this model type"


@dataclass(frozen=True)
class Rules:
    """What is known about names in a model: the tables of `rules`, and what was registered for its types.

    Args:
        follows (`Mapping[str, Follow]`): config values in the node of the count.
        taps (`Mapping[str, Tap]`): config values elsewhere that point into a tower.
        unrelated_lists (`Mapping[str, str]`): config lists that are not about layers.
        positions (`Mapping[str, str]`): attributes that hold a layer's number.
        reviewed_code (`Mapping[str, Reviewed]`): code that was read.
        no_blocks (`Mapping[str, str]`): counts of other things than blocks in a row.
        pinned (`Mapping[str, tuple[int, ...]]`): by name of the count, layers that must stay.
        refusals (`Mapping[str, str]`): by model type, why nothing in it is cut.
    """

    follows: Mapping[str, Follow]
    taps: Mapping[str, Tap]
    unrelated_lists: Mapping[str, str]
    positions: Mapping[str, str]
    reviewed_code: Mapping[str, Reviewed]
    no_blocks: Mapping[str, str]
    pinned: Mapping[str, tuple[int, ...]]
    refusals: Mapping[str, str] = field(default_factory=dict)


_SHIPPED = Rules(FOLLOWS, TAPS, UNRELATED_LISTS, POSITION_ATTRIBUTES, REVIEWED_CODE, NO_BLOCKS, {})
_REGISTERED: dict[str, Rules] = {}


def register_architecture(
    model_type: str,
    *,
    per_layer_lists: Iterable[str] = (),
    layer_indices: Iterable[str] = (),
    layer_outputs: Iterable[str] = (),
    unrelated_lists: Iterable[str] = (),
    position_attributes: Iterable[str] = (),
    harmless_code: Iterable[str] = (),
    not_blocks: Iterable[str] = (),
    pinned: Mapping[str, Iterable[int]] | None = None,
) -> None:
    """Tell hf_mpruner what it cannot find out about a model type, usually one with custom code.

    Stacks, their counts and what follows them are found by experiment, and every cut is proved, for custom models as
    for those of transformers. Where the refusal of a stack says that something is not known, this says it. A second
    registration of a type replaces the first.

    Args:
        model_type (`str`): `config.model_type` of the model, or of a config inside it.
        per_layer_lists (`Iterable[str]`): config lists with one entry a layer: cut with the layers.
        layer_indices (`Iterable[str]`): config lists of layer numbers: those of removed layers go, others are renumbered.
        layer_outputs (`Iterable[str]`): config values that name layers whose output is read, by number: a removed one
            gives way to the layer before it.
        unrelated_lists (`Iterable[str]`): config lists that only happen to be as long as a stack.
        position_attributes (`Iterable[str]`): attributes of modules that hold a layer's number and only address
            something with it, such as a cache: renumbered.
        harmless_code (`Iterable[str]`): expressions that a refusal named (`"MyModel.forward: i + 1"`), read by you.
        not_blocks (`Iterable[str]`): config counts whose lists are no blocks in a row.
        pinned (`Mapping[str, Iterable[int]]`): by name of the config count, layers that must stay.

    Raises:
        TypeError: `model_type` is no string, or a single string where names are expected.

    Example:
        >>> register_architecture("my_model", per_layer_lists=["dilations"], pinned={"num_layers": [0]})
    """
    if not isinstance(model_type, str) or not model_type:
        raise TypeError(f"model_type={model_type!r} is no name. Pass config.model_type of the model, e.g. 'my_model'.")
    given = {
        "per_layer_lists": per_layer_lists,
        "layer_indices": layer_indices,
        "layer_outputs": layer_outputs,
        "unrelated_lists": unrelated_lists,
        "position_attributes": position_attributes,
        "harmless_code": harmless_code,
        "not_blocks": not_blocks,
    }
    for argument, names in given.items():
        if isinstance(names, str):
            raise TypeError(f"{argument}={names!r} is a single string. Pass a list of names: {argument}=[{names!r}].")
    _REGISTERED[model_type] = Rules(
        follows={
            **{name: Follow("entries", _REASON) for name in per_layer_lists},
            **{name: Follow("indices", _REASON) for name in layer_indices},
            **{name: Follow("outputs", _REASON) for name in layer_outputs},
        },
        taps={},
        unrelated_lists=dict.fromkeys(unrelated_lists, _REASON),
        positions=dict.fromkeys(position_attributes, _REASON),
        reviewed_code={code: Reviewed(_REASON) for code in harmless_code},
        no_blocks=dict.fromkeys(not_blocks, _REASON),
        pinned={count: tuple(layers) for count, layers in (pinned or {}).items()},
    )


def rules_for(config: PreTrainedConfig) -> Rules:
    """The rules that apply to a model: what ships, and what was registered for its type or a type inside it.

    Args:
        config (`PreTrainedConfig`): of the model.

    Returns:
        `Rules`.

    Example:
        >>> from transformers import BertConfig
        >>> "layer_types" in rules_for(BertConfig()).follows
        True
    """
    rules = _SHIPPED
    for node in config_nodes(config).values():
        if node.model_type in TYPE_FOLLOWS:
            rules = replace(rules, follows={**rules.follows, **TYPE_FOLLOWS[node.model_type]})
        if node.model_type in TYPE_REFUSALS:
            rules = replace(rules, refusals={node.model_type: TYPE_REFUSALS[node.model_type]})
        own = _REGISTERED.get(node.model_type)
        if own is not None:
            rules = Rules(**{name: {**value, **vars(own)[name]} for name, value in vars(rules).items()})
    return rules
