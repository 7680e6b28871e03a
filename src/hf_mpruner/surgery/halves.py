"""`drop_halves_`: the attention or the feed-forward half of blocks leaves a model whose code can be built without it."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from transformers import PreTrainedConfig

from hf_mpruner.architectures import ABSENT, BlockStack, find_block_stacks
from hf_mpruner.architectures.adapters import unwrap_adapters
from hf_mpruner.architectures.reference import build_reference, config_nodes, describe_modules, own_class, plain
from hf_mpruner.criteria import CriterionInputs
from hf_mpruner.errors import PlanMismatchError, UnsupportedArchitectureError
from hf_mpruner.features.measure import evaluating
from hf_mpruner.halves import Half, describe_skips, find_all_halves, find_skips, with_skips
from hf_mpruner.runtime import keep_rng_state
from hf_mpruner.skipping import silence
from hf_mpruner.surgery.once import Edit
from hf_mpruner.surgery.steps import Write
from hf_mpruner.verify.outputs import Outputs, allowed_error, find_difference, run_still
from hf_mpruner.verify.saved import BadCopyError, load_copy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Dropped = Mapping[str, Mapping[int, Sequence[str]]]
# What configs of transformers keep about single layers; nested copies of one layer's settings have the second.
_SETTINGS = ("_heterogeneity_spec", "skip")


def drop_halves_(model: PreTrainedModel, halves: Dropped, inputs: Mapping[str, Any]) -> HalvesEdit:
    """Drop halves of blocks for good, where the model's code reads from its config that they are not there.

    What is left must be what the new config builds; it must compute, to the bit in 32 bits on the CPU, what the whole
    model computes with those halves silent; and so must a copy that was saved and loaded again. An optimizer that exists
    already still holds the weights that go: drop before it is made.

    Args:
        model (`PreTrainedModel`): changed in place.
        halves (`Mapping`): for each stack and layer the kinds of halves that go, e.g. `{"model.layers": {3: ["attention"]}}`.
        inputs (`Mapping`): one batch of arguments of the model's `forward`, to find the halves and to prove the result.

    Returns:
        `HalvesEdit`: the applied edit; `.undo()` takes it back.

    Raises:
        PlanMismatchError: for a stack, layer or half that the model does not have.
        UnsupportedArchitectureError: if the installed transformers builds the blocks whole whatever the config says, or
            what was dropped could not be proved right. The model is as it was.
    """
    model = cast("PreTrainedModel", unwrap_adapters(cast("nn.Module", model)))
    with keep_rng_state(), evaluating(model):
        edit = HalvesEdit(model, halves, inputs)
        with silence(edit.silenced):
            wanted = run_still(model, inputs)
        edit.apply()
        try:
            _prove(model, inputs, wanted)
        except BaseException:
            edit.undo()
            raise
    return edit


def _prove(model: PreTrainedModel, inputs: Mapping[str, Any], wanted: Outputs) -> None:
    allowed = allowed_error(model)
    refusal = f"{type(model).__name__}: dropping halves of blocks could not be proved right: {{}}. The model was not changed."
    if fault := find_difference(run_still(model, inputs), wanted, allowed):
        raise UnsupportedArchitectureError(refusal.format(f"it is not the whole model with them silent: {fault}"))
    with tempfile.TemporaryDirectory(prefix="_hf_mpruner-halves-") as folder:
        try:
            again = run_still(load_copy(model, Path(folder)), inputs)
        except BadCopyError as error:
            raise UnsupportedArchitectureError(refusal.format(error)) from error
    if fault := find_difference(again, wanted, allowed):
        raise UnsupportedArchitectureError(refusal.format(f"a copy that was saved and loaded again differs: {fault}"))


class HalvesEdit(Edit):
    """Halves of blocks that go, applied and undone on call, once and in this order. Making it changes nothing.

    Args:
        model (`PreTrainedModel`): in eval mode.
        halves (`Mapping`): as for `drop_halves_`.
        inputs (`Mapping`): likewise.

    Attributes:
        silenced (`list[nn.Module]`): whose outputs the halves add to the residual stream.

    Raises:
        PlanMismatchError, UnsupportedArchitectureError: as for `drop_halves_`.
    """

    def __init__(self, model: PreTrainedModel, halves: Dropped, inputs: Mapping[str, Any]) -> None:
        """Find the halves, and what the model is built like without them."""
        super().__init__()
        self.silenced: list[nn.Module] = []
        self._model = model
        config = model.config
        for stack in _chosen(model, halves):
            found = _halves_of(model, stack, inputs)
            skips = find_skips(model, stack, found)
            words: dict[int, list[str]] = {}
            for layer, kinds in halves[stack.path].items():
                for kind in kinds:
                    half = _half(stack, layer, kind, found)
                    if kind not in skips:
                        raise UnsupportedArchitectureError(describe_skips(model, stack, {}))
                    self.silenced.append(model.get_submodule(f"{stack.path}.{layer}.{half.module}"))
                    words.setdefault(layer, []).append(skips[kind])
            config = with_skips(config, stack.count.node, words)
        self._reference = build_reference(type(model), config)
        self._prefixes = tuple(f"{path}.{layer}" for path, layers in halves.items() for layer in layers)
        self._steps += [
            *(step for prefix in self._prefixes for step in _swaps(model, self._reference, prefix)),
            *_settings(model, self._reference, config),
        ]

    def apply(self) -> None:
        """Drop the halves.

        Raises:
            UnsupportedArchitectureError: the model is not built like its new config; it is as it was.
        """
        super().apply()
        live, wanted = (
            {path: one for path, one in describe_modules(model).items() if f"{path}.".startswith(self._dotted)}
            for model in (self._model, self._reference)
        )
        if live != wanted:
            self.undo()
            different = sorted(path for path in live.keys() | wanted.keys() if live.get(path) != wanted.get(path))
            raise UnsupportedArchitectureError(
                f"{type(self._model).__name__}: without these halves the new config builds another {different[0]!r}. The "
                "model was not changed."
            )

    @property
    def _dotted(self) -> tuple[str, ...]:
        return tuple(f"{prefix}." for prefix in self._prefixes)


def _chosen(model: PreTrainedModel, halves: Dropped) -> list[BlockStack]:
    stacks = {stack.path: stack for stack in find_block_stacks(model)}
    for path, layers in halves.items():
        if path not in stacks:
            raise PlanMismatchError(f"'{path}' is no block stack of this model. Its stacks are: {', '.join(stacks)}.")
        for layer in layers:
            if layer not in range(stacks[path].depth):
                raise PlanMismatchError(f"'{path}' has layers 0 to {stacks[path].depth - 1}, and no layer {layer}.")
    return [stacks[path] for path in halves]


def _halves_of(model: PreTrainedModel, stack: BlockStack, inputs: Mapping[str, Any]) -> Sequence[tuple[Half, ...]]:
    given = CriterionInputs(model, [stack], [inputs])
    found, notes = find_all_halves(given, next(given.each_batch()))
    if stack.path in notes:
        raise UnsupportedArchitectureError(notes[stack.path])
    return found[stack.path]


def _half(stack: BlockStack, layer: int, kind: str, found: Sequence[tuple[Half, ...]]) -> Half:
    for half in found[layer]:
        if half.kind == kind:
            return half
    kinds = ", ".join(half.kind for half in found[layer])
    raise PlanMismatchError(f"Layer {layer} of '{stack.path}' has no half '{kind}': name one of {kinds}.")


def _swaps(model: nn.Module, reference: nn.Module, path: str) -> Iterator[Write]:
    """Modules, weights and plain values of a block that are others in the reference, or are not there."""
    live, wanted = model.get_submodule(path), reference.get_submodule(path)
    for name in dict.fromkeys([*live._modules, *wanted._modules]):
        child, other = live._modules.get(name, ABSENT), wanted._modules.get(name, ABSENT)
        label = f"module '{path}.{name}'"
        if not isinstance(other, nn.Module) or not isinstance(child, nn.Module):
            if child is not other:
                yield Write.prepare(live._modules, name, _without_tensors(other, label), label)
        elif own_class(child) is not own_class(other):
            yield Write.prepare(live._modules, name, _without_tensors(other, label), label)
        else:
            yield from _swaps(model, reference, f"{path}.{name}")
    for name in live._parameters:
        if wanted._parameters.get(name, ABSENT) is ABSENT or wanted._parameters[name] is None:
            gone = wanted._parameters.get(name, ABSENT)
            if live._parameters[name] is not gone:
                yield Write.prepare(live._parameters, name, gone, f"weight '{path}.{name}'")
    here, there = (describe_modules(module)[""].values for module in (live, wanted))
    for name in there.keys() | here.keys():
        if plain(here.get(name, ABSENT)) != plain(there.get(name, ABSENT)):
            yield Write.prepare(vars(live), name, vars(wanted).get(name, ABSENT), f"attribute {name!r} of '{path}'")


def _without_tensors(module: Any, label: str) -> Any:
    """A module that stands where a half was."""
    if not isinstance(module, nn.Module):
        return module
    if any(True for _ in (*module.parameters(), *module.buffers())):
        raise UnsupportedArchitectureError(f"Without these halves the new config builds a {label} that has weights.")
    return copy.deepcopy(module)


def _settings(model: PreTrainedModel, reference: PreTrainedModel, config: PreTrainedConfig) -> Iterator[Write]:
    """What the model's config, and copies of it that modules hold, say about single layers."""
    pairs = list(zip(config_nodes(model.config).values(), config_nodes(config).values(), strict=True))
    others = dict(reference.named_modules())
    for path, module in model.named_modules():
        held, wanted = vars(module).get("config"), vars(others.get(path, nn.Module())).get("config")
        if isinstance(held, PreTrainedConfig) and isinstance(wanted, PreTrainedConfig):
            pairs.append((held, wanted))
    done: set[int] = set()
    for held, wanted in pairs:
        if id(held) in done:
            continue
        done.add(id(held))
        for name in _SETTINGS:
            new = vars(wanted).get(name, ABSENT)
            if vars(held).get(name, ABSENT) != new:
                yield Write.prepare(vars(held), name, new, f"{name} of a config")
