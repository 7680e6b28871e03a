"""What recovery needs of a running Trainer while a cut is pending: learning rates, the teacher's loss, saves put off."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers import TrainerCallback

from .architectures.adapters import adapted_modules
from .config import PruningConfig
from .distil import DistilledLoss, check_distillation
from .errors import MPrunerError, UnsupportedBackendError
from .record import PruningRecord
from .recovery import RecoveryRate, find_linear_layers
from .recovery.teacher import TEACHER_NAME, load_teacher, save_teacher
from .runtime import keep_rng_state
from .snapshot import Snapshot
from .subject import trained_model, trained_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainerControl, TrainerState, TrainingArguments

    from .runtime import Runtime

logger = logging.getLogger(__name__)

NOT_BEGUN = "The pruning run has not begun: call trainer.train() first."


class RetrainingEvents(TrainerCallback):
    """The events of the steps between a cut and its verdict, passed on."""

    _retraining: Retraining | None = None

    def _recovery(self) -> Retraining:
        if self._retraining is None:
            raise MPrunerError(NOT_BEGUN)
        return self._retraining

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the learning rate of a round's recovery."""
        self._recovery().before_step(kwargs["optimizer"], state.global_step)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the scheduled learning rate back."""
        self._recovery().after_step()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put a save off while it could not be loaded; take back a step that should not have been."""
        self._recovery().put_off_save(control)
        self._recovery().put_back()


class Retraining:
    """Between a cut and its verdict the Trainer trains as the config says; before and after, as it always does.

    Args:
        trainer (`Trainer`): about to train.
        config (`PruningConfig`): what the user asked for.
    """

    def __init__(self, trainer: Trainer, config: PruningConfig) -> None:
        """Nothing is changed yet."""
        self.trainer, self.config = trainer, config
        self._rate = RecoveryRate(config.learning_rate_policy, config.restart_warmup, config.recovery_learning_rate)
        self._round: tuple[int, int] | None = None
        self._teacher: PreTrainedModel | None = None
        self._put_off = self._told = False
        self._undo: list[Callable[[], None]] = []
        self._held: Snapshot | None = None

    def check(self, optimizer: Any, runtime: Runtime) -> None:
        """Refuse what recovery cannot do in this training, before any work is done.

        Raises:
            MPrunerError: if PEFT is not installed, or the model carries adapters already.
            UnsupportedBackendError: for a backend, an optimizer or a way of saving that does not go with the recovery.
        """
        self._rate.check(optimizer)
        if self.config.recovery == "lora":
            _check_lora(self.trainer, runtime)
        if self.config.distils:
            check_distillation(self.trainer, self.config, runtime)

    def check_layers(self, paths: Iterable[str]) -> None:
        """Refuse adapters for layers that nobody has, before any work is done.

        Args:
            paths: of the block stacks.

        Raises:
            MPrunerError: naming those there are.
        """
        if self.config.recovery == "lora":
            find_linear_layers(trained_model(self.trainer), paths, self.config.lora_target_modules)

    def prepare(self, record: PruningRecord, runtime: Runtime) -> None:
        """Before the first cut: keep the model, if it is to teach.

        Raises:
            MPrunerError: if it cannot be written, on any process, or is cut already.
        """
        if not self.config.distils or record.teacher is not None:
            return
        if any(round_.verdict in ("accepted", "unjudged") for round_ in record.rounds):
            raise MPrunerError(
                "This run has cut the model without a teacher so far, and the teacher of a distillation is the model before the "
                "first cut. Go on with distillation_weight=0 and distillation_hidden_weight=0, or begin anew."
            )
        with runtime.together("saving the teacher"):
            if runtime.is_main_process:
                record.teacher = save_teacher(trained_model(self.trainer), self._teacher_folder, self._teacher_dtype)
        record.teacher = runtime.broadcast(record.teacher)

    def begin(self, record: PruningRecord, recovery_steps: int) -> None:
        """A cut was made, or made again; it has no verdict yet.

        Args:
            record (`PruningRecord`): its last round is the pending one.
            recovery_steps (`int`): steps of training until the verdict.

        Raises:
            MPrunerError: if the teacher is not where it was saved.
        """
        self.end()
        if self.config.distils:
            self._replace(
                "compute_loss", DistilledLoss(self.trainer, self.config, self._load(record), record.rounds[-1].kept)
            )
        if self._rate.differs:
            self._replace("_get_learning_rate", self._used_rate)
        self._round = (record.rounds[-1].started_at_step, recovery_steps)

    def _load(self, record: PruningRecord) -> PreTrainedModel:
        if self._teacher is None:
            with keep_rng_state():
                self._teacher = load_teacher(
                    trained_model(self.trainer),
                    self._teacher_folder,
                    record.teacher,
                    self._teacher_dtype,
                    self.trainer.args.device,
                )
        return self._teacher

    @property
    def _teacher_folder(self) -> Path:
        return Path(self.trainer.args.output_dir or ".") / TEACHER_NAME

    @property
    def _teacher_dtype(self) -> torch.dtype | None:
        name = self.config.teacher_dtype
        return None if name is None else getattr(torch, name)

    def close(self) -> None:
        """The training ended: free what only recovery needs."""
        self.end()
        self._teacher = None
        if self._held is not None:
            self._held.release()
            self._held = None

    def hold(self, control: TrainerControl) -> None:
        """For the beginning of an epoch: the weights are those that a promise is about, so the training ends here.

        The Trainer looks at its flag after a step only, so that step is taken back.
        """
        control.should_training_stop = True
        if self._held is None:
            where, folder = self.config.snapshot, Path(self.trainer.args.output_dir or ".")
            whole = trained_whole(self.trainer)
            self._held = Snapshot.take(whole, None, removed=[], where=where, directory=folder)

    def put_back(self) -> None:
        """For the end of a step or an epoch: the weights are again those that `hold` has found."""
        if self._held is not None:
            self._held.restore()

    def end(self) -> None:
        """The cut was decided or taken back; may be called again."""
        self._round = None
        self._rate.forget()
        while self._undo:
            self._undo.pop()()

    def before_step(self, optimizer: Any, step: int) -> None:
        """For `on_pre_optimizer_step`."""
        if self._round is not None:
            self._rate.before_step(optimizer, step, *self._round)

    def after_step(self) -> None:
        """For `on_optimizer_step`."""
        self._rate.after_step()

    def put_off_save(self, control: TrainerControl) -> None:
        """For the end of a step or an epoch: while adapters are on the model, a save waits for the verdict.

        What the Trainer would write has PEFT's names, of which `from_pretrained` would skip the weights in silence.
        """
        if self._round is None or self.config.recovery != "lora" or not control.should_save:
            return
        control.should_save = False
        self._put_off = True
        if not self._told:
            self._told = True
            logger.warning(
                "Saves wait until a cut is decided: during recovery='lora' the model carries adapters, which no "
                "from_pretrained would load."
            )

    def make_up_for_save(self, control: TrainerControl) -> None:
        """For the verdict."""
        control.should_save = control.should_save or self._put_off
        self._put_off = False

    def _used_rate(self, original: Callable[[], float]) -> float:
        return original() if self._rate.used is None else self._rate.used

    def _replace(self, name: str, function: Callable[..., Any]) -> None:
        """Put a function of ours in front of one of the Trainer's, on this object only, until `end`."""
        before = vars(self.trainer).get(name)
        original = getattr(self.trainer, name)
        setattr(self.trainer, name, lambda *args, **kwargs: function(original, *args, **kwargs))

        def undo() -> None:
            if before is None:
                delattr(self.trainer, name)
            else:
                setattr(self.trainer, name, before)

        self._undo.append(undo)


def _check_lora(trainer: Trainer, runtime: Runtime) -> None:
    if importlib.util.find_spec("peft") is None:
        raise MPrunerError("recovery='lora' needs PEFT: pip install 'hf_mpruner[peft]'. Nothing was changed.")
    if adapted_modules(cast(nn.Module, trainer.model)):
        raise MPrunerError(
            f"recovery='lora' puts adapters on the model and merges them, but {type(trainer.model).__name__} carries some "
            "already, which train during recovery anyway: pass recovery='full'. Nothing was changed."
        )
    if runtime.name == "FSDP2":
        raise UnsupportedBackendError(
            "recovery='lora' adds parameters to the model, which FSDP2 does not shard after training began. Pass "
            "recovery='full' or freeze_untouched=True, or train with DDP. Nothing was changed."
        )
    for name, wrong, instead in (
        ("save_strategy", "best", 'save_strategy="epoch"'),
        ("enable_jit_checkpoint", True, "enable_jit_checkpoint=False"),
    ):
        if getattr(trainer.args, name, None) == wrong:
            raise UnsupportedBackendError(
                f"TrainingArguments({name}={wrong!r}) saves at moments that cannot be put off, while recovery='lora' has "
                "adapters on the model, which no from_pretrained would load. Pass "
                f"{instead}, or recovery='full'. Nothing was changed."
            )
