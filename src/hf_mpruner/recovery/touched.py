"""What trains after a cut: everything, or only the blocks beside the gaps and the head (the paper's flag b)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import nn


def touched_layers(depth: int, kept: Sequence[int]) -> list[int]:
    """Layers whose neighbour was removed (the paper's ls_f): the last before each gap and the first after it.

    Args:
        depth (`int`): number of layers before the cut.
        kept (`Sequence[int]`): the layers that stay, ascending, in the numbering before the cut.

    Returns:
        `list[int]`: ascending, in the numbering after the cut.

    Raises:
        ValueError: if `kept` is empty, not ascending, or names a layer outside `0..depth-1`.

    Example:
        >>> touched_layers(12, [0, 1, 4, 7, 8])  # 2-3, 5-6 and 9-11 are gone
        [1, 2, 3, 4]
        >>> touched_layers(4, [0, 1, 2, 3])
        []
    """
    if not kept or list(kept) != sorted({i for i in kept if 0 <= i < depth}):
        raise ValueError(
            f"kept={list(kept)} is no ascending choice of layers of a stack of {depth}: pass indices from 0 to "
            f"{depth - 1}, each once and at least one."
        )
    # A gap at either end has one neighbour; the places -1 and len(kept) beyond the ends are no layers.
    ends = [-1, *kept, depth]
    beside = {place for i in range(len(ends) - 1) if ends[i + 1] - ends[i] > 1 for place in (i - 1, i)}
    return sorted(place for place in beside if 0 <= place < len(kept))


class FrozenParameters:
    """Parameters that were frozen, with an exact undo; made by `freeze_untouched_`.

    Args:
        parameters (`list[nn.Parameter]`): those whose `requires_grad` was changed from `True` to `False`.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        """Remember which."""
        self.parameters = parameters

    def undo(self) -> None:
        """Let them train again; those that were frozen before are left alone. May be called again."""
        for param in self.parameters:
            param.requires_grad_(True)
        self.parameters = []


def freeze_untouched_(model: nn.Module, touched: Mapping[str, Sequence[int]]) -> FrozenParameters:
    """Freeze all parameters but those of the touched blocks and of the head.

    The head is what lies outside `model.base_model`, and the output embeddings, where a model is its own base (T5). A
    parameter that is shared with a frozen part (tied embeddings) is frozen too, and what the user froze stays frozen.

    Args:
        model (`nn.Module`): changed in place: `requires_grad` of parameters, never of modules, where it does nothing.
        touched (`Mapping[str, Sequence[int]]`): blocks that train, by the path of their stack, as `touched_layers`
            numbers them.

    Returns:
        `FrozenParameters`: whose `undo` restores the former flags.

    Raises:
        ValueError: if a block does not exist, or nothing would be left to train; nothing is changed then.
    """
    prefixes = tuple(f"{name}." for name in [*_block_names(model, touched), *_output_names(model)])
    base = _base_name(model)
    # An alias per name: one frozen alias freezes a shared parameter.
    untouched = {
        id(param)
        for name, param in model.named_parameters(remove_duplicate=False)
        if name.startswith(base) and not name.startswith(prefixes)
    }
    trainable = [param for param in model.parameters() if param.requires_grad]
    frozen = [param for param in trainable if id(param) in untouched]
    if len(frozen) == len(trainable):
        raise ValueError(
            f"freeze_untouched would leave nothing to train in {type(model).__name__}: touched={dict(touched)} holds "
            "no trainable parameter, and there is no trainable head. Pass freeze_untouched=False."
        )
    for param in frozen:
        param.requires_grad_(False)
        # A gradient that is left would still be applied by the optimizer.
        param.grad = None
    return FrozenParameters(frozen)


def _block_names(model: nn.Module, touched: Mapping[str, Sequence[int]]) -> Iterator[str]:
    for path, positions in touched.items():
        names = [name for name, _ in model.get_submodule(path).named_children()]
        for position in positions:
            if not 0 <= position < len(names):
                raise ValueError(
                    f"touched names block {position} of '{path}', which has {len(names)} blocks: pass positions from "
                    f"0 to {len(names) - 1}, in the numbering after the cut."
                )
            yield f"{path}.{names[position]}"


def _output_names(model: nn.Module) -> list[str]:
    """Name of the language-modelling head, which some models (T5) hold inside what counts as their base."""
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    return [name for name, module in model.named_modules() if name and module is head]


def _base_name(model: nn.Module) -> str:
    """Dotted name of the base model with its dot, `""` if the model is its own base."""
    base = getattr(model, "base_model", model)
    return next((f"{name}." for name, module in model.named_modules() if name and module is base), "")
