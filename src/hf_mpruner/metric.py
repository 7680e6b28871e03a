"""Which of the measured values decides a round, and which way is better."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

# Directions of the names that compute_metrics functions and the evaluate library use.
_GREATER = (
    "accuracy", "balanced_accuracy", "f1", "f1_macro", "f1_micro", "f1_weighted", "precision", "recall", "roc_auc", "auc",
    "average_precision", "map", "mean_average_precision", "matthews_correlation", "mcc", "exact_match", "exact", "em",
    "pearson", "pearsonr", "spearman", "spearmanr", "r2", "r_squared", "bleu", "sacrebleu", "score", "chrf", "meteor",
    "rouge1", "rouge2", "rougel", "rougelsum", "bertscore", "mean_iou", "iou", "dice", "top5_accuracy", "ndcg", "mrr", "ap",
)  # fmt: skip
_LOWER = (
    "loss", "perplexity", "ppl", "wer", "cer", "ter", "mse", "rmse", "mae", "mape", "mean_squared_error",
    "mean_absolute_error", "brier_score", "hamming_loss", "eer", "error", "error_rate", "bits_per_byte",
)  # fmt: skip
# What sentence-transformers appends: "spearman_cosine", "cosine_ndcg@10".
_SUFFIX = re.compile(r"(_(cosine|dot|euclidean|manhattan|max)|@\d+)$")
# What Trainer.evaluate adds to the user's own metrics.
_SPEEDS = ("runtime", "samples_per_second", "steps_per_second", "tokens_per_second", "model_preparation_time",
           "jit_compilation_time")  # fmt: skip
_HOUSEKEEPING = (*_SPEEDS, "epoch", "loss")
# Means of one 0 or 1 for each example, where an example has one label.
_SHARE = re.compile(r"(top\d*_?)?accuracy|exact_match|error_rate")


@dataclass(frozen=True)
class Metric:
    """The metric that decides.

    Args:
        name (`str`): key in the evaluation's result, without a prefix.
        greater_is_better (`bool`): its direction.

    Example:
        >>> Metric("accuracy", True).drop(0.94, 0.92) > 0
        True
        >>> Metric("loss", False).drop(1.5, 1.4) < 0
        True
    """

    name: str
    greater_is_better: bool

    def drop(self, baseline: float, value: float) -> float:
        """How much worse `value` is than `baseline`, in the metric's own unit; negative if it is better."""
        return baseline - value if self.greater_is_better else value - baseline

    def read(self, metrics: Mapping[str, float]) -> float:
        """The deciding value of an evaluation's result; NaN and infinities are handed on.

        A perplexity that `compute_metrics` does not return is `exp(loss)`: infinite if that overflows.

        Raises:
            ValueError: if the evaluation did not produce this metric; the text lists what it did produce.
        """
        if self.name not in metrics and (loss := _loss_behind(self.name)) in metrics:
            return _exp(float(metrics[loss]))
        if self.name not in metrics:
            raise ValueError(
                f"metric={self.name!r} is not among what the evaluation produced: {_listed(metrics)}. Pass one of "
                "these names, or return it from compute_metrics."
            )
        return float(metrics[self.name])


def choose_metric(
    metrics: Mapping[str, float],
    name: str | None = None,
    greater_is_better: bool | None = None,
    *,
    fallback_name: str | None = None,
    fallback_greater_is_better: bool | None = None,
) -> Metric:
    """Decide by name, else by the Trainer's `metric_for_best_model`, else take the only metric, else the loss.

    Args:
        metrics (`dict[str, float]`): an evaluation's result, keys without prefix.
        name (`str`, *optional*): what the user asked for.
        greater_is_better (`bool`, *optional*): the direction that the user gave.
        fallback_name (`str`, *optional*): the Trainer's `metric_for_best_model`.
        fallback_greater_is_better (`bool`, *optional*): its direction.

    Raises:
        ValueError: if the name was not produced, several metrics could decide, none can, or the direction of an
            unusual name was not given.

    Example:
        >>> choose_metric({"accuracy": 0.9, "loss": 0.3, "runtime": 1.0})
        Metric(name='accuracy', greater_is_better=True)
    """
    own = [key for key in metrics if key not in _HOUSEKEEPING and _is_number(metrics[key])]
    if name is None and fallback_name not in (None, "loss") and fallback_name in metrics:
        name = fallback_name
        if greater_is_better is None:
            greater_is_better = fallback_greater_is_better
    if name is None and not own and "loss" in metrics:
        name = "loss"
    if name is None and len(own) == 1:
        name = own[0]
    if name is None:
        found = "several" if own else "no"
        raise ValueError(
            f"The evaluation produced {found} metrics of its own ({_listed(metrics)}): say which one decides, e.g. "
            f"PruningConfig(metric={(own or ['accuracy'])[0]!r})."
        )
    name = name.removeprefix("eval_")
    if name == fallback_name and greater_is_better is None:
        greater_is_better = fallback_greater_is_better
    Metric(name, True).read(metrics)  # raises with the list of what there is
    if greater_is_better is None:
        greater_is_better = _known_direction(name)
    if greater_is_better is None:
        raise ValueError(
            f"Is a greater or a smaller {name!r} better? This name is not known: pass "
            f"PruningConfig(metric={name!r}, greater_is_better=True) or False."
        )
    return Metric(name, greater_is_better)


def finite_values(metrics: Mapping[str, object]) -> dict[str, float]:
    """Every finite number of an evaluation, without what says how long it took.

    Args:
        metrics (`dict`): an evaluation's result, keys without prefix; of several evaluation sets, too.

    Example:
        >>> finite_values({"accuracy": 0.9, "loss": float("nan"), "runtime": 1.0, "data1_runtime": 1.0, "labels": "ab"})
        {'accuracy': 0.9}
    """
    numbers = {key: float(value) for key, value in metrics.items() if isinstance(value, Real) and _is_number(value)}
    return {
        key: value
        for key, value in numbers.items()
        if math.isfinite(value)
        and key != "epoch"
        and not any(key == speed or key.endswith(f"_{speed}") for speed in _SPEEDS)
    }


def is_share(name: str) -> bool:
    """Whether a metric is the share of examples with one of two outcomes, if each example has one label.

    Example:
        >>> [is_share(name) for name in ("accuracy", "top5_accuracy", "balanced_accuracy", "f1")]
        [True, True, False, False]
    """
    return _SHARE.fullmatch(name.lower()) is not None


def strip_prefix(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    """Evaluation results without their key prefix: `{"eval_loss": 1.0}` becomes `{"loss": 1.0}`."""
    return {key.removeprefix(f"{prefix}_"): value for key, value in metrics.items()}


def _known_direction(name: str) -> bool | None:
    # "validation_accuracy" or "data1_loss" (several evaluation sets) end in a known name
    lowered = _SUFFIX.sub("", name.lower())
    for known, direction in [(n, True) for n in _GREATER] + [(n, False) for n in _LOWER]:
        if lowered == known or lowered.endswith(f"_{known}"):
            return direction is not lowered.removesuffix(known).endswith(("neg_", "negative_"))
    return None


def _loss_behind(name: str) -> str:
    # "perplexity" is that of "loss", "data1_perplexity" (several evaluation sets) that of "data1_loss"
    known = next((known for known in ("perplexity", "ppl") if name == known or name.endswith(f"_{known}")), None)
    return "" if known is None else f"{name.removesuffix(known)}loss"


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _listed(metrics: Mapping[str, float]) -> str:
    return ", ".join(repr(key) for key in metrics if key != "epoch") or "nothing"


def is_finite(value: float) -> bool:
    """Whether a metric value can be compared: neither NaN nor infinite."""
    return math.isfinite(value)
