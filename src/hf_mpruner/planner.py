"""What the next round would cut: measured once, planned for ever coarser k until a cut is new.

Without a number of layers to go, whole clusters go at a threshold (MPruner, Algorithm 1); with one, or one that is searched
for, the layers that a criterion scores lowest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from .architectures import BlockStack, find_block_stacks
from .clusters import find_clusters
from .config import PruningConfig, resolve_protected
from .criteria import (
    OF_SIMILARITY,
    Criterion,
    Quota,
    ScoredLayers,
    as_recorded,
    criterion_of,
    from_original,
    hold_protected,
    plan_layers,
)
from .errors import UnsupportedArchitectureError
from .plan import PruningPlan
from .record import PruningRecord, Round
from .roundplan import RoundPlan, find_alike, new_record, original_similarity
from .runtime import Runtime
from .search import LayerSearch
from .similarity import SimilarityMatrix
from .targets import TimeForward, asked_of, choose_stacks, settle_target

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TARGET_REACHED = "target reached"

Measure = Callable[[list[BlockStack]], dict[str, SimilarityMatrix]]
Score = Callable[[Criterion, list[BlockStack], dict[str, int]], ScoredLayers]


class RoundPlanner:
    """Plans rounds for one live model.

    Args:
        model (`PreTrainedModel`): read, not changed.
        config (`PruningConfig`): what the user asked for.
        measure: called with the live block stacks, returns a `SimilarityMatrix` for each path.
        record (`PruningRecord`, *optional*): of the run that is gone on with; the model is as it left it.
        score (*optional*): called with a criterion, the live block stacks that shrink and how many layers of each go at
            most, returns what it says; needed if the config asks for a number of layers.

    Attributes:
        depths (`dict[str, int]`): for each stack that may be cut, the layers it has now.
        criterion (`Criterion`, *optional*): what scores layers; `None` if whole clusters go at a threshold.
        search (`LayerSearch`, *optional*): for the number of layers that go; `None` if somebody says how many.

    Raises:
        UnsupportedArchitectureError: if the model has no stack that can be cut.
        ValueError: if the config names unknown stacks, layers or criteria, protects every layer, or asks for fewer layers
            than can be left.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: PruningConfig,
        measure: Measure,
        record: PruningRecord | None = None,
        score: Score | None = None,
    ) -> None:
        """Look at the model and the config; nothing is measured yet."""
        self.model, self.config = model, config
        self._measure, self._score = measure, score
        self.criterion = None if config.plans_by_threshold else criterion_of(config)
        if self.criterion is not None and score is None:
            raise ValueError(
                "threshold='auto', targets and layers_per_round need a way to score layers: pass score to PruningEngine."
            )
        self.search: LayerSearch | None = None
        self._measured: tuple[dict[str, SimilarityMatrix], float] | None = None
        self._scored: tuple[ScoredLayers, float] | None = None
        self._measured_at: int | None = None  # the step of the training at which the model is as measured
        self._rejected: list[dict[str, tuple[int, ...]]] = []
        if record is not None:
            self.depths = dict(record.depths)
            self._protected = resolve_protected(config.protect, self.depths)
            self._quota = Quota(config, self.depths)
            if self.config.limits and record.target.get("asked") == asked_of(config):
                self._quota.settle(record.target["num_layers"])
            self._adopt(record)
            return
        stacks = choose_stacks(find_block_stacks(model), config.stacks)
        self.depths = {stack.path: stack.depth for stack in stacks}
        self._protected = resolve_protected(config.protect, self.depths)
        self._quota = Quota(config, self.depths)
        if self.criterion is not None:
            self._check_number(self.criterion, stacks)
            return
        free = {stack.path: set(stack.prunable) - self._protected[stack.path] - {0} for stack in stacks}
        if not any(free.values()):
            held = "; ".join(f"'{path}': protected {sorted(layers)}" for path, layers in self._protected.items())
            raise ValueError(
                f"Every layer that could go is protected or pinned ({held}). A cluster keeps its first layer, so "
                "leave at least one layer after layer 0 out of protect."
            )

    def plan(self, record: PruningRecord, step: int = 0) -> RoundPlan | str:
        """Plan the next round, from `record.granularity` on.

        The model is measured only if it changed since. A cut that was rejected or refused from this very model is not
        tried again under a coarser k.

        Args:
            record (`PruningRecord`): the run so far.
            step (`int`): of the training.

        Returns:
            `RoundPlan`, or in words why there is none.
        """
        if self.reached(record):
            return TARGET_REACHED
        if self.config.max_rounds is not None and len(record.rounds) >= self.config.max_rounds:
            return f"max_rounds={self.config.max_rounds} reached"
        if all(len(layers) == 1 for layers in record.kept.values()):
            return "one layer is left in every stack"
        stacks = self._find_stacks()
        if isinstance(stacks, str):
            return stacks
        if self.criterion is not None and self.search is not None:
            criterion, protected = self.criterion, self._live_protected(record, [stack.path for stack in stacks])
            return self.search.plan(
                criterion, stacks, protected, record, lambda held, most: self._score_once(criterion, held, most, step)
            )
        if self.criterion is not None:
            return self._plan_by_scores(self.criterion, stacks, record, step)
        if self._measured is None:
            started = time.perf_counter()
            self._measured = (self._measure(stacks), time.perf_counter() - started)
            self._measured_at = step
        matrices, seconds = self._measured
        clusters = {
            path: find_clusters(matrix, threshold=self.config.fixed_threshold, linkage=self.config.linkage)
            for path, matrix in matrices.items()
        }
        if all(len(cluster.layers) == 1 for found in clusters.values() for cluster in found):
            return f"no two neighbouring layers are alike at threshold {self.config.fixed_threshold:g}"
        protect = _entries(self._live_protected(record, list(matrices)))
        for granularity in range(record.granularity, self.config.max_granularity + 1):
            plan = PruningPlan.from_clusters(clusters, stacks, granularity, protect)
            if plan.num_removed and _shortened(plan) not in self._rejected:
                return RoundPlan(plan, granularity, matrices, clusters, seconds)
        if self._rejected:
            return f"rejected up to granularity {self.config.max_granularity}"
        return "the layers that are alike are protected or pinned"

    def _plan_by_scores(
        self, criterion: Criterion, stacks: list[BlockStack], record: PruningRecord, step: int
    ) -> RoundPlan | str:
        """Plan a round in which the layers go that the criterion scores lowest."""
        protected = self._live_protected(record, [stack.path for stack in stacks])
        coarser = range(record.granularity, self.config.max_granularity + 1)
        numbers = {k: self._quota.numbers(stacks, protected, k) for k in coarser}
        most = {
            path: max(each.get(path, 0) for each in numbers.values()) for each in numbers.values() for path in each
        }
        if not most:
            return "no layer is left that could go"
        scored, seconds = self._score_once(criterion, hold_protected(stacks, protected), most, step)
        for granularity, number in numbers.items():
            try:
                plan = plan_layers(criterion, scored, stacks, number, _entries(protected))
            except ValueError as error:
                return f"{criterion.name} finds no layers that could go: {' '.join(str(error).split())}"
            if plan.num_removed and _shortened(plan) not in self._rejected:
                return RoundPlan(plan, granularity, *find_alike(scored, plan), seconds, scored)
        if self._rejected:
            return f"rejected up to granularity {self.config.max_granularity}"
        return f"{criterion.name} finds no layers that could go"

    def _score_once(
        self, criterion: Criterion, stacks: list[BlockStack], most: dict[str, int], step: int
    ) -> tuple[ScoredLayers, float]:
        """The scores of the model as it is, and the seconds that they took; measured only if it changed since."""
        if self._scored is None and self._score is not None:
            started = time.perf_counter()
            scored = as_recorded(self._score(criterion, [stack for stack in stacks if stack.path in most], most))
            self._scored, self._measured_at = (scored, time.perf_counter() - started), step
        return cast("tuple[ScoredLayers, float]", self._scored)

    def _check_number(self, criterion: Criterion, stacks: list[BlockStack]) -> None:
        """Refuse a number of layers that cannot be reached, before anything is measured."""
        self._quota.check(stacks, self._protected)
        stay = {stack.path: criterion.must_stay(self.model, stack) for stack in stacks}
        held = {path: {*self._protected[path], *layers} for path, layers in stay.items()}
        reasons = [f"layer {layer}: {why}" for layers in stay.values() for layer, why in layers.items() if layer]
        try:
            self._quota.check(stacks, held)
        except ValueError as error:
            raise ValueError(
                f"{error} That is so for criterion='{criterion.name}', which needs layers that it can merge ({reasons[0]})."
                if reasons
                else str(error)
            ) from None
        if self.config.searches:
            self.search = LayerSearch.begin(self._quota, stacks, held, self.config.max_rounds)
        if not self._quota.targets and not self._quota.numbers(stacks, held, 1):
            named = "; ".join(f"'{path}': protected {sorted(layers)}" for path, layers in self._protected.items())
            reason = f"; criterion='{criterion.name}': {reasons[0]}" if reasons else ""
            raise ValueError(
                f"Every layer that could go is protected or pinned ({named}{reason}). Leave at least one layer out of protect."
            )

    def _live_protected(self, record: PruningRecord, paths: list[str]) -> dict[str, list[int]]:
        """Protected layers of some stacks, in the numbering of the model as it is."""
        kept = record.kept
        return {
            path: [live for live, original in enumerate(kept[path]) if original in self._protected[path]]
            for path in kept
            if path in paths
        }

    def settle_target(self, record: PruningRecord, time_forward: TimeForward, runtime: Runtime) -> None:
        """Turn limits into numbers of layers, once in a run; the record has them then. See `targets.settle_target`."""
        criterion, stacks = self.criterion, [] if self._quota.settled else self._find_stacks()
        if criterion is None or not stacks or isinstance(stacks, str):
            return
        protected = self._live_protected(record, [stack.path for stack in stacks])
        held = {stack.path: {*protected[stack.path], *criterion.must_stay(self.model, stack)} for stack in stacks}
        target = settle_target(self.model, self.config, stacks, record, held, time_forward, runtime)
        record.target = target.to_dict()
        self._quota.settle(target.num_layers)
        if self.search is not None:  # it ends where the model is small enough
            self.search = LayerSearch.begin(self._quota, stacks, held, self.config.max_rounds, record)
            record.search = self.search.bounds.to_dict()

    def reached(self, record: PruningRecord) -> bool:
        """Whether as many layers are left as the user asked for."""
        return self.criterion is not None and self._quota.is_reached(record.kept)

    def measure_kept(self, record: PruningRecord, step: int | None) -> dict[str, dict[str, Any]]:
        """Similarities of the model as it is, in the original numbering; measured only if it changed since the last time.

        Args:
            record (`PruningRecord`): of a run that has ended.
            step (`int`, *optional*): of the training; `None` if its weights were replaced.

        Returns:
            `dict`: for each stack that still is one `SimilarityMatrix.to_dict()`.
        """
        if self.criterion is not None and self.config.criterion not in OF_SIMILARITY:
            return {}
        if self._measured is not None and self._measured_at == step:
            return original_similarity(self._measured[0], record.kept)
        stacks = self._find_stacks()
        return {} if isinstance(stacks, str) else original_similarity(self._measure(stacks), record.kept)

    def begin(self) -> PruningRecord:
        """The record of a run that begins, with what a search can cost."""
        record = new_record(self.model, self.config, self.depths)
        record.search = {} if self.search is None else self.search.bounds.to_dict()
        return record

    def accept(self, record: PruningRecord) -> str | None:
        """A cut was kept: what was measured before it no longer holds; returns why no round can follow, if none can."""
        self.forget()
        if self.reached(record):
            return TARGET_REACHED
        return None if self.search is None else self.search.over(record)

    def reject(self, record: PruningRecord, round_: Round, plan: PruningPlan) -> str | None:
        """Do not plan this cut again; the model is as it was, so what was measured still holds.

        Args:
            record (`PruningRecord`): of the run; its granularity becomes the next coarser one, unless a number is searched
                for.
            round_ (`Round`): that was rejected.
            plan (`PruningPlan`): of that round.

        Returns:
            `str`: why no round can follow, if none can.
        """
        self._rejected.append(_shortened(plan))
        self._measured_at = round_.decided_at_step
        if self.search is not None:
            return self.search.over(record)
        record.granularity = round_.granularity + 1
        verb = "refused" if round_.refused else "rejected"
        is_last = record.granularity > self.config.max_granularity
        return f"{verb} at granularity {round_.granularity}, the coarsest allowed" if is_last else None

    def _find_stacks(self) -> list[BlockStack] | str:
        """The stacks that may be cut, or in words why there is none; one that is down to one layer is no stack any more."""
        try:
            stacks = [stack for stack in find_block_stacks(self.model) if stack.path in self.depths]
        except UnsupportedArchitectureError as error:
            return f"no stack can be cut any further: {' '.join(str(error).split())}"
        return stacks or f"no stack of {', '.join(self.depths)} can be cut any further"

    def _adopt(self, record: PruningRecord) -> None:
        """Know what a run knew that is gone on with: what was measured and rejected since the last accepted cut.

        Similarities are read from the record, to the bit, so that the next plan is the one that would have been made.
        """
        if self.config.searches:
            self.search = LayerSearch.resume(self._quota, record)
        before = record.kept
        for round_ in reversed(record.rounds):
            if round_.verdict not in ("rejected", "pending"):
                break
            plan = {
                path: tuple(before[path].index(layer) for layer in layers)
                for path, layers in round_.kept.items()
                if layers != before[path]
            }
            if round_.verdict == "rejected":
                self._rejected.insert(0, plan)
            if self._scored is None and round_.scores:
                self._scored = (from_original(round_.scores), round_.analysis_seconds)
                self._measured_at = round_.decided_at_step if round_.verdict == "rejected" else None
            if self._measured is None and round_.similarity:
                matrices = {path: SimilarityMatrix.from_dict(values) for path, values in round_.similarity.items()}
                live = {path: replace(one, layers=tuple(range(len(one.layers)))) for path, one in matrices.items()}
                self._measured = (live, round_.analysis_seconds)
                self._measured_at = round_.decided_at_step if round_.verdict == "rejected" else None

    def forget(self) -> None:
        """The model changed: what was measured and rejected no longer holds."""
        self._measured = self._scored = None
        self._rejected.clear()


def _shortened(plan: PruningPlan) -> dict[str, tuple[int, ...]]:
    """The layers that stay, of the stacks that lose any."""
    return {path: stack.kept for path, stack in plan.stacks.items() if stack.removed}


def _entries(protected: Mapping[str, list[int]]) -> list[str]:
    return [f"{path}:{layer}" for path, layers in protected.items() for layer in layers]
