"""`NarrowingReport`: what narrowing a model came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hf_mpruner.plan import WidthPlan, WidthPreview

if TYPE_CHECKING:
    from hf_mpruner.surgery import WidthEdit


@dataclass(frozen=True)
class NarrowingRound:
    """One round: what went, and what an evaluation said after the training that followed.

    Args:
        number (`int`): from 1.
        removed (`int`): neurons or groups of heads, over all layers.
        parameters (`int`): of the model after it.
        metric (`float`): the deciding metric's value after its training.
        drop (`float`): how much worse than the baseline that is, in the metric's own unit; negative if better.
        accepted (`bool`): whether the round was kept.
    """

    number: int
    removed: int
    parameters: int
    metric: float
    drop: float
    accepted: bool


@dataclass(frozen=True)
class NarrowingReport:
    """What narrowing a model came to.

    Args:
        plan (`WidthPlan`): replays it on a fresh model; `plan.save_pretrained` writes it.
        preview (`WidthPreview`): parameters and bytes before and after.
        rounds (`tuple[NarrowingRound, ...]`): empty for one call without training.
        metric_name (`str`, *optional*): what decided the rounds.
        baseline (`float`, *optional*): its value before the first.
        edit (`WidthEdit`, *optional*): of one call without training: `.edit.undo()` makes the model whole again, until the
            report is dropped.
    """

    plan: WidthPlan
    preview: WidthPreview
    rounds: tuple[NarrowingRound, ...] = ()
    metric_name: str | None = None
    baseline: float | None = None
    edit: WidthEdit | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        """A few lines: rounds, what is left of each kind, parameters and bytes."""
        lines = []
        if self.baseline is not None:
            lines.append(f"{self.metric_name} {self.baseline:.4g} before")
        for one in self.rounds:
            verdict = "kept" if one.accepted else "taken back"
            lines.append(
                f"round {one.number}: {one.removed} fewer, {one.parameters:,} parameters, {self.metric_name} "
                f"{one.metric:.4g} (drop {one.drop:.4g}), {verdict}"
            )
        sizes: dict[tuple[str, int, int], int] = {}
        for unit in self.plan.units.values():
            key = (unit.what, unit.size, len(unit.kept))
            sizes[key] = sizes.get(key, 0) + 1
        lines += [
            f"{what:<10}  {size} -> {kept} in each of {count} layers" for (what, size, kept), count in sizes.items()
        ]
        return "\n".join([*lines, str(self.preview)])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "plan": self.plan.to_dict(),
            "preview": dict(vars(self.preview)),
            "metric_name": self.metric_name,
            "baseline": self.baseline,
            "rounds": [dict(vars(one)) for one in self.rounds],
        }
