"""The reference that knows nothing of the surgery: the whole model, whose removed blocks hand their input on."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from zoo.probe import Kept, NoReferenceError, run


@contextmanager
def skipped(
    model: PreTrainedModel,
    kept: Kept,
    *,
    style: str = "first",
    between: Mapping[str, set[str]] | None = None,
) -> Iterator[set[str]]:
    """Let the blocks that are not kept hand on what they were given; yields those whose parts run without them.

    The hidden states stand first in a block's output. Style `"first"`: what else is there stays; `"alone"`: it becomes
    zeros, since the model adds it up; `"streams"`: a block with several streams hands on each, matched by shape;
    `"nothing"`: all is zeros, since the model adds the block's output to its input. `between`: by stack, modules that
    add nothing after a skipped block, by returning zeros once (see `find_between`).
    """
    ran: set[str] = set()
    bypassed: set[str] = set()  # filled as the model runs: code reaches into these blocks instead of calling them
    silent: set[str] = set()
    hooks: list[Any] = []
    replaced: list[nn.Module] = []

    def enter(name: str, path: str) -> Any:
        def note(module: nn.Module, args: Any) -> None:
            ran.add(name)
            silent.difference_update((between or {}).get(path, ()))

        return note

    def inside(name: str) -> Any:
        return lambda module, args, output: None if name in ran else bypassed.add(name)

    def pass_on(block: nn.Module, path: str) -> None:
        """In the block's forward, not in a hook: transformers records hidden states in hooks of its own."""
        original = block.forward

        @functools.wraps(original)
        def replace(*args: Any, **kwargs: Any) -> Any:
            copies = [_copy(value) for value in args], {name: _copy(value) for name, value in kwargs.items()}
            output = original(*copies[0], **copies[1])
            silent.update((between or {}).get(path, ()))
            return _handed_on(args, kwargs, output, style)

        vars(block)["forward"] = replace
        replaced.append(block)

    def silence(name: str) -> Any:
        def replace(module: nn.Module, args: Any, output: Any) -> Any:
            if name not in silent:
                return output
            silent.discard(name)
            return torch.zeros_like(output) if isinstance(output, torch.Tensor) else output

        return replace

    for path, layers in kept.items():
        for number, block in enumerate(model.get_submodule(path)):
            hooks.append(block.register_forward_pre_hook(enter(f"{path}.{number}", path)))
            if number not in layers:
                hooks += [p.register_forward_hook(inside(f"{path}.{number}")) for p in list(block.modules())[1:]]
                pass_on(block, path)
    for name in {name for names in (between or {}).values() for name in names}:
        hooks.append(model.get_submodule(name).register_forward_hook(silence(name)))
    try:
        yield bypassed
    finally:
        for block in replaced:
            del vars(block)["forward"]
        for handle in hooks:
            handle.remove()


def find_between(model: PreTrainedModel, inputs: Mapping[str, Any], path: str) -> set[str]:
    """Modules with weights that run between two blocks of a stack: code of the loop, which goes with each block.

    Detectors refine their boxes there with a head that all layers share, or each has.
    """
    found: set[str] = set()
    window = False
    hooks = []

    def set_window(value: bool) -> Any:
        def note(*_: Any) -> None:
            nonlocal window
            window = value

        return note

    def note_call(name: str) -> Any:
        return lambda module, args: found.add(name) if window else None

    blocks = list(model.get_submodule(path))
    last = len(blocks) - 1
    for number, block in enumerate(blocks):
        hooks.append(block.register_forward_pre_hook(set_window(False)))
        hooks.append(block.register_forward_hook(set_window(number < last)))
    for name, module in model.named_modules():
        outside = not name.startswith(f"{path}.") and not f"{path}.".startswith(f"{name}.")
        if name and outside and next(module.parameters(), None) is not None:
            hooks.append(module.register_forward_pre_hook(note_call(name)))
    try:
        run(model, inputs)
    finally:
        for handle in hooks:
            handle.remove()
    return {name for name in found if name.rpartition(".")[0] not in found}


def _handed_on(args: Any, kwargs: Mapping[str, Any], output: Any, style: str) -> Any:
    named = {"hidden_states": kwargs["hidden_states"], **kwargs} if "hidden_states" in kwargs else kwargs
    given = [value for value in (*args, *named.values()) if _is_float(value)]
    if not given:
        raise NoReferenceError("a block is given no tensor")
    if isinstance(output, torch.Tensor):
        return torch.zeros_like(output) if style == "nothing" else _checked(given[0], output)
    is_mapping = isinstance(output, Mapping)
    items = list(output.values()) if is_mapping else list(output) if isinstance(output, tuple | list) else []
    if not items or not _is_float(items[0]):
        raise NoReferenceError(f"a block returns a {type(output).__name__}")
    if style == "streams":
        left = len(given)
        for place, item in enumerate(items):
            match = next((n for n, value in enumerate(given) if _is_float(item) and value.shape == item.shape), None)
            if match is not None and item.ndim > 2:
                items[place] = given.pop(match)
        if left == len(given):
            raise NoReferenceError("no output of a block has the shape of an input")
    else:
        items[0] = torch.zeros_like(items[0]) if style == "nothing" else _checked(given[0], items[0])
        if style != "first":
            items[1:] = [torch.zeros_like(item) if _is_float(item) else item for item in items[1:]]
    if is_mapping:
        return type(output)(**dict(zip(output.keys(), items, strict=True)))
    return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)


def _copy(value: Any) -> Any:
    """A block may write into what it is given."""
    return value.clone() if _is_float(value) else value


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _checked(hidden: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    if hidden.shape != output.shape:
        raise NoReferenceError(f"a block turns {list(hidden.shape)} into {list(output.shape)}")
    return hidden
