"""Bytes of the cache that a decoder keeps while it generates, found by letting it run and counting.

The model is built once more on the meta device, where shapes are computed and nothing is stored, and runs on inputs of
several lengths. What its cache holds at each says what a token costs, whatever it is made of: grouped keys and values,
latent ones, windows, the states of a state space model, the keys of an encoder's outputs. No field of a config is read for
it but how long inputs may be.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from hf_mpruner.architectures.adapters import adapter_configs, unwrap_adapters
from hf_mpruner.architectures.reference import build_quietly, own_class

logger = logging.getLogger(__name__)

_CACHES = ("past_key_values", "cache_params", "state", "past_buckets_states")
# Longer than any input is measured where the config says nothing.
_LONGEST = 4096
# More than the chunks that code loops over.
_SHORT = 300


@dataclasses.dataclass(frozen=True)
class CacheSize:
    """What the cache of one sequence takes.

    Args:
        bytes_per_token (`int`): that each further token adds to a short sequence; 0 if the cache does not grow.
        constant_bytes (`int`): that are there whatever the length, e.g. the states of a state space model.
        dtype (`str`): of what is kept.
        bytes_per_source_token (`int`): of an encoder-decoder, that each token of the source adds.
        bytes_per_late_token (`int`, *optional*): that each further token adds to a sequence of `num_tokens`: less than
            `bytes_per_token` if layers look at a window only. `None` if no long sequence was looked at.
        num_tokens (`int`, *optional*): the longest sequence that was looked at, e.g. the longest that the model takes.
        num_bytes (`int`, *optional*): of the whole cache of a sequence of `num_tokens`.
    """

    bytes_per_token: int
    constant_bytes: int = 0
    dtype: str = "float32"
    bytes_per_source_token: int = 0
    bytes_per_late_token: int | None = None
    num_tokens: int | None = None
    num_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CacheSize:
        """Build from `to_dict()`'s result; what a newer version has written beside it is left out."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})


def measure_cache(model: nn.Module) -> CacheSize | None:
    """What the cache of one sequence takes, in the model's own data type.

    Args:
        model (`nn.Module`): a transformers model, or peft's wrapper around one; on any device, the meta device included, so
            that weights that fit nowhere can be asked about. Left as it is; nothing runs on its weights.

    Returns:
        `CacheSize`, *optional*: `None` if the model keeps no cache that it hands out, or cannot be run without weights.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=9, bos_token_id=0, eos_token_id=0))
        >>> measure_cache(model).bytes_per_token == 2 * 3 * 32 * 4  # keys and values, layers, width, bytes of a float32
        True
    """
    model = unwrap_adapters(model)
    if not isinstance(model, PreTrainedModel) or not _may_keep(model):
        return None
    try:
        return _Trial(_build_empty(model)).measure()
    except Exception as error:  # model classes raise whatever their code raises
        logger.debug("The cache of %s was not measured: %s: %s", type(model).__name__, type(error).__name__, error)
        return None


def _may_keep(model: PreTrainedModel) -> bool:
    parameters = inspect.signature(model.forward).parameters.values()
    return any(one.name == "use_cache" or one.kind is one.VAR_KEYWORD for one in parameters)


def _build_empty(model: PreTrainedModel) -> PreTrainedModel:
    """The same class and config on the meta device, with code that looks at shapes alone.

    Raises:
        ValueError: if that would be another model than the one that was given.
    """
    config: PreTrainedConfig = copy.deepcopy(model.config)
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, name):
            delattr(config, name)
    config.return_dict = True
    written: Any = own_class(model)
    with build_quietly():
        empty: PreTrainedModel = written._from_config(config, dtype=_kept_dtype(model), attn_implementation="eager")
        # other ways to run experts ask which of them have tokens, which shapes do not say
        empty.set_experts_implementation("batched_mm")
    plain = not getattr(model, "is_quantized", False) and not adapter_configs(model)
    if plain and _shapes(model) != _shapes(empty):
        raise ValueError("its config describes another model")
    return empty.eval()


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters(remove_duplicate=False)}


def _kept_dtype(model: PreTrainedModel) -> torch.dtype:
    """The type of keys and values: that of the weights, or what weights of fewer bits are made into."""
    floats = (
        tensor.dtype for tensor in model.parameters() if tensor.is_floating_point() and tensor.element_size() > 1
    )
    return next(floats, getattr(model.config, "dtype", None) or torch.get_default_dtype())


class _Trial:
    """Runs an empty model on inputs of several lengths."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.dtype = "float32"
        self.num_operations = 0
        self.is_encoder_decoder = bool(model.config.is_encoder_decoder)

    def measure(self) -> CacheSize | None:
        two = self._bytes(2)
        if two is None:
            return None
        operations = self.num_operations
        per_token = (self._bytes(3) or 0) - two
        per_source = 0 if not self.is_encoder_decoder else (self._bytes(2, source=3) or 0) - two
        size = CacheSize(per_token, two - 2 * per_token - 2 * per_source, self.dtype, per_source)
        longest = _longest(self.model.config)
        if not per_token or longest < 4 or self._loops(operations):
            return size
        last = (self._bytes(longest) or 0) - 2 * per_source
        straight = last == size.constant_bytes + longest * per_token
        late = per_token if straight else last + 2 * per_source - (self._bytes(longest - 1) or 0)
        return dataclasses.replace(size, bytes_per_late_token=late, num_tokens=longest, num_bytes=last)

    def _loops(self, operations: int) -> bool:
        """Whether the model's code loops over time, in steps or in chunks: a long sequence would take hours."""
        if self.num_operations > operations:
            return True
        self._bytes(min(_SHORT, _longest(self.model.config)))
        return self.num_operations > operations

    def _bytes(self, tokens: int, source: int = 2) -> int | None:
        """Bytes of the cache after so many tokens; `None` if there is none."""
        counter = _Operations()
        with torch.no_grad(), counter:
            output = self.model(**self._inputs(tokens, source), use_cache=True)
        self.num_operations = counter.number
        caches = [output.get(name) for name in _CACHES if output.get(name) is not None]
        held = [tensor for tensor in _tensors(caches, set()) if tensor.dim()]  # a single number is a counter
        if not held:
            return None
        self.dtype = str(max(held, key=lambda tensor: tensor.numel()).dtype).removeprefix("torch.")
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    def _inputs(self, tokens: int, source: int) -> dict[str, Any]:
        def ids(number: int) -> Tensor:
            return torch.zeros(1, number, dtype=torch.long, device="meta")

        if not self.is_encoder_decoder:
            return {"input_ids": ids(tokens)}
        if self.model.main_input_name == "input_ids":
            return {"input_ids": ids(source), "decoder_input_ids": ids(tokens)}
        width = self.model.config.get_text_config(encoder=True).hidden_size
        seen = torch.zeros(1, source, width, dtype=self.model.dtype, device="meta")
        return {"encoder_outputs": BaseModelOutput(last_hidden_state=seen), "decoder_input_ids": ids(tokens)}


def _longest(config: PreTrainedConfig) -> int:
    text = config.get_text_config(decoder=True)
    found = getattr(text, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else _LONGEST


class _Operations(TorchDispatchMode):
    """Counts what torch is asked to do."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += 1
        return func(*args, **(kwargs or {}))


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor that an output's cache holds, however it is packed; the same one once."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one, seen)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, type | nn.Module | PreTrainedConfig):
        yield from _tensors(vars(value), seen)
