"""MPruner's Algorithm 1 as a state machine: measure, cut, (somebody trains), judge, keep or go back.

The engine knows no Trainer. Whoever drives it calls `start_round` and `decide` at moments when no forward or backward
pass is in flight, and hands it two functions: one that measures similarities, one that evaluates the model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .architectures import BlockStack, find_block_stacks, parameters_after
from .clusters import LayerCluster, find_clusters
from .config import PruningConfig
from .cut import PendingCut, make_cut
from .errors import MPrunerError
from .metric import Metric, choose_metric, is_finite
from .plan import PruningPlan, resolve_protected
from .record import Measurement, PruningRecord, Round
from .runtime import Runtime, SingleProcess
from .similarity import SimilarityMatrix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Metric values are sums of many floats; a drop of exactly the allowed size must not fail on the last bit.
ROUNDING = 1e-9

Measure = Callable[[list[BlockStack]], dict[str, SimilarityMatrix]]
Evaluate = Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class RoundPlan:
    """What the next round would do, in the numbering of the model as it is now."""

    plan: PruningPlan
    granularity: int
    matrices: dict[str, SimilarityMatrix]
    clusters: dict[str, list[LayerCluster]]
    analysis_seconds: float


class PruningEngine:
    """The rounds of Algorithm 1 over one live model.

    Args:
        model (`PreTrainedModel`): changed in place.
        config (`PruningConfig`): what the user asked for.
        measure: called with the live block stacks, returns a `SimilarityMatrix` for each path.
        evaluate (*optional*): returns an evaluation's values by name, without prefix. Without it, cuts are made but
            not judged.
        runtime (`Runtime`): one process unless given.
        trains (`bool`): whether the model trains between a cut and its verdict. If not, no snapshot is taken.
        snapshot_directory (`Path`, *optional*): where `snapshot="disk"` writes.
        metric_hint: `(name, greater_is_better)` to fall back on, e.g. the Trainer's `metric_for_best_model`.

    Raises:
        UnsupportedArchitectureError: if the model has no stack that can be cut.
        ValueError: if the config names unknown stacks or layers, or protects every layer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: PruningConfig,
        *,
        measure: Measure,
        evaluate: Evaluate | None = None,
        runtime: Runtime | None = None,
        trains: bool = True,
        snapshot_directory: Path | None = None,
        metric_hint: tuple[str | None, bool | None] = (None, None),
    ) -> None:
        """Look at the model and the config; nothing is measured or changed yet."""
        self.model = model
        self.config = config
        self.runtime = runtime or SingleProcess()
        self._measure, self._evaluate = measure, evaluate
        self._trains, self._snapshot_directory = trains, snapshot_directory
        self._metric_hint = metric_hint
        self._metric: Metric | None = None
        self._cut: PendingCut | None = None
        self._next: RoundPlan | None = None
        self._measured: tuple[dict[str, SimilarityMatrix], float] | None = None
        self._rejected: set[tuple[tuple[str, tuple[int, ...]], ...]] = set()

        stacks = _selected(find_block_stacks(model), config.stacks)
        depths = {stack.path: stack.depth for stack in stacks}
        self._protected = resolve_protected(config.protect, depths)
        free = {stack.path: set(stack.prunable) - self._protected[stack.path] - {0} for stack in stacks}
        if not any(free.values()):
            held = "; ".join(f"'{path}': protected {sorted(layers)}" for path, layers in self._protected.items())
            raise ValueError(
                f"Every layer that could go is protected or pinned ({held}). A cluster keeps its first layer, so "
                "leave at least one layer after layer 0 out of protect."
            )
        self.record = PruningRecord(
            depths,
            model_type=model.config.model_type,
            source_model=_hub_id(model),
            source_revision=getattr(model.config, "_commit_hash", None),
            config=config.to_dict(),
            granularity=config.granularity,
        )

    @property
    def pending(self) -> bool:
        """Whether a cut waits for its verdict."""
        return self._cut is not None

    @property
    def done(self) -> bool:
        """Whether no further round follows; `record.stopped` says why."""
        return self.record.stopped is not None and not self.pending

    def stop(self, reason: str) -> None:
        """No further round after this; a reason that was given earlier stays."""
        self.record.stopped = self.record.stopped or reason

    def reopen(self) -> None:
        """Go on with the same record, e.g. in a second call of `Trainer.train`; what was measured is measured anew."""
        self.record.stopped = None
        self.record.granularity = self.config.granularity
        self._forget_measurement()

    def measure_baseline(self) -> None:
        """Evaluate the uncut model (the paper's acc_o); once, later calls do nothing."""
        if self.record.baseline is not None:
            return
        measured, metrics = self._evaluate_now()
        if metrics is not None:
            metric = choose_metric(
                metrics,
                self.config.metric,
                self.config.greater_is_better,
                fallback_name=self._metric_hint[0],
                fallback_greater_is_better=self._metric_hint[1],
            )
            value = metric.read(metrics)
            if not is_finite(value):
                raise MPrunerError(
                    f"The uncut model's {metric.name} is {value}: no drop can be measured against that. Check the "
                    "evaluation before pruning (the labels, the loss, the data type)."
                )
            measured.metric = value
            self._metric = metric
            self.record.metric, self.record.greater_is_better = metric.name, metric.greater_is_better
        self.record.baseline = measured

    def plan_round(self) -> RoundPlan | None:
        """Measure (unless nothing changed since) and plan the next round; `None` and `done` if there is none."""
        if self._next is not None or self.done:
            return self._next
        if self.config.max_rounds is not None and len(self.record.rounds) >= self.config.max_rounds:
            self.stop(f"max_rounds={self.config.max_rounds} reached")
            return None
        if all(len(layers) == 1 for layers in self.record.kept.values()):
            self.stop("one layer is left in every stack")
            return None
        stacks = _selected(find_block_stacks(self.model), list(self.record.depths), missing_ok=True)
        if self._measured is None:
            started = time.perf_counter()
            self._measured = (self._measure(stacks), time.perf_counter() - started)
        matrices, seconds = self._measured
        clusters = {
            path: find_clusters(matrix, threshold=self.config.threshold, linkage=self.config.linkage)
            for path, matrix in matrices.items()
        }
        if all(len(cluster.layers) == 1 for found in clusters.values() for cluster in found):
            self.stop(f"no two neighbouring layers are alike at threshold {self.config.threshold:g}")
            return None
        protect = [f"{path}:{layer}" for path, layers in self._protected_now().items() for layer in layers]
        for granularity in range(self.record.granularity, self.config.max_granularity + 1):
            plan = PruningPlan.from_clusters(clusters, stacks, granularity, protect)
            if plan.num_removed and _signature(plan) not in self._rejected:
                self.record.granularity = granularity
                self._next = RoundPlan(plan, granularity, matrices, clusters, seconds)
                return self._next
        self.stop(
            f"rejected up to granularity {self.config.max_granularity}"
            if self._rejected
            else "the layers that are alike are protected or pinned"
        )
        return None

    def start_round(self, optimizer: Any = None, scheduler: Any = None, *, scaler: Any = None, step: int = 0) -> bool:
        """Measure, plan and cut.

        Args:
            optimizer (*optional*): the live one; edited in place.
            scheduler (*optional*): the live one; edited in place.
            scaler (*optional*): the gradient scaler of fp16 training.
            step (`int`): the training step, for the record.

        Returns:
            `bool`: whether a cut was made and now waits for `decide`. `False` means `done`.

        Raises:
            MPrunerError: if the cut cannot be made or proved; the model is as it was.
        """
        if self.pending:
            raise MPrunerError("A cut is waiting for its verdict: call decide() before the next round.")
        self.measure_baseline()
        following = self.plan_round()
        if following is None:
            return False
        original = self.record.kept
        self._cut = make_cut(
            self.model,
            following.plan,
            optimizer,
            scheduler,
            scaler=scaler,
            runtime=self.runtime,
            snapshot=self.config.snapshot if self._trains else None,
            snapshot_directory=self._snapshot_directory,
            freeze_untouched=self.config.freeze_untouched,
        )
        kept = {path: [original[path][i] for i in stack.kept] for path, stack in following.plan.stacks.items()}
        self.record.rounds.append(
            Round(
                number=len(self.record.rounds) + 1,
                granularity=following.granularity,
                kept={**original, **kept},
                clusters=_original_clusters(following.clusters, original),
                similarity={
                    path: replace(matrix, layers=tuple(original[path])).to_dict()
                    for path, matrix in following.matrices.items()
                },
                after=self._size(),
                started_at_step=step,
                analysis_seconds=following.analysis_seconds,
            )
        )
        return True

    def decide(self, *, step: int = 0) -> Round:
        """Evaluate the cut model and keep it, or go back to the model before the cut.

        Args:
            step (`int`): the training step, for the record.

        Returns:
            `Round`: with its verdict, drop and reason.

        Raises:
            MPrunerError: if no cut is pending.
        """
        round_, cut = self.record.pending, self._cut
        if round_ is None or cut is None:
            raise MPrunerError("No cut is waiting for a verdict: call start_round() first.")
        following = self._next
        round_.recovery_seconds = time.perf_counter() - cut.started
        measured, metrics = self._evaluate_now()
        value = self._metric.read(metrics) if self._metric is not None and metrics is not None else None
        accepted = self._judge(round_, value)
        measured.metric = value if value is not None and is_finite(value) else None
        self.runtime.before_edit()
        if accepted:
            cut.keep()
        else:
            cut.undo()
            round_.verdict = "rejected"
            self.record.granularity = round_.granularity + 1
            if following is not None:
                self._rejected.add(_signature(following.plan))
        self._cut = self._next = None
        if accepted:
            self._forget_measurement()
        self.runtime.after_edit()
        round_.after, round_.decided_at_step = measured, step
        if self.record.granularity > self.config.max_granularity:
            self.stop(f"rejected at granularity {round_.granularity}, the coarsest allowed")
        return round_

    def _judge(self, round_: Round, value: float | None) -> bool:
        if (
            self._metric is None
            or value is None
            or self.record.baseline is None
            or self.record.baseline.metric is None
        ):
            round_.verdict, round_.reason = "unjudged", "no metric was measured"
            return True
        name, allowed = self._metric.name, self.config.max_metric_drop
        if not is_finite(value):
            round_.verdict, round_.reason = "rejected", f"{name} is {value}"
            return False
        round_.drop = self._metric.drop(self.record.baseline.metric, value)
        accepted = round_.drop <= allowed + ROUNDING * max(1.0, abs(self.record.baseline.metric))
        round_.verdict = "accepted" if accepted else "rejected"
        relation = "within" if accepted else "more than"
        round_.reason = f"{name} {value:.6g}, drop {round_.drop:.6g} is {relation} the allowed {allowed:g}"
        return accepted

    def _evaluate_now(self) -> tuple[Measurement, Mapping[str, float] | None]:
        measured = self._size()
        if self._evaluate is None:
            return measured, None
        started = time.perf_counter()
        metrics = self._evaluate()
        measured.evaluation_seconds = float(metrics.get("runtime", time.perf_counter() - started))
        return measured, metrics

    def _size(self) -> Measurement:
        return Measurement(*parameters_after(self.model, {}))

    def _protected_now(self) -> dict[str, list[int]]:
        """Protected layers in the numbering of the model as it is."""
        return {
            path: [i for i, original in enumerate(layers) if original in self._protected[path]]
            for path, layers in self.record.kept.items()
        }

    def _forget_measurement(self) -> None:
        self._measured = self._next = None
        self._rejected.clear()


def _selected(stacks: list[BlockStack], paths: list[str] | None, *, missing_ok: bool = False) -> list[BlockStack]:
    if paths is None:
        return stacks
    known = [stack.path for stack in stacks]
    unknown = [path for path in paths if path not in known]
    if unknown and not missing_ok:
        raise ValueError(
            f"stacks={unknown} are no block stacks of this model. Its stacks are: {', '.join(known)}; pass some of these."
        )
    return [stack for stack in stacks if stack.path in paths]


def _hub_id(model: PreTrainedModel) -> str | None:
    # a path of this machine says nothing to whoever reads the plan elsewhere, so only Hub ids are recorded
    name = getattr(model.config, "_name_or_path", "") or ""
    return None if not name or Path(name).exists() or name.startswith(("/", ".", "~")) else name


def _signature(plan: PruningPlan) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(sorted(plan.kept.items()))


def _original_clusters(
    clusters: Mapping[str, list[LayerCluster]], original: Mapping[str, list[int]]
) -> dict[str, list[list[int]]]:
    return {
        path: [[original[path][i] for i in cluster.layers] for cluster in found if len(cluster.layers) > 1]
        for path, found in clusters.items()
    }
