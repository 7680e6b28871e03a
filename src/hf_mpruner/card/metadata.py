"""The YAML of a card: what the Hub searches and shows, plain values only, and nothing that is not known."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hf_mpruner.criteria import OF_SIMILARITY
from hf_mpruner.report import PruningReport, chosen_by

from .check import is_hub_id
from .facts import ModelFacts

# Names that compute_metrics functions use -> the Hub's id of the metric.
_METRIC_IDS = {
    **{
        name: name
        for name in (
            "accuracy", "f1", "precision", "recall", "roc_auc", "matthews_correlation", "exact_match", "bleu", "sacrebleu",
            "chrf", "ter", "meteor", "wer", "cer", "mse", "mae", "perplexity", "mean_iou", "pearsonr", "spearmanr",
        )
    },
    **dict.fromkeys(("rouge", "rouge1", "rouge2", "rougeL", "rougeLsum"), "rouge"),
    "mcc": "matthews_correlation", "ppl": "perplexity",
}  # fmt: skip
_AVERAGED = re.compile(r"(f1|precision|recall|roc_auc)_(macro|micro|weighted)")


def build_metadata(
    report: PruningReport,
    model: ModelFacts,
    *,
    name: str,
    base_model: str | None = None,
    license: str | None = None,
    language: str | Sequence[str] | None = None,
    tags: Sequence[str] = (),
    datasets: Sequence[str] = (),
) -> dict[str, Any]:
    """Metadata of a card.

    Args:
        report (`PruningReport`): of the run.
        model (`ModelFacts`): of the pruned model.
        name (`str`): what `model-index` calls the model.
        base_model (`str`, *optional*): Hub id of the model that was pruned; nothing else gets in.
        license (`str`, *optional*): the Hub's name of it.
        language (`str` or sequence of `str`, *optional*): ISO 639 codes.
        tags (sequence of `str`): of the user, beside ours.
        datasets (sequence of `str`): of the user, beside the record's; what is no Hub id is left out.

    Returns:
        `dict`: plain values, in the order in which they are written.
    """
    data = report.record.data.values()
    found = [*datasets, *(part["dataset"] for part in data if part.get("dataset"))]
    values: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": report.record.pipeline_tag or model.pipeline_tag,
        "license": license,
        "language": [language] if isinstance(language, str) else list(language or ()),
    }
    if is_hub_id(base_model):
        values |= {"base_model": base_model, "base_model_relation": "finetune"}
    pruned = ["pruned", "layer-pruning"] if report.plan.num_removed else []
    values["tags"] = unique([*pruned, "hf_mpruner", *_methods(report), *tags])
    values["datasets"] = unique(dataset for dataset in found if is_hub_id(dataset))
    metrics = _metrics(report)
    values["metrics"] = unique(metric["type"] for metric in metrics)
    values["model-index"] = model_index(report.record.data.get("judging", {}), model, name, metrics)
    return {key: value for key, value in values.items() if value not in (None, "", [])}


def plain_number(value: Any) -> float | None:
    """A metric as a float of Python, whatever library it is from; `None` if it is not finite or no number."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def metric_id(name: str) -> str | None:
    """The Hub's id of a metric; `None` if it knows none of that name.

    Example:
        >>> metric_id("f1_macro"), metric_id("rougeL"), metric_id("my_score")
        ('f1', 'rouge', None)
    """
    averaged = _AVERAGED.fullmatch(name)
    return _METRIC_IDS.get(averaged[1] if averaged else name)


def _methods(report: PruningReport) -> list[str]:
    """What chose the layers, as tags; MPruner's where that is known, or nothing is."""
    chosen = chosen_by(report.record) or ["cka"]
    alike = [*(["mpruner"] if "cka" in chosen else []), *(["cka"] if OF_SIMILARITY & set(chosen) else [])]
    return [*alike, *(re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-") for name in chosen if name != "cka")]


def _metrics(report: PruningReport) -> list[dict[str, Any]]:
    """What was measured of the model that the card is of, as far as the Hub knows the metric."""
    record, after = report.record, report.after
    if record.pending or after is None:
        return []
    return known_metrics({**({record.metric: after.metric} if record.metric else {}), **after.metrics})


def known_metrics(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of `{name: value}` those that the Hub knows, as a card has them."""
    return [
        {"type": metric_id(key), "value": plain_number(value), "name": key}
        for key, value in measured.items()
        if metric_id(key) and plain_number(value) is not None
    ]


def model_index(
    judging: Mapping[str, Any], model: ModelFacts, name: str, metrics: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """One result, on the data that judged; empty unless task and data set are known to the Hub."""
    if not metrics or not model.task or not is_hub_id(judging.get("dataset")):
        return []
    dataset = {"name": judging["dataset"], "type": judging["dataset"]}  # in huggingface_hub's own order
    dataset |= {key: judging[key] for key in ("config", "split", "revision") if isinstance(judging.get(key), str)}
    return [{"name": name, "results": [{"task": {"type": model.task}, "dataset": dataset, "metrics": metrics}]}]


def unique(items: Any) -> list[str]:
    """Each once, in their order."""
    return list(dict.fromkeys(items))
