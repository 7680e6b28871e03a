"""`Comparison`: what came of it, as a table, a plot and JSON."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_mpruner.report.words import counted, format_count, format_seconds
from hf_mpruner.storage import write_json

from .plots import draw_cost, draw_quality
from .rows import UNCUT, Ranking, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMPARISON_NAME = "comparison.json"
COMPARISON_VERSION = 1
# Columns of words; the others hold figures.
_TEXT = ("layers", "criterion", "same layers as")


@dataclass(frozen=True)
class Comparison(Ranking):
    """What `compare_criteria` measured. `str()` is a table, by depth, best after recovery first.

    Args:
        metric (`str`): that judges.
        greater_is_better (`bool`): its direction.
        seeds (`tuple[int, ...]`): over which means are taken.
        recovers (`bool`): whether there was any recovery.
        uncut (`Row`): the model without a cut; its `after` is more training alone, within the same budget.
        rows (`tuple[Row, ...]`): in the order that was asked for.
        settings (`dict`): model, data, training, versions.
        latency (`dict`): what `latency_seconds` is of.
    """

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"comparison_version": COMPARISON_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Comparison:
        """Build from `to_dict()`'s result.

        Raises:
            ValueError: if the values are no comparison, or one of a newer format.
        """
        version = values.get("comparison_version")
        if version is None or "rows" not in values:
            raise ValueError(
                f"This is no comparison of criteria: it holds {', '.join(map(repr, values)) or 'nothing'}."
            )
        if version > COMPARISON_VERSION:
            raise ValueError(
                f"This comparison has format {version}, this hf_mpruner reads up to {COMPARISON_VERSION}."
            )
        given = {name.name: values[name.name] for name in dataclasses.fields(cls)}
        rows = tuple(Row.from_dict(row) for row in given.pop("rows"))
        return cls(**{**given, "seeds": tuple(given["seeds"]), "uncut": Row.from_dict(given["uncut"])}, rows=rows)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `comparison.json` into a folder and return its path."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        return write_json(Path(folder) / COMPARISON_NAME, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Comparison:
        """Read what `save` wrote: the file, or its folder.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is no comparison.
        """
        file = Path(path) / COMPARISON_NAME if Path(path).is_dir() else Path(path)
        return cls.from_dict(json.loads(file.read_text(encoding="utf-8")))

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        header = ["layers", "criterion", f"{self.metric} before"]
        header += [f"{self.metric} after", "behind best"] if self.recovers else ["behind best"]
        header += ["parameters", "latency", "passes", "scoring"]
        header += ["recovery"] if self.recovers else []
        header += ["same layers as"]
        rows = [self._line(self.uncut)]
        rows += [self._line(row) for target in self.targets for row in self.at(target)]
        return header, rows

    def _line(self, row: Row) -> list[str]:
        layers = row.target or ",".join(str(number) for number in row.num_layers.values())
        if row.failed and not row.before:
            return [layers, row.criterion, *["failed"] * (1 + self.recovers), *["" for _ in range(6 + self.recovers)]]
        behind = None if row is self.uncut else self.behind_best(row)
        is_best = behind is None or (behind.mean == 0 and row.plans == self.at(row.target)[0].plans)
        passes = row.scoring.get("forward_passes", 0.0) + row.scoring.get("backward_passes", 0.0)
        timed, trained = row.latency_seconds, row.recovery_seconds
        return [
            layers,
            row.criterion,
            *(str(one or "not finite") for one in [row.spread_before, *([row.spread_after] if self.recovers else [])]),
            "" if row is self.uncut or row.failed else "best" if is_best else str(behind),
            "" if row.parameters is None else format_count(row.parameters),
            "" if timed is None else format_seconds(timed),
            f"{passes:.4g}" if row.scoring else "",
            format_seconds(row.scoring["seconds"]) if row.scoring else "",
            *([format_seconds(trained) if trained is not None else ""] if self.recovers else []),
            ", ".join(self.twins(row)),
        ]

    def notes(self) -> list[str]:
        """What the figures are of, a sentence each; and every row that failed, with its reason."""
        better = "greater" if self.greater_is_better else "smaller"
        found = [f"Judged by {self.metric} ({better} is better), over {counted(len(self.seeds), 'seed')}."]
        after = "after recovery" if self.recovers else "before recovery"
        spread = f"± is half of Student's 95 % interval of the mean over n = {len(self.seeds)} seeds; "
        found.append(
            f"{spread if len(self.seeds) > 1 else ''}[low, high] is Wilson's interval of one model's share of examples. "
            f"'behind best' is the mean of the seeds' differences {after}."
        )
        if self.recovers:
            found.append(
                f"The last value of {UNCUT} is more training alone, within the same budget, without a cut. 'recovery' is "
                "seconds of that training, 'scoring' those of the criterion once, for all depths; 'passes' go over its sample, "
                "forward and backward ones together."
            )
        else:
            found.append("'scoring' is seconds of the criterion once, for all depths; 'passes' go over its sample.")
        reasons: dict[tuple[str, str], list[str]] = {}
        for row in self.rows:
            if row.failed:
                reasons.setdefault((row.criterion, row.failed), []).append(row.target)
        return [*found, *(f"{name} failed at {', '.join(at)}: {why}" for (name, why), at in reasons.items())]

    def __str__(self) -> str:
        """Aligned text: the uncut model first, then by depth, best first; and what the figures are of."""
        header, rows = self._cells()
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
        lines = [
            "  ".join(
                cell.ljust(width) if name in _TEXT else cell.rjust(width)
                for name, cell, width in zip(header, row, widths, strict=True)
            ).rstrip()
            for row in [header, *rows]
        ]
        return "\n".join([*lines, "", *self.notes()])

    def to_markdown(self) -> str:
        """The same in Markdown."""
        header, rows = self._cells()
        rule = [":---" if name in _TEXT else "---:" for name in header]
        escaped = [[cell.replace("|", "\\|") for cell in row] for row in [header, rule, *rows]]
        table = [f"| {' | '.join(row)} |" for row in escaped]
        return "\n".join([*table, "", *(f"- {note}" for note in self.notes())])

    def plot(
        self, path: str | os.PathLike[str] | None = None, *, kind: Literal["quality", "cost"] = "quality"
    ) -> Figure:
        """Draw the metric against layers that are left, or against what scoring cost.

        Args:
            path (path, *optional*): an image file to write.
            kind (`"quality"` or `"cost"`): of `"quality"` each criterion is a line, dashed before recovery and solid after it,
                with intervals as bands; of `"cost"` a point for each criterion and depth.

        Returns:
            `matplotlib.figure.Figure`.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        if kind not in ("quality", "cost"):
            raise ValueError(f"kind={kind!r} is not allowed: pass 'quality' or 'cost'.")
        figure = draw_quality(self) if kind == "quality" else draw_cost(self)
        if path is not None:
            figure.savefig(path, dpi=150, bbox_inches="tight", pad_inches=0.08)
        return figure
