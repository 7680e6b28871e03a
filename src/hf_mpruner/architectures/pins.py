"""Which layers of a stack must stay: those whose removal alone does not leave a provable model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import UnsupportedArchitectureError
from .blueprint import Blueprint
from .compare import Difference, StackCut, compare_builds
from .reference import ModuleDescription, describe_modules, plain
from .rewrite import read_field, shorten_config
from .rules import POSITION_ATTRIBUTES
from .stack import BlockStack


def pin_stack(blueprint: Blueprint, stack: BlockStack, without_last: Mapping[str, ModuleDescription]) -> BlockStack:
    """Remove each layer on its own, on the meta device, and pin those that cannot go.

    Layers whose removal leaves the same config share one build; without per-layer lists that is one for all layers.
    With such lists, layers of one kind (same modules, same entries, neither first nor last) share one trial as well.
    The first block of a stage always stays: what is special about it may be code that runs by number, which no
    build shows (funnel pools there).

    Args:
        blueprint (`Blueprint`): the model rebuilt from its config.
        stack (`BlockStack`): without pins.
        without_last (`Mapping[str, ModuleDescription]`): description of the build without the last layer.

    Returns:
        `BlockStack`: with pins, each with its reason.

    Raises:
        UnsupportedArchitectureError: no layer can go; or none but the last, because constants in the others depend on
            their position.
    """
    entries = [
        [plain(read_field(blueprint.config, field)[n]) for field in stack.per_layer] for n in range(stack.depth)
    ]
    builds: list[tuple[Any, Mapping[str, ModuleDescription] | str]] = [(entries[:-1], without_last)]
    trials: list[tuple[Any, Difference | str | None]] = []
    faults: dict[int, Difference | str | None] = {}
    for layer in range(stack.depth):
        kind = _kind_of_layer(blueprint, stack, layer, entries[layer]) if stack.per_layer else layer
        if kind not in [known for known, _ in trials]:
            left = entries[:layer] + entries[layer + 1 :]
            build = next((build for known, build in builds if known == left), None)
            if build is None:
                build = _build_without(blueprint, stack, layer)
                builds.append((left, build))
            trials.append((kind, build if isinstance(build, str) else _first_fault(blueprint, stack, layer, build)))
        faults[layer] = next(fault for known, fault in trials if known == kind)
    pinned = {layer: _reason(blueprint, stack, layer, fault) for layer, fault in faults.items() if fault is not None}
    if stack.count.index is not None:
        pinned = {0: "it opens a stage, where the width, the resolution or the attention may change", **pinned}
    by_position = [fault for fault in faults.values() if isinstance(fault, Difference) and fault.kind == "value"]
    if len(pinned) == stack.depth or (by_position and set(range(stack.depth)) - pinned.keys() <= {stack.depth - 1}):
        first = min(pinned)
        raise UnsupportedArchitectureError(
            f"{stack.path!r} ({stack.depth} {stack.block_class}): layer {first} cannot be removed: {pinned[first]}"
            + (f"; nor can {len(pinned) - 1} of the other layers" if len(pinned) > 1 else "")
        )
    return replace(stack, pinned=pinned)


def _kind_of_layer(blueprint: Blueprint, stack: BlockStack, layer: int, entries: list[Any]) -> Any:
    """What layers must have in common to share a trial."""
    prefix = f"{stack.path}.{layer}"
    modules = [
        (
            path[len(prefix) :],
            module.kind,
            module.tensors,
            {name: value for name, value in module.values.items() if name not in POSITION_ATTRIBUTES},
        )
        for path, module in blueprint.modules.items()
        if path == prefix or path.startswith(f"{prefix}.")
    ]
    return modules, entries, layer == 0, layer == stack.depth - 1


def _build_without(blueprint: Blueprint, stack: BlockStack, layer: int) -> dict[str, ModuleDescription] | str:
    """Description of the model without one layer, or why there is none."""
    kept = [other for other in range(stack.depth) if other != layer]
    try:
        return describe_modules(blueprint.rebuild(shorten_config(blueprint.config, [stack], {stack.path: kept})))
    except UnsupportedArchitectureError as error:
        return str(error)


def _first_fault(
    blueprint: Blueprint, stack: BlockStack, layer: int, shortened: Mapping[str, ModuleDescription]
) -> Difference | None:
    kept = tuple(other for other in range(stack.depth) if other != layer)
    _, differences = compare_builds(blueprint.modules, shortened, {stack.path: StackCut(stack.depth, kept)})
    return differences[0] if differences else None


def _reason(blueprint: Blueprint, stack: BlockStack, layer: int, fault: Difference | str) -> str:
    """Say in words why a layer must stay."""
    if isinstance(fault, str):
        return f"without it {fault}"
    module, _, tensor = fault.name.rpartition(".")
    owner = blueprint.modules.get(f"{stack.path}.{layer}.{module}".rstrip("."))
    if fault.kind == "lacks" and fault.stack == stack.path and owner is not None and tensor in owner.tensors:
        return f"it owns {fault.name}, which the layer that would take its place lacks"
    if fault.kind == "value" and fault.stack == stack.path:
        return (
            f"{fault.name} of layer {fault.layer} depends on the layer's position or on their number "
            f"({fault.old!r} now, {fault.new!r} after reloading)"
        )
    return f"without it {fault}"
