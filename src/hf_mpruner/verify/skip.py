"""The skip reference: the uncut model whose removed blocks hand on what they are given."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn

from hf_mpruner.verify.outputs import Outputs, run_still


class _NoReferenceError(Exception):
    """A removed block cannot be skipped; the text says why."""


@dataclass
class SkipReference:
    """What a cut should compute.

    Args:
        outputs (`list[dict[str, Tensor]]`): of the model with the blocks skipped. There are two where a block hands on
            several tensors and it cannot be known whether to skip all of them: either is right. None if no reference is
            defined.
        not_run (`list[str]`): removed blocks that these inputs do not reach: nothing is known about them.
        doubts (`list[str]`): why a difference may be due to the reference and not to the cut.
    """

    outputs: list[Outputs] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)


def make_skip_reference(
    model: nn.Module, kept: Mapping[str, Sequence[int]], inputs: Mapping[str, Any]
) -> SkipReference:
    """Run a model with the blocks skipped that a cut would remove.

    A reference is defined where a block takes a tensor first and gives a tensor of the same shape, alone or first of
    several, and where no weights are used between the blocks.

    Args:
        model (`nn.Module`): not yet cut, in eval mode; left as it is.
        kept (`Mapping[str, Sequence[int]]`): by stack path, the layers that stay.
        inputs (`Mapping`): arguments of `forward`.

    Returns:
        `SkipReference`: outputs, and what they say nothing about.
    """
    reference = SkipReference()
    removed: dict[str, nn.Module] = {}
    staying: set[nn.Module] = set()
    for path, layers in kept.items():
        for number, block in enumerate(cast(nn.ModuleList, model.get_submodule(path))):
            if number in layers:
                staying.add(block)
            else:
                removed[f"{path}.{number}"] = block
    shared = [name for name, block in removed.items() if block in staying]
    if shared:
        reference.doubts.append(f"{shared[0]!r} also runs where it stays")
        return reference
    for streams in (False, True):
        visit = _Visit(streams)
        try:
            with visit.skipping(removed), visit.watching(model, kept):
                outputs = run_still(model, inputs)
        except _NoReferenceError as error:
            reference.doubts.append(str(error))
            break
        except Exception as error:  # the model's own code may miss what a skipped block does not give it
            text = " ".join(str(error).split())[:200]
            reference.doubts.append(f"the model fails with the blocks skipped ({type(error).__name__}: {text})")
            break
        reference.outputs.append(outputs)
        reference.not_run = [name for name in removed if name not in visit.seen]
        if not visit.ambiguous:
            break
    if len(reference.outputs) > 1:
        reference.doubts.append("a block hands on several tensors, and which of them to skip is not known")
    if visit.between:
        reference.doubts.append(f"{min(visit.between)!r} runs between the blocks, and goes with each of them")
    return reference


class _Visit:
    """One pass with blocks skipped: which of them ran, what ran between them, and whether it was clear what to hand on."""

    def __init__(self, streams: bool) -> None:
        self.streams = streams
        self.seen: set[str] = set()
        self.between: set[str] = set()
        self.ambiguous = False
        self._inside_loop = False

    @contextmanager
    def skipping(self, removed: Mapping[str, nn.Module]) -> Iterator[None]:
        """Let these blocks hand on what they are given, until the context ends.

        Their `forward` is replaced, not hooked: transformers records hidden states in hooks of its own, which run first.
        """
        former = {name: vars(block).get("forward") for name, block in removed.items()}
        for name, block in removed.items():
            vars(block)["forward"] = self._skip(name, block.forward)
        try:
            yield
        finally:
            for name, block in removed.items():
                if former[name] is None:
                    del vars(block)["forward"]
                else:
                    vars(block)["forward"] = former[name]

    @contextmanager
    def watching(self, model: nn.Module, kept: Mapping[str, Sequence[int]]) -> Iterator[None]:
        """Note which modules with weights run between two blocks of a stack: they would go with each block."""
        handles = []

        def set_inside(value: bool) -> Any:
            def note(*_: Any) -> None:
                self._inside_loop = value

            return note

        def note_call(name: str) -> Any:
            return lambda module, args: self.between.add(name) if self._inside_loop else None

        for path in kept:
            blocks = list(cast(nn.ModuleList, model.get_submodule(path)))
            for number, block in enumerate(blocks):
                handles.append(block.register_forward_pre_hook(set_inside(False)))
                handles.append(block.register_forward_hook(set_inside(number < len(blocks) - 1)))
        for name, module in model.named_modules():
            related = any(f"{name}.".startswith(f"{path}.") or f"{path}.".startswith(f"{name}.") for path in kept)
            if name and not related and next(module.parameters(), None) is not None:
                handles.append(module.register_forward_pre_hook(note_call(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _skip(self, name: str, original: Any) -> Any:
        @functools.wraps(original)
        def skip(*args: Any, **kwargs: Any) -> Any:
            self.seen.add(name)
            # copies: a block may write into what it is given
            output = original(*map(_copy, args), **{key: _copy(value) for key, value in kwargs.items()})
            first = {"hidden_states": kwargs["hidden_states"]} if "hidden_states" in kwargs else {}
            return self._hand_on(name, list(filter(_is_float, (*args, *{**first, **kwargs}.values()))), output)

        return skip

    def _hand_on(self, name: str, given: list[Tensor], output: Any) -> Any:
        if not given:
            raise _NoReferenceError(f"{name!r} is given no tensor of floats")
        if isinstance(output, Tensor):
            return _same_shape(name, given[0], output)
        entries = list(output.values() if isinstance(output, Mapping) else output if _is_row(output) else ())
        if not entries or not _is_float(entries[0]):
            raise _NoReferenceError(
                f"{name!r} returns a {type(output).__name__} that does not begin with a tensor of floats"
            )
        entries[0] = _same_shape(name, given.pop(0), entries[0])
        for place, entry in enumerate(entries[1:], 1):
            match = next((n for n, value in enumerate(given) if _is_float(entry) and value.shape == entry.shape), None)
            if match is not None:
                partner = given.pop(match)
                self.ambiguous = self.ambiguous or not bool((partner == entry).all())
                entries[place] = partner if self.streams else entry
        kind: Any = type(output)
        if isinstance(output, Mapping):
            return kind(**dict(zip(output, entries, strict=True)))
        return kind(*entries) if hasattr(output, "_fields") else kind(entries)


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _copy(value: Any) -> Any:
    return value.clone() if _is_float(value) else value


def _is_row(value: Any) -> bool:
    return isinstance(value, tuple | list)


def _same_shape(name: str, given: Tensor, output: Tensor) -> Tensor:
    if given.shape != output.shape:
        raise _NoReferenceError(f"{name!r} turns {list(given.shape)} into {list(output.shape)}")
    return given
