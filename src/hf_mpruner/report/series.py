"""What the figures of a report show, as plain values: drawn by `plots` for files, and by `page` for the browser."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise, takewhile
from typing import Any, Literal

from hf_mpruner.config.limits import UNITS
from hf_mpruner.record import Measurement, PruningRecord, Round
from hf_mpruner.similarity import SimilarityMatrix

State = Literal["kept", "removed", "gone", "candidate"]
# In words, for legends and for who cannot see the colours.
STATES: dict[State, str] = {
    "kept": "kept",
    "removed": "removed in this round",
    "gone": "removed before",
    "candidate": "would have gone, but the cut was rejected",
}


@dataclass(frozen=True)
class StripRow:
    """One round of a `LayerStrip`.

    Args:
        round_ (`Round`): which round.
        states (`tuple`): for each original layer what the round did to it.
    """

    round_: Round
    states: tuple[State, ...]

    @property
    def verdict(self) -> str:
        """The round's verdict, with a name of its own for a cut that was not made."""
        return "refused" if self.round_.refused else self.round_.verdict

    def layers(self, state: State) -> tuple[int, ...]:
        """The original layers in this state."""
        return tuple(layer for layer, found in enumerate(self.states) if found == state)


@dataclass(frozen=True)
class LayerStrip:
    """What became of every layer of one stack.

    Args:
        path (`str`): dotted path of the stack.
        depth (`int`): layers before the first cut; the columns.
        rows (`tuple[StripRow, ...]`): a row a decided round.
        kept (`tuple[int, ...]`): layers of the model that was kept, in the original numbering.
    """

    path: str
    depth: int
    rows: tuple[StripRow, ...]
    kept: tuple[int, ...]


@dataclass(frozen=True)
class MetricPoint:
    """One measured model.

    Args:
        label (`str`): `"original"`, or the round's number.
        measured (`Measurement`): its size, and its metric, which is known.
        metric (`float`): the deciding metric's value.
        accepted (`bool`): whether the model was kept; true for the original.
        drop (`float`, *optional*): against the original, in the metric's own unit.
    """

    label: str
    measured: Measurement
    metric: float
    accepted: bool
    drop: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Low and high end of the metric's confidence interval, where one is known."""
        known = self.measured.interval
        return None if known is None else (known[0], known[1])


@dataclass(frozen=True)
class MetricCurve:
    """The deciding metric of every measured model.

    Args:
        metric (`str`): its name.
        points (`tuple[MetricPoint, ...]`): the original first, then the rounds in order.
        limit (`float`, *optional*): the worst value that the allowed drop accepts.
        greater_is_better (`bool`): the metric's direction.
        confidence (`float`): of the intervals, in 0..1.
    """

    metric: str
    points: tuple[MetricPoint, ...]
    limit: float | None
    greater_is_better: bool
    confidence: float

    @property
    def has_rejected(self) -> bool:
        """Whether any point is a model that was not kept."""
        return not all(point.accepted for point in self.points)

    @property
    def has_intervals(self) -> bool:
        """Whether the interval of any point is known."""
        return any(point.interval is not None for point in self.points)


@dataclass(frozen=True)
class MeasuredModel:
    """The similarities of one model on the way.

    Args:
        rounds (`tuple[int, ...]`): the rounds that were decided on them, as a rejected cut leaves the model as it was.
        made_by (`int`, *optional*): the accepted round that left this model; `None` for the original.
        kept (`bool`): whether it is known to be the model that was kept.
        matrices (`dict[str, SimilarityMatrix]`): by stack path, labelled with the original layers.
        clusters (`dict[str, list[list[int]]]`): layers that looked alike, in the original numbering.
    """

    rounds: tuple[int, ...]
    made_by: int | None
    kept: bool
    matrices: dict[str, SimilarityMatrix]
    clusters: dict[str, list[list[int]]]

    @property
    def name(self) -> str:
        """`"original"` or `"after round 2"`, and whether it was kept."""
        name = "original" if self.made_by is None else f"after round {self.made_by}"
        return f"{name} (kept)" if self.kept else name


def decided_rounds(record: PruningRecord) -> tuple[Round, ...]:
    """Every round with a verdict, rejected ones too."""
    return tuple(round_ for round_ in record.rounds if round_.verdict != "pending")


def layer_strips(record: PruningRecord) -> list[LayerStrip]:
    """For each stack what every decided round did to every original layer."""
    return [_strip(record, path, depth) for path, depth in record.depths.items()]


def _strip(record: PruningRecord, path: str, depth: int) -> LayerStrip:
    rows, current = [], set(range(depth))
    for round_ in decided_rounds(record):
        stays = set(round_.kept.get(path, current))
        change: State = "candidate" if round_.verdict == "rejected" else "removed"
        states: list[State] = ["gone"] * depth
        for layer in current:
            states[layer] = "kept" if layer in stays else change
        rows.append(StripRow(round_, tuple(states)))
        current = current if round_.verdict == "rejected" else stays
    return LayerStrip(path, depth, tuple(rows), tuple(sorted(current)))


def metric_curve(record: PruningRecord) -> MetricCurve | None:
    """The metric of the uncut model and of every round that has one; `None` where fewer than two were measured."""
    points = []
    if record.baseline is not None and record.baseline.metric is not None:
        points.append(MetricPoint("original", record.baseline, record.baseline.metric, accepted=True))
    for round_ in decided_rounds(record):
        if round_.after.metric is not None and not round_.refused:  # nothing of a refused cut's size was ever there
            accepted = round_.verdict != "rejected"
            points.append(MetricPoint(str(round_.number), round_.after, round_.after.metric, accepted, round_.drop))
    if record.metric is None or len(points) < 2:
        return None
    greater, allowed = record.greater_is_better is not False, record.config.get("max_metric_drop")
    limit = None
    if points[0].label == "original" and allowed is not None:
        limit = points[0].metric - allowed if greater else points[0].metric + allowed
    return MetricCurve(record.metric, tuple(points), limit, greater, record.confidence)


def measured_models(record: PruningRecord) -> list[MeasuredModel]:
    """Every model whose similarities were measured, in order and each once."""
    found: list[MeasuredModel] = []
    made_by: int | None = None
    last: dict[str, dict[str, Any]] = {}
    for round_ in decided_rounds(record):
        if round_.similarity and round_.similarity == last:
            found[-1] = replace(found[-1], rounds=(*found[-1].rounds, round_.number))
        elif round_.similarity:
            matrices = _matrices(round_.similarity)
            found.append(MeasuredModel((round_.number,), made_by, False, matrices, dict(round_.clusters)))
        last = round_.similarity
        made_by = made_by if round_.verdict == "rejected" else round_.number
    after = record.similarity_after
    if after and after == last and found[-1].made_by == made_by:
        found[-1] = replace(found[-1], kept=True)
    elif after:
        found.append(MeasuredModel((), made_by, True, _matrices(after), {}))
    return found


def threshold_of(record: PruningRecord) -> float | None:
    """The similarity at which layers went; `None` where a number of layers was asked or searched for, or it is not known."""
    numbers = ("target_num_layers", "layers_per_round", *UNITS)
    by_number = any(record.config.get(name) is not None for name in numbers)
    threshold = record.config.get("threshold")
    return None if by_number or threshold == "auto" else threshold


def middles(matrix: SimilarityMatrix) -> tuple[list[float], list[float]]:
    """The curve of `SimilarityMatrix.adjacent`: each value half way between the two layers it compares."""
    layers = [float(layer) for layer in matrix.layers]
    return [(one + other) / 2 for one, other in pairwise(layers)], list(matrix.adjacent)


def short_names(paths: list[str]) -> dict[str, str]:
    """Stack paths without what all of them begin with, but for its last part.

    Example:
        >>> short_names(["resnet.encoder.stages.0.layers", "resnet.encoder.stages.1.layers"])
        {'resnet.encoder.stages.0.layers': 'stages.0.layers', 'resnet.encoder.stages.1.layers': 'stages.1.layers'}
    """
    parts = {path: path.split(".") for path in paths}
    common = list(takewhile(lambda column: len(set(column)) == 1, zip(*parts.values(), strict=False)))
    start = max(0, len(common) - 1) if len(paths) > 1 else 0
    return {path: ".".join(parts[path][start:]) for path in paths}


def _matrices(values: dict[str, dict[str, Any]]) -> dict[str, SimilarityMatrix]:
    return {path: SimilarityMatrix.from_dict(matrix) for path, matrix in values.items()}
