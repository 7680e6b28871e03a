"""`plan_layers`: a plan for a requested number of layers, by any criterion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_mpruner.architectures import BlockStack
from hf_mpruner.config import resolve_protected
from hf_mpruner.criteria.base import Criterion
from hf_mpruner.criteria.scores import ScoredLayers
from hf_mpruner.errors import PlanMismatchError
from hf_mpruner.plan import PruningPlan


def plan_layers(
    criterion: Criterion,
    scored: ScoredLayers,
    stacks: Sequence[BlockStack],
    num_removed: Mapping[str, int],
    protect: Sequence[int | str] = (),
    **facts: Any,
) -> PruningPlan:
    """The plan of a criterion for a number of layers.

    Args:
        criterion (`Criterion`): that scored.
        scored (`ScoredLayers`): from `score_layers(criterion, ...)`.
        stacks (`Sequence[BlockStack]`): as they were scored.
        num_removed (`Mapping[str, int]`): for each stack path how many layers go; stacks that are not named stay whole.
        protect (list of `int` or `str`): layers that stay: `0`, `-1` (of every stack), `"encoder.block:0"`.
        facts: `model_type`, `source_model`, `source_revision` of the plan.

    Returns:
        `PruningPlan`: with the scores as its evidence.

    Raises:
        PlanMismatchError: for a path that is no stack of the model.
        ValueError: if so many layers cannot go; says how many can.
    """
    by_path = {stack.path: stack for stack in stacks}
    protected = resolve_protected(protect, {stack.path: stack.depth for stack in stacks})
    kept, merged = {}, {}
    for path, number in num_removed.items():
        if path not in by_path:
            raise PlanMismatchError(
                f"'{path}' is no block stack of this model. Its stacks are: {', '.join(by_path) or 'none'}."
            )
        stack, scores = by_path[path], scored.scores[path]
        removed = criterion.select(scores, stack, number, protected[path])
        kept[path] = [layer for layer in range(stack.depth) if layer not in removed]
        merged[path] = criterion.merges(scores, stack, removed)
    evidence = {**scored.to_dict(), "num_removed": dict(num_removed)}
    return PruningPlan.from_kept(kept, stacks, merged=merged, evidence=evidence, **facts)
