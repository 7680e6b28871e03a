"""A copy of a model that went over the disk, as its users will load it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as chatter

# The config does not save these; the copy must compute with the same kernels.
_KERNELS = ("_attn_implementation_internal", "_experts_implementation_internal")


class BadCopyError(Exception):
    """What was saved is not what was loaded; the text says what differs."""


def load_copy(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Save a model, load it with `from_pretrained` in the same class, and compare names and bits of all weights.

    The copy then takes over the live model's weights, which are equal: that frees its own, and equal numbers at other
    addresses may round differently. What a checkpoint does not hold, such as tables computed from the config, is the
    copy's own.

    Args:
        model (`PreTrainedModel`): left as it is; its configs too, to which saving writes.
        folder (`Path`): exists, is empty, and has room for the weights.

    Returns:
        `PreTrainedModel`: in eval mode, on the device of the live model.

    Raises:
        BadCopyError: saving or loading fails, keys are missing or left over, or a weight is another one.
        OSError: the folder cannot be written.
    """
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    loader: Any = type(model)
    settings: dict[str, Any] = {
        "dtype": dtypes.pop() if len(dtypes) == 1 else torch.float32,
        "attn_implementation": attention_of(model.config),
    }
    try:
        with quietly(), keep_configs(model):
            model.save_pretrained(folder)
            copy, info = loader.from_pretrained(
                folder, output_loading_info=True, ignore_mismatched_sizes=True, local_files_only=True, **settings
            )
    except OSError:
        raise
    except Exception as error:  # whatever the code of a config or model class raises
        text = " ".join(str(error).split())[:300]
        raise BadCopyError(f"it cannot be saved and loaded again: {type(error).__name__}: {text}") from error
    faults = [f"{kind.replace('_', ' ')} {sorted(map(str, found))[:3]}" for kind, found in info.items() if found]
    if faults:
        raise BadCopyError(f"a copy that was saved and loaded again has {'; '.join(faults)}")
    _adopt_weights_(copy, model, folder)
    for path, module in copy.named_modules():
        _adopt_kernels_(module, model.get_submodule(path))
    return copy.eval()


@contextmanager
def keep_configs(model: nn.Module) -> Iterator[None]:
    """Put back what saving writes into configs: class name, data type."""
    nodes: dict[int, Any] = {}
    waiting: list[Any] = [value for module in model.modules() for value in vars(module).values()]
    while waiting:
        node = waiting.pop()
        if isinstance(node, PreTrainedConfig | GenerationConfig) and id(node) not in nodes:
            nodes[id(node)] = node
            waiting += vars(node).values()
    before = [(node, dict(vars(node))) for node in nodes.values()]
    try:
        yield
    finally:
        for node, values in before:
            vars(node).clear()
            vars(node).update(values)


def why_other(model: nn.Module, name: str, folder: Path) -> str:
    """What the checkpoint's files say about a weight that was loaded as another one; empty if they do not say.

    Some classes write over weights after they were read: in transformers 5.23 `ChineseCLIPModel` sets the embedding of its
    padding token to zero.

    Args:
        model (`PreTrainedModel`): that was saved.
        name (`str`): of the weight.
        folder (`Path`): where it was saved.
    """
    live = _tensors(model)[name]
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as stored:
            if name in stored.keys() and same_bits(stored.get_tensor(name), live):  # noqa: SIM118
                return (
                    f" (it was saved right: {type(model).__name__}.from_pretrained of transformers changes it while it loads, "
                    "of the whole model as well; save the whole model, load it again, and go on with that one)"
                )
    return ""


def _adopt_weights_(copy: nn.Module, model: nn.Module, folder: Path) -> None:
    """Compare everything that a checkpoint holds, then share it; move the rest to the live tensors' device and type."""
    live, loaded = _tensors(model), _tensors(copy)
    saved = copy.state_dict(keep_vars=True).keys()
    if different := sorted(model.state_dict(keep_vars=True).keys() ^ saved):
        raise BadCopyError(f"a copy that was saved and loaded again has other names: {different[:3]}")
    for name, tensor in loaded.items():
        path, _, leaf = name.rpartition(".")
        owner, other = copy.get_submodule(path), live.get(name, tensor)
        if name not in saved:
            owner._buffers[leaf] = tensor.to(other.device, other.dtype, copy=True)
            continue
        if not same_bits(tensor.to(other.dtype), other):
            raise BadCopyError(
                f"a copy that was saved and loaded again has another {name!r}{why_other(model, name, folder)}"
            )
        held: dict[str, Any] = owner._parameters if leaf in owner._parameters else owner._buffers
        held[leaf] = other


def attention_of(config: PreTrainedConfig) -> dict[str, Any]:
    """Attention of a config and of those nested in it, as `from_pretrained` takes it."""
    nested = {name: getattr(config, name, None) for name in config.sub_configs}
    inner = {name: attention_of(node) for name, node in nested.items() if isinstance(node, PreTrainedConfig)}
    return {"": config._attn_implementation, **inner}


def _adopt_kernels_(module: nn.Module, live: nn.Module) -> None:
    for holder, config in vars(module).items():
        other = vars(live).get(holder)
        if isinstance(config, PreTrainedConfig) and isinstance(other, PreTrainedConfig):
            vars(config).update({name: vars(other)[name] for name in _KERNELS if name in vars(other)})


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict((*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)))


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal in type, shape and every bit; equality of floats would call NaN different and -0.0 equal to 0.0."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    a, b = (tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(a, b)


@contextmanager
def quietly() -> Iterator[None]:
    """Saving and loading back is nobody's business as long as it works."""
    level, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        chatter.set_verbosity(level)
        if bars:
            chatter.enable_progress_bar()
