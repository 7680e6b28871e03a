"""What the neurons and heads of a transformers model put out on calibration data, gathered as moments."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_mpruner.architectures import WidthUnit
from hf_mpruner.errors import CalibrationError
from hf_mpruner.features.measure import evaluating
from hf_mpruner.features.rows import hidden_states, padding_mask
from hf_mpruner.placement import input_device
from hf_mpruner.runtime import keep_rng_state
from hf_mpruner.width.base import NeuronInputs
from hf_mpruner.width.moments import Moments

# What the moments of the layers of one pass over the data may take; what does not fit has a pass of its own.
MAX_BYTES = 2**31


@dataclass
class _Gathered:
    """The activations of units that go together, of the batch that runs and of all before."""

    units: tuple[WidthUnit, ...]
    target: bool
    hold: bool
    moments: Moments | None = None
    held: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)
    waiting: dict[str, Tensor] = field(default_factory=dict)

    def add(self, unit: WidthUnit, rows: Tensor) -> None:
        """`(tokens, size * each)` of one unit."""
        self.waiting[unit.path] = rows.unflatten(1, (unit.size, unit.each))
        if not self.target:
            self.finish(None)

    def finish(self, target: Tensor | None) -> None:
        """Take in a batch, once all units have run."""
        if len(self.waiting) < len(self.units):
            return
        rows = torch.cat([self.waiting[unit.path] for unit in self.units], dim=2)
        self.waiting.clear()
        rows = rows.squeeze(2) if rows.shape[2] == 1 else rows
        if self.hold:
            self.held.append((rows.cpu(), None if target is None else target.cpu()))
            return
        if self.moments is None:
            columns = rows.shape[2] if rows.ndim == 3 else 1
            self.moments = Moments(rows.shape[1], 0 if target is None else target.shape[1], columns)
        self.moments.update(rows, target)

    def inputs(self, model: nn.Module, seed: int) -> NeuronInputs:
        """What a criterion gets."""
        given = NeuronInputs(self.units[0].path, weights=incoming_weights(model, self.units), seed=seed)
        if self.held:
            given.activations = torch.cat([rows for rows, _ in self.held])
            given.target = torch.cat([rows for _, rows in self.held if rows is not None]) if self.target else None
        given.moments = self.moments
        return given


def measure_units(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]] | None,
    together: Sequence[Sequence[WidthUnit]],
    *,
    needs: frozenset[str] = frozenset({"moments"}),
    seed: int = 0,
    show_progress: bool | None = None,
    max_bytes: int = MAX_BYTES,
) -> Iterator[NeuronInputs]:
    """What a neuron criterion needs of a model's feed-forwards and attentions, unit by unit.

    Activations are the inputs of the module that reads them: of a feed-forward after the activation function and the gate,
    of an attention the heads' sums before the output projection, a head's own entries as its columns. Positions that are
    padding do not count. Moments take memory by the width of a layer and not by the data; where those of all layers would
    take more than `max_bytes`, the data is run several times. The target is the output of the whole block: what the next
    one reads, which is no function of the feed-forward alone.

    Args:
        model (`PreTrainedModel`): run in eval mode without gradients, and left as it was.
        batches (`Iterable[Mapping]`, *optional*): arguments of its forward; can be iterated again, with the same batches.
        together (sequence of sequences of `WidthUnit`): units that must lose the same neurons or heads, each with the
            columns of all of them.
        needs (`frozenset[str]`): of a `NeuronCriterion`; without `"moments"`, `"activations"` and `"target"` nothing is run.
        seed (`int`): for criteria that draw.
        show_progress (`bool`, *optional*): progress bar; by default only on a terminal.
        max_bytes (`int`): of moments in one pass.

    Yields:
        `NeuronInputs`: one for each entry of `together`, in its order, named by its first unit.

    Raises:
        CalibrationError: there is no batch, a mask that does not fit, a unit that never ran, or a value that is not finite.
    """
    if not needs & {"moments", "activations", "target"}:
        for units in together:
            yield NeuronInputs(units[0].path, weights=incoming_weights(model, units), seed=seed)
        return
    if batches is None:
        raise CalibrationError("This criterion runs the model on calibration data: pass calibration=dataset.")
    target, hold = "target" in needs, "activations" in needs
    for part in _passes([tuple(units) for units in together], max_bytes):
        gathered = [_Gathered(units, target, hold) for units in part]
        _run(model, batches, gathered, show_progress)
        for one in gathered:
            if one.moments is None and not one.held:
                raise CalibrationError(
                    f"'{one.units[0].path}' never ran on the calibration data. Pass data that reaches that part of the model."
                )
            yield one.inputs(model, seed)


def _passes(together: Sequence[tuple[WidthUnit, ...]], max_bytes: int) -> Iterator[list[tuple[WidthUnit, ...]]]:
    """Units whose moments fit into memory together, at least one at a time."""
    part: list[tuple[WidthUnit, ...]] = []
    taken = 0
    for units in together:
        size = 8 * sum(unit.size * unit.each for unit in units) ** 2
        if part and taken + size > max_bytes:
            yield part
            part, taken = [], 0
        part.append(units)
        taken += size
    if part:
        yield part


def _run(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    gathered: Sequence[_Gathered],
    show_progress: bool | None,
) -> None:
    """One pass over the data."""
    now: dict[str, Any] = {}
    device = input_device(model)
    show = sys.stderr.isatty() if show_progress is None else show_progress
    with ExitStack() as undo:
        undo.enter_context(keep_rng_state())
        undo.enter_context(evaluating(model))
        undo.enter_context(torch.no_grad())
        for one in gathered:
            _attach(model, one, now, undo)
        seen = 0
        for batch in tqdm(batches, desc="Measuring neurons", disable=not show, leave=False):
            now["batch"] = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
            for one in gathered:
                one.waiting.clear()
            model(**{name: value.to(device) for name, value in now["batch"].items()})
            seen += 1
        if not seen:
            raise CalibrationError("The calibration data gave no batch. Is its dataset empty, or was it read before?")


def _attach(model: nn.Module, one: _Gathered, now: Mapping[str, Any], undo: ExitStack) -> None:
    """Hooks that hand a unit's activations on, and the output of its last unit's block."""

    def note(unit: WidthUnit) -> Any:
        def hook(_: nn.Module, given: tuple[Any, ...]) -> None:
            mask = padding_mask(model, unit.path, now["batch"])
            one.add(unit, _real_rows(given[0], mask, unit.size * unit.each, unit.path))

        return hook

    for unit in one.units:
        undo.callback(model.get_submodule(unit.path).register_forward_pre_hook(note(unit)).remove)
    if one.target:
        last = one.units[-1]

        def finish(_: nn.Module, __: Any, output: Any) -> None:
            hidden = hidden_states(output, last.block)
            mask = padding_mask(model, last.path, now["batch"])
            one.finish(_real_rows(hidden, mask, hidden.shape[-1], last.block))

        undo.callback(model.get_submodule(last.block).register_forward_hook(finish).remove)


def _real_rows(hidden: Tensor, mask: Tensor | None, width: int, name: str) -> Tensor:
    """`(tokens, width)` of the positions that are no padding."""
    if hidden.ndim == 4 and hidden.shape[1] == width != hidden.shape[3]:  # channels first, as convolutions have them
        hidden = hidden.movedim(1, -1)
    rows = hidden.detach().reshape(-1, width)
    if mask is None or bool(mask.all()) or mask.sum() == len(rows):  # no padding, or taken out already
        return rows
    if mask.ndim != 2 or mask.numel() % len(rows):
        raise CalibrationError(
            f"'{name}' has {len(rows)} positions, but the padding mask has shape {tuple(mask.shape)}, so it is not known "
            "which of them are padding. Pass calibration batches without padding: all examples of a batch of one length, or "
            "calibration_batch_size=1."
        )
    return rows[mask.bool().reshape(len(rows), -1).any(1).to(rows.device)]


def incoming_weights(model: nn.Module, units: Sequence[WidthUnit]) -> Tensor:
    """The weights into each neuron, or into each head's queries, keys and values: a row for each, `(size, weights)`."""
    rows = []
    for unit in units:
        for part in unit.slices:
            if part.path != unit.path and part.name == "weight":
                weight = model.get_submodule(part.path).get_parameter(part.name).detach().movedim(part.axis, 0)
                own = weight.unflatten(0, (part.parts, unit.size, -1)).movedim(1, 0)
                rows.append(own.flatten(1).float())
    return torch.cat(rows, dim=1)
