"""From finished cells to the rows of the table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from hf_mpruner.criteria import ScoredLayers
from hf_mpruner.errors import MPrunerError
from hf_mpruner.metric import Metric
from hf_mpruner.plan import PruningPlan

from .request import Depth, Request
from .rows import UNCUT, Row
from .store import digest_of
from .trainers import read_interval, read_value


@dataclass
class Found:
    """What is known so far.

    Args:
        request (`Request`): what was asked for.
        metric (`Metric`): that judges.
        whole (`PruningPlan`): that removes nothing.
        scores (`dict`): by criterion and seed.
        plans (`dict`): by criterion, depth and seed.
        cuts (`dict`): finished cells of cut models, by `key_of(plan)`.
        recoveries (`dict`): finished cells of recovered models, by `key_of(plan)` and seed.
        refused (`dict[str, str]`): why a plan cannot be carried out, by `key_of(plan)`.
        failed (`dict`): why a criterion has no row, by criterion and depth (`None`: at all depths).
    """

    request: Request
    metric: Metric
    whole: PruningPlan
    scores: dict[tuple[str, int], ScoredLayers] = field(default_factory=dict)
    plans: dict[tuple[str, Depth, int], PruningPlan] = field(default_factory=dict)
    cuts: dict[str, dict[str, Any]] = field(default_factory=dict)
    recoveries: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[tuple[str, Depth | None], str] = field(default_factory=dict)

    def fail(self, name: str, reason: str, depth: Depth | None = None) -> None:
        """Remember why a criterion has no row; the first reason holds."""
        self.failed.setdefault((name, depth), reason)

    def why_not(self, name: str, depth: Depth) -> str | None:
        """Why a criterion has no row at a depth; `None` if it has one."""
        found = self.failed.get((name, None)) or self.failed.get((name, depth))
        keys = [key_of(self.plans[name, depth, seed]) for seed in self.request.seeds] if found is None else []
        return found or next((self.refused[key] for key in keys if key in self.refused), None)

    def trainings(self) -> list[tuple[PruningPlan, int | None]]:
        """What is to be judged (`None`), and recovered with which seed; each once, one plan after the other."""
        wanted: dict[str, tuple[PruningPlan, list[int]]] = {key_of(self.whole): (self.whole, [*self.request.seeds])}
        for name in self.request.criteria:
            for depth in self.request.depths:
                if self.why_not(name, depth) is None:
                    for seed in self.request.seeds:
                        plan = self.plans[name, depth, seed]
                        seeds = wanted.setdefault(key_of(plan), (plan, []))[1]
                        seeds += [] if seed in seeds else [seed]
        recovers = self.request.config.recovery_epochs > 0
        return [
            (plan, seed) for plan, seeds in wanted.values() for seed in [None, *(sorted(seeds) if recovers else [])]
        ]


def key_of(plan: PruningPlan) -> str:
    """The same for plans that leave the same model."""
    return digest_of({path: stack.to_dict() for path, stack in plan.stacks.items()})


def told(error: Exception) -> str:
    """An error in one line, with its kind where the text alone would not say it."""
    text = " ".join(str(error).split())
    return text if isinstance(error, MPrunerError | ValueError) and text else f"{type(error).__name__}: {text}"


def make_rows(found: Found) -> tuple[Row, list[Row]]:
    """The uncut model's row, and one for each depth and criterion, in the order that was asked for."""
    whole = dict.fromkeys(found.request.seeds, found.whole)
    uncut = _row(found, UNCUT, "", whole, None)
    rows = []
    for depth in found.request.depths:
        for name in found.request.criteria:
            reason = found.why_not(name, depth)
            if reason is not None:
                rows.append(Row(name, depth.label, {}, failed=reason))
                continue
            plans = {seed: found.plans[name, depth, seed] for seed in found.request.seeds}
            rows.append(_row(found, name, depth.label, plans, [found.scores[name, seed] for seed in plans]))
    return uncut, rows


def _row(
    found: Found, name: str, label: str, plans: Mapping[int, PruningPlan], scored: Sequence[ScoredLayers] | None
) -> Row:
    metric = found.metric
    cuts = [found.cuts[key_of(plan)] for plan in plans.values()]
    recoveries = [found.recoveries.get((key_of(plan), seed)) for seed, plan in plans.items()]
    after = [cell for cell in recoveries if cell is not None]
    values = {
        "before": [read_value(metric, cell) for cell in cuts],
        "after": [read_value(metric, cell) for cell in after],
    }
    bad = [
        f"{metric.name} is not finite {when} recovery with seed {seed}"
        for when, numbers in values.items()
        for seed, value in zip(plans, numbers, strict=False)
        if value is None
    ]
    first = next(iter(plans.values()))
    costs = [asdict(one.cost) for one in scored or ()]
    timed = [cell["latency_seconds"] for cell in cuts if cell["latency_seconds"] is not None]
    return Row(
        name,
        label,
        {path: len(layers) for path, layers in first.kept.items()},
        plans=tuple(key_of(plan) for plan in plans.values()),
        kept=tuple({path: list(layers) for path, layers in plan.kept.items()} for plan in plans.values()),
        merges=any(stack.merged for plan in plans.values() for stack in plan.stacks.values()),
        before=tuple(values["before"]),
        after=tuple(values["after"]),
        intervals_before=tuple(read_interval(metric, cell) for cell in cuts),
        intervals_after=tuple(read_interval(metric, cell) for cell in after),
        parameters=statistics.fmean(cell["parameters"] for cell in cuts),
        latency_seconds=statistics.median(timed) if timed else None,
        scoring={key: statistics.fmean(one[key] for one in costs) for key in (costs[0] if costs else {})},
        recovery_seconds=statistics.fmean(cell["recovery_seconds"] for cell in after) if after else None,
        failed="; ".join(bad) or None,
    )
