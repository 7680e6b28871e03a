"""Which lists of blocks are looked into: stacks that could be cut, and those that were cut down to one block."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from hf_mpruner.architectures import find_block_stacks
from hf_mpruner.errors import UnsupportedArchitectureError


def find_paths(model: nn.Module, stacks: Sequence[str] | None = None) -> list[str]:
    """Dotted paths of a model's lists of blocks.

    `find_block_stacks` finds lists that could be shortened, so none of one block: of those, taken are the lists whose block is
    of a class that stands in a found stack, or that the model names as a layer (`_no_split_modules`).

    Args:
        model (`nn.Module`): not wrapped.
        stacks (`Sequence[str]`, *optional*): the paths, if they are known.

    Raises:
        ValueError: if a path that was given is no list of blocks.
        UnsupportedArchitectureError: if none is found.
    """
    if stacks is not None:
        lists = {name for name, module in model.named_modules() if _is_list(module)}
        unknown = sorted(set(stacks) - lists)
        if unknown or not stacks:
            raise ValueError(
                f"stacks={unknown or list(stacks)}: no list of blocks. The model's lists: {sorted(lists)[:10]}."
            )
        return list(stacks)
    missing: UnsupportedArchitectureError | None = None
    try:
        found = [stack.path for stack in find_block_stacks(model)]
    except UnsupportedArchitectureError as error:
        found, missing = [], error
    classes = {type(block).__name__ for path in found for block in model.get_submodule(path).children()}
    classes |= set() if found else set(getattr(model, "_no_split_modules", None) or ())
    single = [
        name
        for name, module in model.named_modules()
        if _is_list(module) and len(module._modules) == 1 and type(next(module.children())).__name__ in classes
    ]
    if not found and not single:
        raise UnsupportedArchitectureError(
            f"{missing} If its lists of blocks are known, e.g. of one block each, name them: stacks=['encoder.layer']."
        ) from missing
    everything = [name for name, _ in model.named_modules()]
    return sorted({*found, *single}, key=everything.index)


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 0
