"""What a model does, as things that can be compared: outputs, gradients, generation, its state, models made from it."""

from __future__ import annotations

import copy
import inspect
import random
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel

Outputs = dict[str, torch.Tensor]
Kept = Mapping[str, Sequence[int]]

# Outputs with an entry for each layer: another depth is another size, in a right cut as well.
PER_LAYER_OUTPUTS = ("intermediate", "hidden_states", "attentions", "auxiliary", "router", "loss", "aux_")
NEW_TOKENS = 5
MARKER = re.compile(
    r"(image|img|video|vision|audio|speech|media|patch|frame).*token_?(id|index)$|_(image|video)_token"
)


class NoReferenceError(Exception):
    """A comparison that cannot be made; the text says why."""


def forward(model: PreTrainedModel, inputs: Mapping[str, Any], **settings: Any) -> Any:
    """One pass without a cache, from the same random state and the same untouched inputs each time."""
    torch.manual_seed(0)
    random.seed(0)
    known = inspect.signature(model.forward).parameters
    if "use_cache" in known:
        settings.setdefault("use_cache", False)
    return model(**_fresh(inputs), **settings)


def run(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Outputs:
    """Every tensor of the output, by dotted name."""
    with torch.no_grad():
        return {name: tensor.clone() for name, tensor in flatten(forward(model, inputs)).items()}


def flatten(value: Any, prefix: str = "") -> Outputs:
    if isinstance(value, torch.Tensor):
        return {prefix or "output": value}
    if isinstance(value, Mapping):
        items: Any = value.items()
    elif isinstance(value, tuple | list):
        items = enumerate(value)
    else:
        return {}
    found: Outputs = {}
    for name, item in items:
        found |= flatten(item, f"{prefix}.{name}" if prefix else str(name))
    return found


def find_difference(
    given: Outputs, wanted: Outputs, *, tolerance: float = 0.0, other_depth: bool = False
) -> str | None:
    """The first output that is not the same, in words.

    `tolerance` is relative to the output's largest value. `other_depth`: leave out what has an entry for each layer.
    """
    if other_depth:
        given, wanted = _without_layers(given, wanted), _without_layers(wanted, given)
    if given.keys() != wanted.keys() or not given:
        return f"outputs {sorted(given)} instead of {sorted(wanted)}"
    for name, tensor in given.items():
        other = wanted[name]
        if tensor.shape != other.shape or tensor.dtype != other.dtype:
            return f"{name} is {_kind(tensor)} instead of {_kind(other)}"
        if not torch.equal(tensor.nan_to_num(7.0), other.nan_to_num(7.0)):
            error, scale = _distance(tensor, other), float(other.abs().nan_to_num(0, 0, 0).max())
            if error > (tolerance * scale if tensor.is_floating_point() else 0):
                return f"{name} is off by {error:.2g} (largest value {scale:.2g})"
    return None


def _without_layers(outputs: Outputs, other: Outputs) -> Outputs:
    """Without outputs for each layer: known by name, or a tuple that is longer in one model than in the other."""
    main = next(iter(outputs), None)
    sizes, others = (Counter(name.partition(".")[0] for name in names) for names in (outputs, other))
    return {
        name: tensor
        for name, tensor in outputs.items()
        if name == main
        or name.endswith("last_hidden_state")
        or not (
            any(word in name for word in PER_LAYER_OUTPUTS)
            or sizes[name.partition(".")[0]] != others[name.partition(".")[0]] > 0
        )
    }


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    kind = one.dtype if one.is_floating_point() or one.is_complex() else torch.float64
    return float((one.to(kind).nan_to_num(7.0) - other.to(kind).nan_to_num(7.0)).abs().max())


def find_reached(model: PreTrainedModel, inputs: Mapping[str, Any]) -> set[int]:
    """Parameters (by identity) that a training step reaches. Dropout stays off, so that nothing is left out by chance."""
    model.zero_grad(set_to_none=True)
    total = sum(t.float().square().sum() for t in flatten(forward(model, inputs)).values() if t.requires_grad)
    if not isinstance(total, torch.Tensor):
        raise NoReferenceError("no output carries a gradient")
    total.backward()
    reached = {id(parameter) for parameter in model.parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return reached


def generate_twice(model: PreTrainedModel, inputs: Mapping[str, Any], generate: Any) -> tuple[Outputs, Outputs]:
    """Greedy generation with a cache, and the same without: tokens, and the logits that chose them."""
    prompt = {n: v for n, v in inputs.items() if not n.startswith("decoder_") and n != "labels"}
    settings = {
        **{"do_sample": False, "num_beams": 1, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS},
        **{"return_dict_in_generate": True, "output_logits": True},
    }
    if markers := _marker_tokens(model.config):
        settings["suppress_tokens"] = markers
    if model.config.is_encoder_decoder and model.generation_config.decoder_start_token_id is None:
        settings["decoder_start_token_id"] = 0
    before = [(config, dict(vars(config))) for config in _generation_configs(model)]
    torch.manual_seed(0)
    try:
        with torch.no_grad():
            cached, plain = (generate(model, **_fresh(prompt), use_cache=cache, **settings) for cache in (True, False))
    finally:  # some models write to what they were given
        for config, values in before:
            vars(config).clear()
            vars(config).update(values)
    return _generated(cached), _generated(plain)


def _generation_configs(model: PreTrainedModel) -> list[Any]:
    held = (value for module in model.modules() for value in vars(module).values())
    return [value for value in held if isinstance(value, transformers.GenerationConfig)]


def _fresh(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}


def _generated(result: Any) -> Outputs:
    if not hasattr(result, "sequences"):
        return flatten(result)
    return {"tokens": result.sequences, **flatten(result.logits, "logits")}


def find_generation_fault(given: Outputs, wanted: Outputs) -> str | None:
    """With and without a cache the order of sums differs, and so do the last bits."""
    return find_difference(given, wanted, tolerance=1e-3)


def _marker_tokens(config: PreTrainedConfig) -> list[int]:
    """Tokens that stand for images or sounds: a generated one would have no data."""
    size = getattr(config.get_text_config(), "vocab_size", None) or 0
    found: set[int] = set()
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            found.update(_marker_tokens(value))
        elif MARKER.search(name) and type(value) is int and 0 <= value < size:
            found.add(value)
    return sorted(found)


def find_generator(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Any:
    """The `generate` that works on this model with and without a cache: its own, else the common one under it."""
    if not model.can_generate():
        raise NoReferenceError("the class does not generate")
    faults = []
    for generate in dict.fromkeys((type(model).generate, GenerationMixin.generate)):
        try:
            fault = find_generation_fault(*generate_twice(model, inputs, generate))
        except Exception as error:  # whatever a model's own code raises
            fault = one_line(error)
        if fault is None:
            return generate
        faults.append(fault)
    raise NoReferenceError(f"the uncut model does not generate the same with and without a cache: {faults[0]}")


def rebuild(model: PreTrainedModel) -> PreTrainedModel:
    """The class built from the config as it would be saved, with the model's weights copied in, none missing."""
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        copy.deepcopy(model.config).save_pretrained(folder)
        fresh = type(model)(type(model.config).from_pretrained(folder))
    fresh.load_state_dict(model.state_dict(), strict=True)
    return fresh.eval()


def save_and_load(model: PreTrainedModel, loader: str | None) -> Iterator[PreTrainedModel]:
    """The model saved and loaded again by its class, then by `loader`. Raises if a key is missing or left over."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder))
        for load in (type(model), *((getattr(transformers, loader),) if loader else ())):
            loaded, info = load.from_pretrained(folder, output_loading_info=True)
            keys = ("missing_keys", "unexpected_keys", "mismatched_keys")
            faults = {key: sorted(map(str, info[key]))[:3] for key in keys if info.get(key)}
            if faults or type(loaded) is not type(model):
                raise ValueError(f"{load.__name__} gives a {type(loaded).__name__}, {faults}")
            yield realigned(loaded)


def realigned(model: PreTrainedModel) -> PreTrainedModel:
    """Copy weights out of the file they were read from: another alignment in memory may give other last bits."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model.eval()


def state_of(model: PreTrainedModel) -> dict[str, Any]:
    """All that an undo must restore, except the bits of the weights."""
    configs = [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, PreTrainedConfig | transformers.GenerationConfig)
    ]
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {
        "tensors": [(name, id(tensor), tuple(tensor.shape)) for name, tensor in tensors],
        "modules": [(name, id(module)) for name, module in model.named_modules(remove_duplicate=False)],
        "configs": [(id(config), config.to_dict()) for config in {id(c): c for c in configs}.values()],
        "attributes": {
            name: {key: repr(value) for key, value in vars(module).items() if _is_plain(value)}
            for name, module in model.named_modules()
        },
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple | set):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return bool(value) and all(_is_plain(item) for item in (*value.keys(), *value.values()))
    return value is None or isinstance(value, int | float | str | torch.Size)


def weights_of(model: PreTrainedModel) -> Outputs:
    """Copies of all weights and buffers."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in tensors}


def one_line(error: BaseException, limit: int = 300) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
