"""What a search for the number of layers would try: the plan for each number, in the order of evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_mpruner.architectures import BlockStack
from hf_mpruner.config import PruningConfig, resolve_protected
from hf_mpruner.criteria import Criterion, Quota, ScoredLayers, hold_protected, plan_layers, possible_totals, share_by
from hf_mpruner.errors import UnsupportedArchitectureError
from hf_mpruner.plan import PruningPlan
from hf_mpruner.plan.stack import ranges
from hf_mpruner.search import SearchBounds

from .output import align
from .parser import UsageError


@dataclass(frozen=True)
class Candidate:
    """A plan for one number of layers.

    Args:
        num_removed (`int`): over all stacks.
        numbers (`dict[str, int]`): for each stack that loses any.
        plan (`PruningPlan`): the layers that the criterion would take from the model as it is.
        harm (`float`): what the criterion says that it costs: `Criterion.harm` over all stacks.
        parameters (`int`, *optional*): that are left; `None` if it cannot be cut.
        refused (`str`, *optional*): why not.
    """

    num_removed: int
    numbers: dict[str, int]
    plan: PruningPlan
    harm: float
    parameters: int | None
    refused: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        removed = {path: list(stack.removed) for path, stack in self.plan.stacks.items()}
        values = {"num_removed": self.num_removed, "removed": removed, "harm": self.harm}
        return {**values, "parameters": self.parameters, "refused": self.refused}


def find_candidates(
    model: Any,
    criterion: Criterion,
    scored: ScoredLayers,
    stacks: Sequence[BlockStack],
    quota: Quota,
    config: PruningConfig,
) -> list[Candidate]:
    """The plan for every number of layers that may go, fewest first; without numbers for which the criterion finds no layers.

    Args:
        model: uncut, for its parameters.
        criterion (`Criterion`): that scored.
        scored (`ScoredLayers`): for the most layers that may go.
        stacks (`Sequence[BlockStack]`): of the model.
        quota (`Quota`): how many may go.
        config (`PruningConfig`): what the user asked for.

    Raises:
        UsageError: if no layer may go.
    """
    protected = resolve_protected(config.protect, {stack.path: stack.depth for stack in stacks})
    found = []
    possible, held = quota.possible(stacks, protected), hold_protected(stacks, protected)
    for total in possible_totals(possible):
        try:
            shares = share_by(criterion, scored, held, protected, possible, {}, total)
            plan = plan_layers(criterion, scored, stacks, shares, config.protect)
        except ValueError:
            continue
        harm = sum(criterion.harm(scored.scores[path], stack.removed) for path, stack in plan.stacks.items())
        parameters = refused = None
        try:
            parameters = plan.preview(model).parameters_after
        except UnsupportedArchitectureError as error:  # one that cannot be cut must not hide the others
            refused = " ".join(str(error).split())
        found.append(Candidate(total, shares, plan, harm, parameters, refused))
    if not found:
        raise UsageError("No layer may go: all are protected or pinned, or as few are left as were asked for.")
    return found


def to_table(candidates: Sequence[Candidate], criterion: Criterion, config: PruningConfig) -> str:
    """A row for each number of layers, and what the search for the right one costs."""
    bounds = SearchBounds.of([one.num_removed for one in candidates], config.max_rounds)
    rows = [
        [
            f"{one.num_removed}{' *' if one is candidates[0] else ''}",
            _removed(one.plan.stacks),
            f"{one.harm:.6g}",
            "refused" if one.refused else f"{one.parameters:,}",
        ]
        for one in candidates
    ]
    lines = [
        align(["layers", "without", criterion.name, "parameters"], rows, right=[2, 3]),
        f"* the plan that is written, where the search begins. How many go is found by cutting, training and judging, at most "
        f"{bounds.most_recoveries} times; after a cut is accepted, the next is planned from the smaller model.",
        *(f"refused for {one.num_removed}: {one.refused}" for one in candidates if one.refused),
    ]
    return "\n".join(lines)


def _removed(stacks: Mapping[str, Any]) -> str:
    going = {path: ranges(stack.removed) for path, stack in stacks.items() if stack.removed}
    return (
        next(iter(going.values()))
        if len(stacks) == 1
        else "; ".join(f"{path} {which}" for path, which in going.items())
    )
