"""The skip reference: the uncut model whose removed blocks hand on what they are given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from torch import nn

from hf_mpruner.skipping import NoHandingOnError, hand_on_blocks
from hf_mpruner.verify.outputs import Outputs, run_still


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
        visit = _Visit()
        try:
            with hand_on_blocks(removed, streams=streams) as skipped, visit.watching(model, kept):
                outputs = run_still(model, inputs)
        except NoHandingOnError as error:
            reference.doubts.append(str(error))
            break
        except Exception as error:  # the model's own code may miss what a skipped block does not give it
            text = " ".join(str(error).split())[:200]
            reference.doubts.append(f"the model fails with the blocks skipped ({type(error).__name__}: {text})")
            break
        reference.outputs.append(outputs)
        reference.not_run = skipped.not_run
        if not skipped.ambiguous:
            break
    if len(reference.outputs) > 1:
        reference.doubts.append("a block hands on several tensors, and which of them to skip is not known")
    if visit.between:
        reference.doubts.append(f"{min(visit.between)!r} runs between the blocks, and goes with each of them")
    return reference


class _Visit:
    """One pass with blocks skipped: what ran between them."""

    def __init__(self) -> None:
        self.between: set[str] = set()
        self._inside_loop = False

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
