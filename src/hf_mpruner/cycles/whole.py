"""Whole plain models, loaded the way their users will load them, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_mpruner.errors import MPrunerError
from hf_mpruner.runtime import keep_rng_state, whole_models
from hf_mpruner.verify.saved import quietly

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel


def load_source(
    kind: type[PreTrainedModel], source: str, config: PreTrainedConfig, dtype: torch.dtype
) -> tuple[PreTrainedModel, set[str]]:
    """The uncut model, as a Trainer has it.

    Args:
        kind (`type`): its class.
        source (`str`): folder or Hub id.
        config (`PreTrainedConfig`): of the Trainer's model, with what `make_trainer` set, e.g. the number of labels.
        dtype (`torch.dtype`): of its weights.

    Returns:
        the model, and the names of parameters that the source does not hold, such as a fresh head's.
    """
    # as saved: without the choice of kernels, which may need another device
    own = type(config).from_dict(config.to_dict())
    model, info = _load(kind, source, dtype, config=own)
    return model, set(info["missing_keys"])


def load_whole(kind: type[PreTrainedModel], folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """A model that was saved whole.

    Raises:
        MPrunerError: if weights are missing, left over or of another shape.
    """
    try:
        model, info = _load(kind, str(folder), dtype, ignore_mismatched_sizes=True)
    except OSError as error:
        raise MPrunerError(f"What was saved in '{folder}' cannot be loaded: {error}") from error
    faults = [f"{what.replace('_', ' ')} {sorted(map(str, found))[:3]}" for what, found in info.items() if found]
    if faults:
        raise MPrunerError(f"What was saved in '{folder}' is not a whole {kind.__name__}: {'; '.join(faults)}.")
    return model


def save_whole(model: PreTrainedModel, folder: Path) -> None:
    """Write a model that `from_pretrained` loads."""
    with whole_models(), quietly():
        model.save_pretrained(folder)


@contextmanager
def on_device(model: PreTrainedModel, device: str | torch.device | None) -> Iterator[Any]:
    """A model where it may run; afterwards it is where it was."""
    place = model.device
    moving: Any = model
    moving.to(device)
    try:
        yield model
    finally:
        moving.to(place)


def _load(kind: Any, path: str, dtype: torch.dtype, **settings: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    with whole_models(), quietly(), keep_rng_state():
        model, info = kind.from_pretrained(path, dtype=dtype, output_loading_info=True, **settings)
    return model, info
