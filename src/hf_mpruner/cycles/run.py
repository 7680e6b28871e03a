"""The engine cuts a plain model that no Trainer sees; a fresh Trainer trains and judges a copy that went over the disk."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from hf_mpruner.calibrate import batches_of_sets
from hf_mpruner.config import PruningConfig
from hf_mpruner.cycles.fresh import (
    announce,
    check_arguments,
    check_fresh,
    check_model,
    digest,
    evaluate,
    find_difference,
    freeze_beside_cut,
    is_partitioned,
    outcomes,
    release,
    train,
)
from hf_mpruner.cycles.ledger import Ledger
from hf_mpruner.cycles.plain import PlainModel
from hf_mpruner.cycles.shared import on_main, shared_folder
from hf_mpruner.cycles.whole import load_source, load_whole, save_whole
from hf_mpruner.data import FirstBatch, Parts
from hf_mpruner.engine import PruningEngine
from hf_mpruner.errors import MPrunerError
from hf_mpruner.facts import write_facts
from hf_mpruner.record import PruningRecord, Round
from hf_mpruner.report import PruningReport
from hf_mpruner.resume import check_world_size
from hf_mpruner.runtime import Runtime, copies_runtime, keep_rng_state, whole_models
from hf_mpruner.sets import check_same_examples, check_sets
from hf_mpruner.subject import trained_model
from hf_mpruner.verdict import Judged
from hf_mpruner.workbench import Workbench

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

logger = logging.getLogger(__name__)

MakeTrainer = Callable[[str], "Trainer"]


def prune_in_cycles(
    make_trainer: MakeTrainer,
    model: str | os.PathLike[str],
    config: PruningConfig | None = None,
    *,
    output_dir: str | os.PathLike[str],
    calibration: Any = None,
    choosing: Any = None,
    judging: Any = None,
    device: str | torch.device | None = None,
) -> PruningReport:
    """Prune by MPruner's Algorithm 1 with a fresh Trainer, and a `train()` of its own, for each round.

    For engines that cannot lose layers while they run: DeepSpeed ZeRO, FSDP1. Where `LayerPruningCallback` works, it
    costs less: here each round loads the model anew, and its optimizer begins from nothing.

    Called again with the same arguments it goes on where it stopped, also after a kill; only the training of a round
    that had no verdict is repeated.

    Args:
        make_trainer (callable): gets a folder, or `model` itself; loads the model from it with `from_pretrained` and
            returns a new Trainer for it, with new `TrainingArguments`. Their `num_train_epochs` is replaced by
            `recovery_epochs` (`start_epoch` in the first training); `max_steps` stays in force where it is given.
        model (path or `str`): the fine-tuned model's folder or Hub id.
        config (`PruningConfig`, *optional*): what to prune and how to judge it. `snapshot` and `stop_when_done` have no
            meaning here.
        output_dir (path): the run's own folder, seen by all processes. In the end it holds the last accepted model in
            `model`, and `pruning_record.json`, `pruning_plan.json` and `report.json`. While the run lasts it holds two
            models at most.
        calibration (*optional*): data to measure similarity on, as for `LayerPruningCallback`. By default a seeded
            sample of the Trainer's evaluation set.
        choosing (*optional*): as for `LayerPruningCallback`.
        judging (*optional*): the same.
        device (*optional*): where a whole model runs while similarity is measured. By default the Trainer's device; the
            CPU where the Trainer partitions its weights (ZeRO-3, FSDP), since the whole may not fit.

    Returns:
        `PruningReport`: on every process.

    Raises:
        TypeError, ValueError: for a Trainer that cannot be used, or arguments that are none.
        MPrunerError: if `make_trainer` does not give the model of the folder, `output_dir` holds another run, or a
            process failed.
        UnsupportedBackendError: for an engine that does not save whole weights.
        UnsupportedArchitectureError: if the model has no stack that can be cut.

    Example:
        ```python
        def make_trainer(path):
            model = AutoModelForSequenceClassification.from_pretrained(path)
            args = TrainingArguments("training", deepspeed="zero2.json")
            return Trainer(model, args, train_dataset=train, eval_dataset=dev, compute_metrics=metrics)

        report = prune_in_cycles(make_trainer, "my-model", PruningConfig(max_metric_drop=0.01), output_dir="pruned")
        model = AutoModelForSequenceClassification.from_pretrained("pruned/model")
        ```
    """
    check_arguments(make_trainer, model, config or PruningConfig())
    given = Parts(calibration, choosing, judging)
    return Cycles(make_trainer, str(model), config or PruningConfig(), Path(output_dir), given, device).run()


class Cycles:
    """One run; see `prune_in_cycles` for the arguments."""

    def __init__(
        self,
        make_trainer: MakeTrainer,
        source: str,
        config: PruningConfig,
        folder: Path,
        given: Parts,
        device: str | torch.device | None,
    ) -> None:
        """Nothing is loaded yet."""
        self.make_trainer, self.source, self.config = make_trainer, source, config
        self.given, self.device = given, device
        self.ledger = Ledger(folder)
        self.runtime: Runtime
        self.engine: PruningEngine
        self.trainer: Trainer | None = None
        self._plain: PlainModel
        self._bench: Workbench | None = None
        self._kind: type[PreTrainedModel]
        self._dtype: torch.dtype
        self._processor: Any = None
        self._hint: tuple[str | None, bool | None] = (None, None)

    def run(self) -> PruningReport:
        """Begin, or go on with what is in the folder, until no round is left."""
        self._open()
        while self._round():
            pass
        self._end()
        return PruningReport(self.engine.record)

    def _open(self) -> None:
        trainer = self._make(self.source)
        check_fresh(trainer, self.config)
        args, model = trainer.args, trained_model(trainer)
        self.runtime = copies_runtime(trainer)
        self._kind, self._dtype, self._processor = type(model), model.dtype, trainer.processing_class
        bench = Workbench(trainer, self.config, self.given)
        self._hint, sets = bench.metric_hint(), bench.sets
        with self.runtime.together("reading the model"):
            whole, fresh = load_source(self._kind, self.source, model.config, self._dtype)
            check_model(trainer, whole, self.source, ignored=fresh)
            way = "prune_in_cycles(..., calibration=other_dataset)"
            check_sets(trainer, sets, None)
            batches, proposing, facts = batches_of_sets(trainer, self.config, sets, way)
            if self.device is None:
                self.device = "cpu" if is_partitioned(trainer) else args.device
            self._plain = PlainModel(
                lambda: self.engine.model, self.config, FirstBatch(batches), self.device, self.runtime, proposing
            )
            self._plain.check(trainer, whole)
        record = self._find_run(trainer, whole, fresh)
        if record is None or record.baseline is None:
            self._begin(trainer, whole, fresh, facts)
            return
        check_same_examples(record, sets)
        self._drop()
        folder = on_main(self.runtime, "reading the output folder", lambda: self.ledger.current(record))
        with self.runtime.together("reading the last accepted model"):
            model = whole if folder is None else self._load(folder)
        self._set_model(model, record)

    def _find_run(self, trainer: Trainer, whole: PreTrainedModel, fresh: set[str]) -> PruningRecord | None:
        weights = digest(whole, fresh)

        def read() -> PruningRecord | None:
            record = self.ledger.read()
            if record is not None:
                self.ledger.check_same_run(record, self.config, whole, weights)
                check_world_size(record, trainer.args.world_size)
                self.ledger.sweep(record)
            return record

        record = on_main(self.runtime, "reading the output folder", read)
        if record is None:
            self.ledger.weights = weights
        elif record.baseline is not None:
            logger.info("The run in '%s' is gone on with after round %d.", self.ledger.folder, len(record.rounds))
        self.ledger = self.runtime.broadcast(self.ledger)
        return record

    def _begin(self, trainer: Trainer, whole: PreTrainedModel, fresh: set[str], facts: dict[str, Any]) -> None:
        """Measure the baseline, after `start_epoch` epochs if that is asked for."""
        config = self.config
        if fresh and not config.start_epoch:
            raise MPrunerError(
                f"'{self.source}' has no weights for {sorted(fresh)[:3]}, so each process and each round would begin with others. "
                "Fine-tune the model and pass the folder it is saved in, or train it here first: PruningConfig(start_epoch=1)."
            )
        self._set_model(whole, None)
        record = self.engine.record
        write_facts(record, trainer, facts)
        record.training.pop("num_train_epochs", None)  # the config says how long each round trains
        self._write(record)
        with self.runtime.together("training the uncut model"):
            train(trainer, config.start_epoch)
        self.engine.measure_baseline()
        if config.start_epoch:
            self.ledger.steps = trainer.state.global_step
            self._accept(trainer, 0, whole, record)
        else:
            self._write(record)
            self._drop()

    def _round(self) -> bool:
        """One cut, training and verdict; returns whether there was a cut to make."""
        engine, record = self.engine, self.engine.record
        steps = self._steps
        with whole_models():
            cut = engine.start_round(step=steps)
        self._write(record)
        if not cut:
            return False
        number = record.rounds[-1].number
        folder = self.ledger.candidate(number)
        with self.runtime.together("saving the candidate"), shared_folder(self.runtime, folder) as draft:
            if self.runtime.is_main_process:
                self._save(engine.model, draft)
        with self.runtime.together("making the Trainer of the candidate"):
            trainer = self._make(str(folder))
            check_fresh(trainer, self.config)
            check_model(trainer, engine.model, str(folder))
            if self.config.freeze_untouched:
                freeze_beside_cut(trained_model(trainer), record)
        with self.runtime.together("training the candidate"):
            train(trainer, self.config.recovery_epochs)
        round_ = engine.decide(step=steps + trainer.state.global_step)
        announce(trainer, record)
        self._settle(trainer, round_)
        return True

    def _settle(self, trainer: Trainer, round_: Round) -> None:
        if round_.verdict != "rejected":
            self._accept(trainer, round_.number, self.engine.model, self.engine.record)
            return
        self._write(self.engine.record)
        on_main(self.runtime, "deleting the candidate", lambda: self.ledger.sweep(self.engine.record))
        self._drop()

    def _accept(self, trainer: Trainer, number: int, untrained: PreTrainedModel, record: PruningRecord) -> None:
        """Save what was trained, load it as its users will, and go on with that."""
        with (
            self.runtime.together("writing the model"),
            shared_folder(self.runtime, self.ledger.path_of(number)) as draft,
        ):
            with self.runtime.together("saving the model"):
                trainer.save_model(str(draft))
            with self.runtime.together("loading the saved model"):
                trained = self._load(draft)
                fault = find_difference(trained, untrained, ignored=[name for name, _ in untrained.named_parameters()])
                fault = fault or ("" if is_partitioned(trainer) else find_difference(trained_model(trainer), trained))
                if fault:
                    raise MPrunerError(
                        f"What the Trainer saved is not the model that it trained: loaded back, {fault}. The round is not "
                        "accepted; a call with the same arguments repeats it."
                    )
        on_main(self.runtime, "writing the record", lambda: self.ledger.accept(number, record))
        self.ledger = self.runtime.broadcast(self.ledger)
        self._drop()
        self._set_model(trained, record)

    def _end(self) -> None:
        record = self.engine.record
        if not record.similarity_after:
            with whole_models():
                self.engine.measure_kept(step=self._steps)
            self._write(record)

        def finish() -> None:
            with self.ledger.last_folder(record) as draft:
                if draft is not None:
                    self._save(self.engine.model, draft)

        on_main(self.runtime, "writing the last model", finish)

    @property
    def _steps(self) -> int:
        """Optimizer steps of all trainings that were decided."""
        record = self.engine.record
        return record.rounds[-1].decided_at_step if record.rounds else self.ledger.steps

    # -- parts --------------------------------------------------------------------------------------------------------

    def _make(self, path: str) -> Trainer:
        gc.collect()  # the Trainer before holds itself by cycles
        self.trainer = self.make_trainer(path)
        return self.trainer

    def _drop(self) -> None:
        trainer, self.trainer, self._bench = self.trainer, None, None
        if trainer is not None:
            release(trainer)

    def _set_model(self, model: PreTrainedModel, record: PruningRecord | None) -> None:
        """A new engine over a model that no Trainer has seen."""
        with whole_models(), keep_rng_state():
            self.engine = PruningEngine(
                model,
                self.config,
                measure=self._plain.measure,
                score=self._plain.score,
                evaluate=self._evaluate,
                runtime=self.runtime,
                trains=False,
                snapshot_directory=self.ledger.folder,
                metric_hint=lambda: self._hint,
                take_outcomes=lambda metric: outcomes(self._bench, metric, self.engine.record),
                judged_on=lambda metric: Judged({}) if self._bench is None else self._bench.judged_on(metric),
                verify_inputs=self._plain.first,
                time_forward=self._plain.time_forward,
                record=record,
            )
            self.engine.settle_target()

    def _evaluate(self) -> dict[str, float]:
        self._bench = Workbench(cast("Trainer", self.trainer), self.config, self.given)
        return evaluate(self._bench)

    def _load(self, folder: Path) -> PreTrainedModel:
        return load_whole(self._kind, folder, self._dtype)

    def _save(self, model: PreTrainedModel, folder: Path) -> None:
        save_whole(model, folder)
        if self._processor is not None:
            self._processor.save_pretrained(folder)

    def _write(self, record: PruningRecord) -> None:
        on_main(self.runtime, "writing the record", lambda: self.ledger.write(record))
