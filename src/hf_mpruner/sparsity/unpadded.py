"""The examples of a batch, each alone and without padding, for models whose layers mix the rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from hf_mpruner.errors import CalibrationError
from hf_mpruner.features.rows import padding_mask


def take_apart(model: nn.Module, batch: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Each example of a padded batch as a batch of one, with its real positions only.

    Args:
        model (`nn.Module`): its config says whether it is an encoder-decoder model, whose `labels` and `decoder_...` have
            positions of their own.
        batch (`Mapping[str, torch.Tensor]`): with an `attention_mask` of (examples, positions).

    Yields:
        `dict`: as the model's forward takes it; an example without a real position is left out.

    Raises:
        CalibrationError: if the mask has another shape.

    Example:
        >>> import torch
        >>> batch = {"input_ids": torch.tensor([[5, 6, 0], [7, 8, 9]]), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
        >>> [part["input_ids"].tolist() for part in take_apart(nn.Identity(), batch)]
        [[[5, 6]], [[7, 8, 9]]]
    """
    mask = batch.get("attention_mask")
    if mask is None or mask.dim() != 2:
        shape = "none" if mask is None else f"one of shape {tuple(mask.shape)}"
        raise CalibrationError(
            f"Padding cannot be told from tokens: that takes an attention_mask of (examples, positions), and there is {shape}. "
            "Pass calibration data without padding: examples of one length, or batch_size=1."
        )
    seq2seq = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    targets = padding_mask(model, "decoder", batch) if seq2seq else None
    for number in range(len(mask)):
        if mask[number].any():
            yield {
                name: _part(value, number, targets if _is_target(name, seq2seq) else mask)
                for name, value in batch.items()
            }


def _is_target(name: str, seq2seq: bool) -> bool:
    return seq2seq and (name == "labels" or name.startswith("decoder_"))


def _part(value: Tensor, number: int, mask: Tensor | None) -> Tensor:
    if mask is not None and value.shape[:2] == mask.shape:
        return value[number : number + 1, mask[number].bool()]
    known = None if mask is None else len(mask)
    return value[number : number + 1] if value.dim() and known in (None, len(value)) else value
