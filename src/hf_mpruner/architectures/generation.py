"""Whether a cut model can still generate with a key-value cache."""

from __future__ import annotations

from transformers import PreTrainedModel


def find_cache_problem(before: PreTrainedModel, after: PreTrainedModel) -> str | None:
    """Say that a cut breaks the generation cache, where transformers sizes it by the encoder.

    transformers makes a cache with `get_text_config(decoder=True).num_hidden_layers` entries. Where the config has no
    `decoder_layers` (T5 and its relatives) that is the number of encoder layers, so that a decoder with more layers
    than the encoder runs out of cache.

    Args:
        before (`PreTrainedModel`): build of the model as it is, on the meta device.
        after (`PreTrainedModel`): build of the cut model.

    Returns:
        `str`: one sentence, or `None` if the cut breaks nothing that works.

    Example:
        >>> from transformers import T5Config, T5ForConditionalGeneration
        >>> from hf_mpruner.architectures.reference import build_reference
        >>> whole = build_reference(T5ForConditionalGeneration, T5Config(num_layers=6, num_decoder_layers=6))
        >>> short = build_reference(T5ForConditionalGeneration, T5Config(num_layers=5, num_decoder_layers=6))
        >>> print(find_cache_problem(whole, short))
        generate() keeps keys and values for 5 layers, the length of the encoder, but the decoder has 6: ...
    """
    if after.can_generate() and _has_attention(before) and not _has_attention(after):
        return (
            "generate() learns the length of what it has seen from the cache of an attention layer, and none is left: it "
            "will fail unless called with use_cache=False. Keep at least one layer with attention."
        )
    room, needed = _cache_entries(after)
    if needed <= room or _cache_entries(before)[1] > _cache_entries(before)[0]:
        return None
    return (
        f"generate() keeps keys and values for {room} layers, the length of the encoder, but the decoder has {needed}: it "
        f"will fail unless called with use_cache=False. Keep at least {needed} encoder layers, or cut the decoder too."
    )


def _cache_entries(model: PreTrainedModel) -> tuple[int, int]:
    """Entries that transformers makes, and entries that the decoder writes; (0, 0) where that is no question."""
    if not (model.config.is_encoder_decoder and model.can_generate()):
        return 0, 0
    room = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    decoder = model.get_decoder()
    addresses = [vars(module).get("layer_idx") for module in decoder.modules()] if decoder is not None else []
    needed = max((address + 1 for address in addresses if isinstance(address, int)), default=0)
    return (room, needed) if isinstance(room, int) else (0, 0)


def _has_attention(model: PreTrainedModel) -> bool:
    """Whether some layer attends over what it has seen; hybrids also have layers that only keep a state."""
    config = model.config.get_text_config(decoder=True)
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ["attention"]
    return any(("attention" in kind and "linear" not in kind) or kind == "hybrid" for kind in kinds)
