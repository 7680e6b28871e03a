"""What `from_pretrained` would build: a model class on the meta device, and a description to compare it by."""

from __future__ import annotations

import copy
import enum
import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, initialization
from transformers.utils import logging as transformers_logging

from ..errors import UnsupportedArchitectureError

# Bookkeeping that every module has; what is left in `vars(module)` was written by the model's own code.
_TORCH_INTERNALS = frozenset(vars(nn.Module())) | {"_is_hf_initialized"}


class _Absent:
    """The type of `ABSENT`."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()
"""Stands for the value of an attribute that is not there."""


@dataclass(frozen=True)
class ModuleDescription:
    """One module without its children: all that two builds are compared by.

    Args:
        kind (`str`): full name of the module's class. Classes made on the fly (parametrizations) have equal names.
        tensors (`Mapping[str, tuple[int, ...] | None]`): shapes of the module's own parameters and buffers; `None`
            for a declared but empty slot, such as the bias of `nn.Linear(..., bias=False)`.
        values (`Mapping[str, Any]`): the module's own plain attributes. Config objects are left out.
        computed (`bool`): the module has no children and nothing that a checkpoint holds: no parameters, no persistent
            buffers. All it has is made from the config when it is built.
    """

    kind: str
    tensors: Mapping[str, tuple[int, ...] | None]
    values: Mapping[str, Any]
    computed: bool = False


@contextmanager
def build_quietly() -> Iterator[None]:
    """Build without memory, without drawing random numbers, without log lines about generation configs."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            torch.random.fork_rng(devices=[]),
            initialization.no_init_weights(),
            getattr(initialization, "meta_device_safe_creation_ops", nullcontext)(),  # newer than transformers 5.0
            torch.device("meta"),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def reload_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config that `from_pretrained` would see if `config` were saved now: written to JSON and read back.

    Args:
        config (`PreTrainedConfig`): left as it is.

    Returns:
        `PreTrainedConfig`: a new object of the same class that passed its class's validation.

    Raises:
        UnsupportedArchitectureError: the config cannot be written, or what was written cannot be read.

    Example:
        >>> from transformers import BertConfig
        >>> reload_config(BertConfig(num_hidden_layers=3)).num_hidden_layers
        3
    """
    kind = type(config)
    try:
        with build_quietly():
            written = json.loads(config.to_json_string())
            reloaded = kind.from_dict(kind._decode_special_floats(written))
            for node in config_nodes(reloaded).values():
                if hasattr(node, "validate"):  # newer than transformers 5.0
                    node.validate()
    except Exception as error:  # config classes raise whatever their code raises
        raise UnsupportedArchitectureError(
            f"The {kind.__name__} (model_type {kind.model_type!r}) does not survive being saved and read back: "
            f"{_one_line(error)}"
        ) from error
    return reloaded


def build_reference(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """Build a model on the meta device: the structure that its config promises, no memory, no weights.

    Args:
        model_class (`type[PreTrainedModel]`): e.g. `BertForSequenceClassification`.
        config (`PreTrainedConfig`): copied first, since some models write to the config they are given.

    Returns:
        `PreTrainedModel`: every parameter is on the meta device. The global random state is as it was.

    Raises:
        UnsupportedArchitectureError: the class cannot be built from a config alone.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> build_reference(BertModel, BertConfig(num_hidden_layers=2)).encoder.layer[1].output.dense.weight.device
        device(type='meta')
    """
    try:
        with build_quietly():
            model = model_class(copy.deepcopy(config))
            model.tie_weights()  # left out together with the initialisation
            return model
    except Exception as error:  # model classes raise whatever their code raises
        raise UnsupportedArchitectureError(
            f"{model_class.__name__} (model_type {config.model_type!r}) could not be rebuilt from its config: "
            f"{_one_line(error)}. hf_mpruner proves every cut against a rebuilt model, so the class must accept "
            "its config as the only argument."
        ) from error


def _one_line(error: Exception) -> str:
    """An exception as one short line."""
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text[:300]}"


def config_nodes(config: PreTrainedConfig) -> dict[str, PreTrainedConfig]:
    """The config and the configs nested in it, by dotted path.

    Args:
        config (`PreTrainedConfig`): the root, found under `""`.

    Returns:
        `dict[str, PreTrainedConfig]`: e.g. `{"": config, "text_config": ..., "vision_config": ...}`; an object that
        is reachable twice is listed under its first path only.
    """
    nodes: dict[str, PreTrainedConfig] = {}
    seen: set[int] = set()

    def visit(node: PreTrainedConfig, path: str) -> None:
        if id(node) in seen:
            return
        seen.add(id(node))
        nodes[path] = node
        for name, value in vars(node).items():
            if isinstance(value, PreTrainedConfig):
                visit(value, f"{path}.{name}" if path else name)

    visit(config, "")
    return nodes


def describe_modules(model: nn.Module) -> dict[str, ModuleDescription]:
    """Describe every module of a model, in module order.

    Args:
        model (`nn.Module`): weights are not read, so the meta device is fine.

    Returns:
        `dict[str, ModuleDescription]`: by dotted path, `""` for the model itself. A shared module is listed under
        each of its paths.

    Example:
        >>> described = describe_modules(nn.Sequential(nn.Linear(2, 3, bias=False)))
        >>> described["0"].tensors, described["0"].values
        ({'weight': (3, 2), 'bias': None}, {'in_features': 2, 'out_features': 3})
    """
    return {path: _describe(module) for path, module in model.named_modules(remove_duplicate=False)}


def _describe(module: nn.Module) -> ModuleDescription:
    tensors = {
        name: None if tensor is None else tuple(tensor.shape)
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
    }
    values = {
        name: plain(value)
        for name, value in vars(module).items()
        if name not in _TORCH_INTERNALS and not isinstance(value, PreTrainedConfig)
    }
    computed = (
        not module._modules and not module._parameters and module._non_persistent_buffers_set >= set(module._buffers)
    )
    written = own_class(module)
    kind = f"{written.__module__}.{written.__qualname__}"
    return ModuleDescription(kind, tensors, values, computed)


def own_class(module: nn.Module) -> type[nn.Module]:
    """The class that a module was written as: FSDP2 exchanges it for a class made on the fly, in front of it.

    Args:
        module (`nn.Module`): sharded or not.
    """
    kind = type(module)
    if kind.__module__.startswith("torch.distributed.") and "FSDPModule" in (one.__name__ for one in kind.__bases__):
        return kind.__mro__[2]
    return kind


def plain(value: Any) -> Any:
    """Turn an attribute into something that `==` compares by content.

    Args:
        value: any attribute of a module. Containers are converted recursively, tuples and lists alike; tensors
            become shape, dtype and (off the meta device) content; functions and classes their qualified name;
            objects of unknown kind only their type.

    Returns:
        Plain data.

    Example:
        >>> plain((1, float("nan"), {"a": torch.nn.functional.gelu}))
        (1, 'nan', {'a': 'gelu'})
    """
    if isinstance(value, enum.Enum):
        return str(value)
    if value is None or isinstance(value, bool | int | str | complex | torch.dtype | torch.device):
        return value
    if isinstance(value, float):
        return "nan" if math.isnan(value) else value
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(plain(item) for item in value)
    if isinstance(value, set | frozenset):
        return frozenset(plain(item) for item in value)
    if isinstance(value, torch.Tensor):
        content = None if value.is_meta else tuple(value.detach().reshape(-1).tolist())
        return ("tensor", tuple(value.shape), value.dtype, content)
    return getattr(value, "__qualname__", None) or getattr(value, "__name__", None) or type(value).__qualname__
