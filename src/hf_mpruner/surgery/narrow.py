"""`apply_width_plan_`: neurons and heads leave a model, which stays one that plain `from_pretrained` loads."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from hf_mpruner.architectures import WidthProof, Widths, WidthSlice, prove_width
from hf_mpruner.architectures.adapters import unwrap_adapters
from hf_mpruner.errors import PlanMismatchError, UnsupportedArchitectureError
from hf_mpruner.features.measure import evaluating
from hf_mpruner.runtime import keep_rng_state
from hf_mpruner.surgery.layout import check_layout, check_whole
from hf_mpruner.surgery.once import Edit
from hf_mpruner.surgery.steps import prepare_config, prepare_value
from hf_mpruner.verify import check_request
from hf_mpruner.verify.outputs import ROUNDING, Outputs, allowed_error, find_difference, run_still
from hf_mpruner.verify.saved import BadCopyError, load_copy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_mpruner.config import Verification
    from hf_mpruner.plan import WidthPlan

Kept = tuple[WidthSlice, int, tuple[int, ...]]


@dataclass(frozen=True)
class Narrow:
    """Entries of the neurons that go leave a parameter, which stays the object that it is."""

    parameter: nn.Parameter
    old: Tensor
    old_grad: Tensor | None
    parts: tuple[Kept, ...]
    label: str

    def apply(self) -> None:
        """Write.

        Raises:
            RuntimeError: the place changed since the step was prepared.
        """
        if self.parameter.data.shape != self.old.shape:
            raise RuntimeError(f"{self.label} changed between preparing the edit and applying it. Prepare a new one.")
        self.parameter.grad = None  # of the other shape
        self.parameter.data = narrowed(self.old, self.parts)

    def undo(self) -> None:
        """Put back what was there."""
        self.parameter.grad = None
        self.parameter.data = self.old
        self.parameter.grad = self.old_grad


def narrowed(tensor: Tensor, parts: tuple[Kept, ...]) -> Tensor:
    """What stays of a parameter, or of a tensor of its shape such as its moments in an optimizer.

    Args:
        tensor (`torch.Tensor`): whole.
        parts (`tuple`): how the neurons lie in it, how many there are, and which stay.

    Returns:
        `torch.Tensor`: a new tensor.

    Example:
        >>> gate_and_up = torch.arange(6)
        >>> narrowed(gate_and_up, ((WidthSlice("mlp", "gate_up", 0, parts=2), 3, (0, 2)),))
        tensor([0, 2, 3, 5])
    """
    for part, size, kept in parts:
        index = torch.tensor(kept, device=tensor.device)
        room = tensor.unflatten(part.axis, (part.parts, size, -1))
        tensor = room.index_select(part.axis + 1, index).flatten(part.axis, part.axis + 2)
    return tensor.contiguous()


class WidthEdit(Edit):
    """One narrower width of a model: proved when it is made, applied and undone on call, once and in this order.

    Making it changes nothing. The whole weights are kept until the edit is dropped. An optimizer that exists already
    holds moments of the old shapes: narrow before it is made, as between two Trainers, or give it `narrowed` tensors.

    Args:
        model (`PreTrainedModel`): the model to narrow.
        plan (`WidthPlan`): made for it.
        found (`Widths`, *optional*): what `find_widths(model)` gave for the model as it is now, if at hand.

    Attributes:
        proof (`WidthProof`): the edits, as data.

    Raises:
        PlanMismatchError: the plan is for another model.
        UnsupportedArchitectureError: the narrower model cannot be proved right.
        UnsupportedBackendError: not all of its weights are in this process.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from hf_mpruner.plan import UnitPlan, WidthPlan
        >>> config = BertConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=6, vocab_size=9)
        >>> model = BertModel(config)
        >>> edit = WidthEdit(model, WidthPlan({"encoder.layer.0.output.dense": UnitPlan(6, (0, 4))}))
        >>> edit.apply()
        >>> model.encoder.layer[0].output.dense, model.config.intermediate_size
        (Linear(in_features=2, out_features=8, bias=True), 2)
        >>> edit.undo()
        >>> model.encoder.layer[0].output.dense, model.config.intermediate_size
        (Linear(in_features=6, out_features=8, bias=True), 6)
    """

    def __init__(self, model: PreTrainedModel, plan: WidthPlan, *, found: Widths | None = None) -> None:
        """Find what can go, prove the narrower model and prepare the steps."""
        super().__init__()
        check_whole(model)
        found = plan.check(model, found)
        check_layout(model, [found.units[path] for path in plan.units])
        self.proof: WidthProof = prove_width(model, found, plan.kept)
        by_parameter: dict[nn.Parameter, dict[int, Kept]] = {}
        names: dict[nn.Parameter, str] = {}
        for part, size, kept in self.proof.slices:
            parameter = cast(nn.Parameter, getattr(model.get_submodule(part.path), part.name))
            names[parameter] = f"parameter '{part.path}.{part.name}'"
            by_axis = by_parameter.setdefault(parameter, {})
            if by_axis.setdefault(part.axis, (part, size, kept))[2] != kept:
                raise PlanMismatchError(
                    f"{names[parameter]} is shared by several layers: the same must stay in all of them."
                )
        self._parts = {parameter: tuple(parts.values()) for parameter, parts in by_parameter.items()}
        self._steps += [
            Narrow(parameter, parameter.data, parameter.grad, parts, names[parameter])
            for parameter, parts in self._parts.items()
        ]
        written: set[tuple[int, str]] = set()  # a shared module has several paths
        for value in self.proof.values:
            module = model.get_submodule(value.path)
            if (id(module), value.name) not in written:
                written.add((id(module), value.name))
                self._steps.append(prepare_value(module, value))
        self._steps += [prepare_config(model, edit) for edit in self.proof.configs]

    @property
    def trims(self) -> dict[nn.Parameter, Callable[[Tensor], Tensor]]:
        """What takes the removed entries out of a tensor of a parameter's old shape, such as its moments."""
        return {parameter: partial(narrowed, parts=parts) for parameter, parts in self._parts.items()}


@contextmanager
def masked(model: nn.Module, plan: WidthPlan, found: Widths) -> Iterator[None]:
    """The uncut model with what a plan removes set to zero, for as long as the context lasts: what a narrowed one must equal.

    Args:
        model (`nn.Module`): its modules read zeros where neurons and heads are to go; weights are left as they are.
        plan (`WidthPlan`): made for it.
        found (`Widths`): of the model.
    """
    handles = []
    for path, unit in plan.units.items():
        keep = torch.zeros(unit.size, dtype=torch.bool)
        keep[list(unit.kept)] = True
        keep = keep.repeat_interleave(found.units[path].each)

        def hide(_: nn.Module, given: tuple[Any, ...], keep: Tensor = keep) -> tuple[Any, ...]:
            return (torch.where(keep.to(given[0].device), given[0], 0), *given[1:])

        handles.append(model.get_submodule(path).register_forward_pre_hook(hide))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def apply_width_plan_(
    model: PreTrainedModel,
    plan: WidthPlan,
    *,
    verify: Verification = "structure",
    inputs: Mapping[str, Any] | None = None,
) -> WidthEdit:
    """Take neurons and heads out of a model as a plan says, once.

    Args:
        model (`PreTrainedModel`): the model the plan was made for, or a fresh copy of it; changed in place.
        plan (`WidthPlan`): in the numbering of that model.
        verify (`"structure"` or `"full"`): compare with the model that the new config builds, or also run the narrowed
            model on `inputs`: it must equal the whole model with the same neurons and heads set to zero, up to the rounding
            of shorter sums, and a copy that was saved to a temporary folder and loaded again, to the bit on the CPU.
        inputs (`Mapping`, *optional*): for `verify="full"`: one batch of arguments of the model's `forward`.

    Returns:
        `WidthEdit`: the applied edit; `.undo()` takes it back.

    Raises:
        PlanMismatchError: the plan is for another model, or was applied already.
        UnsupportedArchitectureError: the narrower model cannot be proved right, or did not pass on `inputs`.
        ValueError: `verify="full"` without `inputs`, or the other way round. In all cases the model is as it was.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from hf_mpruner.plan import UnitPlan
        >>> from hf_mpruner import WidthPlan
        >>> config = BertConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=6, vocab_size=9)
        >>> model = BertModel(config).eval()
        >>> plan = WidthPlan({"encoder.layer.0.output.dense": UnitPlan(6, (0, 2, 3, 5))})
        >>> _ = apply_width_plan_(model, plan, verify="full", inputs={"input_ids": torch.tensor([[1, 2, 3]])})
        >>> model.config.intermediate_size
        4
    """
    check_request(verify, inputs)
    model = cast("PreTrainedModel", unwrap_adapters(model))
    found = plan.check(model)
    if inputs is not None:
        return apply_compared_(model, plan, found, inputs, saved=True)
    edit = WidthEdit(model, plan, found=found)
    edit.apply()
    return edit


def apply_compared_(
    model: PreTrainedModel, plan: WidthPlan, found: Widths, inputs: Mapping[str, Any], *, saved: bool
) -> WidthEdit:
    """Narrow a model and run it: against the whole one with zeros, and, if asked, against a copy that went over the disk.

    Raises:
        UnsupportedArchitectureError: it cannot be proved right or did not pass; the model is as it was.
    """
    edit = WidthEdit(model, plan, found=found)
    with keep_rng_state(), evaluating(model):
        whole = run_still(model, inputs)
        with masked(model, plan, found):
            wanted = run_still(model, inputs)
        edit.apply()
        try:
            _check(model, wanted, whole, inputs, saved=saved)
        except BaseException:
            edit.undo()
            raise
    return edit


def _check(model: PreTrainedModel, wanted: Outputs, whole: Outputs, inputs: Mapping[str, Any], *, saved: bool) -> None:
    """Compare the narrowed model with what it must compute, and with itself after a way over the disk.

    In 16 bits the rounding of shorter sums grows from layer to layer. There a narrowed model that is off by more than the
    usual allowance must still be within a tenth of what it must compute, or nearer to it than half of what narrowing
    changes: with other neurons than planned it would be about as far from it as the whole model is.

    Raises:
        UnsupportedArchitectureError: says what differs.
    """
    name = f"{type(model).__name__} (model_type {model.config.model_type!r})"
    exact = allowed_error(model)
    outputs = run_still(model, inputs)
    fault = find_difference(outputs, wanted, max(exact, ROUNDING))
    if fault and not (exact > ROUNDING and _is_nearer(outputs, wanted, whole)):
        raise UnsupportedArchitectureError(
            f"{name}: the narrowed model is not the whole one with the same neurons or heads set to zero: {fault}. The model "
            "was not changed."
        )
    if not saved:
        return
    with tempfile.TemporaryDirectory(prefix="_hf_mpruner-verify-") as folder:
        try:
            again = run_still(load_copy(model, Path(folder)), inputs)
        except BadCopyError as error:
            raise UnsupportedArchitectureError(f"{name}: {error}. The model was not changed.") from error
        if fault := find_difference(again, outputs, exact):
            raise UnsupportedArchitectureError(
                f"{name}: a copy of the narrowed model that was saved and loaded again puts out something else: {fault}. The "
                "model was not changed."
            )


def _is_nearer(outputs: Outputs, wanted: Outputs, whole: Outputs) -> bool:
    """Whether outputs are the wanted ones, up to a tenth or half of what separates those from the whole model's."""
    if outputs.keys() != wanted.keys():
        return False
    floats = [name for name, tensor in wanted.items() if tensor.is_floating_point()]

    def apart(one: Tensor, other: Tensor) -> float:
        return float((one.double() - other.double()).nan_to_num().norm())

    return bool(floats) and all(
        outputs[name].shape == tensor.shape
        and apart(outputs[name], tensor) <= max(apart(whole[name], tensor) / 2, float(tensor.double().norm()) / 10)
        for name, tensor in wanted.items()
        if name in floats
    )
