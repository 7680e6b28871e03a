"""Which positions of a batch are real, and block outputs as rows of a Gram matrix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_mpruner.errors import CalibrationError
from hf_mpruner.similarity import SimilarityProtocol
from hf_mpruner.similarity.gram import part_width


def padding_mask(model: nn.Module, path: str, batch: Mapping[str, Tensor]) -> Tensor | None:
    """The mask of real positions for the stack at `path`, or None when the batch has none for it.

    Encoders and decoder-only models: `attention_mask`. Decoder of an encoder-decoder model: `decoder_attention_mask`, else
    the positions of `labels` that are not -100, else, when the model makes decoder inputs by shifting `input_ids`, the
    `attention_mask` shifted likewise behind the start token. Vision towers beside a text model (CLIP): the mask of the
    pixels, if there is one; `attention_mask` is about the text.

    Args:
        model (`torch.nn.Module`): its config says whether it is an encoder-decoder model.
        path (`str`): dotted path of the stack.
        batch (`Mapping[str, torch.Tensor]`): what the model is called with.

    Returns:
        `torch.Tensor`, *optional*: true where a position is real; the shape is not checked here.
    """
    if "pixel_values" in batch and any(part.startswith(("vision", "visual")) for part in path.split(".")):
        masks = (batch.get(name) for name in ("pixel_attention_mask", "pixel_mask", "aspect_ratio_mask"))
        return next((mask for mask in masks if mask is not None), None)
    attention = batch.get("attention_mask")
    encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    if not encoder_decoder or "decoder" not in path.split("."):
        return attention
    if "decoder_attention_mask" in batch:
        return batch["decoder_attention_mask"]
    labels = batch.get("labels")
    if labels is not None and labels.dim() == 2 and not labels.is_floating_point():
        return labels != -100
    if attention is None or attention.dim() != 2 or {"decoder_input_ids", "decoder_inputs_embeds"} & set(batch):
        return None
    return torch.cat([torch.ones_like(attention[:, :1]), attention[:, :-1]], dim=1)


@dataclass(frozen=True)
class RowLayout:
    """Which rows of one batch count, for one stack.

    `mask` (examples kept, positions) is None without padding, `keep` (examples) is None when all are kept; `num_rows` and
    `weights` (groups) describe the Gram matrices; no group at all means that the batch is skipped.
    """

    shape: tuple[int, int]
    mask: Tensor | None
    keep: Tensor | None
    num_rows: Tensor
    weights: Tensor
    num_examples: int
    most_rows: int


def lay_out(
    protocol: SimilarityProtocol, shape: tuple[int, int], mask: Tensor | None, device: torch.device
) -> RowLayout:
    """Decide which examples of a batch count; `mask` (batch, positions) is on the CPU or None."""
    batch, positions = shape
    tokens = torch.full((batch,), positions) if mask is None else mask.sum(1)
    kept = tokens >= (protocol.min_rows if protocol.is_per_example else 1)
    if protocol.is_per_example:
        num_rows, weights = tokens[kept], torch.ones(int(kept.sum()))
        most_rows = int(tokens.max())
    else:
        num_rows = (tokens if protocol.rows == "tokens" else kept).sum().view(1)
        most_rows = int(num_rows)
        enough = most_rows >= protocol.min_rows
        num_rows, weights = num_rows[:enough], kept.sum().view(1)[:enough]
    everything = bool(kept.all())
    if mask is not None:
        mask = mask if everything else mask[kept]
        mask = None if bool(mask.all()) else mask.to(device)
    return RowLayout(
        shape=shape,
        mask=mask,
        keep=None if everything else kept.to(device),
        num_rows=num_rows,
        weights=weights,
        num_examples=batch,
        most_rows=most_rows,
    )


def build_rows(
    hidden: Tensor, layout: RowLayout, protocol: SimilarityProtocol
) -> tuple[Tensor | Iterable[Tensor], Tensor | None]:
    """Rows (and, for tokens of each example, their mask) out of block outputs (batch, positions, features).

    Rows may come in parts, as `multiply_rows` takes them, where they would be a second copy of the output.
    """
    # blocks may lie on other devices than the first one
    mask = None if layout.mask is None else layout.mask.to(hidden.device)
    if layout.keep is not None:
        hidden = hidden[layout.keep.to(hidden.device)]
    if protocol.is_pooled:
        # The rows outlive the hook, and the next block may work in place: both roads copy.
        return (hidden.flatten(0, 1).clone() if mask is None else hidden[mask]), None
    if protocol.rows == "tokens":
        return hidden, mask
    if protocol.rows in ("first", "last"):
        return _end_token(hidden, mask, protocol.rows), None
    parts = [hidden] if mask is None else _without_padding(hidden, mask)
    if protocol.rows == "examples":
        return (part.flatten(1) for part in parts), None
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    total = sum((part.sum(1, dtype=dtype) for part in parts), hidden.new_zeros((), dtype=dtype))
    return total / (hidden.shape[1] if mask is None else mask.sum(1, keepdim=True)), None


def _without_padding(hidden: Tensor, mask: Tensor) -> Iterator[Tensor]:
    """Block outputs some positions at a time, padded ones zero (by choice, not by a product: they may hold NaN)."""
    width = max(1, part_width(hidden.shape[0], hidden.device) // hidden.shape[2])
    for part, real in zip(hidden.split(width, 1), mask.split(width, 1), strict=True):
        yield torch.where(real.unsqueeze(2), part, 0)


def _end_token(hidden: Tensor, mask: Tensor | None, which: str) -> Tensor:
    """First or last real token of each example, (batch, features), whichever side is padded."""
    if mask is None:
        return hidden[:, 0 if which == "first" else -1]
    marks = mask.int()
    index = marks.argmax(1) if which == "first" else mask.shape[1] - 1 - marks.flip(1).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), index]


def fit_mask(mask: Tensor, shape: tuple[int, int], name: str) -> Tensor:
    """The mask as bool (batch, positions); audio encoders have several mask entries a position."""
    batch, positions = shape
    if mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] % positions:
        raise CalibrationError(
            f"{name} puts out {batch} x {positions} positions, but the padding mask has shape {tuple(mask.shape)}. Pass a "
            "2-D mask (examples, positions) that fits the output, or a whole multiple of it in length."
        )
    return mask.bool().reshape(batch, positions, -1).any(2).cpu()


def hidden_states(output: object, name: str) -> Tensor:
    """The hidden states in a block's output: a tensor, or the first entry of a tuple."""
    hidden = output[0] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(hidden, Tensor):
        raise CalibrationError(
            f"{name} puts out a {type(hidden).__name__}; similarity needs a tensor, or a tuple with the hidden states first."
        )
    if hidden.dim() not in (3, 4):
        raise CalibrationError(
            f"{name} puts out a tensor of shape {tuple(hidden.shape)}; similarity needs (batch, positions, features) or "
            "(batch, channels, height, width)."
        )
    return hidden
