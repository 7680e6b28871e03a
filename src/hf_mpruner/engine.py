"""MPruner's Algorithm 1 as a state machine: measure, cut, (somebody trains), judge, keep or go back.

The engine knows no Trainer. Whoever drives it calls `start_round` and `decide` at moments when no forward or backward
pass is in flight, and hands it functions: one that measures similarities, one that scores layers, one that evaluates.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from .architectures import parameters_after
from .config import PruningConfig
from .cut import PendingCut, check_verification, make_cut
from .errors import MPrunerError, UnsupportedArchitectureError
from .footprint.spending import Spending
from .plan import PruningPlan
from .planner import TARGET_REACHED, Measure, RoundPlanner, Score
from .promises import TakeOutcomes
from .record import Measurement, PruningRecord, Round
from .recovery import WholeModel, make_trainable
from .roundplan import RoundPlan, new_round
from .runtime import Runtime, SingleProcess
from .verdict import Evaluate, Judge, Judged, JudgedOn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

GiveInputs = Callable[[], Mapping[str, Any]]
TimeForward = Callable[[PruningRecord, Measurement], None]


class PruningEngine:
    """The rounds of Algorithm 1 over one live model.

    Args:
        model (`PreTrainedModel`): changed in place.
        config (`PruningConfig`): what the user asked for.
        measure: called with the live block stacks, returns a `SimilarityMatrix` for each path.
        score (*optional*): called with a criterion, block stacks and how many layers of each go at most, returns
            `ScoredLayers`; needed if the config asks for a number of layers.
        evaluate (*optional*): returns an evaluation's values by name, without prefix; without it nothing is judged.
        runtime (`Runtime`): one process unless given.
        trains (`bool`): whether the model trains between a cut and its verdict. If not, no snapshot is taken.
        snapshot_directory (`Path`, *optional*): where `snapshot="disk"` writes.
        metric_hint (callable): returns `(name, greater_is_better)` to fall back on, e.g. `metric_for_best_model`.
        verify_inputs (*optional*): returns a batch of model inputs, for `verify="full"`.
        judged_on (callable, *optional*): gets a metric's name, returns what the last evaluation measured it on.
        take_outcomes (callable, *optional*): gets the same, returns what the model did on each example.
        time_forward (callable, *optional*): gets the record and a measurement of the model, writes its latency into them.
        record (`PruningRecord`, *optional*): of a run that is gone on with; its accepted cuts are made, none is pending.
        whole (`nn.Module`, *optional*): what trains, if the model is only a part of it.

    Raises:
        UnsupportedArchitectureError: if the model has no stack that can be cut.
        ValueError: if the config names unknown stacks, layers or criteria, protects every layer, or asks for fewer layers
            than can be left; or if it asks for `verify="full"` without `verify_inputs`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: PruningConfig,
        *,
        measure: Measure,
        score: Score | None = None,
        evaluate: Evaluate | None = None,
        runtime: Runtime | None = None,
        trains: bool = True,
        snapshot_directory: Path | None = None,
        metric_hint: Callable[[], tuple[str | None, bool | None]] = lambda: (None, None),
        verify_inputs: GiveInputs | None = None,
        judged_on: JudgedOn = lambda metric: Judged({}),
        take_outcomes: TakeOutcomes | None = None,
        time_forward: TimeForward = lambda record, measured: None,
        record: PruningRecord | None = None,
        whole: nn.Module | None = None,
    ) -> None:
        """Look at the model and the config; nothing is measured or changed yet."""
        check_verification(config, verify_inputs is not None, runtime)
        self.model = model
        self.whole: nn.Module = model if whole is None else whole
        self.config = config
        self.runtime = runtime or SingleProcess()
        spent = Spending(lambda: self.record, model)
        measure, score = spent("measuring", measure), spent("measuring", score)
        self._planner = RoundPlanner(model, config, measure, record, score)
        self.judge = Judge(config, spent("evaluating", evaluate), self.runtime, metric_hint, judged_on, take_outcomes)
        self._time_forward, self._baseline_is_timed = spent("timing", time_forward), False
        self._trains, self._snapshot_directory = trains, snapshot_directory
        self._verify_inputs = verify_inputs if config.verify == "full" else None
        self.cut: PendingCut | None = None
        self._next: RoundPlan | None = None
        if record is not None:
            self.record = record
            if record.stopped == TARGET_REACHED and not self._planner.reached(record):
                record.stopped = None  # the config asks for fewer layers now
            self.judge.adopt(record)
            return
        self.record = self._planner.begin()

    @property
    def pending(self) -> bool:
        """Whether a cut waits for its verdict."""
        return self.cut is not None

    def depth_before(self) -> dict[str, int]:
        """Depths before the pending cut, by stack path; empty if none is pending."""
        return {path: len(layers) for path, layers in self.record.kept.items()} if self.pending else {}

    @property
    def done(self) -> bool:
        """Whether no further round follows; `record.stopped` says why."""
        return self.record.stopped is not None and not self.pending

    def stop(self, reason: str) -> None:
        """No further round after this; a reason that was given earlier stays."""
        self.record.stopped = self.record.stopped or reason

    def reopen(self) -> None:
        """Go on with the same record, e.g. in a second call of `Trainer.train`; what was measured is measured anew."""
        self.record.stopped, self.record.similarity_after = None, {}
        self.record.granularity = self.config.granularity
        self._next = None
        self._planner.forget()

    def settle_target(self) -> None:
        """Turn limits into numbers of layers, once and before any training, so that one out of reach is refused then."""
        self._planner.settle_target(self.record, self._time_forward, self.runtime)

    def measure_baseline(self) -> None:
        """Evaluate the uncut model (the paper's acc_o); once, later calls do nothing."""
        if self.record.baseline is None:
            self.judge.set_baseline(self.record, self._size())

    def measure_kept(self, *, step: int | None = 0) -> None:
        """At the end of a run: the similarities of the model that was kept, for the record.

        Args:
            step (`int`, *optional*): the training step; `None` if other weights were loaded since.
        """
        if not self.pending and self.record.baseline is not None:
            with self.runtime.attempt("measuring the model that was kept"):
                self.record.similarity_after = self._planner.measure_kept(self.record, step)

    def plan_round(self, step: int = 0) -> RoundPlan | None:
        """Measure (unless nothing changed since) and plan the next round; `None` and `done` if there is none.

        The main process's plan holds on every process.
        """
        self.record.stopped = self.record.stopped or self.judge.why_over(self.record)
        if self._next is not None or self.done:
            return self._next
        self.settle_target()
        with self.runtime.together("planning a round"):
            following = self._planner.plan(self.record, step)
        following = self.runtime.broadcast(following)
        if isinstance(following, str):
            self.stop(following)
        else:
            self.record.granularity, self._next = following.granularity, following
        return self._next

    def start_round(self, optimizer: Any = None, scheduler: Any = None, *, scaler: Any = None, step: int = 0) -> bool:
        """Measure, plan and cut.

        A cut that cannot be proved right is not made: it counts as a rejected round, with the reason, and the next one (a
        coarser k, another number of layers) is planned.

        Args:
            optimizer (*optional*): the live one; edited in place.
            scheduler (*optional*): the live one; edited in place.
            scaler (*optional*): the gradient scaler of fp16 training.
            step (`int`): the training step, for the record.

        Returns:
            `bool`: whether a cut was made and now waits for `decide`. `False` means `done`.

        Raises:
            MPrunerError: if the optimizer or the backend cannot lose layers, or the processes do not agree; the model
                is as it was.
        """
        if self.pending:
            raise MPrunerError("A cut is waiting for its verdict: call decide() before the next round.")
        self.measure_baseline()
        while (following := self._plan_and_time(step)) is not None:
            round_ = new_round(following, self.record, self._size(), step)
            refusal = self._cut_together(following.plan, optimizer, scheduler, scaler)
            if refusal is not None or self.cut is None:
                self._refuse(round_, following, refusal or "")
                continue
            round_.after = Measurement(*self.cut.size)
            self.record.rounds.append(round_)
            return True
        return False

    def _plan_and_time(self, step: int) -> RoundPlan | None:
        """Plan the next round; the uncut model is timed after it was measured, whose first batch is at hand then."""
        following, baseline = self.plan_round(step), self.record.baseline
        is_due = self.record.is_uncut and not self._baseline_is_timed
        if baseline is not None and baseline.latency_seconds is None and is_due:
            self._baseline_is_timed = True
            self._time_forward(self.record, baseline)
        return following

    def carry_out(self, plan: PruningPlan, optimizer: Any, scheduler: Any, *, scaler: Any = None) -> PendingCut:
        """Make a cut as the config says: verified, with a snapshot if the model trains, with what recovers it.

        Raises:
            MPrunerError: if the processes were given different plans; nothing was changed on any of them.
        """
        if not self.runtime.all_equal((plan.kept, [stack.merged for stack in plan.stacks.values()])):
            raise MPrunerError(
                f"The processes have different plans: this one (rank {self.runtime.rank}) would keep {plan.kept}. Decide on "
                "the main process and send the plan to the others (runtime.broadcast). Nothing was changed."
            )
        # transformers saves on the main process only, so only there a copy can be loaded again
        inputs = self._verify_inputs() if self._verify_inputs is not None and self.runtime.is_main_process else None
        return make_cut(
            self.model,
            plan,
            optimizer,
            scheduler,
            scaler=scaler,
            runtime=self.runtime,
            snapshot=self.config.snapshot if self._trains else None,
            snapshot_directory=self._snapshot_directory,
            trainable=make_trainable(self.config) if self._trains else WholeModel(),
            verify_inputs=inputs,
            whole=self.whole,
        )

    def _cut_together(self, plan: PruningPlan, optimizer: Any, scheduler: Any, scaler: Any) -> str | None:
        """Cut on every process or on none; returns why the cut was refused, if it was."""
        cut, refusal = None, None
        try:
            with self.runtime.together("cutting the model"):
                try:
                    cut = self.carry_out(plan, optimizer, scheduler, scaler=scaler)
                except UnsupportedArchitectureError as error:
                    refusal = " ".join(str(error).split())
            refusals = self.runtime.gather(refusal)
            if refusals[0] is None and any(refusals):
                reasons = "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(refusals) if text)
                raise MPrunerError(f"The cut was refused by some processes, but not by the main one: {reasons}")
            if refusals[0] is not None and cut is not None:
                self._take_back(cut)
                cut = None
            self.runtime.check_same(self.whole)
        except BaseException:
            if cut is not None:
                self._take_back(cut)
            raise
        self.cut = cut
        return refusals[0]

    def _take_back(self, cut: PendingCut) -> None:
        self.runtime.before_edit()
        cut.undo()
        self.cut = None
        self.runtime.after_edit()

    def decide(self, *, step: int = 0) -> Round:
        """Evaluate the cut model and keep it, or go back to the model before the cut.

        Returns:
            `Round`: with its verdict, drop and reason.

        Raises:
            MPrunerError: if no cut is pending.
        """
        round_, cut = self.record.pending, self.cut
        if round_ is None or cut is None or self._next is None:
            raise MPrunerError("No cut is waiting for a verdict: call start_round() first.")
        round_.recovery_seconds = self.runtime.broadcast(time.perf_counter() - cut.started)
        measured = Measurement(*cut.size)
        accepted = self.judge.judge(round_, self.record, measured, cut.trainable.settle)
        if not cut.trainable.adds_modules:
            self._time_forward(self.record, measured)
        with self.runtime.together("keeping the cut" if accepted else "going back to the model before the cut"):
            if accepted:
                self.runtime.before_edit()
                cut.keep()
                self.cut = None
                self.runtime.after_edit()
                self.runtime.on_keep()
            else:
                self._take_back(cut)
        self.runtime.check_same(self.whole)
        if accepted and cut.trainable.adds_modules:  # they are a part of the model now
            self._time_forward(self.record, measured)
        round_.after, round_.decided_at_step = measured, step
        if not accepted:
            self._reject(round_, self._next)
            return round_
        self._next = None
        if reason := self._planner.accept(self.record):
            self.stop(reason)
        return round_

    def rollback(self) -> None:
        """Take a pending cut back without a verdict, e.g. after an interrupted training; without one, do nothing."""
        if self.cut is None:
            return
        self._take_back(self.cut)
        self._next = None
        self.record.rounds.pop()

    def withdraw(self, reason: str, *, step: int = 0) -> None:
        """Reject a pending cut without an evaluation, e.g. since the weights before it are about to be loaded."""
        round_, cut = self.record.pending, self.cut
        if round_ is None or cut is None or self._next is None:
            return
        self._take_back(cut)
        round_.reason, round_.decided_at_step = reason, step
        self._reject(round_, self._next)

    def adopt(self, cut: PendingCut, following: RoundPlan) -> None:
        """Go on with a cut that was pending in a checkpoint and has been made again; its round is in the record."""
        self.cut, self._next = cut, following

    def _refuse(self, round_: Round, following: RoundPlan, refusal: str) -> None:
        """Record a cut that was never made; model and optimizer are as they were."""
        numbering = "" if self.record.is_uncut else " (Layers are numbered as they were before this round.)"
        round_.reason, round_.refused = f"{refusal}{numbering}", True
        round_.decided_at_step = round_.started_at_step
        self.record.rounds.append(round_)
        logger.warning("Round %d refused, nothing was cut: %s", round_.number, round_.reason)
        self._reject(round_, following)

    def _reject(self, round_: Round, following: RoundPlan) -> None:
        round_.verdict = "rejected"
        self._next = None
        if reason := self._planner.reject(self.record, round_, following.plan):
            self.stop(reason)

    def _size(self) -> Measurement:
        return Measurement(*parameters_after(self.model, {}))
