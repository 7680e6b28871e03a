"""Layers that are merged: the weights of one that stays become a sum over layers, and come back to the bit.

What is summed is every parameter of a block, by name. Buffers stay those of the layer that stays: they are constants, or
what data left behind, and a sum of running variances with negative coefficients can be negative.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_mpruner.architectures.adapters import adapter_configs
from hf_mpruner.errors import UnsupportedArchitectureError

Sums = Mapping[int, Mapping[int, float]]


@dataclass(frozen=True)
class WeightSum:
    """What one parameter becomes.

    Args:
        name (`str`): of the parameter in the model, for messages.
        target (`nn.Parameter`): that is written to, in place.
        terms (`tuple` of `(float, nn.Parameter)`): what is summed, as it is before anything is written.
    """

    name: str
    target: nn.Parameter
    terms: tuple[tuple[float, nn.Parameter], ...]

    def value(self) -> Tensor:
        """The sum, added up in 64 bits in the order of the terms, in the target's type and place."""
        target = self.target
        place = torch.device("cpu") if target.device.type == "mps" else target.device  # which has no 64 bits
        coefficient, first = self.terms[0]
        total = first.detach().to(place, torch.float64) * coefficient
        for coefficient, parameter in self.terms[1:]:
            total += parameter.detach().to(place, torch.float64) * coefficient
        return total.to(target.device, target.dtype)


class Merge:
    """The blocks of one stack that take others over: prepared, applied and undone, like the other steps of a cut.

    The tensors stay the objects that they are, so an optimizer and wrappers keep them; their gradients are dropped. Of
    what is written to, a copy is held until the merge is dropped.

    Args:
        model (`nn.Module`): with all its blocks; nothing is changed yet.
        path (`str`): of the stack.
        merged (`Mapping[int, Mapping[int, float]]`): `StackPlan.merged`: for each layer that changes the coefficient of
            every layer in the sum.
        followers (`Sequence[str]`): paths of lists that lose the same entries as the stack.

    Raises:
        UnsupportedArchitectureError: for blocks that cannot be summed; says which, and why.

    Example:
        >>> model = nn.ModuleDict({"layer": nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(3))})
        >>> for number, layer in enumerate(model["layer"]):
        ...     _ = nn.init.constant_(layer.weight, 10.0**number)
        >>> merge = Merge(model, "layer", {0: {0: -1.0, 1: 1.0, 2: 1.0}})
        >>> merge.apply()
        >>> model["layer"][0].weight.item()
        109.0
        >>> merge.undo()
        >>> model["layer"][0].weight.item()
        1.0
    """

    def __init__(self, model: nn.Module, path: str, merged: Sums, followers: Sequence[str] = ()) -> None:
        """Find what is summed, and refuse what cannot be."""
        self.sums = _prepare(model, path, merged, followers)
        self._before: list[tuple[nn.Parameter, Tensor]] = []

    @property
    def before(self) -> dict[nn.Parameter, Tensor]:
        """The values that were written over, by parameter; empty while the merge is not in force."""
        return dict(self._before)

    @torch.no_grad()
    def apply(self) -> None:
        """Write the sums, all of them of the weights before any was written."""
        by_leaf: dict[str, list[WeightSum]] = {}
        for one in self.sums:  # a parameter's sums read parameters of the same name in a block, and no others
            by_leaf.setdefault(one.name.rpartition("]")[2], []).append(one)
        try:
            for sums in by_leaf.values():
                values = [one.value() for one in sums]
                self._before += [(one.target, one.target.detach().clone()) for one in sums]
                for one, value in zip(sums, values, strict=True):
                    one.target.copy_(value)
                    one.target.grad = None
        except BaseException:
            self.undo()
            raise

    @torch.no_grad()
    def undo(self) -> None:
        """Write back what was there, to the bit."""
        for target, value in self._before:
            target.copy_(value)
            target.grad = None
        self._before.clear()


@contextmanager
def merged_weights(model: nn.Module, merged: Mapping[str, Sums]) -> Iterator[None]:
    """Let a model have merged weights, with all its blocks, until the context ends.

    Args:
        model (`nn.Module`): not wrapped.
        merged (`Mapping[str, Mapping]`): by path of the stack, what `Merge` takes.

    Raises:
        UnsupportedArchitectureError: for blocks that cannot be summed; nothing was changed.
    """
    merges = [Merge(model, path, sums) for path, sums in merged.items() if sums]
    done: list[Merge] = []
    try:
        for merge in merges:
            merge.apply()
            done.append(merge)
        yield
    finally:
        for merge in reversed(done):
            merge.undo()


def cannot_sum(
    model: nn.Module, path: str, layer: int, others: Iterable[int], followers: Sequence[str] = ()
) -> str | None:
    """Why the weights of a layer cannot become a sum over layers; `None` if they can.

    Args:
        model (`nn.Module`): with all its blocks.
        path (`str`): of the stack.
        layer (`int`): that would be written to.
        others (`Iterable[int]`): the layers in the sum.
        followers (`Sequence[str]`): paths of lists that lose the same entries as the stack.
    """
    blocks = _blocks(model, path)
    if getattr(model, "is_quantized", False):
        return "the model is quantised: its numbers are codes, which cannot be added. Load it without quantisation"
    if adapter_configs(model):
        return "the model has adapters, whose sum is no adapter. Merge them first: model = model.merge_and_unload()"
    for follower in followers:
        if next(model.get_submodule(follower).parameters(), None) is not None:
            return f"'{follower}' has weights for each layer, too, and nobody has said what becomes of them"
    if reason := _shares(model, blocks, layer):
        return reason
    base = dict(blocks[layer].named_parameters())
    for other in (layer, *others):
        one = dict(blocks[other].named_parameters())
        if different := sorted(base.keys() ^ one.keys()):
            has = layer if different[0] in base else other
            return f"layers {layer} and {other} are built differently: only layer {has} has '{different[0]}'"
        for name, parameter in one.items():
            if not parameter.is_floating_point():
                return f"'{name}' of layer {other} is {parameter.dtype}: its numbers are codes, which cannot be added"
            if parameter.is_meta != base[name].is_meta:
                return f"one of '{name}' of layers {layer} and {other} is not in memory"
            if parameter.shape != base[name].shape:
                shapes = f"{list(base[name].shape)} and {list(parameter.shape)}"
                return f"'{name}' of layers {layer} and {other} differs in shape: {shapes}"
    return None


def _shares(model: nn.Module, blocks: Sequence[nn.Module], layer: int) -> str | None:
    """Whether something else in the model would change with a block."""
    block = blocks[layer]
    if sum(one is block for one in blocks) > 1:
        return f"layer {layer} is one block that stands in several places"
    own, inside = {id(parameter) for parameter in block.parameters()}, set(block.modules())
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if module not in inside and id(parameter) in own:
                return f"layer {layer} shares a weight with '{path}.{name}', which would change with it"
    return None


def _blocks(model: nn.Module, path: str) -> list[nn.Module]:
    """Not `children()`, which names a shared block once."""
    return [block for block in model.get_submodule(path)._modules.values() if block is not None]


def _prepare(model: nn.Module, path: str, merged: Sums, followers: Sequence[str]) -> list[WeightSum]:
    blocks = _blocks(model, path)
    sums = []
    for layer, terms in merged.items():
        if reason := cannot_sum(model, path, layer, terms, followers):
            others = [other for other in terms if other != layer]
            raise UnsupportedArchitectureError(
                f"Layer {layer} of '{path}' cannot take over layers {others}: {reason}. Or delete layers instead of merging "
                "them: a plan without 'merged', any criterion but laco and mka. The model was not changed."
            )
        sources = {other: dict(blocks[other].named_parameters()) for other in terms}
        for name, parameter in blocks[layer].named_parameters():
            parts = tuple((coefficient, sources[other][name]) for other, coefficient in terms.items())
            sums.append(WeightSum(f"{path}[{layer}]{name}", parameter, parts))
    return sums
