"""What every block gets and puts out, batch by batch: the hooks of all measures that take one forward pass.

A measure sees one block at a time, right after it ran, and keeps only sums; nothing of a batch outlives it here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_mpruner.architectures import BlockStack
from hf_mpruner.criteria.inputs import CriterionInputs
from hf_mpruner.errors import CalibrationError
from hf_mpruner.features.rows import fit_mask, hidden_states, padding_mask


@dataclass(frozen=True)
class BlockPass:
    """One block in the forward pass of one batch.

    Args:
        path (`str`): of its stack.
        layer (`int`): its place in the stack.
        before (`torch.Tensor` of shape `(batch, positions, features)`): what it got; without a graph, a copy.
        after (`torch.Tensor`): what it put out, likewise; of another shape in a block that changes it.
        is_map (`bool`): whether it got a feature map, whose pixels are the positions.
        mask (`torch.Tensor` of shape `(batch, positions)`, *optional*): true where a position of `after` is real; `None`
            if all are.
        again (callable): runs the block once more on other hidden states `(batch, positions, features)`, with everything
            else as it was; not for feature maps.
    """

    path: str
    layer: int
    before: Tensor
    after: Tensor
    is_map: bool
    mask: Tensor | None
    again: Callable[[Tensor], Tensor] = field(repr=False, compare=False)

    @property
    def is_same_shape(self) -> bool:
        """Whether input and output can be compared position by position."""
        return self.before.shape == self.after.shape

    def real(self, states: Tensor) -> Tensor:
        """The real positions of `(batch, positions, features)`, as `(real positions, features)` in 32 bits or more."""
        rows = states.flatten(0, 1) if self.mask is None else states[self.mask]
        return rows.to(torch.promote_types(rows.dtype, torch.float32))


def each_pass(inputs: CriterionInputs, visit: Callable[[BlockPass], None], what: str) -> Iterator[Mapping[str, Any]]:
    """Run the model over the calibration data, without gradients; `visit` sees every block of every batch.

    Args:
        inputs (`CriterionInputs`): model, stacks and data.
        visit (callable): gets each `BlockPass` as soon as its block ran; of one stack in the order in which blocks run.
        what (`str`): what the progress bar says.

    Yields:
        `Mapping`: each batch, after the model ran on it.

    Raises:
        CalibrationError: if there is no data, or a block did not run, ran twice, or does not put out hidden states.
    """
    ran: Counter[tuple[str, int]] = Counter()
    padding: dict[str, Tensor | None] = {}
    pending: dict[tuple[str, int], Tensor] = {}
    running_again: list[bool] = []

    def before(place: tuple[str, int]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if running_again:
                return
            # A copy: blocks may add to their input in place.
            pending[place] = given_states(args, kwargs, ".".join(map(str, place)))[0].detach().clone()

        return hook

    def after(place: tuple[str, int]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if running_again:
                return
            ran[place] += 1
            name = ".".join(map(str, place))
            out = hidden_states(output, name).detach()
            got = pending.pop(place).to(out.device)  # taken before accelerate's hooks move it to the block's device

            def again(states: Tensor) -> Tensor:
                key = given_states(args, kwargs, name)[1]
                running_again.append(True)
                try:  # the module and not its forward: FSDP's hooks bring the weights together
                    if isinstance(key, int):
                        changed = module(*args[:key], states, *args[key + 1 :], **kwargs)
                    else:
                        changed = module(*args, **{**kwargs, key: states})
                finally:
                    running_again.clear()
                return as_positions(hidden_states(changed, name).detach())

            mask = _mask(padding[place[0]], out, name)
            visit(BlockPass(*place, as_positions(got), as_positions(out), got.dim() == 4, mask, again))

        return hook

    with ExitStack() as undo:
        undo.enter_context(torch.no_grad())
        for stack in inputs.stacks:
            for layer, block in enumerate(inputs.blocks(stack)):
                place = (stack.path, layer)
                undo.callback(block.register_forward_pre_hook(before(place), with_kwargs=True).remove)
                undo.callback(block.register_forward_hook(after(place), with_kwargs=True).remove)
        for batch in inputs.each_batch(what):
            ran.clear()
            for stack in inputs.stacks:
                padding[stack.path] = padding_mask(inputs.model, stack.path, batch)
            inputs.forward(batch)
            _check_ran(ran, inputs.stacks)
            yield batch


def mean_over_positions(
    inputs: CriterionInputs, function: Callable[[Tensor, Tensor], Tensor], what: str
) -> dict[str, list[float | None]]:
    """Mean of a function of each position's input and output, for every block, in one pass over the data.

    Args:
        inputs (`CriterionInputs`): model, stacks and data.
        function (callable): from the real positions of a block's input and output, both `(positions, features)` in 32 bits
            or more, to one value each; NaN where it has none. Values are added in 64 bits.
        what (`str`): what the progress bar says.

    Returns:
        `dict[str, list]`: for each stack path one mean a layer over all real positions of all batches, each one term;
        `None` for blocks that change the shape, and for those with no position that has a value (queries that are zero
        before the first block).

    Raises:
        CalibrationError: for NaN or infinite hidden states, or if everything is padding.
    """
    sums = {(stack.path, layer): [0.0, 0] for stack in inputs.stacks for layer in range(stack.depth)}
    seen: set[tuple[str, int]] = set()

    def visit(block: BlockPass) -> None:
        place = (block.path, block.layer)
        if not block.is_same_shape:
            seen.add(place)
            return
        before, after = block.real(block.before), block.real(block.after)
        check_finite(block, before, after)
        seen.update([place] if len(before) else [])
        values = function(before, after).cpu().double()
        known = values[~values.isnan()]
        sums[place][0] += float(known.sum())
        sums[place][1] += len(known)

    for _ in each_pass(inputs, visit, what):
        pass
    for path, layer in sums.keys() - seen:
        raise CalibrationError(
            f"{path}.{layer} has no real position on the calibration data: everything is padding. Use other examples."
        )
    means = {place: total / count if count else None for place, (total, count) in sums.items()}
    return {stack.path: [means[stack.path, layer] for layer in range(stack.depth)] for stack in inputs.stacks}


def check_finite(block: BlockPass, *states: Tensor) -> None:
    """Refuse NaN and infinite hidden states.

    Raises:
        CalibrationError: with the block's name.
    """
    if not all(bool(one.isfinite().all()) for one in states):
        raise CalibrationError(
            f"{block.path}.{block.layer} gets or puts out NaN or infinite values on the calibration data. Run the model in "
            "float32 or bfloat16, or look for bad examples; nothing was averaged over them."
        )


def given_states(args: Sequence[Any], kwargs: Mapping[str, Any], name: str) -> tuple[Tensor, int | str]:
    """The hidden states among a block's arguments, and where they are: a position or a name.

    Raises:
        CalibrationError: if there are none.
    """
    if isinstance(kwargs.get("hidden_states"), Tensor):
        return kwargs["hidden_states"], "hidden_states"
    named = [(index, value) for index, value in enumerate(args)] + list(kwargs.items())
    for key, value in named:
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() in (3, 4):
            return value, key
    raise CalibrationError(
        f"{name} is called without hidden states of shape (batch, positions, features) or (batch, channels, height, width), "
        "so its input cannot be compared with its output. Take a criterion that looks at outputs alone, e.g. cka or loss."
    )


def as_positions(states: Tensor) -> Tensor:
    """Hidden states as `(batch, positions, features)`; the positions of a feature map are its pixels."""
    return states.flatten(2).transpose(1, 2) if states.dim() == 4 else states


def _mask(padding: Tensor | None, out: Tensor, name: str) -> Tensor | None:
    if padding is None or out.dim() == 4:
        return None
    mask = fit_mask(padding, (out.shape[0], out.shape[1]), name)
    return None if bool(mask.all()) else mask.to(out.device)


def _check_ran(ran: Mapping[tuple[str, int], int], stacks: Sequence[BlockStack]) -> None:
    for stack in stacks:
        for layer in range(stack.depth):
            times = ran.get((stack.path, layer), 0)
            if times > 1:
                raise CalibrationError(
                    f"{stack.path}.{layer} ran {times} times in one forward pass: layers that share a block cannot be "
                    "compared."
                )
            if not times:
                raise CalibrationError(
                    f"{stack.path}.{layer} did not run in the forward pass of this batch. Give the batch every input that "
                    "the stack needs (an encoder-decoder model: labels or decoder_input_ids)."
                )
