"""How many parameters and bytes a model has, and would have after a cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn
from transformers import PreTrainedModel

from .adapters import unwrap_adapters
from .edits import ModuleMove, TensorSlice
from .find import Examination, examine
from .proof import prove_cut
from .stack import StackCut


def count_parameters(model: nn.Module) -> int:
    """Number of parameters of a model; a tied parameter counts once.

    Args:
        model (`nn.Module`): on any device, the meta device included.

    Returns:
        `int`: number of scalars.

    Example:
        >>> count_parameters(nn.Linear(3, 2))
        8
    """
    return sum(parameter.numel() for parameter in model.parameters())


def parameters_after(
    model: nn.Module, kept: Mapping[str, Sequence[int]], *, found: Examination | None = None
) -> tuple[int, int]:
    """What would be left of a model after a cut, without cutting it.

    Args:
        model (`nn.Module`): left as it is; on any device. Adapters count.
        kept (`Mapping[str, Sequence[int]]`): by stack path, the layers that stay; other stacks stay whole.
        found (`Examination`, *optional*): what `examine(model)` gave, if at hand.

    Returns:
        `tuple[int, int]`: parameters, and the bytes they take in their present dtypes. Tied parameters count once,
        and a parameter that a remaining module shares with a removed one stays.

    Raises:
        UnsupportedArchitectureError: a transformers model of which this cut cannot be proved right.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        >>> parameters_after(nn.ModuleDict({"layers": model}), {"layers": [0]})
        (12, 48)
    """
    model = unwrap_adapters(model)
    return count_remaining(model, remains_of(model, kept, found=found))


def count_remaining(model: nn.Module, remains: Remains) -> tuple[int, int]:
    """Parameters of what a cut leaves, and their bytes, as `parameters_after` counts them."""
    left = {id(parameter): parameter for parameter in remaining_parameters(model, remains.cuts, remains.moves)}
    trimmed = remains.trimmed(model)
    total = size = 0
    for identity, parameter in left.items():
        number = remains.number(parameter, trimmed.get(identity))
        total, size = total + number, size + number * parameter.element_size()
    return total, size


@dataclass(frozen=True)
class Remains:
    """What a cut leaves of a model's tensors.

    Args:
        cuts (`Mapping[str, StackCut]`): by path of a list of modules, what stays.
        moves (`Sequence[ModuleMove]`): modules that a removed block hands on.
        slices (`Sequence[TensorSlice]`): parameters that lose the removed layers' room.
    """

    cuts: Mapping[str, StackCut]
    moves: Sequence[ModuleMove] = ()
    slices: Sequence[TensorSlice] = ()

    def keeps(self, name: str) -> bool:
        """Whether a tensor of that name before the cut is still there after it."""
        return not name.startswith(self._gone) or name.startswith(self._moved)

    @cached_property
    def _gone(self) -> tuple[str, ...]:
        return tuple(
            f"{path}.{layer}."
            for path, cut in self.cuts.items()
            for layer in range(cut.depth)
            if layer not in cut.kept
        )

    @cached_property
    def _moved(self) -> tuple[str, ...]:
        return tuple(f"{move.source}." for move in self.moves)

    def trimmed(self, model: nn.Module) -> dict[int, StackCut]:
        """By identity of a parameter, what stays of the room that it has for layers."""
        return {id(model.get_submodule(part.path).get_parameter(part.name)): part.cut for part in self.slices}

    def number(self, tensor: Tensor, cut: StackCut | None) -> int:
        """Scalars that are left of a tensor."""
        return tensor.numel() // cut.depth * len(cut.kept) if cut else tensor.numel()


def remains_of(model: nn.Module, kept: Mapping[str, Sequence[int]], *, found: Examination | None = None) -> Remains:
    """What a cut would leave of a model, without cutting it.

    Args:
        model (`nn.Module`): not wrapped.
        kept (`Mapping[str, Sequence[int]]`): as for `parameters_after`.
        found (`Examination`, *optional*): what `examine(model)` gave, if at hand.

    Raises:
        UnsupportedArchitectureError: a transformers model of which this cut cannot be proved right.
    """
    depths = {path: len(model.get_submodule(path)._modules) for path in kept}
    cuts = {path: StackCut(depths[path], tuple(layers)) for path, layers in kept.items()}
    if not isinstance(model, PreTrainedModel) or all(len(cut.kept) == cut.depth for cut in cuts.values()):
        return Remains(cuts)
    proof = prove_cut(model, found or examine(model), kept)
    return Remains(proof.cuts, proof.moves, proof.slices)


def remaining_parameters(
    model: nn.Module, cuts: Mapping[str, StackCut], moves: Sequence[ModuleMove] = ()
) -> Iterator[nn.Parameter]:
    """The parameters of a model that are still there after a cut; tied ones once for each name.

    Args:
        model (`nn.Module`): not yet cut.
        cuts (`Mapping[str, StackCut]`): by path of a list of modules, what stays.
        moves (`Sequence[ModuleMove]`): modules that a removed block hands on.

    Yields:
        `nn.Parameter`: in module order.

    Example:
        >>> model = nn.ModuleDict({"layers": nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))})
        >>> [tuple(p.shape) for p in remaining_parameters(model, {"layers": StackCut(2, (1,))})]
        [(3, 3), (3,)]
    """
    remains = Remains(cuts, moves)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if remains.keeps(name):
            yield parameter
