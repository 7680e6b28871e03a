"""Models that carry PEFT adapters: which of them can be cut, and the base model that is under the adapters.

peft puts a layer of its own in the place of each module that it adapts and keeps that module inside. Everything that is
known about a model's structure is about the model underneath, so the adapters are lifted off while it is looked at.

peft is never imported from here: a model with adapters can only be there if somebody else has imported it.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from torch import nn

from ..errors import UnsupportedArchitectureError

KINDS = ("LORA", "IA3", "LOHA", "LOKR")
"""Kinds of adapters under which layers can be cut: their weights lie in the blocks and nowhere else."""

CUT_MARK = "_hf_mpruner_cut"
"""Attribute of a transformers model with adapters that was cut: its base is not the one that its adapters name."""

_REASONS = {
    "ADALORA": "its rank allocator keeps the names of the layers. Use LoraConfig, with rank_pattern for ranks by layer",
    "PREFIX_TUNING": "its prefixes are keys and values by layer number",
    "P_TUNING": "it trains a prompt in front of the whole model",
    "PROMPT_TUNING": "it trains a prompt in front of the whole model",
    "MULTITASK_PROMPT_TUNING": "it trains a prompt in front of the whole model",
    "CPT": "it trains a prompt in front of the whole model",
    "ADAPTION_PROMPT": "it counts its prompts from the last layer",
    "XLORA": "its classifier has an output for each layer",
    "VERA": "all layers share its projections, as large as the largest layer",
}
# Settings of an adapter that no rewritten config brings back, with the reason.
_SETTINGS = {
    "layer_replication": "layers that stand for several places cannot be cut one by one",
    "kasa_config": "it changes the base weights whenever it is loaded",
    "arrow_config": "it routes between adapters that are loaded from elsewhere",
    "alora_invocation_tokens": "the model alone does not know where its adapter begins",
    "megatron_config": "it is for models of Megatron",
}


def adapter_configs(model: nn.Module) -> dict[str, Any]:
    """The peft configs of a model, by name of the adapter; empty for a model without adapters.

    Args:
        model (`nn.Module`): a transformers model, or peft's wrapper around one.

    Example:
        >>> adapter_configs(nn.Linear(1, 1))
        {}
    """
    wrapper = _peft("peft_model", "PeftModel")
    if wrapper is None or not (isinstance(model, wrapper) or adapted_modules(model)):
        return {}  # merging leaves the configs behind in some versions of peft
    configs = getattr(model, "peft_config", None)
    return dict(configs) if isinstance(configs, Mapping) else {}


def saves_adapters(model: nn.Module) -> bool:
    """Whether `save_pretrained` of this module writes adapters without their base.

    Args:
        model (`nn.Module`): any.

    Example:
        >>> saves_adapters(nn.Linear(1, 1))
        False
    """
    wrapper = _peft("peft_model", "PeftModel")
    return wrapper is not None and (isinstance(model, wrapper) or bool(vars(model).get("_hf_peft_config_loaded")))


def unwrap_adapters(model: nn.Module) -> nn.Module:
    """The model inside a `PeftModel`, with its adapters; any other model as it is.

    Raises:
        UnsupportedArchitectureError: for adapters under which no layer can be cut.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> unwrap_adapters(model) is model
        True
    """
    wrapper, mixed = _peft("peft_model", "PeftModel"), _peft("mixed_model", "PeftMixedModel")
    if mixed is not None and isinstance(model, mixed):
        raise UnsupportedArchitectureError(
            "PeftMixedModel mixes kinds of adapters, and cutting under it is not supported. Use get_peft_model(model, config), "
            f"with one of {', '.join(KINDS)}."
        )
    if wrapper is None or not isinstance(model, wrapper):
        return model
    check_adapters(model)
    return cast(nn.Module, cast(Any, model).get_base_model())


def check_adapters(model: nn.Module) -> None:
    """Refuse adapters under which no layer can be cut.

    Args:
        model (`nn.Module`): with or without adapters.

    Raises:
        UnsupportedArchitectureError: with the adapter's name, what is wrong with it, and what to use instead.
    """
    for name, config in adapter_configs(model).items():
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        if kind not in KINDS:
            reason = _REASONS.get(kind, "nobody has shown that its weights go with their layers")
            raise UnsupportedArchitectureError(
                f"Adapter '{name}' is of kind {kind}, under which no layer can be cut: {reason}. Kinds that can: "
                f"{', '.join(KINDS)}. Or merge it first, where peft can: model = model.merge_and_unload()."
            )
        for setting, reason in _SETTINGS.items():
            if getattr(config, setting, None):
                raise UnsupportedArchitectureError(
                    f"Adapter '{name}' has {setting}={getattr(config, setting)!r}, under which no layer can be cut: "
                    f"{reason}. Leave {setting} out, or merge the adapter first: model = model.merge_and_unload()."
                )


def adapted_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of peft in a model, by the path that the module inside of each has without adapters.

    Args:
        model (`nn.Module`): the transformers model, not peft's wrapper.

    Returns:
        `dict[str, nn.Module]`: in module order; of wrappers inside each other the outermost. Empty without adapters.

    Example:
        >>> adapted_modules(nn.Sequential(nn.Linear(1, 1)))
        {}
    """
    return {place.path: place.wrapper for place in _places(model)}


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Lift a model's adapters off: for a moment it has the names, shapes and modules of its base model.

    Nothing is copied or merged. Not for while a forward pass runs.

    Args:
        model (`nn.Module`): the transformers model; left as it was.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1))
        >>> with without_adapters(model):
        ...     list(model.state_dict())
        ['0.weight', '0.bias']
    """
    places = list(_places(model))
    loaded = vars(model).get("_hf_peft_config_loaded")
    for place in places:
        place.children[place.name] = place.base
    if loaded:  # how add_adapter of transformers tells that only adapters are to be saved
        vars(model)["_hf_peft_config_loaded"] = False
    try:
        yield
    finally:
        for place in places:
            place.children[place.name] = place.wrapper
        if loaded:
            vars(model)["_hf_peft_config_loaded"] = loaded


def saved_blocks(model: nn.Module, paths: Sequence[str]) -> list[dict[str, set[int]]]:
    """The blocks that peft would save weights for, an entry for each adapter: by path of the stack.

    Args:
        model (`nn.Module`): the transformers model, not peft's wrapper.
        paths (`Sequence[str]`): of stacks.

    Example:
        >>> saved_blocks(nn.Linear(1, 1), ["layers"])
        []
    """
    adapters = adapter_configs(model)
    if not adapters:
        return []
    state: Any = importlib.import_module("peft").get_peft_model_state_dict
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing is saved here
        names = [state(model, adapter_name=adapter, save_embedding_layers=False) for adapter in adapters]
    return [{path: block_numbers(found, f"{path}.") for path in paths} for found in names]


def block_numbers(names: Iterable[str], prefix: str) -> set[int]:
    """Numbers of the blocks that some names of a state dict speak of.

    Example:
        >>> sorted(block_numbers(["layer.0.weight", "layer.2.bias", "head.weight"], "layer."))
        [0, 2]
    """
    numbers = (name[len(prefix) :].partition(".")[0] for name in names if name.startswith(prefix))
    return {int(number) for number in numbers if number.isdigit()}


class _Place:
    """Where peft put a layer of its own."""

    def __init__(
        self,
        path: str,
        children: MutableMapping[str, nn.Module | None],
        name: str,
        wrapper: nn.Module,
        base: nn.Module,
    ) -> None:
        self.path, self.children, self.name, self.wrapper, self.base = path, children, name, wrapper, base


def _places(model: nn.Module) -> Iterator[_Place]:
    """Every place in the tree, parents first; inside a wrapper the search goes on in what it wraps."""
    layer, copied = _peft("tuners.tuners_utils", "BaseTunerLayer"), _peft("utils.other", "AuxiliaryTrainingWrapper")
    seen: set[nn.Module] = set()

    def visit(module: nn.Module, path: str) -> Iterator[_Place]:
        if module in seen:
            return
        seen.add(module)
        for name, child in module._modules.items():
            if child is None:
                continue
            inner = f"{path}.{name}" if path else name
            base: Any = child
            while isinstance(base, (layer, copied)):  # parameters of one module are wrapped one around the other
                base = base.base_layer if isinstance(base, layer) else base.original_module
            if base is not child:
                yield _Place(inner, module._modules, name, child, base)
            yield from visit(base, inner)

    if layer is not None and copied is not None:
        yield from visit(model, "")


def _peft(module: str, name: str) -> Any:
    """A class of peft, if somebody has imported peft."""
    return getattr(sys.modules.get(f"peft.{module}"), name, None)
