"""What no shape shows of a model that is to be narrowed: whether its weights are here, and how two of them lie in one."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from hf_mpruner.architectures import WidthUnit
from hf_mpruner.architectures.width_trial import common_path
from hf_mpruner.errors import UnsupportedArchitectureError, UnsupportedBackendError
from hf_mpruner.features.measure import evaluating
from hf_mpruner.runtime import keep_rng_state


def check_whole(model: nn.Module) -> None:
    """Refuse a model of which this process does not hold all weights.

    Raises:
        UnsupportedBackendError: names a weight, or the devices.
    """
    parameters = dict(model.named_parameters())
    devices = sorted({str(device) for device in (getattr(model, "hf_device_map", None) or {}).values()})
    if len(devices) > 1:
        raise UnsupportedBackendError(
            f"{type(model).__name__} lies on {', '.join(devices)}, and what moves its weights there knows the old shapes. "
            "Load it on one device, without device_map, narrow it, save it, and load what was saved."
        )
    empty = {name for name, weight in parameters.items() if weight.is_meta}
    lost = empty if len(empty) < len(parameters) else set()
    lost |= {name for name, weight in parameters.items() if hasattr(weight, "device_mesh") or not weight.numel()}
    if lost:
        raise UnsupportedBackendError(
            f"'{min(lost)}' is not whole in this process (offloaded, or split among processes). Narrow the model in one "
            "process before it is wrapped or split."
        )


def check_layout(model: nn.Module, units: Iterable[WidthUnit]) -> None:
    """Refuse feed-forwards with two projections in one parameter that do not lie one behind the other.

    The feed-forward is run alone on random numbers, as it is and with one neuron's outputs of both halves at zero: only that
    neuron may change. Where it cannot be run alone, or has no values, nothing is known and nothing refused.

    Raises:
        UnsupportedArchitectureError: another neuron changes.
    """
    for unit in units:
        fused = [part for part in unit.slices if part.parts > 1 and part.name == "weight"]
        if fused and not model.get_submodule(unit.path).get_parameter("weight").is_meta:
            around = model.get_submodule(common_path(part.path for part in unit.slices))
            for part in fused:
                _check_halves(around, model.get_submodule(part.path), model.get_submodule(unit.path), unit, part.path)


def _check_halves(around: nn.Module, fused: nn.Module, reader: nn.Module, unit: WidthUnit, name: str) -> None:
    weight = fused.get_parameter("weight")
    width = weight.numel() // weight.shape[next(s.axis for s in unit.slices if s.path == name and s.name == "weight")]
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(1, 4, width, generator=generator).to(weight.device, weight.dtype)
    for neuron in sorted({0, unit.size // 2, unit.size - 1}):
        try:
            whole = _read(around, fused, reader, given, ())
            without = _read(around, fused, reader, given, (neuron, unit.size + neuron))
        except Exception as error:  # whatever a module raises that wants other arguments
            raise UnsupportedArchitectureError(
                f"'{name}' holds two projections in one, and what it belongs to does not run alone ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:200]}), so which of its outputs belong together is not known."
            ) from error
        changed = (whole != without).flatten(0, -2).any(0).nonzero().flatten().tolist()
        if set(changed) - {neuron} or bool(without[..., neuron].any()):
            raise UnsupportedArchitectureError(
                f"'{name}' holds two projections in one, and not one behind the other: without outputs {neuron} and "
                f"{unit.size + neuron}, other neurons than {neuron} change ({changed[:3]}). Which belong together is not known."
            )


def _read(around: nn.Module, fused: nn.Module, reader: nn.Module, given: Tensor, hidden: tuple[int, ...]) -> Tensor:
    """What the reading module gets when some outputs of the fused one are zero."""
    seen: list[Tensor] = []

    def hide(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[..., list(hidden)] = 0
        return output

    with ExitStack() as undo:
        undo.enter_context(keep_rng_state())
        undo.enter_context(evaluating(around))
        undo.enter_context(torch.no_grad())
        undo.callback(fused.register_forward_hook(hide).remove)
        undo.callback(reader.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])).remove)
        around(given)
    return seen[0]
