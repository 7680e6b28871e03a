"""One block apart from its model: called again and again with what it was given once, and watched from inside."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from hf_mpruner.skipping import silence

Call = tuple[tuple[Any, ...], dict[str, Any]]


def capture_calls(
    forward: Callable[[Mapping[str, Any]], Any], blocks: Sequence[nn.Module], batch: Mapping[str, Any]
) -> dict[nn.Module, Call]:
    """What each block is called with when the model runs on a batch; blocks that do not run are left out.

    Args:
        forward (callable): runs the model on a batch, in eval mode and without a cache.
        blocks (sequence of `nn.Module`): of the model.
        batch (`Mapping`): arguments of its `forward`.
    """
    calls: dict[nn.Module, Call] = {}

    def note(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.setdefault(block, (_map(args, torch.clone), _map(kwargs, torch.clone)))

    with ExitStack() as undo, torch.no_grad():
        for block in blocks:
            undo.callback(block.register_forward_pre_hook(note, with_kwargs=True).remove)
        forward(batch)
    return calls


@dataclass
class Pass:
    """What was seen in one call of a block. Names are relative to the block.

    Args:
        given (`Tensor`): the hidden states that went in.
        output (`Tensor`): the hidden states that came out.
        inputs (`dict[str, Tensor]`): for each module, the first tensor that it was called with.
        outputs (`dict[str, Tensor]`): for each module in the order in which they returned, its tensor, or the first of a
            tuple.
        calls (`Counter`): how often each module ran.
    """

    given: Tensor
    output: Tensor
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)


class Bench:
    """A copy of a block in 32 bits, with what it was called with.

    Args:
        block (`nn.Module`): left as it is.
        call (`Call`): from `capture_calls`.

    Raises:
        ValueError: if the block is given no hidden states of shape (batch, positions, features).
    """

    def __init__(self, block: nn.Module, call: Call) -> None:
        """Copy."""
        self.block = copy.deepcopy(block).float().eval()
        self._args, self._kwargs = _map(call[0], Tensor.float), _map(call[1], Tensor.float)
        # a cache would go on growing from call to call
        self._kwargs = {name: None if isinstance(value, Cache) else value for name, value in self._kwargs.items()}
        named: dict[Any, Any] = {**dict(enumerate(self._args)), **self._kwargs}
        floats = {key: value for key, value in named.items() if is_float(value)}
        self._hidden: Any = "hidden_states" if "hidden_states" in floats else next(iter(floats), None)
        if self._hidden is None or floats[self._hidden].dim() != 3:
            raise ValueError("it is given no hidden states of shape (batch, positions, features)")
        self.given: Tensor = floats[self._hidden]
        self.others = [key for key, value in floats.items() if key != self._hidden and value.dim() == 3]
        self._floats = floats

    def argument(self, key: Any) -> Tensor:
        """One of `others`."""
        return self._floats[key]

    def run(self, changed: Mapping[Any, Tensor] | None = None, silent: Sequence[str] = ()) -> Pass:
        """Call the block.

        Args:
            changed (`Mapping`, *optional*): other tensors for some of its arguments, by name or place; those of `others`,
                and `None` for the hidden states.
            silent (sequence of `str`): modules inside that put out zeros.
        """
        changed = {self._hidden if key is None else key: value for key, value in (changed or {}).items()}
        args = _map(tuple(changed.get(place, value) for place, value in enumerate(self._args)), torch.clone)
        kwargs = _map({name: changed.get(name, value) for name, value in self._kwargs.items()}, torch.clone)
        seen = Pass(changed.get(self._hidden, self.given), torch.empty(0))

        def note_in(name: str) -> Any:
            def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                seen.calls[name] += 1
                first = next(filter(is_float, (*args, *kwargs.values())), None)
                if first is not None:
                    seen.inputs.setdefault(name, first.clone())

            return note

        def note_out(name: str) -> Any:
            def note(module: nn.Module, args: Any, output: Any) -> None:
                first = first_tensor(output)
                if first is not None:
                    seen.outputs[name] = first.clone()

            return note

        with torch.no_grad(), ExitStack() as undo, silence(self.block.get_submodule(name) for name in silent):
            for name, module in self.block.named_modules():
                if name:
                    undo.callback(module.register_forward_pre_hook(note_in(name), with_kwargs=True).remove)
                    undo.callback(module.register_forward_hook(note_out(name)).remove)
            output = first_tensor(self.block(*args, **kwargs))
        if output is None or output.shape != self.given.shape:
            raise ValueError("it does not put out hidden states of the shape that it is given")
        seen.output = output
        return seen


def first_tensor(output: Any) -> Tensor | None:
    """A tensor of floats, or the one that a tuple begins with."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    return output if is_float(output) else None


def is_float(value: Any) -> bool:
    """Whether a value is a tensor of floats."""
    return isinstance(value, Tensor) and value.is_floating_point()


def _map(value: Any, function: Any) -> Any:
    """Apply a function to all tensors of floats in tuples, lists and dicts."""
    if is_float(value):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(item, function) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(_map(item, function) for item in value)
    if isinstance(value, dict):
        return {key: _map(item, function) for key, item in value.items()}
    return value


def each_leaf(block: nn.Module) -> Iterator[str]:
    """Names of the modules without children whose parameters are vectors: norms, and what has no parameters."""
    for name, module in block.named_modules():
        if name and not any(True for _ in module.children()) and all(p.dim() == 1 for p in module.parameters()):
            yield name
