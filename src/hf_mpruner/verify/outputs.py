"""What a model puts out on given inputs, and whether two such outputs are the same."""

from __future__ import annotations

import inspect
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Outputs = dict[str, Tensor]

# Outputs with an entry for each layer, or summed over the layers: another depth gives others, in a right cut as well.
_OF_LAYERS = ("hidden_states", "attentions", "intermediate", "auxiliary", "aux_", "router", "loss")
_EXACT = torch.finfo(torch.float32).eps
_ROUNDING_16 = 4
_LARGEST = 1e4  # below the largest float16
ROUNDING = 128 * _EXACT
"""How far sums of 32-bit floats in another order may be apart, relative to the largest value (1.5e-5)."""


def run_still(model: nn.Module, inputs: Mapping[str, Any]) -> Outputs:
    """One forward pass from a fixed random state, without gradients and without a cache.

    The class's own `forward` is called: wrappers that a Trainer puts on the instance (autocast) stay out.

    Args:
        model (`nn.Module`): in eval mode; the caller keeps the random state.
        inputs (`Mapping`): arguments of `forward`; tensors are copied to the model's device.

    Returns:
        `dict[str, Tensor]`: every tensor of the output, by dotted name, in the order of the output.
    """
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    given = {
        name: value.to(device, copy=True) if isinstance(value, Tensor) else value for name, value in inputs.items()
    }
    forward = type(model).forward
    if "use_cache" in inspect.signature(forward).parameters:
        given["use_cache"] = False
    with torch.no_grad():
        return _flatten(forward(model, **given), "")


def _flatten(value: Any, prefix: str) -> Outputs:
    if isinstance(value, Tensor):
        return {prefix or "output": value.detach().clone()}
    items = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, tuple | list) else ()
    )
    found: Outputs = {}
    for name, item in items:
        found |= _flatten(item, f"{prefix}.{name}" if prefix else str(name))
    return found


def without_layers(outputs: Outputs, other: Outputs) -> Outputs:
    """Leave out what has an entry for each layer: known by name, or longer in one of two models than in the other.

    Example:
        >>> one = {"logits": torch.ones(1), "maps.0": torch.ones(1), "maps.1": torch.ones(1), "aux_loss": torch.ones(1)}
        >>> list(without_layers(one, {"logits": torch.ones(1), "maps.0": torch.ones(1)}))
        ['logits']
    """
    sizes, others = (Counter(name.partition(".")[0] for name in names) for names in (outputs, other))
    left = {
        name: tensor
        for name, tensor in outputs.items()
        if name.endswith("last_hidden_state")
        or (not any(word in name for word in _OF_LAYERS) and sizes[top := name.partition(".")[0]] == others[top])
    }
    return left or outputs


def allowed_error(model: nn.Module) -> float:
    """How far two runs of one model may be apart, relative to the largest value of an output.

    On the CPU in 32 bits or more: not at all. Elsewhere kernels may add in another order from run to run: 128 times
    the precision of 32-bit floats (1.5e-5), 4 times that of 16-bit floats (0.03 for bfloat16, 0.004 for float16).

    Example:
        >>> allowed_error(nn.Linear(1, 1)), allowed_error(nn.Linear(1, 1).bfloat16())
        (0.0, 0.03125)
    """
    floats = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    coarsest = max((torch.finfo(parameter.dtype).eps for parameter in floats), default=0.0)
    if coarsest <= _EXACT:
        on_cpu = all(parameter.device.type == "cpu" for parameter in floats)
        return 0.0 if on_cpu else ROUNDING
    return _ROUNDING_16 * coarsest


def find_difference(given: Outputs, wanted: Outputs, allowed: float) -> str | None:
    """The first output that is another one, in words; `None` if there is none.

    Args:
        given (`dict[str, Tensor]`): what came out.
        wanted (`dict[str, Tensor]`): what should have.
        allowed (`float`): largest difference, relative to the largest value that is no mask. With 0, integers
            must be equal too; otherwise they are not compared, since they may be the place of a largest value.

    Example:
        >>> find_difference({"logits": torch.tensor([1.0, 2.0])}, {"logits": torch.tensor([1.0, 2.5])}, 0.0)
        "'logits' is off by up to 0.5 (largest value 2.5, allowed 0)"
    """
    if given.keys() != wanted.keys():
        return f"there are outputs {sorted(given)} instead of {sorted(wanted)}"
    for name, one in given.items():
        other = wanted[name]
        if one.shape != other.shape or one.dtype != other.dtype:
            return f"{name!r} is {_kind(one)} instead of {_kind(other)}"
        if torch.equal(one, other) or (allowed and not one.is_floating_point()):
            continue
        wide = torch.complex128 if one.is_complex() else torch.float64
        a, b = one.to(wide), other.to(wide)
        same = (a == b) | (a.isnan() & b.isnan())
        error = float((a - b).abs().nan_to_num(float("inf"))[~same].max()) if not bool(same.all()) else 0.0
        # a mask writes the smallest number there is, which is no measure of the others
        computed = b.abs()[b.abs() < _LARGEST]
        scale = float(computed.max()) if computed.numel() else 0.0
        if error > allowed * scale:
            return f"{name!r} is off by up to {error:.3g} (largest value {scale:.3g}, allowed {allowed * scale:.3g})"
    return None


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
