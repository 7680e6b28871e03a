"""The only module that changes a model's structure. Every change is proved first and has an exact undo."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from .architectures import (
    ABSENT,
    ConfigEdit,
    CutProof,
    Examination,
    ValueEdit,
    check_kept,
    examine,
    find_block_stacks,
    prove_cut,
)
from .architectures.reference import plain
from .errors import PlanMismatchError, UnsupportedArchitectureError
from .verify import FullCheck, apply_verified_, check_request

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .config import Verification
    from .plan import PruningPlan, StackPlan

_CHANGED = "{} changed between preparing the cut and applying it. Prepare a new ModelEdit."


@dataclass(frozen=True)
class _Write:
    """New content for one entry of a namespace: `vars(module)`, `vars(config)`, a module's buffers.

    Writing to the namespace instead of the attribute passes by setters that would validate half an edit. `following`
    are the names behind an entry that goes, so that it comes back to its place.
    """

    namespace: MutableMapping[str, Any]
    name: str
    old: Any
    new: Any
    label: str
    following: tuple[str, ...] = ()

    @classmethod
    def prepare(cls, namespace: MutableMapping[str, Any], name: str, new: Any, label: str) -> _Write:
        old = namespace.get(name, ABSENT)
        names = list(namespace)
        following = tuple(names[names.index(name) + 1 :]) if new is ABSENT else ()
        return cls(namespace, name, old, tuple(new) if isinstance(old, tuple) else new, label, following)

    def apply(self) -> None:
        if self.namespace.get(self.name, ABSENT) is not self.old:
            raise RuntimeError(_CHANGED.format(self.label))
        self._set(self.new)

    def undo(self) -> None:
        self._set(self.old)
        for name in self.following:
            if name in self.namespace:
                self.namespace[name] = self.namespace.pop(name)

    def _set(self, value: Any) -> None:
        if value is ABSENT:
            del self.namespace[self.name]
        else:
            self.namespace[self.name] = value


@dataclass(frozen=True)
class _Rewire:
    """New entries for a module list, which stays the object that it is."""

    children: dict[str, nn.Module | None]
    old: dict[str, nn.Module | None]
    new: dict[str, nn.Module | None]
    label: str

    def apply(self) -> None:
        if self.children != self.old:
            raise RuntimeError(_CHANGED.format(self.label))
        self._fill(self.new)

    def undo(self) -> None:
        self._fill(self.old)

    def _fill(self, entries: dict[str, nn.Module | None]) -> None:
        self.children.clear()
        self.children.update(entries)


class ModelEdit:
    """One cut of a model: proved when it is made, applied and undone on call, both at most once and in this order.

    Making it changes nothing. The removed blocks are kept by reference until the edit is dropped.

    Args:
        model (`PreTrainedModel`): the model to cut.
        kept (`Mapping[str, Sequence[int]]`): by stack path the layers that stay, in the numbering of the model as it
            is; stacks that are not named stay whole.
        found (`Examination`, *optional*): what `examine(model)` gave for the model as it is now, if at hand.

    Attributes:
        proof (`CutProof`): the edits, as data.
        removed_blocks (`dict[str, tuple[nn.Module, ...]]`): by stack path, the blocks that go.
        removed_parameters (`list[nn.Parameter]`): the parameters that leave the model, each once.

    Raises:
        PlanMismatchError: `kept` names an unknown stack or no valid selection of its layers.
        UnsupportedArchitectureError: the cut cannot be proved right.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=4, hidden_size=8, num_attention_heads=2, vocab_size=9))
        >>> edit = ModelEdit(model, {"encoder.layer": [0, 3]})
        >>> edit.apply()
        >>> len(model.encoder.layer), model.config.num_hidden_layers
        (2, 2)
        >>> edit.undo()
        >>> len(model.encoder.layer), model.config.num_hidden_layers
        (4, 4)
    """

    def __init__(
        self, model: PreTrainedModel, kept: Mapping[str, Sequence[int]], *, found: Examination | None = None
    ) -> None:
        """Find the stacks, prove the cut and prepare its steps."""
        self.proof: CutProof = prove_cut(model, found or examine(model), kept)
        self.removed_blocks: dict[str, tuple[nn.Module, ...]] = {}
        self._steps: list[_Write | _Rewire] = []
        for path, cut in self.proof.cuts.items():
            container = model.get_submodule(path)
            blocks = [block for block in container._modules.values() if block is not None]
            self.removed_blocks[path] = tuple(blocks[layer] for layer in range(cut.depth) if layer not in cut.kept)
            survivors: dict[str, nn.Module | None] = {str(n): blocks[layer] for n, layer in enumerate(cut.kept)}
            self._steps.append(_Rewire(container._modules, dict(container._modules), survivors, repr(path)))
        for value in self.proof.values:
            self._steps.append(_prepare_value(model.get_submodule(value.path), value))
        self._steps += [_prepare_config(model, edit) for edit in self.proof.configs]
        self._state = "prepared"

    @property
    def removed_parameters(self) -> list[nn.Parameter]:
        """The parameters that leave the model, each once."""
        gone = (p for blocks in self.removed_blocks.values() for block in blocks for p in block.parameters())
        return list({id(parameter): parameter for parameter in gone}.values())

    def apply(self) -> None:
        """Cut the model. Warns (`UserWarning`) if transformers cannot generate with a cache any more.

        Raises:
            RuntimeError: the edit was applied before, or the model changed since it was made; the model is as it was.
        """
        self._advance("prepared", "applied")
        done: list[_Write | _Rewire] = []
        try:
            for step in self._steps:
                step.apply()
                done.append(step)
        except BaseException:
            for step in reversed(done):
                step.undo()
            self._state = "prepared"
            raise
        if self.proof.warning:
            warnings.warn(self.proof.warning, stacklevel=2)

    def undo(self) -> None:
        """Make the model what it was: the same module objects in the same places, the same config and list objects.

        Raises:
            RuntimeError: the edit is not in force.
        """
        self._advance("applied", "undone")
        for step in reversed(self._steps):
            step.undo()

    def _advance(self, expected: str, following: str) -> None:
        if self._state != expected:
            call = "apply" if following == "applied" else "undo"
            raise RuntimeError(
                f"{call}() needs an edit that is {expected}, but this one is {self._state}. An edit is applied once and "
                "undone once; make a new ModelEdit for another cut."
            )
        self._state = following


def _prepare(namespace: MutableMapping[str, Any], name: str, old: Any, new: Any, label: str) -> _Write:
    """A write whose present value was checked against the one that the proof started from."""
    present = namespace.get(name, ABSENT)
    if plain(present) != plain(old):
        raise UnsupportedArchitectureError(
            f"{label} is {present!r}, but a model built from the config has {old!r} there, so the cut cannot be proved "
            "right. Load the model again with from_pretrained."
        )
    return _Write.prepare(namespace, name, new, label)


def _prepare_value(module: nn.Module, edit: ValueEdit) -> _Write:
    label = f"attribute {edit.name!r} of module {edit.path!r}"
    if edit.name in module._buffers:
        return _Write.prepare(module._buffers, edit.name, edit.new, label)
    return _prepare(vars(module), edit.name, edit.old, edit.new, label)


def _prepare_config(model: PreTrainedModel, edit: ConfigEdit) -> _Write:
    node = vars(model.get_submodule(edit.path))[edit.holder]
    for part in edit.node.split(".") if edit.node else ():
        node = vars(node)[part]
    place = ".".join(part for part in (edit.path, edit.holder, edit.node) if part)
    return _prepare(vars(node), edit.name, edit.old, edit.new, f"{place}.{edit.name}")


def apply_plan_(
    model: PreTrainedModel,
    plan: PruningPlan,
    *,
    verify: Verification = "structure",
    inputs: Mapping[str, Any] | None = None,
) -> ModelEdit:
    """Cut a model as a plan says, once.

    Args:
        model (`PreTrainedModel`): the model the plan was made for, or a fresh copy of it; changed in place.
        plan (`PruningPlan`): layers in the numbering of that model.
        verify (`"structure"` or `"full"`): compare with the model that the new config builds, or also run the cut on
            `inputs`: it must equal the uncut model whose removed layers are skipped, and a copy that was saved to a
            temporary folder and loaded again; to the bit in 32 bits on the CPU, up to rounding elsewhere.
        inputs (`Mapping`, *optional*): for `verify="full"`: one batch of arguments of the model's `forward`.

    Returns:
        `ModelEdit`: the applied edit; `.undo()` takes the cut back.

    Raises:
        PlanMismatchError: the plan is for another model, was applied already, or removes a pinned layer.
        UnsupportedArchitectureError: the cut cannot be proved right, or did not pass on `inputs`.
        ValueError: `verify="full"` without `inputs`, or the other way round. In all cases the model is as it was.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> from hf_mpruner import PruningPlan, find_block_stacks
        >>> model = BertModel(BertConfig(num_hidden_layers=4, hidden_size=8, num_attention_heads=2, vocab_size=9))
        >>> plan = PruningPlan.from_kept({"encoder.layer": [0, 1, 3]}, find_block_stacks(model))
        >>> _ = apply_plan_(model, plan, verify="full", inputs={"input_ids": torch.tensor([[1, 2, 3]])})
        >>> len(model.encoder.layer)
        3
    """
    check_request(verify, inputs)
    model_type = model.config.model_type
    if plan.model_type is not None and plan.model_type != model_type:
        raise PlanMismatchError(
            f"This plan was made for model_type {plan.model_type!r}, but {type(model).__name__} has model_type "
            f"{model_type!r}. {_load_source(plan)}"
        )
    for path, stack in plan.stacks.items():
        _check_depth(model, plan, path, stack)
    found = examine(model)
    kept = {path: stack.kept for path, stack in plan.stacks.items() if len(stack.kept) < stack.depth}
    check_kept(found.stacks, kept)
    for candidate in found.stacks:
        for layer, reason in candidate.pinned.items():
            if layer not in kept.get(candidate.path, range(candidate.depth)):
                raise PlanMismatchError(
                    f"The plan removes layer {layer} of {candidate.path!r}, which must stay: {reason}. Keep it: add "
                    f"{layer} to the kept layers of {candidate.path!r}."
                )
    edit = ModelEdit(model, kept, found=found)
    apply_verified_(edit, None if inputs is None else FullCheck(model, kept, inputs))
    return edit


def _check_depth(model: PreTrainedModel, plan: PruningPlan, path: str, stack: StackPlan) -> None:
    try:
        depth = len(cast(nn.ModuleList, model.get_submodule(path)))
    except (AttributeError, TypeError):
        stacks = ", ".join(f"{found.path!r} ({found.depth} layers)" for found in find_block_stacks(model))
        raise PlanMismatchError(
            f"This plan cuts {path!r}, but {type(model).__name__} has no list of blocks there. Its stacks are: {stacks}."
        ) from None
    if depth == stack.depth:
        return
    if depth == len(stack.kept):
        raise PlanMismatchError(
            f"This plan keeps {len(stack.kept)} of {stack.depth} layers of {path!r}, but the model has {depth} there. "
            f"Was it applied already? {_load_source(plan)}"
        )
    raise PlanMismatchError(
        f"This plan is for {stack.depth} layers of {path!r}, but the model has {depth} there. Make a plan for this model "
        f"with PruningPlan.from_kept or from_clusters. Or: {_load_source(plan)}"
    )


def _load_source(plan: PruningPlan) -> str:
    if plan.source_model is None:
        return "Load the model that the plan was made for and apply it once."
    return f"Load {plan.source_model!r} (the plan's source_model) and apply it once."
