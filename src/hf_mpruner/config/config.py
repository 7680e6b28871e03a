"""`PruningConfig`: what the user asked for. The same names in Python, on the command line and in JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hf_mpruner.clusters import Linkage
from hf_mpruner.sequential import SequentialStop
from hf_mpruner.similarity import PROTOCOLS, SimilarityProtocol
from hf_mpruner.storage import write_json

from .checks import ENTRIES, check_config
from .kinds import LearningRatePolicy, RecoveryKind, SnapshotPlace, TeacherDtype, Verification
from .limits import UNITS, Limit, read_limit

CONFIG_NAME = "pruning_config.json"


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass(frozen=True)
class PruningConfig:
    """What to prune, how far, and how to judge it (the inputs of MPruner's Algorithm 1).

    > What is alike

    Args:
        threshold (`float` or `"auto"`): similarity, in 0..1, from which neighbouring layers form a cluster (the paper's
            tau). `"auto"`: how many layers go is searched for, the most that the judgement allows, from those that
            `criterion` can miss best.
        linkage (`"anchor"` or `"chain"`): a layer joins a cluster by its similarity to the cluster's first layer
            (the reference code) or to its predecessor (Algorithm 3 as printed).
        preset (`"default"` or `"paper"`): measuring protocol. `"paper"` is the reference code's for BERT: biased
            estimator, tokens of one sentence as rows, mean of the sentences' values.
        estimator, rows, token_groups, average: single fields of the protocol that replace the preset's; see
            [`SimilarityProtocol`][hf_mpruner.similarity.SimilarityProtocol].
        calibration_samples (`int`): number of examples that similarity, or what else chooses layers, is measured on.
        calibration_batch_size (`int`): examples a forward pass during the measurement.
        similarity_error_rate (`float`, *optional*): measure no more of the sample once the clusters at `threshold` are those
            of unlimited data but with this probability, e.g. 0.05; see
            [`SequentialStop`][hf_mpruner.sequential.SequentialStop]. By default the whole sample is measured.
        seed (`int`): draws the calibration sample; the training's random state is never touched.

    > What may go

    Args:
        criterion (`str`): what decides which layers go: `"cka"` or another name of
            [`known_criteria`][hf_mpruner.criteria.known_criteria], or `"module:Class"`. By default `"cka"`; for
            `threshold="auto"` it is `"mixture"`, which lets the others propose and takes what measures best.
        target_num_layers (list of `str`, *optional*): how many layers are to be left: `6` in every stack, or
            `"encoder.block:6"` in one; with `threshold="auto"` the fewest that may be left. Without any target and
            `layers_per_round`, `cka` removes whole clusters at `threshold`.
        target_parameters (`str`, *optional*): how many parameters may be left at most: `"60M"`, or `"60%"` of the uncut
            model's. Of several targets the strictest counts.
        target_size (`str`, *optional*): how many bytes the saved weights may have at most: `"250MB"`, or `"60%"`.
        target_latency (`str`, *optional*): how long a forward pass on a calibration batch may take at most: `"12ms"`, or
            `"60%"` of the uncut model's.
        layers_per_round (`int`, *optional*): how many layers of each stack go in one round; by default all that
            `target_num_layers` asks for. A rejected round is tried again with 1/k of them, k = 2, 3.
        granularity (`int`): 1..3, the paper's k in the first round: of a cluster, the members `cluster[1::k]` go.
        max_granularity (`int`): 1..3, the coarsest k that a rejected round may fall back to.
        protect (list of `int` or `str`): layers that must stay, in the model's own numbering: `0`, `-1` (of every
            stack) or `"encoder.block:0"` (of one).
        stacks (list of `str`, *optional*): paths of the block stacks to prune; all of them by default.

    > How it is judged

    Args:
        max_metric_drop (`float`): the largest accepted drop against the uncut model, in the metric's own unit
            (0.01 is one point of an accuracy in 0..1; the paper's gamma).
        confidence (`float`, *optional*): with which probability, e.g. 0.95, the true drop of the model that is kept is
            to be within `max_metric_drop`: a cut is accepted only if the upper confidence bound of its drop is, on
            examples that have no other use. By default the measured drop is compared, as in the paper.
        metric (`str`, *optional*): name as `compute_metrics` returns it; or `"loss"`, or `"perplexity"`, which is
            `exp(loss)` if `compute_metrics` does not return it. By default the Trainer's `metric_for_best_model`, else
            the only metric that `compute_metrics` returns.
        greater_is_better (`bool`, *optional*): known for the usual names; must be given for others.

    > How it recovers

    Args:
        start_epoch (`int`): epochs that are trained before the first cut.
        recovery_epochs (`int`): epochs of training between a cut and its verdict.
        recovery (`"full"` or `"lora"`): what trains between a cut and its verdict: the model, or low-rank adapters on the
            frozen model (Hu et al. 2021, arXiv 2106.09685), which are merged when the cut is accepted.
        freeze_untouched (`bool`): during recovery train only the layers beside a cut and the head (the paper's b).
        lora_rank, lora_alpha (`int`): size and scale of the adapters.
        lora_target_modules (list of `str`, *optional*): names of the linear layers that get one; all of them by default.
        distillation_weight (`float`): share, in 0..1, of the teacher in the loss during recovery; the teacher is the
            model before the first cut (Hinton et al. 2015, arXiv 1503.02531). 0: no teacher.
        distillation_temperature (`float`): softens both distributions; above 0.
        distillation_hidden_weight (`float`): weight of the mean squared error between the outputs of the kept layers
            and those of the teacher's same layers, added to the loss; 0 or more.
        teacher_dtype (`"float32"`, `"bfloat16"` or `"float16"`, *optional*): what the teacher is kept in; the model's
            own type by default.
        learning_rate_policy (`"run"` or `"restart"`): follow the Trainer's schedule, or warm up and decay again in each
            round's recovery.
        recovery_learning_rate (`float`, *optional*): the highest rate during recovery, e.g. for adapters, which learn at
            about ten times the model's rate; the Trainer's own by default.
        restart_warmup (`float`): share, in 0..1, of a round's recovery steps that warm up under `"restart"`.
        max_rounds (`int`, *optional*): stop after so many rounds.
        stop_when_done (`bool`): end the training once no round is left, instead of training the rest of the epochs; always
            so with `confidence`, whose promise is about the weights that were judged.
        snapshot (`"cpu"`, `"device"` or `"disk"`): where the weights for a rollback are kept.
        verify (`"structure"` or `"full"`): what a cut must pass. `"structure"` compares with the model that the new
            config builds, without running anything. `"full"` also runs the first calibration batch: the cut model must
            equal the uncut one whose removed layers are skipped, and a copy that was saved to disk and loaded again. It
            takes a few forward passes and room for the weights on disk; a cut that does not pass is a rejected round.

    Raises:
        ValueError: for a value outside its range; the text says what to type instead.

    Example:
        >>> PruningConfig(threshold=0.98).protocol.estimator
        'unbiased'
        >>> PruningConfig(preset="paper").protocol.rows
        'tokens'
    """

    threshold: float | Literal["auto"] = field(
        default=0.98, metadata=_help("similarity in 0..1 that joins neighbouring layers, or auto: search")
    )
    linkage: Linkage = field(default="anchor", metadata=_help("compare with the cluster's first layer, or in a chain"))
    preset: Literal["default", "paper"] = field(default="default", metadata=_help("measuring protocol"))
    estimator: Literal["unbiased", "biased"] | None = field(default=None, metadata=_help("HSIC estimator"))
    rows: Literal["examples", "tokens", "mean", "first", "last"] | None = field(
        default=None, metadata=_help("what a row of the feature matrix is")
    )
    token_groups: Literal["example", "batch"] | None = field(
        default=None, metadata=_help("for rows=tokens: one sentence at a time, or a batch's tokens pooled")
    )
    average: Literal["sums", "ratios"] | None = field(
        default=None, metadata=_help("normalise the summed HSICs once, or average CKA values")
    )
    calibration_samples: int = field(default=1024, metadata=_help("examples to measure similarity on"))
    calibration_batch_size: int = field(default=32, metadata=_help("examples a forward pass while measuring"))
    similarity_error_rate: float | None = field(
        default=None, metadata=_help("stop measuring once the clusters are settled at this error rate, e.g. 0.05")
    )
    seed: int = field(default=0, metadata=_help("draws the calibration sample"))
    criterion: str = field(
        default="", metadata=_help("what decides which layers go (default: cka; of --threshold auto mixture)")
    )
    target_num_layers: list[str] | None = field(
        default=None, metadata=_help("layers to be left: 6 in every stack, or encoder.block:6")
    )
    target_parameters: str | None = field(default=None, metadata=_help("parameters left at most: 60M, or 60%"))
    target_size: str | None = field(default=None, metadata=_help("bytes of saved weights at most: 250MB, or 60%"))
    target_latency: str | None = field(default=None, metadata=_help("time of a forward pass at most: 12ms, or 60%"))
    layers_per_round: int | None = field(default=None, metadata=_help("layers of a stack that go in one round"))
    granularity: int = field(default=1, metadata=_help("the paper's k of the first round: cluster[1::k] go"))
    max_granularity: int = field(default=3, metadata=_help("coarsest k after rejected rounds"))
    protect: list[str] = field(default_factory=list, metadata=_help("layers that stay: 0, -1 or encoder.block:0"))
    stacks: list[str] | None = field(default=None, metadata=_help("paths of the stacks to prune (default: all)"))
    max_metric_drop: float = field(default=0.01, metadata=_help("largest accepted drop, in the metric's own unit"))
    confidence: float | None = field(
        default=None, metadata=_help("probability that the true drop is within max_metric_drop, e.g. 0.95")
    )
    metric: str | None = field(default=None, metadata=_help("metric that decides, as compute_metrics names it"))
    greater_is_better: bool | None = field(default=None, metadata=_help("direction of the metric, if not known"))
    start_epoch: int = field(default=0, metadata=_help("epochs trained before the first cut"))
    recovery_epochs: int = field(default=1, metadata=_help("epochs trained between a cut and its verdict"))
    recovery: RecoveryKind = field(default="full", metadata=_help("train the model, or adapters that are merged"))
    freeze_untouched: bool = field(default=False, metadata=_help("recover only beside the cuts, and the head"))
    lora_rank: int = field(default=8, metadata=_help("rank of the adapters of recovery=lora"))
    lora_alpha: int = field(default=16, metadata=_help("scale of the adapters of recovery=lora"))
    lora_target_modules: list[str] | None = field(
        default=None, metadata=_help("layers with adapters (default: linear)")
    )
    distillation_weight: float = field(default=0.0, metadata=_help("share in 0..1 of the uncut model's teaching"))
    distillation_temperature: float = field(default=2.0, metadata=_help("softens teacher and student"))
    distillation_hidden_weight: float = field(default=0.0, metadata=_help("weight of the hidden states' difference"))
    teacher_dtype: TeacherDtype | None = field(default=None, metadata=_help("data type the teacher is kept in"))
    learning_rate_policy: LearningRatePolicy = field(default="run", metadata=_help("one schedule, or anew each round"))
    recovery_learning_rate: float | None = field(default=None, metadata=_help("highest rate during recovery"))
    restart_warmup: float = field(default=0.1, metadata=_help("share of a round's steps that warm up under restart"))
    max_rounds: int | None = field(default=None, metadata=_help("stop after so many rounds"))
    stop_when_done: bool = field(default=False, metadata=_help("end the training once no round is left"))
    snapshot: SnapshotPlace = field(default="cpu", metadata=_help("where rollback weights are kept"))
    verify: Verification = field(default="structure", metadata=_help("full also runs each cut and a saved copy of it"))

    def __post_init__(self) -> None:
        """Check every value; nothing is coerced but lists of entries and limits, which become strings."""
        for name, read in ENTRIES.items():
            object.__setattr__(self, name, read(getattr(self, name)))
        if not self.criterion:
            object.__setattr__(self, "criterion", "mixture" if self.searches else "cka")
        check_config(self)
        _ = self.protocol, self.stop  # a wrong field of theirs is an error now, not at the first round

    @property
    def plans_by_threshold(self) -> bool:
        """Whether whole clusters go (MPruner), and not a number of layers."""
        return not self.searches and not self.has_target and self.layers_per_round is None

    @property
    def searches(self) -> bool:
        """Whether the number of layers that go is searched for, instead of given by a threshold or a target."""
        return self.threshold == "auto"

    @property
    def fixed_threshold(self) -> float:
        """The threshold of clusters.

        Raises:
            ValueError: for `threshold="auto"`, which has none.
        """
        if self.threshold == "auto":
            raise ValueError(
                "threshold='auto' searches and names no similarity: pass a number here, e.g. threshold=0.98."
            )
        return self.threshold

    @property
    def has_target(self) -> bool:
        """Whether the user said how small the model is to be."""
        return self.target_num_layers is not None or bool(self.limits)

    @property
    def limits(self) -> dict[str, Limit]:
        """What the cut model may have at most, by name of its field: parameters, bytes on disk, seconds."""
        texts = {name: getattr(self, name) for name in UNITS}
        return {name: read_limit(name, text) for name, text in texts.items() if text is not None}

    @property
    def ends_when_done(self) -> bool:
        """Whether the training ends once no round is left; a promise is about the weights that were judged."""
        return self.stop_when_done or self.confidence is not None

    @property
    def keeps_sets_apart(self) -> bool:
        """Whether what measures, what chooses and what judges are three sets that share no example."""
        return self.confidence is not None or self.searches

    @property
    def distils(self) -> bool:
        """Whether the uncut model teaches during recovery."""
        return self.distillation_weight > 0 or self.distillation_hidden_weight > 0

    @property
    def protocol(self) -> SimilarityProtocol:
        """The measuring protocol: the preset with the fields that were given."""
        given = {
            name: getattr(self, name)
            for name in ("estimator", "rows", "token_groups", "average")
            if getattr(self, name) is not None
        }
        return dataclasses.replace(PROTOCOLS[self.preset], **given)

    @property
    def stop(self) -> SequentialStop | None:
        """When enough was measured, if the whole sample does not have to be."""
        if self.similarity_error_rate is None:
            return None
        if not self.plans_by_threshold:
            raise ValueError(
                f"similarity_error_rate={self.similarity_error_rate} is about the clusters at a threshold, but here a number "
                "of layers is asked for: leave out similarity_error_rate, or target_num_layers and layers_per_round."
            )
        if not 0 < self.similarity_error_rate < 1:
            raise ValueError(
                f"similarity_error_rate={self.similarity_error_rate!r} is not between 0 and 1. It is the probability of "
                "other clusters than those of unlimited data: pass 0.05, say."
            )
        return SequentialStop(self.fixed_threshold, self.linkage, self.similarity_error_rate)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PruningConfig:
        """Build from `to_dict()`'s result; keys of a newer version are dropped with a warning that names them."""
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known - {"hf_mpruner_version"})
        if unknown:
            written_by = values.get("hf_mpruner_version", "another version")
            warnings.warn(
                f"PruningConfig: ignored unknown fields {', '.join(unknown)} (written by hf_mpruner {written_by}). "
                "If they matter, install that version: pip install -U hf_mpruner.",
                stacklevel=2,
            )
        return cls(**{k: v for k, v in values.items() if k in known})

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> Path:
        """Write `pruning_config.json` into a folder and return its path."""
        from hf_mpruner import __version__

        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        return write_json(folder / CONFIG_NAME, {"hf_mpruner_version": __version__, **self.to_dict()})

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str]) -> PruningConfig:
        """Read a `pruning_config.json`, given the file or its folder."""
        file = Path(path)
        if file.is_dir():
            file = file / CONFIG_NAME
        if not file.is_file():
            raise FileNotFoundError(f"No {CONFIG_NAME} at '{path}'. Pass the file or the folder that holds it.")
        return cls.from_dict(json.loads(file.read_text(encoding="utf-8")))
