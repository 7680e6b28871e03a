"""Which layers of a stack must stay, and whether layers go one by one: trial cuts on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from transformers import PreTrainedConfig

from ..errors import UnsupportedArchitectureError
from .blueprint import Blueprint
from .compare import compare_builds
from .edits import Difference
from .position import Build, find_position_fault
from .reference import ModuleDescription, config_nodes, describe_modules, plain
from .rewrite import diff_configs, facts_of_layer, rewritten_values, shorten_config
from .rules import STOCHASTIC_DEPTH
from .stack import BlockStack, cuts_of

_LONGEST_PERIOD = 8
_OPENS_STAGE = "it opens a stage, where the width, the resolution or the attention may change"


def pin_stack(
    blueprint: Blueprint,
    stack: BlockStack,
    without_last: Mapping[str, ModuleDescription],
    given: Mapping[int, str],
) -> BlockStack:
    """Remove each layer on its own, on the meta device, and pin those that cannot go.

    Layers whose removal leaves the same config share one build, and layers of one kind (same modules, same entries,
    neither first nor last) one trial. Where most layers cannot go alone because the others change when they move up
    (shifted windows, patterns stored as numbers), runs of two and more are tried, and removal from the end. The first
    block of a stage always stays: what is special about it may be code that runs by number, which no build shows.

    Args:
        blueprint (`Blueprint`): the model rebuilt from its config.
        stack (`BlockStack`): without pins.
        without_last (`Mapping[str, ModuleDescription]`): description of the build without the last layer.
        given (`Mapping[int, str]`): layers that must stay for reasons that no build shows.

    Returns:
        `BlockStack`: with pins, each with its reason, and the period.

    Raises:
        UnsupportedArchitectureError: no layer can go.
    """
    trials = _Trials(blueprint, stack, without_last)
    opener = {**given, **({0: _OPENS_STAGE} if stack.count.index is not None else {})}
    faults = {layer: trials.fault((layer,)) for layer in range(stack.depth)}
    pinned = {layer: _reason(blueprint, stack, layer, fault) for layer, fault in faults.items() if fault is not None}
    stack = replace(stack, unprovable=tuple(opener))
    found = replace(stack, pinned={**pinned, **opener})
    moving_up = [layer for layer in pinned if layer > 0]
    if 2 * len(moving_up) >= stack.depth - 1 or len(found.pinned) == stack.depth:
        found = _with_period(trials, replace(stack, pinned=opener), pinned) or found
    if len(found.pinned) == stack.depth:
        first = min(pinned, default=0)
        raise UnsupportedArchitectureError(
            f"{stack.path!r} ({stack.depth} {stack.block_class}): layer {first} cannot be removed: {found.pinned[first]}"
            + (f"; nor can {len(pinned) - 1} of the other layers" if len(pinned) > 1 else "")
        )
    return found


def _with_period(trials: _Trials, stack: BlockStack, alone: Mapping[int, str]) -> BlockStack | None:
    """The stack with the smallest period at which most runs can go; or of which only the end can go."""
    why = next(iter(alone.values()), "")
    for period in range(2, min(_LONGEST_PERIOD, stack.depth - 1) + 1):
        runs = [tuple(range(start, start + period)) for start in range(stack.depth - period + 1)]
        runs = [run for run in runs if not stack.pinned.keys() & set(run) and run[-1] < stack.depth - 1]
        going = [run for run in runs if trials.fault(run) is None]
        if going and 2 * len(going) >= len(runs):
            free = {layer for run in going for layer in run} | set(_end(trials, stack))
            pinned = {layer: stack.pinned.get(layer, why) for layer in range(stack.depth) if layer not in free}
            return replace(stack, pinned=pinned, period=period, period_reason=why)
    free = set(_end(trials, stack))
    if not free:
        return None
    pinned = {layer: stack.pinned.get(layer, why) for layer in range(stack.depth) if layer not in free}
    return replace(stack, pinned=pinned, period=stack.depth, period_reason=why)


def _end(trials: _Trials, stack: BlockStack) -> list[int]:
    """Layers that can go from the end, as many as there are, down to one that stays."""
    free: list[int] = []
    for start in range(stack.depth - 1, 0, -1):
        if start in stack.pinned or trials.fault(tuple(range(start, stack.depth))) is not None:
            break
        free.append(start)
    return free


class _Trials:
    """Trial cuts of one stack; builds are shared by cuts that leave the same config."""

    def __init__(self, blueprint: Blueprint, stack: BlockStack, without_last: Mapping[str, ModuleDescription]) -> None:
        self.blueprint = blueprint
        self.stack = stack
        last = self._config_without((stack.depth - 1,))
        self._builds: dict[str, Mapping[str, ModuleDescription] | str] = {}
        if not isinstance(last, str):
            self._builds[self._key(last)] = without_last
        self._known: list[tuple[Any, Difference | str | None]] = []
        self._kinds = [self._kind_of_layer(layer) for layer in range(stack.depth)]

    def fault(self, removed: tuple[int, ...]) -> Difference | str | None:
        """Why some neighbouring layers cannot go, `None` if they can."""
        last = self.stack.depth - 1
        kind = ([self._kinds[layer] for layer in removed], removed[0] == 0, removed[-1] == last)
        known = [fault for other, fault in self._known if other == kind]
        if known:
            return known[0]
        fault = self._try(removed)
        self._known.append((kind, fault))
        return fault

    def _try(self, removed: tuple[int, ...]) -> Difference | str | None:
        kept = [layer for layer in range(self.stack.depth) if layer not in removed]
        config = self._config_without(removed)
        if isinstance(config, str):
            return config
        key = self._key(config)
        if key not in self._builds:
            try:
                self._builds[key] = describe_modules(self.blueprint.rebuild(config))
            except UnsupportedArchitectureError as error:
                self._builds[key] = str(error)
        build = self._builds[key]
        if isinstance(build, str):
            return build
        cuts = cuts_of([self.stack], {self.stack.path: kept})
        rewritten = rewritten_values(self.blueprint.config, config)
        differences = compare_builds(
            self.blueprint.modules, build, cuts, rewritten, self.blueprint.rules.positions
        ).differences
        if differences:
            return differences[0]
        node = self.stack.count.node
        before = Build(self.blueprint.modules, config_nodes(self.blueprint.config)[node])
        after = Build(build, config_nodes(config)[node])
        return find_position_fault(self.stack.code, kept, self.stack.depth, before, after)

    def _config_without(self, removed: tuple[int, ...]) -> PreTrainedConfig | str:
        kept = [layer for layer in range(self.stack.depth) if layer not in removed]
        try:
            return shorten_config(self.blueprint.config, [self.stack], {self.stack.path: kept})
        except UnsupportedArchitectureError as error:
            return str(error)

    def _key(self, config: PreTrainedConfig) -> str:
        return repr([(change.node, change.name, change.new) for change in diff_configs(self.blueprint.config, config)])

    def _kind_of_layer(self, layer: int) -> Any:
        """What layers must have in common to share a trial."""
        prefix = f"{self.stack.path}.{layer}"
        ignored = self.blueprint.rules.positions.keys() | STOCHASTIC_DEPTH.keys()
        modules = [
            (
                path[len(prefix) :],
                module.kind,
                module.tensors,
                {name: value for name, value in module.values.items() if name not in ignored},
            )
            for path, module in self.blueprint.modules.items()
            if path == prefix or path.startswith(f"{prefix}.")
        ]
        if self.stack.code:  # code may treat each number in its own way
            return layer
        facts = [plain(fact) for fact in facts_of_layer(self.blueprint.config, self.stack.follows, layer)]
        return modules, facts


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
