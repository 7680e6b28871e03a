"""Whether the installed transformers can leave out one half of a block, tried out on the meta device.

Configs of transformers can say so (`per_layer_config = {3: {"skip": ["mlp"]}}`), but the code of a model must read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import transformers

from hf_mpruner.architectures import BlockStack
from hf_mpruner.architectures.reference import build_reference, config_nodes, reload_config
from hf_mpruner.errors import UnsupportedArchitectureError
from hf_mpruner.halves.find import Half

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# What an open proposal to transformers calls the halves; modules of the block by their own names are tried, too.
_WORDS = ("attention", "mlp")


def with_skips(config: PreTrainedConfig, node: str, skips: Mapping[int, Sequence[str]]) -> PreTrainedConfig:
    """A config that says which parts of which layers are left out, as it is read back after saving.

    Args:
        config (`PreTrainedConfig`): left as it is.
        node (`str`): dotted path of the nested config that counts the layers, `""` for the config itself.
        skips (`Mapping[int, Sequence[str]]`): by layer, the words for what is left out; added to those that are there.

    Raises:
        UnsupportedArchitectureError: this transformers has no such setting, or the config does not take it.
    """
    edited = reload_config(config)
    inner: Any = config_nodes(edited)[node]
    if not hasattr(type(inner), "per_layer_config"):
        raise UnsupportedArchitectureError(f"transformers {transformers.__version__} has no per_layer_config.")
    layers = {int(layer): dict(values) for layer, values in (inner.to_dict().get("per_layer_config") or {}).items()}
    for layer, words in skips.items():
        values = layers.setdefault(layer, {})
        values["skip"] = sorted({*values.get("skip", ()), *words})
    try:
        inner.per_layer_config = layers
    except Exception as error:  # config classes raise whatever their code raises
        raise UnsupportedArchitectureError(f"The config takes no per_layer_config: {error}") from error
    return reload_config(edited)


def find_skips(model: PreTrainedModel, stack: BlockStack, halves: Sequence[Sequence[Half]]) -> dict[str, str]:
    """The word that makes a model's code leave out each kind of half; nothing where it does not.

    A build from a config that says so must lack weights of that half in that one layer, and nothing else.

    Args:
        model (`PreTrainedModel`): left as it is.
        stack (`BlockStack`): of it.
        halves (sequence): of each of its blocks, from `find_halves`.
    """
    layer = stack.depth - 1
    prefix = f"{stack.path}.{layer}."
    whole = _shapes(build_reference(type(model), reload_config(model.config)))
    owned = {half.kind: _owned(half, halves[layer], prefix, whole) for half in halves[layer]}
    words = dict.fromkeys([*_WORDS, *(part for half in halves[layer] for part in half.module.split("."))])
    found: dict[str, str] = {}
    for word in words:
        try:
            built = _shapes(build_reference(type(model), with_skips(model.config, stack.count.node, {layer: [word]})))
        except UnsupportedArchitectureError:
            continue
        gone = whole.keys() - built.keys()
        if not gone or any(whole.get(name) != shape for name, shape in built.items()):
            continue
        touched = [kind for kind, names in owned.items() if names & gone]
        if len(touched) == 1 and owned[cast("Any", touched[0])] <= gone and all(map(_starts(prefix), gone)):
            found.setdefault(touched[0], word)
    return found


def describe_skips(model: PreTrainedModel, stack: BlockStack, skips: Mapping[str, str]) -> str:
    """In words, whether halves of a stack can be dropped for good.

    Args:
        model (`PreTrainedModel`): of the stack.
        stack (`BlockStack`): whose blocks were tried.
        skips (`Mapping[str, str]`): from `find_skips`.
    """
    if skips:
        return f"Can be dropped for good: {', '.join(skips)}."
    return (
        f"Measured, not done: transformers {transformers.__version__} builds every {stack.block_class} of model_type "
        f"'{model.config.model_type}' whole, also where per_layer_config says to skip a half of it. A model without that "
        "half could not be loaded again."
    )


def _owned(half: Half, halves: Sequence[Half], prefix: str, whole: Mapping[str, Any]) -> set[str]:
    """The weights below the largest module that has this half in it and none of the others."""
    parts = half.module.split(".")
    for length in range(1, len(parts) + 1):
        owner = ".".join(parts[:length])
        others = [other.module for other in halves if other is not half]
        if not any(f"{other}.".startswith(f"{owner}.") for other in others):
            return {name for name in whole if name.startswith(f"{prefix}{owner}.")}
    return set()


def _starts(prefix: str) -> Any:
    return lambda name: name.startswith(prefix)


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in model.named_parameters(remove_duplicate=False)}
