"""`LayerPruningCallback`: the engine driven by `transformers.Trainer`, inside one `train()`.

A cut is made at `on_epoch_begin`, judged at `on_epoch_end`, before the Trainer evaluates and saves: no forward or
backward pass is in flight there, and the gradients are empty.
"""

from __future__ import annotations

import logging
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from transformers.trainer_callback import ExportableState

from .best import best_of, put_back_best
from .config import PruningConfig
from .cut import PendingCut
from .data import Parts
from .engine import PruningEngine
from .errors import MPrunerError
from .guard import DepthGuard
from .optimizer import check_optimizer
from .preflight import NOT_ATTACHED, check_alone, check_not_config, check_trainer, steps_per_epoch
from .pruned_base import save_with_base
from .record import PruningRecord, Round
from .report import PruningReport
from .resume import Resumption, find_checkpoint, prepare, wrap_train
from .retrain import NOT_BEGUN, Retraining, RetrainingEvents
from .rollback import names_of
from .runtime import Runtime, detect_runtime
from .seal import Sealer, sweep
from .subject import trained_model, trained_whole
from .tracking import log_figures
from .uploads import check_pushes, sweep_parcels, wrap_pushes
from .workbench import Workbench

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

    from .plan import PruningPlan

logger = logging.getLogger(__name__)

# What a Trainer with restore_callback_states_from_checkpoint makes anew must find the callback that was attached.
_ATTACHED: weakref.WeakSet[LayerPruningCallback] = weakref.WeakSet()


class LayerPruningCallback(RetrainingEvents, ExportableState):
    """Prune the layers of the model while `trainer` trains it (MPruner, Algorithm 1).

    Each round measures the similarity of neighbouring layers on calibration data, cuts the model in place, lets the
    Trainer train it for `config.recovery_epochs` epochs, evaluates it, and keeps the smaller model or goes back,
    exactly. `trainer.model` ends as the last accepted model, never as a candidate.

    `trainer.train(resume_from_checkpoint=True)` goes on from the newest whole checkpoint, with the script unchanged.

    Args:
        trainer (`Trainer`, *optional*): the Trainer that it is added to; may be given later with `attach`.
        config (`PruningConfig`, *optional*): what to prune and how to judge it.
        calibration (*optional*): data to measure similarity on: a dataset like the Trainer's own, or an iterable of
            batches. By default a seeded sample of the Trainer's evaluation set.
        choosing (*optional*): with `confidence` or `threshold="auto"`, data for criteria that read labels.
        judging (*optional*): likewise, data for the verdicts. What of these three a run needs and is not given is a part
            of the Trainer's evaluation set, which is split then.

    Example:
        ```python
        trainer = Trainer(model, args, train_dataset=train, eval_dataset=dev, compute_metrics=metrics)
        trainer.add_callback(LayerPruningCallback(trainer, PruningConfig(max_metric_drop=0.01)))
        trainer.train()
        ```
    """

    def __init__(
        self,
        trainer: Trainer | None = None,
        config: PruningConfig | None = None,
        calibration: Any = None,
        choosing: Any = None,
        judging: Any = None,
    ) -> None:
        """Remember what was given; nothing is measured before training begins."""
        check_not_config(trainer)
        self.config = config or PruningConfig()
        self.given = Parts(calibration, choosing, judging)
        self.engine: PruningEngine | None = None
        self._trainer: Trainer | None = None
        self._bench: Workbench | None = None
        self._recovered_epochs = 0
        self._resumption: Resumption | None = None
        self._guard: DepthGuard | None = None
        self._sealer = Sealer()
        self._in_training = False
        if trainer is not None:
            self.attach(trainer)

    def attach(self, trainer: Trainer) -> LayerPruningCallback:
        """Bind to the Trainer that this callback belongs to; from now on its `train` knows how to resume.

        Raises:
            MPrunerError: if it is bound to another Trainer already.
        """
        if self._trainer is not None and self._trainer is not trainer:
            raise MPrunerError(
                "This LayerPruningCallback is attached to another Trainer. Make a new one for this Trainer: "
                "LayerPruningCallback(trainer, config)."
            )
        if self._trainer is None:
            self._trainer = trainer
            _ATTACHED.add(self)
            wrap_train(trainer, LayerPruningCallback, self._prepare_resume, self._train_ended)
            wrap_pushes(trainer, LayerPruningCallback, self._find_run)
        return self

    def _find_run(self) -> tuple[PruningRecord, PruningConfig] | None:
        engine = self.engine
        return None if engine is None or engine.record.baseline is None else (engine.record, self.config)

    def _train_ended(self) -> None:
        self._in_training = False
        if self._resumption is not None:  # training did not begin
            self._resumption.undo()
            if self.engine is not None and self.engine.record is self._resumption.record:
                self.engine = None
            self._resumption = None

    def _prepare_resume(self, resume_from_checkpoint: Any) -> str | None:
        trainer = self._bound()
        checkpoint = find_checkpoint(resume_from_checkpoint, trainer.args.output_dir)
        if self.engine is not None:
            self.rollback()
        self._resumption = prepare(trainer, lambda: trained_model(trainer), checkpoint)
        return None if checkpoint is None else str(checkpoint.folder)

    def state(self) -> dict[str, Any]:
        """Seal a checkpoint: asked for when weights and optimizer are written and no older checkpoint is deleted yet."""
        trainer = self._trainer
        if self._in_training and trainer is not None and self.engine is not None:  # the Trainer asks before it, too
            folder = Path(trainer.args.output_dir or ".") / f"checkpoint-{trainer.state.global_step}"
            self._sealer.seal(folder, self.engine)
        return {"args": {}, "attributes": {}}

    @property
    def record(self) -> PruningRecord:
        """The run so far.

        Raises:
            MPrunerError: before training has begun.
        """
        return self._started().record

    def rollback(self) -> None:
        """After an interrupted training: put the model back as it was before a cut that has no verdict yet."""
        self._started().rollback()
        if self._retraining is not None:
            self._retraining.end()

    @property
    def report(self) -> PruningReport:
        """Sizes, metrics and verdicts of every round."""
        return PruningReport(self.record)

    @property
    def plan(self) -> PruningPlan:
        """From the model that training began with to the last accepted one, in the original numbering."""
        return self.record.to_plan()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check everything that can be checked before any work is done."""
        trainer = self._bound(state)
        runtime = detect_runtime(trainer)
        model, resumption = trained_model(trainer), self._resumption
        check_optimizer(trained_whole(trainer), kwargs["optimizer"])
        check_trainer(trainer, self.config, state, kwargs["train_dataloader"], resumed=resumption is not None)
        check_pushes(trainer)
        save_with_base(cast(Any, trainer.model))
        retraining = Retraining(trainer, self.config)
        retraining.check(kwargs["optimizer"], runtime)
        cast(dict, state.stateful_callbacks).setdefault(type(self).__name__, self.state())
        self._in_training = True
        if resumption is None and self.engine is not None and self.engine.model is model:
            self.rollback()  # of a training that was interrupted between a cut and its verdict
            self.engine.reopen()
            self._retraining = retraining
            return
        self._retraining = retraining
        self._build(trainer, runtime, None if resumption is None else resumption.record)
        retraining.check_layers(self._started().record.depths)
        self._watch(model, state)
        with self._workbench().aside():
            self._started().judge.rehearse(self.record)
        if args.output_dir is not None and runtime.is_main_process:
            sweep(Path(args.output_dir))
            sweep_parcels(Path(args.output_dir))
        if resumption is not None and resumption.record.pending is not None:
            self._rebuild(resumption, runtime, state, kwargs)
        self._resumption = None

    def _build(self, trainer: Trainer, runtime: Runtime, record: PruningRecord | None) -> None:
        self._bench = Workbench(trainer, self.config, self.given, runtime)
        self.engine = self._bench.make_engine(record)

    def _watch(self, model: Any, state: TrainerState) -> None:
        engine = self._started()
        if self._guard is not None:
            self._guard.remove()

        def withdraw() -> None:
            engine.withdraw("the weights before this cut are loaded, since training ended before its verdict")
            self._after_verdict(engine.record.rounds[-1], state)

        self._guard = DepthGuard(model, list(engine.record.depths), engine.depth_before, withdraw)

    def _rebuild(self, resumption: Resumption, runtime: Runtime, state: TrainerState, kwargs: Any) -> None:
        engine, trainer = self._started(), self._bound()
        optimizer, scheduler, scaler = kwargs["optimizer"], kwargs["lr_scheduler"], trainer.accelerator.scaler

        def make(plan: PruningPlan, round_: Round) -> PendingCut:
            self._sealer.before = names_of(engine.whole)
            return engine.carry_out(plan, optimizer, scheduler, scaler=scaler)

        cut, following = resumption.rebuild(engine.whole, optimizer, scheduler, scaler, make, runtime)
        engine.adopt(cut, following)
        steps = steps_per_epoch(kwargs["train_dataloader"], trainer.args)
        self._recovered_epochs = (state.global_step - engine.record.rounds[-1].started_at_step) // steps
        self._recovery().begin(engine.record, steps * self.config.recovery_epochs)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Cut, if a round is due and enough epochs are left to judge it."""
        self._begin_round(steps_per_epoch(kwargs["train_dataloader"], args), state, kwargs)
        if self.config.confidence is not None and self._started().done:
            self._recovery().hold(control)

    def _begin_round(self, steps: int, state: TrainerState, kwargs: Any) -> None:
        engine = self._started()
        if engine.pending and self._recovered_epochs >= self.config.recovery_epochs:
            # resumed from a checkpoint of an epoch's last step: that epoch's end does not come again
            self._decide(state)
        # of a second training nothing but recovery may change weights that a promise is about
        is_first = self.config.confidence is None or engine.record.baseline is None
        waits = is_first and state.global_step < self.config.start_epoch * steps
        if engine.pending or engine.done or waits:
            return
        if state.max_steps - state.global_step < self.config.recovery_epochs * steps:
            engine.stop("no epochs are left for another round")
            return
        self._recovered_epochs = 0
        while self._start_round(state, kwargs.get("optimizer"), kwargs.get("lr_scheduler")):
            if self.config.recovery_epochs > 0:
                self._recovery().begin(engine.record, steps * self.config.recovery_epochs)
                return
            self._decide(state)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Judge the pending cut once it had its epochs, or if training is about to end."""
        engine = self._started()
        self._recovery().put_back()
        if engine.pending:
            self._recovered_epochs += 1
            over = control.should_training_stop or state.global_step >= state.max_steps
            if over or self._recovered_epochs >= self.config.recovery_epochs:
                self._decide(state)
                self._recovery().make_up_for_save(control)
        self._recovery().put_off_save(control)
        if self.config.ends_when_done and not engine.pending and engine.record.baseline is not None:
            steps_left = state.max_steps - state.global_step
            if steps_left < self.config.recovery_epochs * steps_per_epoch(kwargs["train_dataloader"], args):
                engine.stop("no epochs are left for another round")
            elif not engine.done:
                # the weights do not change until the next epoch begins, so its round can be planned now
                with self._workbench().aside():
                    engine.plan_round(state.global_step)
            control.should_training_stop = control.should_training_stop or engine.done

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Never leave a candidate undecided; write plan and report beside the Trainer's other files."""
        engine = self._started()
        if engine.pending:
            self._decide(state)
        engine.stop("the training ended")
        with self._workbench().aside():
            engine.measure_kept(step=None if args.load_best_model_at_end else state.global_step)
        self._recovery().close()
        if args.should_save and engine.record.baseline is not None and args.output_dir is not None:
            self.plan.save_pretrained(args.output_dir)
            self.report.save(args.output_dir)
        log_figures(self._bound(), engine.record, ended=True)

    def _start_round(self, state: TrainerState, optimizer: Any, scheduler: Any) -> bool:
        engine = self._started()
        best, before = best_of(state), names_of(engine.whole)
        with self._workbench().aside():
            scaler = self._bound().accelerator.scaler
            number = len(engine.record.rounds)
            engine.measure_baseline()
            if engine.plan_round(state.global_step) is not None:
                self._recovery().prepare(engine.record, engine.runtime)
            cut = engine.start_round(optimizer, scheduler, scaler=scaler, step=state.global_step)
        if cut:
            engine.record.best, self._sealer.before = best, before
        for round_ in engine.record.rounds[number:]:
            self._workbench().log_round(round_)
        return cut

    def _decide(self, state: TrainerState) -> None:
        engine = self._started()
        with self._workbench().aside():
            round_ = engine.decide(step=state.global_step)
        self._after_verdict(round_, state)

    def _after_verdict(self, round_: Round, state: TrainerState) -> None:
        engine = self._started()
        self._sealer.forget()
        self._recovery().end()
        put_back_best(state, engine.record, round_)
        self._workbench().log_round(round_, engine.record.metric)
        log_figures(self._bound(), engine.record)
        logger.info("Round %d %s: %s", round_.number, round_.verdict, round_.reason)

    def _bound(self, state: TrainerState | None = None) -> Trainer:
        if self._trainer is None and state is not None:
            twin = next((cb for cb in _ATTACHED if cb._trainer is not None and cb._trainer.state is state), None)
            if twin is not None:  # restore_callback_states_from_checkpoint made a new callback in its place
                self.__dict__ = twin.__dict__
        if self._trainer is None:
            raise MPrunerError(NOT_ATTACHED)
        if state is not None:
            check_alone(self._trainer, state, LayerPruningCallback)
        return self._trainer

    def _started(self) -> PruningEngine:
        if self.engine is None:
            raise MPrunerError(NOT_BEGUN)
        return self.engine

    def _workbench(self) -> Workbench:
        if self._bench is None:
            raise MPrunerError(NOT_BEGUN)
        return self._bench
