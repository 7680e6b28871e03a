"""`skip_blocks`: a model runs as if some of its blocks were not there, and is not changed."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_mpruner.architectures import BlockStack
from hf_mpruner.errors import PlanMismatchError, UnsupportedArchitectureError
from hf_mpruner.skipping.handing import NoHandingOnError, copied, hand_on


@dataclass
class SkippedBlocks:
    """What became of blocks that were to be skipped.

    Args:
        names (`tuple[str, ...]`): of the blocks.
        ran (`set[str]`): those whose place in the model was reached.
        ambiguous (`bool`): whether one of them puts out several changed tensors; see `HandedOn`.
    """

    names: tuple[str, ...]
    ran: set[str] = field(default_factory=set)
    ambiguous: bool = False

    @property
    def not_run(self) -> list[str]:
        """Blocks that the model never reached."""
        return [name for name in self.names if name not in self.ran]


Known = dict[str, set[Any]]
"""By name of a block, the kinds of calls that it is known to answer by one tensor of the shape that went in."""


@contextmanager
def skip_blocks(
    model: nn.Module,
    layers: Mapping[str, Sequence[int]],
    *,
    stacks: Sequence[BlockStack] = (),
    known: Known | None = None,
) -> Iterator[SkippedBlocks]:
    """Let blocks hand on what they are given until the context ends: the model computes what it would after a cut.

    A block that puts out one tensor is not computed after its first call. One that puts out several is, since what it
    puts out besides its hidden states belongs to the model (T5's first block computes the position bias of all). So is
    one that is given a cache: it fills its place there, and `generate` works.

    Weights that run between the blocks (detectors refine boxes there) stay in the forward pass, but go with a cut.

    Args:
        model (`nn.Module`): not wrapped.
        layers (`Mapping[str, Sequence[int]]`): by path of the stack, the layers to skip.
        stacks (`Sequence[BlockStack]`): of the model, if at hand: their pinned layers are refused.
        known (`dict`, *optional*): what is learnt about the blocks' outputs, for several contexts of one measurement:
            empty for the first, the same object for the next ones, in which those blocks are not computed at all.

    Yields:
        `SkippedBlocks`: which of them the model reached.

    Raises:
        PlanMismatchError: for a path without a list of blocks, or a layer that is none of it.
        UnsupportedArchitectureError: for a pinned layer; or, as the model runs, for a block that cannot be skipped: it
            changes the shape, puts out several changed tensors, or is also one of those that stay.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=3, hidden_size=8, num_attention_heads=2, vocab_size=9)).eval()
        >>> with skip_blocks(model, {"encoder.layer": [0, 1, 2]}):
        ...     output = model(torch.tensor([[1, 2, 3]]), output_hidden_states=True)
        >>> torch.equal(output.last_hidden_state, output.hidden_states[0])
        True
    """
    chosen = _choose(model, layers, stacks)
    try:
        with hand_on_blocks(chosen, known=known) as skipped:
            yield skipped
    except NoHandingOnError as error:
        raise UnsupportedArchitectureError(
            f"{type(model).__name__} cannot be run without {_listed(layers)}: {error}. Leave that layer in, or measure "
            "by a criterion that skips no layer, e.g. cka or block_influence."
        ) from error


@contextmanager
def hand_on_blocks(
    blocks: Mapping[str, nn.Module], *, streams: bool | None = None, known: Known | None = None
) -> Iterator[SkippedBlocks]:
    """Let blocks hand on what they are given until the context ends.

    Their `forward` is replaced, not hooked: transformers records hidden states in hooks of its own, which run first.

    Args:
        blocks (`Mapping[str, nn.Module]`): by name.
        streams (`bool`, *optional*): whether further tensors are handed on, see `hand_on`; by default a block for which
            that is not clear is an error.
        known (`dict`, *optional*): as for `skip_blocks`.

    Raises:
        NoHandingOnError: as the model runs, for a block that cannot be skipped.
    """
    skipped, known = SkippedBlocks(tuple(blocks)), {} if known is None else known
    former = {name: vars(block).get("forward") for name, block in blocks.items()}
    try:
        for name, block in blocks.items():
            vars(block)["forward"] = _skip(name, block.forward, skipped, streams, known.setdefault(name, set()))
        yield skipped
    finally:
        for name, block in blocks.items():
            vars(block).pop("forward", None)
            if former[name] is not None:
                vars(block)["forward"] = former[name]


def _skip(name: str, original: Any, skipped: SkippedBlocks, streams: bool | None, known: set[Any]) -> Any:
    @functools.wraps(original)
    def skip(*args: Any, **kwargs: Any) -> Any:
        skipped.ran.add(name)
        kind = _kind_of_call(args, kwargs)
        if kind in known:
            return kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        # copies: a block may write into what it is given
        output = original(*map(copied, args), **{key: copied(value) for key, value in kwargs.items()})
        handed = hand_on(name, args, kwargs, output, streams=bool(streams))
        skipped.ambiguous = skipped.ambiguous or handed.ambiguous
        if handed.ambiguous and streams is None:
            raise NoHandingOnError(f"{name!r} puts out several tensors, and which of them to hand on is not known")
        if kind is not None and handed.output is (kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]):
            known.add(kind)
        return handed.output

    return skip


def _kind_of_call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What decides of a call whether one tensor comes out; `None` if it may also leave traces, e.g. in a cache."""
    values: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
    hidden = values.get("hidden_states", values.get(0))
    if not isinstance(hidden, Tensor) or not all(map(_is_plain, values.values())):
        return None
    settings = tuple((key, value if _is_setting(value) else type(value)) for key, value in values.items())
    return hidden.dim(), settings


def _is_setting(value: Any) -> bool:
    return value is None or isinstance(value, bool | str)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return _is_setting(value) or isinstance(value, int | float | Tensor | torch.dtype)


def _choose(
    model: nn.Module, layers: Mapping[str, Sequence[int]], stacks: Sequence[BlockStack]
) -> dict[str, nn.Module]:
    """The blocks to skip, by name."""
    pinned = {stack.path: stack.pinned for stack in stacks}
    chosen: dict[str, nn.Module] = {}
    for path, numbers in layers.items():
        try:
            blocks: Any = model.get_submodule(path)
            depth = len(blocks)
        except (AttributeError, TypeError):
            raise PlanMismatchError(f"{type(model).__name__} has no list of blocks at '{path}'.") from None
        for number in numbers:
            if not 0 <= number < depth:
                raise PlanMismatchError(f"'{path}' has layers 0 to {depth - 1}, and no layer {number} to skip.")
            if reason := pinned.get(path, {}).get(number):
                raise UnsupportedArchitectureError(f"Layer {number} of '{path}' cannot be skipped: {reason}.")
            chosen[f"{path}.{number}"] = blocks[number]
        staying = {id(block) for number, block in enumerate(blocks) if number not in set(numbers)}
        for name, block in chosen.items():
            if name.rpartition(".")[0] == path and id(block) in staying:
                raise UnsupportedArchitectureError(f"'{name}' cannot be skipped: the same block runs where it stays.")
    return chosen


def _listed(layers: Mapping[str, Sequence[int]]) -> str:
    return " and ".join(f"layers {list(numbers)} of '{path}'" for path, numbers in layers.items()) or "nothing"
