"""What a block hands on that does nothing: what it was given, in the form in which it puts something out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor


class NoHandingOnError(Exception):
    """A block cannot do nothing; the text says why."""


class HandedOn(NamedTuple):
    """What a skipped block puts out, and whether it was clear what that is.

    Args:
        output: a tensor, or a tuple or mapping that begins with one.
        ambiguous (`bool`): further tensors that the block puts out are changed versions of what it was given (by their
            shapes): whether skipping it takes them as they were given cannot be known.
    """

    output: Any
    ambiguous: bool = False


def hand_on(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any, *, streams: bool = False
) -> HandedOn:
    """What a block would put out that hands on what it is given.

    The hidden states are the first tensor of floats that it is given, or the argument of that name; they take the place
    of its output, or of the first entry of it. What else it puts out stays as computed, e.g. T5's position bias.

    Args:
        name (`str`): of the block, for messages.
        args (sequence): that it is called with.
        kwargs (`Mapping`): likewise.
        output: what its own code puts out for them.
        streams (`bool`): further tensors of a shape that it is given are handed on, too.

    Raises:
        NoHandingOnError: no tensor of floats goes in or comes out, or their shapes differ.

    Example:
        >>> import torch
        >>> hidden, bias = torch.zeros(2), torch.ones(3)
        >>> hand_on("block", (hidden,), {}, (hidden + 1, bias)).output
        (tensor([0., 0.]), tensor([1., 1., 1.]))
    """
    first = {"hidden_states": kwargs["hidden_states"]} if "hidden_states" in kwargs else {}
    given: list[Tensor] = list(filter(_is_float, (*args, *{**first, **kwargs}.values())))
    if not given:
        raise NoHandingOnError(f"{name!r} is given no tensor of floats")
    if isinstance(output, Tensor):
        return HandedOn(_same_shape(name, given[0], output))
    entries = list(output.values() if isinstance(output, Mapping) else output if _is_row(output) else ())
    if not entries or not _is_float(entries[0]):
        raise NoHandingOnError(
            f"{name!r} returns a {type(output).__name__} that does not begin with a tensor of floats"
        )
    entries[0] = _same_shape(name, given.pop(0), entries[0])
    ambiguous = False
    for place, entry in enumerate(entries[1:], 1):
        match = next((n for n, value in enumerate(given) if _is_float(entry) and value.shape == entry.shape), None)
        if match is not None:
            partner = given.pop(match)
            ambiguous = ambiguous or not bool((partner == entry).all())
            entries[place] = partner if streams else entry
    kind: Any = type(output)
    if isinstance(output, Mapping):
        return HandedOn(kind(**dict(zip(output, entries, strict=True))), ambiguous)
    return HandedOn(kind(*entries) if hasattr(output, "_fields") else kind(entries), ambiguous)


def copied(value: Any) -> Any:
    """A tensor of floats of its own, for a block that may write into what it is given."""
    return value.clone() if _is_float(value) else value


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_row(value: Any) -> bool:
    return isinstance(value, tuple | list)


def _same_shape(name: str, given: Tensor, output: Tensor) -> Tensor:
    if given.shape != output.shape:
        raise NoHandingOnError(f"{name!r} turns {list(given.shape)} into {list(output.shape)}")
    return given
