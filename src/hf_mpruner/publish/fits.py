"""Whether a model, its plan and its report are of one run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel

from hf_mpruner.architectures import find_widths
from hf_mpruner.config import CONFIG_NAME, PruningConfig
from hf_mpruner.errors import PlanMismatchError
from hf_mpruner.narrowing import NARROWING_REPORT_NAME, NarrowingReport
from hf_mpruner.plan import PLAN_NAME, WIDTH_PLAN_NAME, PruningPlan, WidthPlan
from hf_mpruner.record import RECORD_NAME, PruningRecord
from hf_mpruner.report import REPORT_NAME, PruningReport

Plan = PruningPlan | WidthPlan
Report = PruningReport | NarrowingReport


def check_one_run(root: Path, files: tuple[str, ...], plan: Plan, report: Report | None) -> None:
    """The plan, the report, the record and the settings say the same.

    Raises:
        PlanMismatchError: says which two do not.
    """
    if isinstance(report, NarrowingReport) and report.plan.kept != plan.kept:
        raise PlanMismatchError(
            f"'{root}' mixes two runs: {WIDTH_PLAN_NAME} and {NARROWING_REPORT_NAME} keep other neurons or heads. Write the "
            "folder anew, or take the file of the other run out of it."
        )
    if isinstance(report, PruningReport):
        _check_one_pruning(root, files, cast(PruningPlan, plan), report)


def _check_one_pruning(root: Path, files: tuple[str, ...], plan: PruningPlan, report: PruningReport) -> None:
    if report.plan.kept != plan.kept:
        raise PlanMismatchError(
            f"'{root}' mixes two runs: {PLAN_NAME} keeps {_short(plan.kept)}, {REPORT_NAME} {_short(report.plan.kept)}. "
            "Write the folder anew, or take the file of the other run out of it."
        )
    if report.plan.merged != plan.merged:
        raise PlanMismatchError(
            f"'{root}' mixes two runs: {PLAN_NAME} and {REPORT_NAME} merge other layers. Write the folder anew, or take the "
            "file of the other run out of it."
        )
    if RECORD_NAME in files and PruningRecord.load(root).kept != report.record.kept:
        raise PlanMismatchError(
            f"'{root}' mixes two runs: {RECORD_NAME} and {REPORT_NAME} keep other layers. Write the folder anew."
        )
    if CONFIG_NAME in files and report.record.config:
        written, measured = PruningConfig.from_pretrained(root).to_dict(), report.record.config
        other = sorted(key for key in measured if key in written and written[key] != measured[key])
        if other:
            raise PlanMismatchError(
                f"'{root}' mixes two runs: {other[0]} is {written[other[0]]!r} in {CONFIG_NAME} and "
                f"{measured[other[0]]!r} in {REPORT_NAME}. Write the folder anew."
            )


def check_fits(model: PreTrainedModel, plan: Plan) -> None:
    """Compare the layers, neurons or heads that a model has with those that a plan leaves.

    Args:
        model (`PreTrainedModel`): it may be without weights, on the meta device.
        plan (`PruningPlan` or `WidthPlan`): that was applied to it.

    Raises:
        PlanMismatchError: if they differ anywhere, or the plan is for another type of model.
    """
    if plan.model_type is not None and plan.model_type != model.config.model_type:
        name = PLAN_NAME if isinstance(plan, PruningPlan) else WIDTH_PLAN_NAME
        raise PlanMismatchError(
            f"The plan is for a model of type '{plan.model_type}', the model is a '{model.config.model_type}'. Put "
            f"the plan of this model into {name}."
        )
    if isinstance(plan, WidthPlan):
        _check_width(model, plan)
    else:
        _check_depth(model, plan)


def _check_width(model: PreTrainedModel, plan: WidthPlan) -> None:
    sizes: dict[str, int] = {}
    for what in sorted({unit.what for unit in plan.units.values()}):
        sizes |= {path: unit.size for path, unit in find_widths(model, what).units.items()}
    for path, unit in plan.units.items():
        found = sizes.get(path)
        if found is None:
            raise PlanMismatchError(
                f"The plan leaves {unit.what} that '{path}' reads, and {type(model).__name__} has none there. Put the plan of "
                f"this model into {WIDTH_PLAN_NAME}."
            )
        if found != len(unit.kept):
            hint = (
                "It was not applied: hf-mpruner narrow --plan does."
                if found == unit.size
                else "It is another model's."
            )
            raise PlanMismatchError(
                f"The plan leaves {len(unit.kept)} of {unit.size} {unit.what} that '{path}' reads, the model has {found}. {hint}"
            )


def _check_depth(model: PreTrainedModel, plan: PruningPlan) -> None:
    for path, stack in plan.stacks.items():
        try:
            depth = len(list(model.get_submodule(path).children()))
        except AttributeError:
            depth = 0
        if not depth:
            raise PlanMismatchError(
                f"The plan names '{path}', which is no stack of {type(model).__name__}. Put the plan of this model into "
                f"{PLAN_NAME}."
            )
        if depth != len(stack.kept):
            hint = "It was not applied: hf-mpruner apply does." if depth == stack.depth else "It is another model's."
            raise PlanMismatchError(
                f"The plan leaves {len(stack.kept)} of {stack.depth} layers in '{path}', the model has {depth}. {hint}"
            )


def _short(kept: Mapping[str, Any]) -> str:
    return "; ".join(f"{path}: {list(layers)}" for path, layers in kept.items())
