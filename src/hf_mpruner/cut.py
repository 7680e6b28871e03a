"""A cut that can still be taken back: model, config, optimizer, scheduler and weights change together, or not at all."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from .architectures import CutProof, parameters_after
from .config import PruningConfig
from .errors import UnsupportedArchitectureError, UnsupportedBackendError
from .optimizer import OptimizerEdit, check_optimizer_matches, find_missing_parameters
from .plan import PruningPlan
from .recovery import Trainable
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
        trainable (`Trainable`): what trains during recovery.
        size (`tuple[int, int]`): parameters and bytes of the cut model, without what recovery adds.
        started (`float`): `time.perf_counter()` when the cut was made.
    """

    model_edit: ModelEdit
    optimizer_edit: OptimizerEdit | None
    snapshot: Snapshot | None
    trainable: Trainable
    size: tuple[int, int]
    started: float

    def undo(self) -> None:
        """Put the model, its config, the optimizer and the weights back exactly as they were."""
        self.trainable.undo()
        if self.optimizer_edit is not None:
            self.optimizer_edit.undo()  # first, since it may refuse: then nothing has been undone by half
        self.model_edit.undo()
        if self.snapshot is not None:
            self.snapshot.restore()
            self.snapshot.release()

    def keep(self) -> None:
        """Make the cut final and free what a rollback would have needed."""
        self.trainable.keep()
        if self.snapshot is not None:
            self.snapshot.release()


def check_verification(config: PruningConfig, has_inputs: bool, runtime: Runtime | None) -> None:
    """Refuse a verification that cannot be carried out.

    Args:
        config (`PruningConfig`): what the user asked for.
        has_inputs (`bool`): whether there is a batch to run cuts on.
        runtime (`Runtime`, *optional*): the processes.

    Raises:
        ValueError: if it asks for `verify="full"` without inputs.
        UnsupportedBackendError: if forward passes around a cut are not possible.
    """
    if config.verify == "full" and not has_inputs:
        raise ValueError(
            "PruningConfig(verify='full') runs each cut on real inputs: pass verify_inputs, a function that returns a "
            "batch for the model's forward, or verify='structure'."
        )
    if config.verify == "full" and runtime is not None and runtime.equal_forwards:
        raise UnsupportedBackendError(
            f"PruningConfig(verify='full') runs the model around each cut, which {runtime.name} does not allow: its "
            "units would be whole while the optimizer is edited. Pass verify='structure'. Nothing was changed."
        )


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
    trainable: Trainable,
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
        trainable (`Trainable`): what trains until the verdict.
        verify_inputs (`Mapping`, *optional*): a batch to run the cut on (`verify="full"`).
        whole (`nn.Module`, *optional*): what the optimizer trains, if the model is only a part of it.

    Raises:
        UnsupportedArchitectureError: if the cut is not proved right, or fails on `verify_inputs`; nothing was changed.
        MPrunerError: if any other part fails; what had been changed by then is undone.
    """
    runtime.before_edit()
    try:
        edit, check = _prove(model, plan, verify_inputs, snapshot_directory)
    except BaseException:
        runtime.after_edit()
        raise
    whole, removed = model if whole is None else whole, edit.removed_parameters
    optimizer_edit = OptimizerEdit(optimizer, scheduler, removed, edit.trims, whole) if optimizer is not None else None
    missing_before = find_missing_parameters(whole, optimizer) if optimizer is not None else []
    frozen = list(whole.parameters()) if trainable.base_is_frozen else []
    kept_weights = None
    if snapshot is not None:
        kept_weights = Snapshot.take(
            whole,
            optimizer,
            removed=removed,
            frozen=frozen,
            where=snapshot,
            directory=snapshot_directory,
            scaler=scaler,
        )
    try:
        apply_verified_(edit, check)
    except BaseException:
        if kept_weights is not None:
            kept_weights.release()
        runtime.after_edit()
        raise
    cut = PendingCut(edit, optimizer_edit, kept_weights, trainable, parameters_after(model, {}), 0.0)
    return _train_on(cut, model, optimizer, plan, runtime, missing_before, whole)


def _train_on(
    cut: PendingCut,
    model: PreTrainedModel,
    optimizer: Any,
    plan: PruningPlan,
    runtime: Runtime,
    missing_before: Any,
    whole: nn.Module,
) -> PendingCut:
    """Optimizer, recovery and wrappers follow the model that was cut, or it is put back."""
    try:
        if cut.optimizer_edit is not None:
            cut.optimizer_edit.apply()
        cut.trainable.apply(model, optimizer, plan, whole)
        runtime.after_edit()
        if optimizer is not None:
            check_optimizer_matches(whole, optimizer, missing_before)
    except BaseException:
        cut.undo()
        runtime.after_edit()  # a wrapper may have seen the cut model
        raise
    cut.started = time.perf_counter()
    return cut


def _prove(
    model: PreTrainedModel, plan: PruningPlan, inputs: Mapping[str, Any] | None, directory: Path | None
) -> tuple[ModelEdit, FullCheck | None]:
    edit = ModelEdit(model, plan.kept, merged=plan.merged)
    check_usable(model, edit.proof)
    return edit, None if inputs is None else FullCheck(
        model, plan.kept, inputs, merged=plan.merged, directory=directory
    )


def check_usable(model: PreTrainedModel, proof: CutProof) -> None:
    """Refuse a cut that is right, but after which transformers cannot do what an evaluation may do.

    In a run somebody evaluates the cut model, which would end the run in the middle of a round.

    Raises:
        UnsupportedArchitectureError: says what, and what to set for it to be cut nevertheless.
    """
    if proof.warning and getattr(getattr(model, "generation_config", None), "use_cache", None) is not False:
        raise UnsupportedArchitectureError(
            f"{proof.warning} To cut it nevertheless, set model.generation_config.use_cache = False before the run."
        )
