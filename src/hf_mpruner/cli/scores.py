"""From a loaded model and raw data to the scores of a criterion, and the plan for the number of layers asked for."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from hf_mpruner.architectures import BlockStack
from hf_mpruner.config import PruningConfig, resolve_protected
from hf_mpruner.criteria import (
    Criterion,
    CriterionInputs,
    Quota,
    ScoredLayers,
    as_recorded,
    criterion_of,
    find_criterion,
    hold_protected,
    plan_layers,
    score_layers,
    to_original,
)
from hf_mpruner.data import Columns, FirstBatch
from hf_mpruner.latency import time_forward
from hf_mpruner.placement import unquantised
from hf_mpruner.plan import PruningPlan
from hf_mpruner.record import PruningRecord
from hf_mpruner.report import cost_in_words, proposals_in_words
from hf_mpruner.roundplan import find_alike
from hf_mpruner.similarity import SimilarityMatrix
from hf_mpruner.storage import write_json
from hf_mpruner.targets import settle_target
from hf_mpruner.tasks import Purpose, Task

from .candidates import Candidate, find_candidates
from .loading import choose_columns
from .measure import Rows
from .output import align
from .parser import UsageError


class Scored(NamedTuple):
    """What a criterion says of a model, and the plan that follows."""

    criterion: Criterion
    layers: ScoredLayers
    plan: PruningPlan
    matrices: dict[str, SimilarityMatrix]
    candidates: list[Candidate] | None = None  # of a search


def proposes_apart(config: PruningConfig) -> bool:
    """Whether the criterion chooses among proposals that are made on other examples."""
    return config.keeps_sets_apart and not config.plans_by_threshold and find_criterion(config.criterion).chooses


def needs_labels(config: PruningConfig) -> bool:
    """Whether the criterion that was asked for measures a loss or a metric, if there are labels."""
    if config.plans_by_threshold:
        return False
    criterion = find_criterion(config.criterion)
    return criterion.reads_labels or "metric" in criterion.needs


def purpose_of(config: PruningConfig) -> Purpose:
    """What calibration rows are prepared for: with labels where the criterion needs them."""
    return "judge" if needs_labels(config) else "calibration"


def choose_columns_for(
    config: PruningConfig, args: argparse.Namespace, data: Any, task: Task
) -> tuple[Columns, Purpose]:
    """The columns that layers are scored on, and what their rows are prepared for.

    Raises:
        UsageError: if a named one does not exist, none or several could be meant, or labels are missing that the criterion
            cannot do without.
    """
    try:
        return choose_columns(args, data, task, need_label=needs_labels(config)), purpose_of(config)
    except UsageError:
        if config.plans_by_threshold or find_criterion(config.criterion).needs & {"loss", "gradients", "metric"}:
            raise
    return choose_columns(args, data, task, need_label=False), "calibration"


def check_alone(config: PruningConfig, instead: str) -> None:
    """Refuse a criterion that needs a Trainer's evaluation where there is none.

    Raises:
        UsageError: saying what to type instead.
    """
    if "metric" in find_criterion(config.criterion).needs:
        raise UsageError(
            f"--criterion {config.criterion} evaluates the model without each layer, and nothing evaluates here. {instead}"
        )


def score(
    name: str, rows: Rows, config: PruningConfig, stacks: list[BlockStack], purpose: Purpose | None = None
) -> Scored:
    """Score a sample of raw data and plan for the number of layers that the config asks for, or a search tries first.

    Args:
        name (`str`): of the model.
        rows (`Rows`): raw data.
        config (`PruningConfig`): what was asked for.
        stacks (`list[BlockStack]`): that may shrink.
        purpose (`Purpose`, *optional*): what rows are prepared for; by default what the criterion needs.

    Raises:
        UsageError: if so many layers cannot go.
        CalibrationError: if the criterion needs what is not there.
    """
    criterion = criterion_of(config)
    depths = {stack.path: stack.depth for stack in stacks}
    protected = resolve_protected(config.protect, depths)
    model = rows.model
    purpose = purpose or purpose_of(config)
    batches = rows.batches(config, purpose, keep_labels=purpose != "calibration")
    try:
        quota = Quota(config, depths)
        quota.check(stacks, protected)
        if config.limits:
            quota.settle(_num_layers(config, model, criterion, stacks, batches))
    except ValueError as error:
        raise UsageError(f"--{error}" if str(error).startswith("target_") else str(error)) from error
    numbers = quota.numbers(stacks, protected, config.granularity)
    inputs = CriterionInputs(
        model,
        [stack for stack in hold_protected(stacks, protected) if stack.path in numbers],
        batches=batches,
        num_removed=numbers,
        protocol=config.protocol,
        linkage=config.linkage,
        seed=config.seed,
    )
    layers = as_recorded(score_layers(criterion, inputs))
    candidates = None
    if config.searches:
        candidates = find_candidates(unquantised(model), criterion, layers, stacks, quota, config)
        numbers = candidates[0].numbers
    plan = plan_layers(
        criterion,
        layers,
        stacks,
        numbers,
        config.protect,
        model_type=model.config.model_type,
        # a folder of this machine says nothing to whoever reads the plan elsewhere
        source_model=None if Path(name).exists() else name,
        source_revision=getattr(model.config, "_commit_hash", None),
    )
    matrices, clusters = find_alike(layers, plan)
    evidence = {
        **to_original(layers, {path: range(depth) for path, depth in depths.items()}),
        "num_removed": numbers,
        "similarity": {path: matrix.to_dict() for path, matrix in matrices.items()},
        "clusters": {path: [list(one.layers) for one in found] for path, found in clusters.items()},
    }
    return Scored(criterion, layers, dataclasses.replace(plan, evidence=evidence), matrices, candidates)


def _num_layers(
    config: PruningConfig,
    model: PreTrainedModel,
    criterion: Criterion,
    stacks: list[BlockStack],
    batches: Iterable[Mapping[str, Any]],
) -> dict[str, int]:
    """What the config's limits come to, timed on the first batch."""
    record = PruningRecord({stack.path: stack.depth for stack in stacks})
    protected = resolve_protected(config.protect, record.depths)
    first = FirstBatch(batches)
    target = settle_target(
        model,
        config,
        stacks,
        record,
        {stack.path: {*protected[stack.path], *criterion.must_stay(model, stack)} for stack in stacks},
        lambda record, measured: time_forward(model, first, record, measured),
    )
    return target.num_layers


def write(folder: Path, scored: Scored) -> bool:
    """Write scores, plan and pictures; false if nothing could be drawn."""
    from hf_mpruner.report.plots import write_heat_maps, write_score_charts

    folder.mkdir(parents=True, exist_ok=True)
    values = {key: scored.plan.evidence[key] for key in ("criterion", "title", "scores", "cost")}
    write_json(folder / "scores.json", values)
    for path, matrix in scored.matrices.items():
        matrix.save(folder / f"similarity_{path}.json")
    scored.plan.save_pretrained(folder)
    return bool(
        [
            *write_score_charts(folder, values, scored.plan.kept),
            *write_heat_maps(folder, scored.matrices, "similarity"),
        ]
    )


def to_table(scored: Scored, model: PreTrainedModel) -> str:
    """The scores of every layer, what goes, and what is left."""
    title = f", {scored.criterion.title}" if scored.criterion.title else ""
    parts = []
    for path, scores in scored.layers.scores.items():
        removed = set(scored.plan.stacks[path].removed) if path in scored.plan.stacks else set()
        place = {layer: str(number) for number, layer in enumerate(scores.order, 1)}
        header = ["layer", scored.criterion.name, *(["removed as"] if place else []), "plan"]
        rows = [
            [
                str(layer),
                "" if value is None else f"{value:.6g}",
                *([place.get(layer, "")] if place else []),
                "goes" if layer in removed else "stays",
            ]
            for layer, value in enumerate(scores.values)
        ]
        which = "those that are removed first go" if place else "the lowest go first"
        parts.append(f"{path}: {scored.criterion.name}{title}; {which}\n")
        parts.append(align(header, rows, right=[0, 1]) + "\n")
    proposed = proposals_in_words(scored.plan.evidence, scored.plan.kept)
    cost = "cost: " + cost_in_words(scored.plan.evidence["cost"])
    return "\n".join([*parts, str(scored.plan.preview(model)), *proposed, cost])
