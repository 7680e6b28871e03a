"""The rows of a comparison, with what is a mean of what, and which row is best."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hf_mpruner.intervals import mean_interval

UNCUT = "(uncut)"


@dataclass(frozen=True)
class Spread:
    """A value over seeds.

    Args:
        mean (`float`): over the seeds.
        interval (`tuple` of two `float`, *optional*): at 95 %.
        source (`"seeds"`, `"examples"` or `None`): what the interval is of: Student's, of the mean over seeds whose models
            differ; Wilson's, of one model's share of examples; or there is none.
        count (`int`): models that differ by their seed.
    """

    mean: float
    interval: tuple[float, float] | None
    source: Literal["seeds", "examples"] | None
    count: int

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.mean:.4f}"
        if self.source == "seeds":
            return f"{self.mean:.4f} ± {self.interval[1] - self.mean:.4f}"
        return f"{self.mean:.4f} [{self.interval[0]:.4f}, {self.interval[1]:.4f}]"


@dataclass(frozen=True)
class Row:
    """One criterion at one depth, over all seeds.

    Args:
        criterion (`str`): its name; `"(uncut)"` for the model without a cut.
        target (`str`): the depth as it was asked for.
        num_layers (`dict[str, int]`): layers that are left in each stack.
        plans (`tuple[str, ...]`): for each seed what tells plans apart: equal for the same layers, merged alike.
        kept (`tuple`): for each seed the layers that stay, by stack path.
        merges (`bool`): whether layers that stay take over weights of those that go.
        before, after (`tuple`): for each seed the deciding metric before and after recovery; `None` if it was not finite.
            `after` is empty if nothing recovers.
        intervals_before, intervals_after (`tuple`): for each seed Wilson's interval, `None` where the metric is no share.
        parameters (`float`): of the cut model, mean over seeds.
        latency_seconds (`float`, *optional*): of a forward pass, median over seeds.
        scoring (`dict`): `forward_passes`, `backward_passes` and `seconds` of scoring once, mean over seeds; empty for the
            uncut model.
        recovery_seconds (`float`, *optional*): mean over seeds.
        failed (`str`, *optional*): why there is no figure, or not all.
    """

    criterion: str
    target: str
    num_layers: dict[str, int]
    plans: tuple[str, ...] = ()
    kept: tuple[dict[str, list[int]], ...] = ()
    merges: bool = False
    before: tuple[float | None, ...] = ()
    after: tuple[float | None, ...] = ()
    intervals_before: tuple[Any, ...] = ()
    intervals_after: tuple[Any, ...] = ()
    parameters: float | None = None
    latency_seconds: float | None = None
    scoring: dict[str, float] = field(default_factory=dict)
    recovery_seconds: float | None = None
    failed: str | None = None

    @property
    def total_layers(self) -> int:
        """Layers that are left in all stacks that the depth names, and in the others."""
        return sum(self.num_layers.values())

    @property
    def spread_before(self) -> Spread | None:
        """Before recovery. One plan for all seeds is one model, so there is nothing to spread."""
        return _spread(self.before, self.intervals_before, len(set(self.plans)))

    @property
    def spread_after(self) -> Spread | None:
        """After recovery: each seed has trained a model of its own."""
        return _spread(self.after, self.intervals_after, len(self.after))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Row:
        """Build from plain values."""
        names = {field.name for field in dataclasses.fields(cls)}
        listed: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**{key: value for key, value in listed.items() if key in names})


@dataclass(frozen=True)
class Ranking:
    """Rows with figures, and what follows from them; see `Comparison` for the fields."""

    metric: str
    greater_is_better: bool
    seeds: tuple[int, ...]
    recovers: bool
    uncut: Row
    rows: tuple[Row, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    latency: dict[str, Any] = field(default_factory=dict)

    @property
    def targets(self) -> tuple[str, ...]:
        """The depths, as they were asked for; most layers first."""
        left = {row.target: row.total_layers for row in self.rows if row.num_layers}
        known = dict.fromkeys(row.target for row in self.rows)
        return tuple(sorted(known, key=lambda target: -left.get(target, 0)))

    def at(self, target: str | int) -> list[Row]:
        """The rows of one depth, best first: by the metric after recovery, or without any before it; failed ones last."""
        return sorted((row for row in self.rows if row.target == str(target)), key=self._rank)

    def _rank(self, row: Row) -> tuple[bool, float]:
        spread = self._deciding(row)
        if spread is None:
            return True, 0.0
        return False, -spread.mean if self.greater_is_better else spread.mean

    def _deciding(self, row: Row) -> Spread | None:
        return row.spread_after if self.recovers else row.spread_before

    def behind_best(self, row: Row) -> Spread | None:
        """How much worse a row is than the best one of its depth, in the metric's own unit: mean of the seeds' differences.

        Within a seed both had the same data in the same order, so differences vary less than the values themselves. An
        interval that does not reach 0 is a difference that these seeds do not explain.

        Returns:
            `Spread`, or `None` of a row without figures, and of the best one.
        """
        best = self.at(row.target)[0]
        pairs = [(one.after if self.recovers else one.before) for one in (best, row)]
        if best is row or None in pairs[0] or None in pairs[1] or not pairs[1]:
            return None
        sign = 1.0 if self.greater_is_better else -1.0
        gaps = [sign * (a - b) for a, b in zip(*pairs, strict=True) if a is not None and b is not None]
        models = len(gaps) if self.recovers else len({*zip(best.plans, row.plans, strict=True)})
        return _spread(gaps, (), models)

    def twins(self, row: Row) -> list[str]:
        """Other criteria that chose the same layers at this depth, with every seed."""
        if row.failed and not row.plans:
            return []
        same = [other for other in self.rows if other.target == row.target and other.plans == row.plans]
        return [other.criterion for other in same if other is not row]


def _spread(values: Any, intervals: tuple[Any, ...], models: int) -> Spread | None:
    """Mean and interval of values, of which so many are of different models."""
    if not values or any(value is None for value in values):
        return None
    mean = statistics.fmean(values)
    if models > 1:
        return Spread(mean, mean_interval(values), "seeds", models)
    wilson = intervals[0] if intervals else None
    return Spread(mean, tuple(wilson) if wilson else None, "examples" if wilson else None, max(models, 1))
