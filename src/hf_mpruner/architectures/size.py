"""How many parameters and bytes a model has, and would have after a cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import nn
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
    depths = {path: len(model.get_submodule(path)._modules) for path in kept}
    cuts = {path: StackCut(depths[path], tuple(layers)) for path, layers in kept.items()}
    moves: Sequence[ModuleMove] = ()
    slices: Sequence[TensorSlice] = ()
    if isinstance(model, PreTrainedModel) and any(len(cut.kept) < cut.depth for cut in cuts.values()):
        proof = prove_cut(model, found or examine(model), kept)
        cuts, moves, slices = proof.cuts, proof.moves, proof.slices
    left = {id(parameter): parameter for parameter in remaining_parameters(model, cuts, moves)}
    trimmed = {id(model.get_submodule(part.path).get_parameter(part.name)): part.cut for part in slices}
    total = size = 0
    for identity, parameter in left.items():
        cut = trimmed.get(identity)
        number = parameter.numel() // cut.depth * len(cut.kept) if cut else parameter.numel()
        total, size = total + number, size + number * parameter.element_size()
    return total, size


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
    removed = tuple(
        f"{path}.{layer}." for path, cut in cuts.items() for layer in range(cut.depth) if layer not in cut.kept
    )
    moved = tuple(f"{move.source}." for move in moves)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not name.startswith(removed) or (moved and name.startswith(moved)):
            yield parameter
