"""`apply_plan_`: a plan carried out on a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from hf_mpruner.architectures import Examination, check_kept, examine, find_block_stacks
from hf_mpruner.architectures.adapters import unwrap_adapters
from hf_mpruner.errors import PlanMismatchError, UnsupportedArchitectureError
from hf_mpruner.plan import check_removed
from hf_mpruner.pruned_base import save_with_base
from hf_mpruner.surgery.edit import ModelEdit
from hf_mpruner.verify import FullCheck, apply_verified_, check_request

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from hf_mpruner.config import Verification
    from hf_mpruner.plan import PruningPlan, StackPlan


def apply_plan_(
    model: PreTrainedModel | PeftModel,
    plan: PruningPlan,
    *,
    verify: Verification = "structure",
    inputs: Mapping[str, Any] | None = None,
) -> ModelEdit:
    """Cut a model as a plan says, once; layers that the plan merges take over the weights of others first.

    Args:
        model (`PreTrainedModel`): the model the plan was made for, or a fresh copy of it; changed in place. Or peft's
            wrapper around one.
        plan (`PruningPlan`): layers in the numbering of that model.
        verify (`"structure"` or `"full"`): compare with the model that the new config builds, or also run the cut on
            `inputs`: it must equal the uncut model whose removed layers are skipped (with the merged weights, if layers
            are merged), and a copy that was saved to a temporary folder and loaded again; to the bit in 32 bits on the
            CPU, up to rounding elsewhere.
        inputs (`Mapping`, *optional*): for `verify="full"`: one batch of arguments of the model's `forward`.

    Returns:
        `ModelEdit`: the applied edit; `.undo()` takes the cut back.

    Raises:
        PlanMismatchError: the plan is for another model, was applied already, or removes a pinned layer.
        UnsupportedArchitectureError: the cut cannot be proved right, or did not pass on `inputs`.
        ValueError: `verify="full"` without `inputs`, or the other way round. In all cases the model is as it was.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> from hf_mpruner import PruningPlan, find_block_stacks
        >>> model = BertModel(BertConfig(num_hidden_layers=4, hidden_size=8, num_attention_heads=2, vocab_size=9))
        >>> plan = PruningPlan.from_kept({"encoder.layer": [0, 1, 3]}, find_block_stacks(model))
        >>> _ = apply_plan_(model, plan, verify="full", inputs={"input_ids": torch.tensor([[1, 2, 3]])})
        >>> len(model.encoder.layer)
        3
    """
    check_request(verify, inputs)
    save_with_base(model)
    model = cast("PreTrainedModel", unwrap_adapters(model))
    model_type = model.config.model_type
    if plan.model_type is not None and plan.model_type != model_type:
        raise PlanMismatchError(
            f"This plan was made for model_type {plan.model_type!r}, but {type(model).__name__} has model_type "
            f"{model_type!r}. {_load_source(plan)}"
        )
    for path, stack in plan.stacks.items():
        _check_depth(model, plan, path, stack)
    found = examine(model)
    kept = {path: stack.kept for path, stack in plan.stacks.items() if len(stack.kept) < stack.depth}
    check_kept(found.stacks, kept)
    edit = _prove(model, found, kept, plan)
    apply_verified_(edit, None if inputs is None else FullCheck(model, kept, inputs, merged=plan.merged))
    return edit


def _prove(
    model: PreTrainedModel, found: Examination, kept: dict[str, tuple[int, ...]], plan: PruningPlan
) -> ModelEdit:
    """The edit, or an error that names the first layer that must stay.

    Pins are trials of single layers. A plan of several rounds may remove layers together that could not go alone, so
    the proof of the whole cut has the last word, but for pins that no proof sees.
    """
    removed = {
        stack: [layer for layer in range(stack.depth) if layer not in kept[stack.path]]
        for stack in found.stacks
        if stack.path in kept
    }
    for stack, layers in removed.items():
        for layer in layers:
            if layer in stack.unprovable:
                check_removed(stack, [layer])
    try:
        return ModelEdit(model, kept, found=found, merged=plan.merged)
    except UnsupportedArchitectureError:
        for stack, layers in removed.items():
            check_removed(stack, layers)
        raise


def _check_depth(model: PreTrainedModel, plan: PruningPlan, path: str, stack: StackPlan) -> None:
    try:
        depth = len(cast(nn.ModuleList, model.get_submodule(path)))
    except (AttributeError, TypeError):
        stacks = ", ".join(f"{found.path!r} ({found.depth} layers)" for found in find_block_stacks(model))
        raise PlanMismatchError(
            f"This plan cuts {path!r}, but {type(model).__name__} has no list of blocks there. Its stacks are: {stacks}."
        ) from None
    if depth == stack.depth:
        return
    if depth == len(stack.kept):
        raise PlanMismatchError(
            f"This plan keeps {len(stack.kept)} of {stack.depth} layers of {path!r}, but the model has {depth} there. "
            f"Was it applied already? {_load_source(plan)}"
        )
    raise PlanMismatchError(
        f"This plan is for {stack.depth} layers of {path!r}, but the model has {depth} there. Make a plan for this model "
        f"with PruningPlan.from_kept or from_clusters. Or: {_load_source(plan)}"
    )


def _load_source(plan: PruningPlan) -> str:
    if plan.source_model is None:
        return "Load the model that the plan was made for and apply it once."
    return f"Load {plan.source_model!r} (the plan's source_model) and apply it once."
