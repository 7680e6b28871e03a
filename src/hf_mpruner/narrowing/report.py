"""`NarrowingReport`: what narrowing a model came to."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_mpruner.plan import WidthPlan, WidthPreview
from hf_mpruner.storage import write_json

if TYPE_CHECKING:
    from hf_mpruner.surgery import WidthEdit

NARROWING_REPORT_NAME = "narrowing_report.json"


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
        data (`dict`): what is known of the data: that which chose, as `"calibration"`, and that which judged the rounds, as
            `"judging"`; see `describe_data`. Empty where a plan was applied.
        versions (`dict[str, str]`): of the libraries.
        device (`str`, *optional*): where it ran, in words.
        edit (`WidthEdit`, *optional*): of one call without training: `.edit.undo()` makes the model whole again, until the
            report is dropped.
    """

    plan: WidthPlan
    preview: WidthPreview
    rounds: tuple[NarrowingRound, ...] = ()
    metric_name: str | None = None
    baseline: float | None = None
    data: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict, compare=False)
    device: str | None = field(default=None, compare=False)
    edit: WidthEdit | None = field(default=None, compare=False, repr=False)

    @property
    def sizes(self) -> tuple[tuple[str, int, int, int], ...]:
        """What, how many before, how many after, and in how many layers; equal ones together."""
        found: dict[tuple[str, int, int], int] = {}
        for unit in self.plan.units.values():
            key = (unit.what, unit.size, len(unit.kept))
            found[key] = found.get(key, 0) + 1
        return tuple((*key, number) for key, number in found.items())

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
        lines += [f"{what:<10}  {size} -> {kept} in each of {count} layers" for what, size, kept, count in self.sizes]
        return "\n".join([*lines, str(self.preview)])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "plan": self.plan.to_dict(),
            "preview": dict(vars(self.preview)),
            "metric_name": self.metric_name,
            "baseline": self.baseline,
            "rounds": [dict(vars(one)) for one in self.rounds],
            "data": self.data,
            "versions": self.versions,
            "device": self.device,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NarrowingReport:
        """Build from `to_dict()`'s result.

        Raises:
            ValueError: if the values are no report of a narrowing.
        """
        if missing := sorted({"plan", "preview"} - values.keys()):
            raise ValueError(f"This is no report of a narrowing: it has no {missing[0]!r}.")
        return cls(
            WidthPlan.from_dict(values["plan"]),
            WidthPreview(**values["preview"]),
            tuple(NarrowingRound(**one) for one in values.get("rounds") or ()),
            values.get("metric_name"),
            values.get("baseline"),
            dict(values.get("data") or {}),
            dict(values.get("versions") or {}),
            values.get("device"),
        )

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `narrowing_report.json` into a folder and return its path."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        return write_json(Path(folder) / NARROWING_REPORT_NAME, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> NarrowingReport:
        """Read a `narrowing_report.json`, given the file or its folder.

        Raises:
            ValueError: if it is none.
        """
        file = Path(path)
        file = file / NARROWING_REPORT_NAME if file.is_dir() else file
        return cls.from_dict(json.loads(file.read_text(encoding="utf-8")))
