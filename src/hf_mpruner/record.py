"""`PruningRecord`: what has happened in a run so far, as plain data that goes into every checkpoint."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .plan import PruningPlan, StackPlan
from .storage import write_json

RECORD_NAME = "pruning_record.json"
RECORD_VERSION = 1

# `source` of the data that chose layers, where a criterion asked what judges the rounds.
CHOSEN_BY_JUDGE = "the data that judges"

Verdict = Literal["pending", "accepted", "rejected", "unjudged"]


@dataclass
class Measurement:
    """One evaluation of a model.

    Args:
        parameters (`int`), num_bytes (`int`): size of the model that was evaluated.
        metric (`float`, *optional*): value of the deciding metric; `None` if it was not measured or not finite.
        evaluation_seconds (`float`, *optional*): wall-clock time of the evaluation.
        metrics (`dict[str, float]`): every finite number that the evaluation gave, without its prefix and without its
            own speeds.
        num_examples (`int`, *optional*): examples it was evaluated on.
        interval (`list` of two `float`, *optional*): confidence interval of the deciding metric at
            `PruningRecord.confidence`; `None` where none is known for that metric.
        latency_seconds (`float`, *optional*): median wall-clock time of a forward pass on the batch that
            `PruningRecord.latency` describes.
        latency_range (`list` of two `float`, *optional*): the fastest and the slowest of those passes.
        single_latency_seconds (`float`, *optional*), single_latency_range: the same for the first row of that batch alone.
        saved_bytes (`int`, *optional*): of the tensors that `save_pretrained` writes; `num_bytes` is of parameters alone.
        cache (`dict`): `footprint.CacheSize.to_dict()` of a model that generates; empty of others.
        outcomes (`dict`, *optional*): `guarantee.Outcomes.to_dict()` of the uncut model, where cuts are tested against it.
    """

    parameters: int
    num_bytes: int
    metric: float | None = None
    evaluation_seconds: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    num_examples: int | None = None
    interval: list[float] | None = None
    latency_seconds: float | None = None
    latency_range: list[float] | None = None
    single_latency_seconds: float | None = None
    single_latency_range: list[float] | None = None
    saved_bytes: int | None = None
    cache: dict[str, Any] = field(default_factory=dict)
    outcomes: dict[str, Any] | None = None


@dataclass
class Round:
    """One pass through the loop of Algorithm 1: what was cut, on which evidence, and what came of it.

    Args:
        number (`int`): 1 for the first round.
        granularity (`int`): the k it was planned with.
        kept (`dict[str, list[int]]`): layers left in each stack, in the ORIGINAL numbering.
        clusters (`dict[str, list[list[int]]]`): clusters of two or more layers, in the original numbering.
        similarity (`dict`): `SimilarityMatrix.to_dict()` for each stack.
        after (`Measurement`): size, metric and evaluation time once recovery was over.
        verdict: `"pending"` until decided; `"unjudged"` if nothing was there to judge it by.
        drop (`float`, *optional*): against the uncut model, in the metric's own unit.
        reason (`str`): the verdict in words.
        started_at_step, decided_at_step (`int`): the Trainer's `global_step`; 0 without one.
        analysis_seconds, recovery_seconds (`float`): wall-clock time of measuring and of training.
        refused (`bool`): the cut could not be proved right, so it was rejected without being made; `after` is the model
            as it stayed.
        criterion (`str`): what chose the layers: `"cka"` without scores, if whole clusters went at a threshold.
        scores (`dict`): what the criterion said of the model before this round: `criteria.to_original`; empty if whole
            clusters went.
        merged (`dict`): for each stack the kept layers that took others over, and the coefficient of each layer before this
            round in the sum, in the original numbering: `{"encoder.layer": {"3": {"3": 0.5, "4": 0.5}}}`.
        level (`float`, *optional*): error rate of the test that decided it; `None` if the measured drop alone was compared,
            or nothing was tested.
        bound (`dict`, *optional*): `guarantee.DropBound.to_dict()` of that test; `None` if the metric was not finite.
    """

    number: int
    granularity: int
    kept: dict[str, list[int]]
    clusters: dict[str, list[list[int]]]
    similarity: dict[str, dict[str, Any]]
    after: Measurement
    verdict: Verdict = "pending"
    drop: float | None = None
    reason: str = ""
    started_at_step: int = 0
    decided_at_step: int = 0
    analysis_seconds: float = 0.0
    recovery_seconds: float = 0.0
    refused: bool = False
    criterion: str = "cka"
    scores: dict[str, Any] = field(default_factory=dict)
    merged: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    level: float | None = None
    bound: dict[str, Any] | None = None

    @property
    def was_tested(self) -> bool:
        """Whether its cut was evaluated and got a verdict by that: not refused, not taken back before."""
        return self.verdict in ("accepted", "rejected") and self.after.evaluation_seconds is not None


@dataclass
class PruningRecord:
    """The run so far; enough to report it, and to know where it stands.

    Args:
        depths (`dict[str, int]`): for each stack the number of layers before the first cut.
        model_type, source_model, source_revision (`str`, *optional*): the model the run began with.
        config (`dict`): `PruningConfig.to_dict()`.
        metric, greater_is_better: what decides, known after the first evaluation.
        baseline (`Measurement`, *optional*): the uncut model; every round is compared with it.
        granularity (`int`): the k of the next round.
        rounds (`list[Round]`): in order.
        stopped (`str`, *optional*): why no further round follows.
        world_size (`int`): number of processes that trained.
        teacher (`str`, *optional*): checksum of the uncut model that teaches, once it is saved.
        data (`dict`): for `"training"`, `"calibration"` and `"judging"`, what is known of the data: `source` (words),
            `dataset` (Hub id), `config`, `split`, `revision`, `num_examples`. Never a local path.
        training (`dict`): plain settings that recovery trained with (learning rate, batch size, optimizer, ...).
        versions (`dict[str, str]`): of python and of the libraries that were used.
        device (`str`, *optional*): what it ran on, in words.
        latency (`dict`): what `Measurement.latency_seconds` is of: `batch_size`, `shape` of each input, `repeats`, `dtype`,
            `autocast` if there was any, `device` in words, `threads` on a CPU; of text `sequence_length` (padding included)
            and `num_tokens` (without it); `single_repeats` if one row was timed alone.
        confidence (`float`): of the intervals, in 0..1.
        similarity_after (`dict`): `SimilarityMatrix.to_dict()` of the model that was kept, for each stack; empty if it
            was not measured.
        metric_sources (`dict`): where each value of `Measurement.metrics` came from: key -> `name`, `config`, `arguments` and
            `library` (`"evaluate 0.4.6"`, `"hf_mpruner"`, or `"user"` for a function of the user's); empty where only
            the user knows.
        pipeline_tag (`str`, *optional*): what the Hub calls the task, where the user said more than the model's class
            does (`"summarization"`).
        disk_bytes (`int`, *optional*): size of the weight files of the model that was kept, once they are written.
        spent (`dict`): beside training, for `"measuring"`, `"evaluating"` and `"timing"`: `seconds`, and `forward_passes` of
            the model (batches) where it could be watched; of all processes that went on with the run, of the main one.
        peak_memory (`dict`): bytes, the most so far: `"process"` is resident memory since the process began, `"accelerator"`
            what torch's allocator has handed out.
        target (`dict`): what the config's limits came to when the run began: `targets.Target.to_dict()`; empty without limits.
        best (`dict`, *optional*): the Trainer's best metric, step and checkpoint before the pending cut, for a rollback.
        search (`dict`): what the search for the number of layers can cost: `SearchBounds.to_dict()`; empty without one.
        promise (`dict`): what was promised before the first test: `confidence`, `max_metric_drop`, and what the levels of the
            tests follow from, `num_branches` and of a search `num_others`; empty if measured drops alone are compared.
    """

    depths: dict[str, int]
    model_type: str | None = None
    source_model: str | None = None
    source_revision: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    metric: str | None = None
    greater_is_better: bool | None = None
    baseline: Measurement | None = None
    granularity: int = 1
    rounds: list[Round] = field(default_factory=list)
    stopped: str | None = None
    world_size: int = 1
    teacher: str | None = None
    data: dict[str, dict[str, Any]] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    device: str | None = None
    latency: dict[str, Any] = field(default_factory=dict)
    confidence: float = 0.95
    similarity_after: dict[str, dict[str, Any]] = field(default_factory=dict)
    metric_sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    pipeline_tag: str | None = None
    best: dict[str, Any] | None = None
    disk_bytes: int | None = None
    spent: dict[str, dict[str, float]] = field(default_factory=dict)
    peak_memory: dict[str, int] = field(default_factory=dict)
    search: dict[str, Any] = field(default_factory=dict)
    promise: dict[str, Any] = field(default_factory=dict)
    target: dict[str, Any] = field(default_factory=dict)

    @property
    def pending(self) -> Round | None:
        """The round that is cut but not decided, if any."""
        return self.rounds[-1] if self.rounds and self.rounds[-1].verdict == "pending" else None

    @property
    def verdicts(self) -> list[bool]:
        """Of every test so far, in order, whether it accepted; a cut that was refused or withdrawn was not tested."""
        return [round_.verdict == "accepted" for round_ in self.rounds if round_.level is not None]

    @property
    def is_uncut(self) -> bool:
        """Whether the last accepted model has all layers."""
        return all(len(layers) == self.depths[path] for path, layers in self.kept.items())

    @property
    def kept(self) -> dict[str, list[int]]:
        """Layers of the last accepted model, in the original numbering."""
        for round_ in reversed(self.rounds):
            if round_.verdict in ("accepted", "unjudged"):
                return {path: list(layers) for path, layers in round_.kept.items()}
        return {path: list(range(depth)) for path, depth in self.depths.items()}

    def to_plan(self) -> PruningPlan:
        """The plan from the original model to the last accepted one, with every round as its evidence.

        What later rounds merged is spelled out in layers of the original model, as if nothing had trained in between.
        """
        kept, merged = self.kept, self._merged()
        stacks = {
            path: StackPlan(self.depths[path], tuple(layers), merged.get(path, {})) for path, layers in kept.items()
        }
        evidence = {
            "metric": self.metric,
            "baseline": _without_outcomes(self.baseline) if self.baseline else None,
            "rounds": [dataclasses.asdict(round_) for round_ in self.rounds if round_.verdict != "pending"],
        }
        return PruningPlan(stacks, self.model_type, self.source_model, self.source_revision, evidence)

    def _merged(self) -> dict[str, dict[int, dict[int, float]]]:
        """For each stack the layers of the last accepted model that are sums, over layers of the original one."""
        sums: dict[str, dict[int, dict[int, float]]] = {}
        for round_ in self.rounds:
            if round_.verdict not in ("accepted", "unjudged"):
                continue
            for path, changed in round_.merged.items():
                before = sums.get(path, {})
                after = dict(before)
                for layer, terms in changed.items():
                    total: dict[int, float] = {}
                    for term, share in terms.items():
                        for original, coefficient in before.get(int(term), {int(term): 1.0}).items():
                            total[original] = total.get(original, 0.0) + share * coefficient
                    after[int(layer)] = total
                sums[path] = after
        kept = self.kept
        return {path: {layer: of for layer, of in one.items() if layer in kept[path]} for path, one in sums.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"record_version": RECORD_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PruningRecord:
        """Build from `to_dict()`'s result.

        Raises:
            ValueError: for a record of a newer format.
        """
        version = values.get("record_version", RECORD_VERSION)
        if version > RECORD_VERSION:
            raise ValueError(
                f"This pruning record has format {version}, this hf_mpruner reads up to {RECORD_VERSION}. "
                "Update it: pip install -U hf_mpruner."
            )
        if values.get("calibration"):  # how records of 0.1 began
            values = {**values, "data": {"calibration": values["calibration"], **(values.get("data") or {})}}
        known = {f.name for f in dataclasses.fields(cls)}
        plain = {key: value for key, value in values.items() if key in known}
        if plain.get("baseline"):
            plain["baseline"] = Measurement(**plain["baseline"])
        plain["rounds"] = [
            Round(**{**round_, "after": Measurement(**round_["after"])}) for round_ in plain.get("rounds", [])
        ]
        return cls(**plain)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `pruning_record.json` into a folder and return its path."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        return write_json(Path(folder) / RECORD_NAME, self.to_dict())

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> PruningRecord:
        """Read the `pruning_record.json` of a folder, e.g. of a checkpoint."""
        return cls.from_dict(json.loads((Path(folder) / RECORD_NAME).read_text(encoding="utf-8")))


def _without_outcomes(measured: Measurement) -> dict[str, Any]:
    """A measurement without what each example gave: a plan is read and shared, and that is for going on with a run."""
    return {name: value for name, value in dataclasses.asdict(measured).items() if name != "outcomes"}
