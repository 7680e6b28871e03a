"""Going on from a checkpoint of a pruning run, in a script that builds the uncut model.

Before `Trainer.train` loads anything the cuts of the checkpoint's record are made on the script's model; what a pending
cut needs to be taken back is put together again once the Trainer has made its optimizer.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from .architectures.adapters import CUT_MARK, adapter_configs
from .checkpoint import ROLLBACK_NAME, Checkpoint, last_whole_checkpoint, read_whole_checkpoint
from .cut import PendingCut
from .errors import MPrunerError, UnsupportedBackendError
from .optimizer import OptimizerEdit
from .plan import PruningPlan
from .record import PruningRecord, Round
from .rollback import Candidate, Rollback
from .roundplan import RoundPlan, live_numbers, plan_of
from .runtime import keep_rng_state
from .surgery import ModelEdit, mark_returned

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

logger = logging.getLogger(__name__)

# Reasons that hold for one call of `train()` only; a longer training may go on.
_PASSING = ("the training ended", "no epochs are left for another round")


@dataclass
class Resumption:
    """A run that is about to go on.

    Args:
        checkpoint (`Checkpoint`): where from.
        record (`PruningRecord`): of the run so far.
        edits: what was done to the script's model and optimizer, in order; each has an `undo`.
        pending (`ModelEdit`, *optional*): the cut that had no verdict yet, made on the script's model.
        pending_training (`OptimizerEdit`, *optional*): the same on the script's own optimizer.
        release (callable, *optional*): called by `undo`, lets go of a Trainer whose model was not made yet.
    """

    checkpoint: Checkpoint
    record: PruningRecord
    edits: list[ModelEdit | OptimizerEdit] = field(default_factory=list)
    pending: ModelEdit | None = None
    pending_training: OptimizerEdit | None = None
    release: Callable[[], None] | None = None

    def undo(self) -> None:
        """Give the script's model and optimizer back as they were."""
        if self.release is not None:
            self.release()
        for edit in reversed(self.edits):
            edit.undo()
        self.edits, self.pending, self.pending_training = [], None, None

    def cut(self, model: PreTrainedModel, optimizer: Any, scheduler: Any) -> None:
        """Make every accepted cut of the record, and the pending one, on the uncut model.

        Args:
            model (`PreTrainedModel`): uncut, or with the accepted cuts already (loaded from the checkpoint).
            optimizer (*optional*): made by the script; a Trainer makes its own later.
            scheduler (*optional*): made by the script.

        Raises:
            MPrunerError: for a model that is not the record's; model and optimizer are as they were.
        """
        record = self.record
        _check_kind(model, record, self.checkpoint.folder)
        whole = {path: list(range(depth)) for path, depth in record.depths.items()}
        live = {path: len(model.get_submodule(path)._modules) for path in record.depths}
        small = all(live[path] == len(layers) for path, layers in record.kept.items())
        if small and record.kept != whole and record.pending is None:
            if adapter_configs(
                model
            ):  # the base that they name lies in a checkpoint, which the Trainer deletes some day
                vars(model)[CUT_MARK] = True
            return
        if any(live[path] != depth for path, depth in record.depths.items()):
            raise MPrunerError(
                f"'{self.checkpoint.folder}' continues a run that began with {record.depths}, but the model has {live}. "
                "Build the model as the first run did, before any cut. Nothing was changed."
            )
        try:
            current = whole
            for round_ in record.rounds:
                if round_.verdict == "rejected" or round_.kept == current:
                    continue
                kept = live_numbers(round_.kept, current)
                edit = ModelEdit(model, {path: kept[path] for path in round_.kept if len(current[path]) > 1})
                trained = None
                if optimizer is not None:  # made before the cut, since it looks at the model's order then
                    trained = OptimizerEdit(optimizer, scheduler, edit.removed_parameters, edit.trims, model)
                self._do(edit)
                if trained is not None:
                    self._do(trained)
                if round_.verdict == "pending":
                    self.pending, self.pending_training = edit, trained
                current = round_.kept
        except BaseException:
            self.undo()
            raise

    def _do(self, edit: ModelEdit | OptimizerEdit) -> None:
        edit.apply()
        self.edits.append(edit)

    def rebuild(
        self,
        model: nn.Module,
        optimizer: Any,
        scheduler: Any,
        scaler: Any,
        make: Callable[[PruningPlan, Round], PendingCut],
        runtime: Any,
    ) -> tuple[PendingCut, RoundPlan]:
        """Make the pending cut again, from the model before it, and put the checkpoint's candidate into it.

        Args:
            model (`nn.Module`): all that trains, as the candidate, its weights loaded.
            optimizer: the live one, the candidate's state loaded.
            scheduler (*optional*): the live one, its state loaded.
            scaler (*optional*): the gradient scaler.
            make (callable): makes the round's cut on the model that is live now.
            runtime: told before and after.

        Returns:
            the cut, and the plan that it carries out.

        Raises:
            MPrunerError: if the rollback file is missing or damaged.
            UnsupportedBackendError: if it cannot be rebuilt with this optimizer, or under FSDP2; nothing was changed.
        """
        round_, edit = self.record.pending, self.pending
        if round_ is None or edit is None:
            raise MPrunerError("No cut is pending in this checkpoint.")
        if runtime.name == "FSDP2":
            raise UnsupportedBackendError(
                f"'{self.checkpoint.folder}' holds a cut without a verdict, which cannot be gone on with under FSDP2: the layers "
                "that were taken out would not be sharded. Resume from a checkpoint that was saved before that cut or after "
                'its verdict (save_strategy="epoch" makes such).'
            )
        rollback = Rollback.read(self.checkpoint.folder / ROLLBACK_NAME)
        rollback.check_optimizer(optimizer, scheduler, self.pending_training)
        with keep_rng_state():
            candidate = Candidate.lift(model, optimizer, scaler)
            runtime.before_edit()
            self.edits.remove(edit)
            edit.undo()
            mark_returned(model, rollback.checkpointed_every)
            rollback.restore_model(model)
            rollback.restore_optimizer(model, optimizer, scheduler, self.pending_training)
            if scaler is not None and rollback.scaler:
                scaler.load_state_dict(rollback.scaler)
            following = plan_of(round_, self.record)
            cut = make(following.plan, round_)
            if cut.optimizer_edit is not None and rollback.optimizer is not None:
                cut.optimizer_edit.recall(rollback.optimizer["dropped"])
            candidate.put_back(model, optimizer, scaler)
        return cut, following


def find_checkpoint(resume_from_checkpoint: Any, output_dir: str | None) -> Checkpoint | None:
    """What `Trainer.train(resume_from_checkpoint=...)` shall resume from.

    Args:
        resume_from_checkpoint: `True` for the newest whole checkpoint of `output_dir`, or a folder.
        output_dir (`str`, *optional*): the Trainer's.

    Returns:
        `Checkpoint`, or `None` to begin anew, which a warning says if there are checkpoints but none is whole.

    Raises:
        MPrunerError: if a folder was named that is not whole.
    """
    if resume_from_checkpoint is not True:
        return read_whole_checkpoint(resume_from_checkpoint)
    folder = Path(output_dir or ".")
    found = last_whole_checkpoint(folder)
    if found is None and any(folder.glob("checkpoint-*")):
        logger.warning("No checkpoint in '%s' is whole: the training begins anew.", folder)
    return found


def begin(checkpoint: Checkpoint) -> Resumption | None:
    """The run that a checkpoint belongs to; `None` if it is of a plain training, or nothing was pruned by then."""
    record = checkpoint.record
    if record is None:
        return None
    if record.stopped in _PASSING:
        record.stopped = None
    return Resumption(checkpoint, record)


def prepare(
    trainer: Trainer,
    inner: Callable[[], PreTrainedModel],
    checkpoint: Checkpoint | None,
) -> Resumption | None:
    """Cut the script's model as the checkpoint's record says, before the Trainer loads weights into it.

    Args:
        trainer (`Trainer`): about to train.
        inner (callable): returns the transformers model that the Trainer trains.
        checkpoint (`Checkpoint`, *optional*): where it goes on from.

    Returns:
        `Resumption`, or `None` if there is nothing to cut.

    Raises:
        MPrunerError: for a checkpoint of another model; nothing was changed.
        UnsupportedBackendError: if a loss decides and another number of processes saved it; nothing was changed.
    """
    resumption = None if checkpoint is None else begin(checkpoint)
    if resumption is None:
        return None
    check_world_size(resumption.record, trainer.args.world_size)
    if getattr(trainer, "model_init", None) is None:
        resumption.cut(inner(), trainer.optimizer, trainer.lr_scheduler)
        return resumption
    own = "call_model_init" in vars(trainer)
    make_model = trainer.call_model_init

    def release() -> None:
        resumption.release = None
        if own:
            trainer.call_model_init = make_model  # type: ignore[method-assign]
        else:
            del trainer.call_model_init

    def cut_model(trial: Any = None) -> Any:
        # train() builds its model anew, so the cuts wait until it has
        release()
        trainer.model = made = make_model(trial)
        resumption.cut(inner(), None, None)
        return made

    trainer.call_model_init = cut_model  # type: ignore[method-assign]
    resumption.release = release
    return resumption


def wrap_train(
    trainer: Trainer, kind: type, prepare_resume: Callable[[Any], str | None], ended: Callable[[], None]
) -> None:
    """Let a Trainer's `train` prepare a resume: no event comes before it loads a checkpoint.

    Args:
        trainer (`Trainer`): its `train` is replaced.
        kind (`type`): of the callback; without one of them on the Trainer nothing is prepared.
        prepare_resume (callable): gets `resume_from_checkpoint`, returns the folder to resume from.
        ended (callable): called when `train` has ended, or failed.
    """
    original = trainer.train

    @functools.wraps(original)
    def train(resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        if resume_from_checkpoint and any(isinstance(one, kind) for one in trainer.callback_handler.callbacks):
            resume_from_checkpoint = prepare_resume(resume_from_checkpoint)
        try:
            return original(resume_from_checkpoint, *args, **kwargs)
        finally:
            ended()

    trainer.train = train  # type: ignore[method-assign]


def check_world_size(record: PruningRecord, world_size: int) -> None:
    """Refuse what cannot be compared: transformers scales a loss by the number of processes.

    Raises:
        UnsupportedBackendError: if a loss decides, and another number of processes measured it.
    """
    if record.world_size == world_size:
        return
    if record.metric is not None and (record.metric == "loss" or record.metric.endswith(("_loss", "perplexity"))):
        raise UnsupportedBackendError(
            f"The checkpoint was saved by {record.world_size} processes, this run has {world_size}, and the "
            f"{record.metric} decides, whose scale depends on that number in transformers. Resume with "
            f"{record.world_size} processes, or begin anew with another metric. Nothing was changed."
        )
    logger.warning(
        "The checkpoint was saved by %d processes, this run has %d: it goes on with the same verdicts so far, but not to the "
        "same bits.",
        record.world_size,
        world_size,
    )


def _check_kind(model: PreTrainedModel, record: PruningRecord, folder: Path) -> None:
    kind, names = model.config.model_type, dict(model.named_modules())
    missing = [path for path in record.depths if path not in names]
    if record.model_type not in (None, kind) or missing:
        raise MPrunerError(
            f"'{folder}' belongs to another model: it holds a '{record.model_type}' with {', '.join(record.depths)}, but "
            f"the Trainer has a '{kind}' ({type(model).__name__}). Pass the checkpoint of this model. Nothing was changed."
        )
