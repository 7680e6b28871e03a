"""Measure and evaluate beside a running Trainer, so that the run itself sees nothing of it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.trainer_callback import DefaultFlowCallback, ProgressCallback

from .calibrate import PREFIX, ModelInputs, TrainerScores, batches_of_sets, own_loader
from .config import PruningConfig
from .criteria import find_criterion
from .data import FirstBatch, Parts
from .engine import PruningEngine
from .facts import Seen, find_judged, watch_evaluations, write_facts
from .features import measure_similarity
from .footprint import measure_costs
from .metric import strip_prefix
from .preflight import check_search
from .record import Measurement, PruningRecord, Round
from .runtime import Runtime, keep_rng_state
from .sets import Sets, check_sets, find_sets
from .subject import trained_model, trained_whole
from .trainers import evaluator_of, keep_books
from .verdict import Judged
from .watching import Evaluated, keep_evaluations, outcomes_of_evaluation, uncut_outcomes

if TYPE_CHECKING:
    from transformers import Trainer

    from .architectures import BlockStack
    from .guarantee import Outcomes
    from .similarity import SimilarityMatrix

logger = logging.getLogger(__name__)


class Workbench:
    """What the engine needs of a Trainer: similarities on calibration data, values of an evaluation, a place to log.

    Args:
        trainer (`Trainer`): training, or about to.
        config (`PruningConfig`): what the user asked for.
        given (`Parts`, *optional*): data sets of the user's own; see `find_sets` for the others. Where none are kept apart,
            layers are measured on a sample of the Trainer's evaluation set, or of its training set where an evaluator
            judges without one.
        runtime (`Runtime`): the processes that share the measuring; one unless given.
    """

    def __init__(
        self, trainer: Trainer, config: PruningConfig, given: Parts | None = None, runtime: Runtime | None = None
    ) -> None:
        """Remember what was given."""
        self.trainer, self.config, self.given = trainer, config, given or Parts()
        self.runtime = runtime
        self._first: FirstBatch
        self._scores: TrainerScores
        self._seen: dict[str, Seen] = {}
        self._kept: dict[str, Evaluated] = {}

    @functools.cached_property
    def sets(self) -> Sets:
        """The data sets of this run; made once, alike on every process."""
        return find_sets(self.trainer, self.config, self.given, self.metric_hint()[0])

    def make_engine(self, record: PruningRecord | None) -> PruningEngine:
        """The engine of a run inside this Trainer's training, with its calibration batches.

        Args:
            record (`PruningRecord`, *optional*): of a run that is gone on with.

        Raises:
            CalibrationError: if there are no examples, or none that the criterion can score layers on; or if sets share
                examples that must not.
            MPrunerError: if the record's verdicts are of other examples.
            UnsupportedBackendError: if the processes cannot run what the criterion needs.
        """
        args, config, sets = self.trainer.args, self.config, self.sets
        check_sets(self.trainer, sets, record)
        criterion = None if config.plans_by_threshold else find_criterion(config.criterion)
        needs_loss = criterion is not None and criterion.reads_labels
        engine = PruningEngine(
            trained_model(self.trainer),
            config,
            measure=self.measure,
            score=lambda *given: self._scores(*given),
            evaluate=self.evaluate,
            runtime=self.runtime,
            trains=config.recovery_epochs > 0,
            snapshot_directory=Path(args.output_dir or "."),
            metric_hint=self.metric_hint,
            judged_on=self.judged_on,
            take_outcomes=lambda metric: self.outcomes(metric, uncut_outcomes(engine.record)),
            whole=trained_whole(self.trainer),
            verify_inputs=lambda: self._first(),
            time_forward=self.time_forward,
            record=record,
        )
        way = "LayerPruningCallback(trainer, config, calibration=other_dataset)"
        batches, proposing, facts = batches_of_sets(self.trainer, config, sets, way, raw=needs_loss)
        self._first = FirstBatch(ModelInputs(self.trainer, batches) if needs_loss else batches)
        if criterion is not None:
            given = (self.trainer, config, sets.measured, self.runtime)
            of_criterion = batches if needs_loss else self._first.batches
            self._scores = TrainerScores(
                *given, batches=of_criterion, proposing=proposing, judge=self.evaluate, record=lambda: engine.record
            )
            with self.aside():
                facts[sets.role] = self._scores.check(criterion) or facts[sets.role]
            engine.settle_target()
        write_facts(engine.record, self.trainer, facts)
        if record is None:
            check_search(config, engine.record, self.trainer.state.num_train_epochs)
        return engine

    def measure(self, stacks: list[BlockStack]) -> dict[str, SimilarityMatrix]:
        """Similarity of all pairs of layers of each stack."""
        return measure_similarity(
            trained_model(self.trainer),
            self._first.batches,
            stacks,
            protocol=self.config.protocol,
            stop=self.config.stop,
            show_progress=False if self.trainer.args.disable_tqdm else None,
            runtime=self.runtime,
        )

    def time_forward(self, record: PruningRecord, measured: Measurement) -> None:
        """Time the model as the Trainer evaluates it, on the first calibration batch."""
        accelerator: Any = self.trainer.accelerator
        measure_costs(
            trained_model(self.trainer),
            self._first,
            record,
            measured,
            runtime=self.runtime,
            mixed_precision=accelerator.mixed_precision,
        )

    def evaluate(self) -> dict[str, float]:
        """The Trainer's evaluation of what judges, keys without prefix; what `outcomes` needs of it is kept."""
        self._seen.clear()
        self._kept.clear()
        keeps = nullcontext() if self.config.confidence is None else keep_evaluations(self.trainer, self._kept)
        loader = own_loader(self.trainer, self.sets.evaluated)
        with watch_evaluations(self.trainer, self._seen), keeps, loader, self.sets.in_place(self.trainer) as data:
            given = {} if data is None else {"eval_dataset": data}  # a subclass's own evaluate may take none
            metrics = self.trainer.evaluate(**given, metric_key_prefix=self._prefix)
        # trl calls what it adds "eval_..." whatever prefix it is given
        return strip_prefix(strip_prefix(metrics, PREFIX), "eval")

    def judged_on(self, metric: str) -> Judged:
        """What a metric of the last evaluation was measured on."""
        judged = find_judged(self.trainer, metric, self._seen, self._prefix)
        return judged._replace(data=self.sets.describe("judging", judged.data))

    def outcomes(self, metric: str, like: Outcomes | None = None) -> Outcomes:
        """What the last evaluation's metric is made of, to be paired with that of another model; asked for once.

        Args:
            metric (`str`): its name.
            like (`Outcomes`, *optional*): of the uncut model: the same kind is made.

        Raises:
            MPrunerError: if the metric has no outcomes of examples or batches, and cannot be computed on resamples.
        """
        try:
            return outcomes_of_evaluation(self.trainer, metric, self._kept, self._prefix, like)
        finally:
            self._kept.clear()  # the predictions may be large

    @property
    def _prefix(self) -> str:
        # of several evaluation sets, sentence-transformers runs its evaluator for the first only if the prefix is "eval"
        return PREFIX if evaluator_of(self.trainer) is None else "eval"

    def metric_hint(self) -> tuple[str | None, bool | None]:
        """What decides if the config does not say: `metric_for_best_model`, else an evaluator's `primary_metric`."""
        args, evaluator = self.trainer.args, evaluator_of(self.trainer)
        name = (args.metric_for_best_model or "").removeprefix("eval_")
        if evaluator is not None and name in ("", "loss"):
            return getattr(evaluator, "primary_metric", None), getattr(evaluator, "greater_is_better", None)
        return name or None, args.greater_is_better

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Measure and evaluate beside the run: its random state, control flags, log and other callbacks see nothing.

        `Trainer.evaluate` clears `control.should_evaluate` and `should_log`, calls every callback's `on_evaluate`
        (early stopping counts those) and writes to the log history.
        """
        trainer = self.trainer
        handler, history = trainer.callback_handler, trainer.state.log_history
        everyone, logged = handler.callbacks, len(history)
        handler.callbacks = [cb for cb in everyone if isinstance(cb, DefaultFlowCallback | ProgressCallback)]
        try:
            with keep_rng_state(), keep_books(trainer), _keep_control(trainer):
                yield
        finally:
            handler.callbacks = everyone
            del history[logged:]

    def log_round(self, round_: Round, metric: str | None = None) -> None:
        """Log a round that begins, or was decided, through the Trainer: history, progress bar, whatever else is on.

        Args:
            round_ (`Round`): pending or decided.
            metric (`str`, *optional*): name of the metric that decides.
        """
        facts: dict[str, float] = {
            f"{PREFIX}_round": round_.number,
            f"{PREFIX}_layers": sum(len(kept) for kept in round_.kept.values()),
            f"{PREFIX}_parameters": round_.after.parameters,
        }
        if round_.verdict != "pending":
            facts[f"{PREFIX}_accepted"] = float(round_.verdict != "rejected")
        if round_.refused:
            facts[f"{PREFIX}_refused"] = 1.0
        if round_.after.metric is not None:
            facts[f"{PREFIX}_{metric}"] = round_.after.metric
        if round_.drop is not None:
            facts[f"{PREFIX}_drop"] = round_.drop
        if round_.bound:
            facts[f"{PREFIX}_drop_at_most"] = round_.bound["upper"]
        with keep_books(self.trainer), _keep_control(self.trainer):
            self.trainer.log(facts)


@contextmanager
def _keep_control(trainer: Trainer) -> Iterator[None]:
    """`Trainer.evaluate` and `Trainer.log` reset the flags that the rest of the step depends on."""
    flags = dict(vars(trainer.control))
    try:
        yield
    finally:
        vars(trainer.control).update(flags)
