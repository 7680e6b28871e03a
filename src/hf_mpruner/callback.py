"""`LayerPruningCallback`: the engine driven by `transformers.Trainer`, inside one `train()`.

A cut is made at `on_epoch_begin`, judged at `on_epoch_end`, before the Trainer evaluates and saves: no forward or
backward pass is in flight there, and the gradients are empty.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.trainer_callback import DefaultFlowCallback, ProgressCallback

from .config import PruningConfig
from .data import calibration_loader
from .engine import PruningEngine
from .errors import MPrunerError
from .features import measure_similarity
from .metric import strip_prefix
from .optimizer import check_optimizer
from .preflight import check_trainer, steps_per_epoch
from .record import PruningRecord, Round
from .report import PruningReport
from .runtime import detect_runtime, keep_rng_state

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

    from .architectures import BlockStack
    from .plan import PruningPlan
    from .similarity import SimilarityMatrix

logger = logging.getLogger(__name__)

PREFIX = "mpruner"
NOT_ATTACHED = (
    "LayerPruningCallback is not attached to a Trainer. Add it with\n"
    "    trainer.add_callback(LayerPruningCallback(trainer, config))\n"
    "or, if it was passed as Trainer(callbacks=[callback]), call\n"
    "    callback.attach(trainer)\n"
    "before trainer.train()."
)


class LayerPruningCallback(TrainerCallback):
    """Prune the layers of the model while `trainer` trains it (MPruner, Algorithm 1).

    Each round measures the similarity of neighbouring layers on calibration data, cuts the model in place, lets the
    Trainer train it for `config.recovery_epochs` epochs, evaluates it, and keeps the smaller model or goes back,
    exactly. `trainer.model` ends as the last accepted model, never as a candidate.

    Args:
        trainer (`Trainer`, *optional*): the Trainer that it is added to; may be given later with `attach`.
        config (`PruningConfig`, *optional*): what to prune and how to judge it.
        calibration (*optional*): data to measure similarity on: a dataset like the Trainer's own, or an iterable of
            batches. By default a seeded sample of the Trainer's evaluation set.

    Example:
        ```python
        trainer = Trainer(model, args, train_dataset=train, eval_dataset=dev, compute_metrics=metrics)
        trainer.add_callback(LayerPruningCallback(trainer, PruningConfig(max_metric_drop=0.01)))
        trainer.train()
        ```
    """

    def __init__(
        self, trainer: Trainer | None = None, config: PruningConfig | None = None, calibration: Any = None
    ) -> None:
        """Remember what was given; nothing is measured before training begins."""
        if isinstance(trainer, PruningConfig):
            raise TypeError(
                "The first argument of LayerPruningCallback is the Trainer, but it got a PruningConfig: write "
                "LayerPruningCallback(trainer, config), or LayerPruningCallback(config=config) and attach it later."
            )
        self.config = config or PruningConfig()
        self.calibration = calibration
        self.engine: PruningEngine | None = None
        self._trainer: Trainer | None = None
        self._loader: Any = None
        self._recovered_epochs = 0
        self._best: tuple[Any, Any, Any] = (None, None, None)
        if trainer is not None:
            self.attach(trainer)

    def attach(self, trainer: Trainer) -> LayerPruningCallback:
        """Bind to the Trainer that this callback belongs to.

        Raises:
            MPrunerError: if it is bound to another Trainer already.
        """
        if self._trainer is not None and self._trainer is not trainer:
            raise MPrunerError(
                "This LayerPruningCallback is attached to another Trainer. Make a new one for this Trainer: "
                "LayerPruningCallback(trainer, config)."
            )
        self._trainer = trainer
        return self

    @property
    def record(self) -> PruningRecord:
        """The run so far.

        Raises:
            MPrunerError: before training has begun.
        """
        return self._started().record

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
        check_optimizer(trainer.model, kwargs["optimizer"])
        check_trainer(trainer, self.config, state, kwargs["train_dataloader"])
        if self.engine is not None and self.engine.model is trainer.model:
            self.engine.reopen()
            return
        self.engine = PruningEngine(
            trainer.model,
            self.config,
            measure=self._measure,
            evaluate=self._evaluate,
            runtime=runtime,
            trains=self.config.recovery_epochs > 0,
            snapshot_directory=Path(args.output_dir or "."),
            metric_hint=((args.metric_for_best_model or "").removeprefix("eval_") or None, args.greater_is_better),
        )
        self.engine.record.calibration = self._prepare_calibration(trainer, args)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Cut, if a round is due and enough epochs are left to judge it."""
        engine = self._started()
        steps = steps_per_epoch(kwargs["train_dataloader"], args)
        if engine.pending or engine.done or state.global_step < self.config.start_epoch * steps:
            return
        if state.max_steps - state.global_step < self.config.recovery_epochs * steps:
            engine.stop("no epochs are left for another round")
            return
        self._recovered_epochs = 0
        while self._start_round(state, kwargs.get("optimizer"), kwargs.get("lr_scheduler")):
            if self.config.recovery_epochs > 0:
                return
            self._decide(state)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Judge the pending cut once it had its epochs, or if training is about to end."""
        engine = self._started()
        if engine.pending:
            self._recovered_epochs += 1
            over = control.should_training_stop or state.global_step >= state.max_steps
            if over or self._recovered_epochs >= self.config.recovery_epochs:
                self._decide(state)
        if self.config.stop_when_done and not engine.pending and engine.record.baseline is not None:
            steps_left = state.max_steps - state.global_step
            if steps_left < self.config.recovery_epochs * steps_per_epoch(kwargs["train_dataloader"], args):
                engine.stop("no epochs are left for another round")
            elif not engine.done:
                # the weights do not change until the next epoch begins, so its round can be planned now
                with self._aside():
                    engine.plan_round()
            control.should_training_stop = control.should_training_stop or engine.done

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put the record beside the checkpoint's weights."""
        folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
        if self.engine is not None and state.is_world_process_zero and folder.is_dir():
            self.engine.record.save(folder)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Never leave a candidate undecided; write plan and report beside the Trainer's other files."""
        engine = self._started()
        if engine.pending:
            self._decide(state)
        engine.stop("the training ended")
        if args.should_save and engine.record.baseline is not None and args.output_dir is not None:
            self.plan.save_pretrained(args.output_dir)
            self.report.save(args.output_dir)

    def _start_round(self, state: TrainerState, optimizer: Any, scheduler: Any) -> bool:
        engine = self._started()
        best = (state.best_metric, state.best_global_step, state.best_model_checkpoint)
        with self._aside():
            scaler = self._bound().accelerator.scaler
            cut = engine.start_round(optimizer, scheduler, scaler=scaler, step=state.global_step)
        if cut:
            self._best = best
            self._log(self._facts(engine.record.rounds[-1]))
        return cut

    def _decide(self, state: TrainerState) -> None:
        engine = self._started()
        with self._aside():
            round_ = engine.decide(step=state.global_step)
        if round_.verdict == "rejected":
            best = self._best
            if best[2] is not None and not Path(best[2]).is_dir():
                best = (None, None, None)
        else:
            # a checkpoint of the bigger model must not be loaded into this one at the end
            best = (None, None, None)
        state.best_metric, state.best_global_step, state.best_model_checkpoint = best
        facts = self._facts(round_)
        facts[f"{PREFIX}_accepted"] = float(round_.verdict != "rejected")
        if round_.after.metric is not None:
            facts[f"{PREFIX}_{engine.record.metric}"] = round_.after.metric
        if round_.drop is not None:
            facts[f"{PREFIX}_drop"] = round_.drop
        self._log(facts)
        logger.info("Round %d %s: %s", round_.number, round_.verdict, round_.reason)

    def _facts(self, round_: Round) -> dict[str, float]:
        layers = sum(len(kept) for kept in round_.kept.values())
        return {
            f"{PREFIX}_round": round_.number,
            f"{PREFIX}_layers": layers,
            f"{PREFIX}_parameters": round_.after.parameters,
        }

    def _log(self, facts: Mapping[str, float]) -> None:
        trainer = self._bound()
        with _keep_control(trainer):
            trainer.log(dict(facts))

    def _measure(self, stacks: list[BlockStack]) -> dict[str, SimilarityMatrix]:
        trainer = self._bound()
        return measure_similarity(
            trainer.model,
            self._loader,
            stacks,
            protocol=self.config.protocol,
            show_progress=False if trainer.args.disable_tqdm else None,
        )

    def _evaluate(self) -> dict[str, float]:
        trainer = self._bound()
        return strip_prefix(trainer.evaluate(metric_key_prefix=PREFIX), PREFIX)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Measure and evaluate beside the run: its random state, control flags, log and other callbacks see nothing.

        `Trainer.evaluate` clears `control.should_evaluate` and `should_log`, calls every callback's `on_evaluate`
        (early stopping counts those) and writes to the log history.
        """
        trainer = self._bound()
        handler, history = trainer.callback_handler, trainer.state.log_history
        everyone, logged = handler.callbacks, len(history)
        handler.callbacks = [cb for cb in everyone if isinstance(cb, DefaultFlowCallback | ProgressCallback)]
        try:
            with keep_rng_state(), _keep_control(trainer):
                yield
        finally:
            handler.callbacks = everyone
            del history[logged:]

    def _prepare_calibration(self, trainer: Trainer, args: TrainingArguments) -> dict[str, Any]:
        """Build the calibration batches the way the Trainer builds its own; returns the facts for the record."""
        given = self.calibration if self.calibration is not None else trainer.eval_dataset
        if isinstance(given, dict):
            given = next(iter(given.values()))
        judges = trainer.eval_dataset.values() if isinstance(trainer.eval_dataset, dict) else [trainer.eval_dataset]
        same = any(given is judge for judge in judges)
        if same:
            logger.warning(
                "The same examples choose the layers and judge the result: similarity is measured on a sample of the "
                "evaluation set. For an unbiased verdict pass LayerPruningCallback(trainer, config, "
                "calibration=other_dataset), a part of the training set for instance."
            )
        with keep_rng_state():
            # public, and it does what the Trainer does: drops columns that the model does not take, picks the collator
            like_trainer = trainer.get_test_dataloader(given) if _is_dataset(given) else None
            self._loader = calibration_loader(
                given if like_trainer is None else like_trainer.dataset,
                collate_fn=None if like_trainer is None else like_trainer.collate_fn,
                num_samples=self.config.calibration_samples,
                batch_size=self.config.calibration_batch_size,
                seed=self.config.seed,
                model=trainer.model,
            )
        return {"source": "sample of the evaluation set" if same else "given by the user"}

    def _bound(self, state: TrainerState | None = None) -> Trainer:
        if self._trainer is None:
            raise MPrunerError(NOT_ATTACHED)
        if state is not None:
            if self._trainer.state is not state:
                raise MPrunerError(
                    "This LayerPruningCallback was made for another Trainer than the one that is training. Make one "
                    "for each: trainer.add_callback(LayerPruningCallback(trainer, config))."
                )
            others = [cb for cb in self._trainer.callback_handler.callbacks if isinstance(cb, LayerPruningCallback)]
            if len(others) > 1:
                raise MPrunerError(
                    f"The Trainer has {len(others)} LayerPruningCallbacks; two would cut the same model. Keep one: it "
                    "prunes every stack (PruningConfig(stacks=[...]) chooses)."
                )
        return self._trainer

    def _started(self) -> PruningEngine:
        if self.engine is None:
            raise MPrunerError("The pruning run has not begun: call trainer.train() first.")
        return self.engine


def _is_dataset(data: Any) -> bool:
    from torch.utils.data import DataLoader, IterableDataset

    return not isinstance(data, DataLoader) and (hasattr(data, "__getitem__") or isinstance(data, IterableDataset))


@contextmanager
def _keep_control(trainer: Trainer) -> Iterator[None]:
    """`Trainer.evaluate` and `Trainer.log` reset the flags that the rest of the step depends on."""
    flags = dict(vars(trainer.control))
    try:
        yield
    finally:
        vars(trainer.control).update(flags)
