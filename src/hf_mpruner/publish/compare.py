"""What was pushed is loaded back, as its users will load it, and compared bit for bit."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from torch import Tensor
from transformers import PreTrainedModel

from hf_mpruner.errors import PushError
from hf_mpruner.hub import Pushed, explain
from hf_mpruner.runtime import keep_rng_state
from hf_mpruner.verify.outputs import run_still
from hf_mpruner.verify.saved import same_bits

from .folder import ModelFolder

logger = logging.getLogger(__name__)

_AUDIO_SAMPLES = 16_000
_TOKENS = 8
_IMAGE = 64


def compare_pushed(
    found: ModelFolder, pushed: Pushed, inputs: Mapping[str, Any] | None = None, token: str | bool | None = None
) -> bool:
    """Load the commit from the Hub and compare weights and outputs with the folder's.

    Args:
        found (`ModelFolder`): what was pushed.
        pushed (`Pushed`): where it went.
        inputs (`dict`, *optional*): arguments of `forward`; by default some that fit the model's main input.
        token (`str` or `bool`, *optional*): to read it with.

    Returns:
        `bool`: whether outputs were compared; false if no inputs are known that the model takes, and only weights were.

    Raises:
        PushError: if they differ, or the model could not be loaded back.
    """
    cache = Path(constants.HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".hf_mpruner-", dir=cache) as own, keep_rng_state():
        try:
            theirs = found.load(pushed.repo_id, revision=pushed.head, token=token, cache_dir=own)
        except Exception as error:
            text = explain(error, pushed.repo_id, f"load '{pushed.repo_id}' back to compare it", writing=False)
            raise PushError(f"The push itself is done: {pushed.url}. {text}") from error
        ours = found.load()
        one, other = ours.state_dict(), theirs.state_dict()
        if differing := [name for name in one if name not in other or not same_bits(one[name], other[name])]:
            raise PushError(
                f"What is on the Hub is not what was sent: '{differing[0]}' differs ({len(differing)} of {len(one)} "
                f"tensors, {pushed.url}). Push again; if it stays so, report it."
            )
        return _compare_outputs(ours, theirs, inputs, pushed)


def make_inputs(model: PreTrainedModel) -> dict[str, Tensor] | None:
    """Some numbers of the right kind for a model's main input; `None` for a kind that is not known here.

    Token ids have the shape `(2, 8)`, pictures `(2, channels, height, width)`, sound `(1, samples)`.
    """
    config: Any = model.config
    generator = torch.Generator().manual_seed(0)
    main = model.main_input_name

    def tokens() -> Tensor:
        weight: Any = model.get_input_embeddings().weight
        size = int(weight.shape[0])
        return torch.randint(0, size, (2, _TOKENS), generator=generator)

    if main == "input_ids":
        made = {"input_ids": tokens(), "attention_mask": torch.ones(2, _TOKENS, dtype=torch.long)}
    elif main == "pixel_values":
        size = getattr(config, "image_size", None) or _IMAGE
        height, width = size if isinstance(size, list | tuple) else (size, size)
        made = {"pixel_values": torch.rand(2, getattr(config, "num_channels", 3), height, width, generator=generator)}
    elif main == "input_values":
        made = {"input_values": torch.rand(1, _AUDIO_SAMPLES, generator=generator)}
    elif main == "input_features" and hasattr(config, "num_mel_bins"):
        frames = 2 * getattr(config, "max_source_positions", 1500)
        made = {"input_features": torch.rand(1, config.num_mel_bins, frames, generator=generator)}
    else:
        return None
    if getattr(config, "is_encoder_decoder", False):
        made["decoder_input_ids"] = tokens()[: len(made[main])]
    return {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in made.items()}


def _compare_outputs(
    ours: PreTrainedModel, theirs: PreTrainedModel, inputs: Mapping[str, Any] | None, pushed: Pushed
) -> bool:
    try:
        chosen = make_inputs(ours) if inputs is None else inputs
        one = {} if chosen is None else run_still(ours, chosen)
    except Exception as error:  # inputs that were guessed may not be what this class wants
        if inputs is not None:
            raise
        logger.info("%s does not take the inputs that were made for it: %s", type(ours).__name__, error)
        return False
    if not one or chosen is None:
        return False
    other = run_still(theirs, chosen)
    if differing := [name for name in one if name not in other or not same_bits(one[name], other[name])]:
        raise PushError(
            f"'{pushed.repo_id}' loaded from the Hub computes another '{differing[0]}' than the folder does, with equal "
            f"weights: its config differs ({pushed.url}). Compare the two config.json."
        )
    return True
