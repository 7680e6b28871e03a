"""What `PruningConfig` refuses, each with what to type instead."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

from hf_mpruner.clusters import Linkage
from hf_mpruner.similarity import PROTOCOLS

from .kinds import LearningRatePolicy, RecoveryKind, SnapshotPlace, TeacherDtype, Verification
from .layers import protect_entries, target_entries
from .limits import UNITS, limit_text

# A `PruningConfig`, whose module imports this one.
Config = Any

# Fields whose values become strings.
ENTRIES: dict[str, Callable[[Any], Any]] = {
    "protect": protect_entries,
    "target_num_layers": target_entries,
    **{name: partial(limit_text, name) for name in UNITS},
}


def check_config(config: Config) -> None:
    """Refuse values outside their range, and fields that contradict each other.

    Raises:
        ValueError: says what to type instead.
    """
    if isinstance(config.threshold, str) and config.threshold != "auto":
        raise ValueError(f"threshold={config.threshold!r} is not known: pass a number in 0..1, e.g. 0.98, or 'auto'.")
    if not isinstance(config.threshold, str) and not 0 <= config.threshold <= 1:
        hint = (
            f" for {config.threshold:g} % pass threshold={config.threshold / 100:g}." if config.threshold > 1 else ""
        )
        raise ValueError(
            f"threshold={config.threshold} is outside 0..1. Similarity is a fraction here:{hint or ' pass 0.98, say.'}"
        )
    if not config.max_metric_drop >= 0:
        raise ValueError(
            f"max_metric_drop={config.max_metric_drop} is negative or not a number. It is the largest accepted "
            "drop in the metric's own unit: pass 0.01 for one point of an accuracy in 0..1."
        )
    _check_promise(config)
    if config.searches:
        _check_search(config)
    for name, low, high in (
        ("granularity", 1, 3),
        ("max_granularity", 1, 3),
        ("calibration_samples", 1, None),
        ("calibration_batch_size", 1, None),
        ("start_epoch", 0, None),
        ("recovery_epochs", 0, None),
        ("max_rounds", 1, None),
        ("lora_rank", 1, None),
        ("lora_alpha", 1, None),
        ("layers_per_round", 1, None),
    ):
        _check_int(name, getattr(config, name), low, high, optional=name in ("max_rounds", "layers_per_round"))
    if config.granularity > config.max_granularity:
        raise ValueError(
            f"granularity={config.granularity} is coarser than max_granularity={config.max_granularity}: no round "
            f"could run. Pass max_granularity={config.granularity} or a smaller granularity."
        )
    for name, allowed in (
        ("linkage", get_args(Linkage)),
        ("snapshot", get_args(SnapshotPlace)),
        ("verify", get_args(Verification)),
        ("preset", tuple(PROTOCOLS)),
        ("recovery", get_args(RecoveryKind)),
        ("learning_rate_policy", get_args(LearningRatePolicy)),
        ("teacher_dtype", (*get_args(TeacherDtype), None)),
    ):
        if getattr(config, name) not in allowed:
            allowed = tuple(map(str, allowed))
            raise ValueError(f"{name}={getattr(config, name)!r} is not known: pass one of {', '.join(allowed)}.")
    if config.criterion != "cka" and config.plans_by_threshold:
        raise ValueError(
            f"criterion={config.criterion!r} ranks layers and does not say how many go: pass target_num_layers=6, say, or "
            "layers_per_round=1."
        )
    _check_recovery(config)


def _check_promise(config: Config) -> None:
    confidence = config.confidence
    if confidence is None:
        return
    if isinstance(confidence, bool) or not 0 < confidence < 1:
        hint = (
            f"for {confidence:g} % pass confidence={confidence / 100:g}" if 1 < confidence < 100 else "pass 0.95, say"
        )
        raise ValueError(
            f"confidence={confidence!r} is not between 0 and 1. It is the probability that the promise holds: {hint}; or "
            "None, to compare the measured drop alone."
        )
    if config.max_metric_drop == 0:
        raise ValueError(
            f"max_metric_drop=0 with confidence={confidence:g}: no number of examples shows that nothing at all is lost. "
            "Allow a small drop, e.g. max_metric_drop=0.01, or pass confidence=None."
        )


def _check_search(config: Config) -> None:
    """Refuse what says how many layers go in a round, or asks for a threshold, beside a search."""
    decides = "the search decides how many layers go in each round"
    for name, default, why in (
        ("layers_per_round", None, decides),
        ("granularity", 1, decides),
        ("max_granularity", 3, decides),
        ("similarity_error_rate", None, "a search has no threshold whose clusters could settle"),
    ):
        given = getattr(config, name)
        if given != default:
            raise ValueError(
                f"{name}={given!r} contradicts threshold='auto': {why}. Leave {name} out, or pass a number as the "
                "threshold, e.g. threshold=0.98."
            )


def _check_recovery(config: Config) -> None:
    for name, low, high in (
        ("distillation_weight", 0.0, 1.0),
        ("distillation_hidden_weight", 0.0, math.inf),
        ("restart_warmup", 0.0, 1.0),
    ):
        value = getattr(config, name)
        if not low <= value <= high:
            allowed = f"{low:g}..{high:g}" if high < math.inf else f"{low:g} or more"
            raise ValueError(f"{name}={value!r} is not allowed: pass a number, {allowed}.")
    if not config.distillation_temperature > 0:
        raise ValueError(
            f"distillation_temperature={config.distillation_temperature!r} is not above 0: pass 2.0, say."
        )
    rate = config.recovery_learning_rate
    if rate is not None and not 0 < rate < math.inf:
        raise ValueError(f"recovery_learning_rate={rate!r} is no learning rate: pass a number above 0, e.g. 1e-4.")
    if config.recovery == "lora" and config.recovery_epochs == 0:
        raise ValueError("recovery='lora' needs epochs to train the adapters: pass recovery_epochs=1 or more.")
    if config.recovery == "lora" and config.freeze_untouched:
        raise ValueError(
            "recovery='lora' freezes the whole model and trains adapters, so freeze_untouched=True adds nothing: pass "
            "one of the two."
        )


def _check_int(name: str, value: object, low: int, high: int | None, *, optional: bool) -> None:
    if value is None and optional:
        return
    allowed = f"{low}..{high}" if high is not None else f"{low} or more"
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise ValueError(f"{name}={value!r} is not allowed: pass a whole number, {allowed}.")
