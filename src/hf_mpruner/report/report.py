"""`PruningReport`: the figures of a finished run, as a table and as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_mpruner.plan import PruningPlan
from hf_mpruner.record import Measurement, PruningRecord, Round
from hf_mpruner.similarity import SimilarityMatrix
from hf_mpruner.storage import write_json, write_text

from .page import PAGE_NAME, render_page
from .words import format_bytes

REPORT_NAME = "report.json"


@dataclass(frozen=True)
class PruningReport:
    """What a run measured: the uncut model, every round with its verdict, and the model that was kept.

    Args:
        record (`PruningRecord`): the finished run.

    Example:
        >>> from hf_mpruner.record import Measurement, PruningRecord
        >>> record = PruningRecord({"encoder.layer": 12}, metric="accuracy", baseline=Measurement(1000, 4000, 0.94, 1.5))
        >>> print(PruningReport(record).to_table())
        round     encoder.layer  parameters    size  accuracy  drop  evaluation s  verdict
        original             12       1,000  4.0 kB    0.9400                1.50
    """

    record: PruningRecord

    @property
    def plan(self) -> PruningPlan:
        """From the original model to the one that was kept, in the original numbering."""
        return self.record.to_plan()

    @property
    def rounds(self) -> tuple[Round, ...]:
        """Every decided round, rejected ones too."""
        return tuple(round_ for round_ in self.record.rounds if round_.verdict != "pending")

    @property
    def before(self) -> Measurement | None:
        """The uncut model."""
        return self.record.baseline

    @property
    def after(self) -> Measurement | None:
        """The model that was kept: the last accepted round, or the uncut model."""
        for round_ in reversed(self.rounds):
            if round_.verdict != "rejected":
                return round_.after
        return self.record.baseline

    @property
    def refusals(self) -> tuple[str, ...]:
        """One sentence for each cut that was not made, since it could not be proved right."""
        return tuple(f"round {round_.number} was refused: {round_.reason}" for round_ in self.rounds if round_.refused)

    def similarities(self) -> list[tuple[int, dict[str, SimilarityMatrix]]]:
        """For each round its number and the matrices it was decided on, by stack path."""
        return [
            (round_.number, {path: SimilarityMatrix.from_dict(values) for path, values in round_.similarity.items()})
            for round_ in self.rounds
        ]

    def to_table(self) -> str:
        """Aligned text for a terminal: round, layers left, parameters, size, metric, drop, evaluation time, verdict."""
        header, rows = self._cells()
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
        left = {0, len(header) - 1}
        lines = [
            "  ".join(
                cell.ljust(width) if i in left else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in [header, *rows]
        ]
        return "\n".join(lines)

    def to_markdown(self) -> str:
        """The same table in Markdown."""
        header, rows = self._cells()
        rule = [":---" if i in (0, len(header) - 1) else "---:" for i in range(len(header))]
        return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *rows])

    def to_html(self) -> str:
        """One HTML page with the table, every figure and all facts; it needs no network and no script."""
        return render_page(self.record, *self._cells())

    def save_html(self, folder: str | os.PathLike[str]) -> Path:
        """Write `report.html` into a folder and return its path."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        return write_text(Path(folder) / PAGE_NAME, self.to_html())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON: the record, and the table's facts about before and after."""
        before, after = self.before, self.after
        return {
            "layers_before": dict(self.record.depths),
            "layers_after": {path: len(layers) for path, layers in self.record.kept.items()},
            "parameters_before": before.parameters if before else None,
            "parameters_after": after.parameters if after else None,
            "metric": self.record.metric,
            "metric_before": before.metric if before else None,
            "metric_after": after.metric if after else None,
            "record": self.record.to_dict(),
        }

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `report.json` into a folder and return its path."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        return write_json(Path(folder) / REPORT_NAME, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PruningReport:
        """Read a `report.json`, given the file or its folder."""
        file = Path(path)
        file = file / REPORT_NAME if file.is_dir() else file
        return cls.from_dict(json.loads(file.read_text(encoding="utf-8")))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PruningReport:
        """Build from `to_dict()`'s result."""
        return cls(PruningRecord.from_dict(values["record"]))

    def __str__(self) -> str:
        """The table, which cuts were refused and why, and why the run stopped."""
        stopped = [f"stopped: {self.record.stopped}"] if self.record.stopped else []
        return "\n".join([self.to_table(), *self.refusals, *stopped])

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        paths = list(self.record.depths)
        metric = self.record.metric or "metric"
        header = ["round", *paths, "parameters", "size", metric, "drop", "evaluation s", "verdict"]
        rows = []
        if self.before:
            whole = {path: range(depth) for path, depth in self.record.depths.items()}
            rows.append(self._row("original", paths, whole, self.before, None, ""))
        for round_ in self.rounds:
            verdict: str = "refused" if round_.refused else round_.verdict
            verdict = verdict if round_.granularity == 1 else f"{verdict}, k={round_.granularity}"
            row = self._row(str(round_.number), paths, round_.kept, round_.after, round_.drop, verdict)
            if round_.refused:  # nothing of that size was ever there
                row[1 + len(paths) : -1] = [""] * (len(row) - len(paths) - 2)
            rows.append(row)
        return header, rows

    @staticmethod
    def _row(
        name: str,
        paths: Sequence[str],
        kept: Mapping[str, Sequence[int]],
        measured: Measurement,
        drop: float | None,
        verdict: str,
    ) -> list[str]:
        seconds = measured.evaluation_seconds
        return [
            name,
            *(str(len(kept[path])) for path in paths),
            f"{measured.parameters:,}",
            format_bytes(measured.num_bytes),
            "" if measured.metric is None else f"{measured.metric:.4f}",
            "" if drop is None else f"{drop:+.4f}",
            "" if seconds is None else f"{seconds:.2f}",
            verdict,
        ]
