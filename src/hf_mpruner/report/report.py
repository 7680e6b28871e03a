"""`PruningReport`: the figures of a finished run, as a table and as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_mpruner.plan import PruningPlan
from hf_mpruner.record import Measurement, PruningRecord, Round
from hf_mpruner.similarity import SimilarityMatrix
from hf_mpruner.storage import write_json, write_text

from .costs import cache_per_token, cost_values, run_cost_in_words, saved_apart
from .limits import limits_in_words
from .page import PAGE_NAME, render_page
from .promised import bound_of, promise_in_words, promised_bound
from .proposals import proposals_in_words
from .scores import chosen_by, chosen_over, total_cost
from .words import cost_in_words, format_bytes

REPORT_NAME = "report.json"
# Columns of words; the others hold figures.
_TEXT = ("round", "verdict")


@dataclass(frozen=True)
class PruningReport:
    """What a run measured: the uncut model, every round with its verdict, and the model that was kept.

    Args:
        record (`PruningRecord`): the finished run.

    Example:
        >>> from hf_mpruner.record import Measurement, PruningRecord
        >>> record = PruningRecord({"encoder.layer": 12}, metric="accuracy", baseline=Measurement(1000, 4000, 0.94, 1.5))
        >>> print(PruningReport(record).to_table())
        round     encoder.layer  parameters    size  accuracy  evaluation s
        original             12       1,000  4.0 kB    0.9400          1.50
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
        """Aligned text for a terminal: a row for the uncut model and for each round.

        Layers left in each stack, parameters, size, the metric with its confidence interval, its drop and the bound of it, the time of an
        evaluation and of a forward pass on a batch and on one row of it, what a token adds to the cache, the verdict. A
        column without any value is left out.
        """
        header, rows = self._cells()
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
        left = {i for i, name in enumerate(header) if name in _TEXT}
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
        rule = [":---" if name in _TEXT else "---:" for name in header]
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
        before, after, bound = self.before, self.after, promised_bound(self.record)
        return {
            "layers_before": dict(self.record.depths),
            "layers_after": {path: len(layers) for path, layers in self.record.kept.items()},
            "parameters_before": before.parameters if before else None,
            "parameters_after": after.parameters if after else None,
            "metric": self.record.metric,
            "metric_before": before.metric if before else None,
            "metric_after": after.metric if after else None,
            "interval_before": before.interval if before else None,
            "interval_after": after.interval if after else None,
            "num_examples": after.num_examples if after else None,
            "drop_at_most": bound.upper if bound else None,
            "promise": promise_in_words(self.record) or None,
            "targets": limits_in_words(self.record),
            **cost_values(self.record, before, after),
            "criteria": chosen_by(self.record),
            "scoring_cost": total_cost(self.record),
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
        """The table, what chose the layers, which cuts were refused and why, why the run stopped, its promise and its cost."""
        cost = total_cost(self.record)
        chosen = (
            [f"layers chosen by {', '.join(chosen_by(self.record))}: {cost_in_words(cost, chosen_over(self.record))}"]
            if cost
            else []
        )
        chosen += [
            f"round {one.number}: {words}" for one in self.rounds for words in proposals_in_words(one.scores, one.kept)
        ]
        if self.record.search:
            tried = sum(round_.was_tested for round_ in self.rounds)
            chosen.append(f"recoveries: {tried} of at most {self.record.search['most_recoveries']}")
        stopped = [f"stopped: {self.record.stopped}"] if self.record.stopped else []
        promised = [f"promise: {words}"] if (words := promise_in_words(self.record)) else []
        spent = [f"cost: {words}"] if (words := run_cost_in_words(self.record)) else []
        limits = [f"{limit} {words}" for limit, words in limits_in_words(self.record).items()]
        return "\n".join([self.to_table(), *chosen, *self.refusals, *limits, *stopped, *promised, *spent])

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        paths = list(self.record.depths)
        measured = [one for one in (self.before, *(round_.after for round_ in self.rounds)) if one is not None]
        has_interval = any(one.interval is not None for one in measured)
        metric = (self.record.metric or "metric") + (f" [{self.record.confidence:.0%}]" if has_interval else "")
        costs = ["latency ms", "batch 1 ms", "cache/token", "verdict"]
        header = ["round", *paths, "parameters", "size", "as saved", metric, "drop", "at most", "evaluation s", *costs]
        rows = []
        if self.before:
            depths = [str(depth) for depth in self.record.depths.values()]
            rows.append(["original", *depths, *_figures(self.before), ""])
        for round_ in self.rounds:
            verdict: str = "refused" if round_.refused else round_.verdict
            verdict = verdict if round_.granularity == 1 else f"{verdict}, k={round_.granularity}"
            bound = bound_of(round_)
            figures = _figures(round_.after, round_.drop, None if bound is None else bound.upper)
            if round_.refused:  # nothing of that size was ever there
                figures = [""] * len(figures)
            rows.append([str(round_.number), *(str(len(round_.kept[path])) for path in paths), *figures, verdict])
        used = [i for i in range(len(header)) if i <= len(paths) or any(row[i] for row in rows)]
        return [header[i] for i in used], [[row[i] for i in used] for row in rows]


def _figures(measured: Measurement, drop: float | None = None, upper: float | None = None) -> list[str]:
    """The cells from parameters to the cache; empty where nothing was measured."""
    metric = "" if measured.metric is None else f"{measured.metric:.4f}"
    if measured.interval is not None:
        low, high = measured.interval
        metric += f" [{low:.4f}, {high:.4f}]"
    seconds, saved = measured.evaluation_seconds, saved_apart(measured)
    return [
        f"{measured.parameters:,}",
        format_bytes(measured.num_bytes),
        "" if saved is None else format_bytes(saved),
        metric,
        "" if drop is None else f"{drop:+.4f}",
        "" if upper is None else f"{upper:+.4f}",
        "" if seconds is None else f"{seconds:.2f}",
        *(
            "" if latency is None else f"{1000 * latency:.2f}"
            for latency in (measured.latency_seconds, measured.single_latency_seconds)
        ),
        cache_per_token(measured),
    ]
