"""Models in 8 or 4 bits: what can be cut in them is found in the same model without quantisation."""

from __future__ import annotations

import copy
from typing import cast

from torch import nn
from transformers import PreTrainedModel

from hf_mpruner.architectures import BlockStack, find_block_stacks
from hf_mpruner.architectures.adapters import unwrap_adapters
from hf_mpruner.architectures.reference import build_reference, reload_config
from hf_mpruner.errors import UnsupportedArchitectureError


def is_quantised(model: nn.Module) -> bool:
    """Whether transformers loaded the model's weights as codes of fewer bits."""
    return getattr(model, "hf_quantizer", None) is not None


def unquantised(model: nn.Module) -> nn.Module:
    """What a plan for a quantised model is about: the same model, without quantisation and without weights.

    Args:
        model (`nn.Module`): a transformers model, or peft's wrapper around one; left as it is.

    Returns:
        `nn.Module`: on the meta device; the model itself if it is not quantised.

    Raises:
        UnsupportedArchitectureError: the class cannot be built from its config alone.
    """
    inner = cast(PreTrainedModel, unwrap_adapters(model))
    if not is_quantised(inner):
        return model
    config = copy.deepcopy(inner.config)
    del config.quantization_config
    return build_reference(type(inner), reload_config(config))


def measurable_stacks(model: nn.Module) -> list[BlockStack]:
    """The stacks of a model that is to be measured and not cut, so that it may be quantised.

    Args:
        model (`nn.Module`): a transformers model, or peft's wrapper around one.

    Returns:
        `list[BlockStack]`: as `find_block_stacks` finds them in the model that was quantised.

    Raises:
        UnsupportedArchitectureError: as `find_block_stacks`; or the quantised model is built otherwise.
    """
    stacks = find_block_stacks(unquantised(model))
    inner = unwrap_adapters(model)
    for stack in stacks if is_quantised(inner) else ():
        blocks = list(cast(nn.ModuleList, inner.get_submodule(stack.path)))
        kinds = {type(block).__name__ for block in blocks[:1]}
        if len(blocks) != stack.depth or kinds != {stack.block_class}:
            raise UnsupportedArchitectureError(
                f"'{stack.path}' has {len(blocks)} blocks {kinds} in the quantised model, but {stack.depth} of "
                f"{stack.block_class} without quantisation: a plan could not be for both. Measure it without quantisation."
            )
    return stacks
