"""A cut that can still be taken back: model, config, optimizer, scheduler and weights change together, or not at all."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from .optimizer import OptimizerEdit, check_optimizer_matches, find_missing_parameters
from .plan import PruningPlan
from .recovery import FrozenParameters, freeze_untouched_, touched_layers
from .runtime import Runtime
from .snapshot import Snapshot
from .surgery import ModelEdit
from .verify import FullCheck, apply_verified_

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class PendingCut:
    """Everything that a cut changed, each with its undo.

    Args:
        model_edit (`ModelEdit`): blocks, config and positions.
        optimizer_edit (`OptimizerEdit`, *optional*): parameters and moments, if there is an optimizer.
        snapshot (`Snapshot`, *optional*): weights before training went on, if it goes on.
        frozen (`FrozenParameters`, *optional*): parameters that do not train during recovery.
        started (`float`): `time.perf_counter()` when the cut was made.
    """

    model_edit: ModelEdit
    optimizer_edit: OptimizerEdit | None
    snapshot: Snapshot | None
    frozen: FrozenParameters | None
    started: float

    def undo(self) -> None:
        """Put the model, its config, the optimizer and the weights back exactly as they were."""
        if self.frozen is not None:
            self.frozen.undo()
        if self.optimizer_edit is not None:
            self.optimizer_edit.undo()  # first, since it may refuse: then nothing has been undone by half
        self.model_edit.undo()
        if self.snapshot is not None:
            self.snapshot.restore()
            self.snapshot.release()

    def keep(self) -> None:
        """Make the cut final and free what a rollback would have needed."""
        if self.frozen is not None:
            self.frozen.undo()
        if self.snapshot is not None:
            self.snapshot.release()


def make_cut(
    model: PreTrainedModel,
    plan: PruningPlan,
    optimizer: Any,
    scheduler: Any,
    *,
    scaler: Any = None,
    runtime: Runtime,
    snapshot: Literal["cpu", "device", "disk"] | None,
    snapshot_directory: Path | None,
    freeze_untouched: bool,
    verify_inputs: Mapping[str, Any] | None = None,
    whole: nn.Module | None = None,
) -> PendingCut:
    """Cut the model, and the optimizer with it.

    Args:
        model (`PreTrainedModel`): changed in place.
        plan (`PruningPlan`): in the numbering of the model as it is.
        optimizer (*optional*): the live one, edited in place.
        scheduler (*optional*): the live one, edited in place.
        scaler (*optional*): the gradient scaler of fp16 training; its state goes into the snapshot.
        runtime (`Runtime`): told before and after.
        snapshot (*optional*): where the surviving weights are kept; `None` if nothing trains before the verdict.
        snapshot_directory (`Path`, *optional*): the folder for `snapshot="disk"`.
        freeze_untouched (`bool`): train only beside the cut, and the head.
        verify_inputs (`Mapping`, *optional*): a batch to run the cut on (`verify="full"`).
        whole (`nn.Module`, *optional*): what the optimizer trains, if the model is only a part of it.

    Raises:
        UnsupportedArchitectureError: if the cut is not proved right, or fails on `verify_inputs`; nothing was changed.
        MPrunerError: if any other part fails; what had been changed by then is undone.
    """
    runtime.before_edit()
    try:
        edit = ModelEdit(model, plan.kept)
        check = None
        if verify_inputs is not None:
            check = FullCheck(model, plan.kept, verify_inputs, directory=snapshot_directory)
    except BaseException:
        runtime.after_edit()
        raise
    whole, removed = model if whole is None else whole, edit.removed_parameters
    optimizer_edit = OptimizerEdit(optimizer, scheduler, removed, edit.trims, whole) if optimizer is not None else None
    missing_before = find_missing_parameters(whole, optimizer) if optimizer is not None else []
    kept_weights = frozen = None
    if snapshot is not None:
        kept_weights = Snapshot.take(
            whole, optimizer, removed=removed, where=snapshot, directory=snapshot_directory, scaler=scaler
        )
    try:
        apply_verified_(edit, check)
    except BaseException:
        if kept_weights is not None:
            kept_weights.release()
        runtime.after_edit()
        raise
    try:
        if optimizer_edit is not None:
            optimizer_edit.apply()
        if freeze_untouched:
            touched = {path: touched_layers(stack.depth, stack.kept) for path, stack in plan.stacks.items()}
            frozen = freeze_untouched_(model, touched)
        runtime.after_edit()
        if optimizer is not None:
            check_optimizer_matches(whole, optimizer, missing_before)
    except BaseException:
        _give_up(PendingCut(edit, optimizer_edit, kept_weights, frozen, 0.0), runtime)
        raise
    return PendingCut(edit, optimizer_edit, kept_weights, frozen, time.perf_counter())


def _give_up(cut: PendingCut, runtime: Runtime) -> None:
    """Take back what was done, also in a wrapper that may have seen the cut model."""
    cut.undo()
    runtime.after_edit()
