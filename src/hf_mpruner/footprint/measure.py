"""Everything that the model of a round takes, into its measurement: bytes as saved, cache, time of a forward pass."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from hf_mpruner.architectures.adapters import adapter_configs, unwrap_adapters
from hf_mpruner.latency import GiveBatch, time_forward
from hf_mpruner.record import Measurement, PruningRecord
from hf_mpruner.runtime import Runtime, SingleProcess

from .cache import measure_cache
from .saved import saved_bytes

logger = logging.getLogger(__name__)


def measure_costs(
    model: nn.Module,
    batch: GiveBatch,
    record: PruningRecord,
    measured: Measurement,
    *,
    runtime: Runtime | None = None,
    mixed_precision: str | None = None,
) -> None:
    """Time a model as `time_forward` does, and write down what it takes on disk and in its cache.

    What fails is a warning and left out.

    Args:
        model (`nn.Module`): not wrapped, but for peft's wrapper. Left as it is.
        batch (callable): returns the arguments of `forward`.
        record (`PruningRecord`): of the run.
        measured (`Measurement`): of this model; filled.
        runtime (`Runtime`, *optional*): the processes, which all call this at the same moment.
        mixed_precision (`str`, *optional*): `"bf16"` or `"fp16"`.
    """
    runtime = runtime or SingleProcess()
    time_forward(model, batch, record, measured, runtime=runtime, mixed_precision=mixed_precision)
    found = runtime.broadcast(_footprint(model) if runtime.is_main_process else None)
    if found is not None:
        measured.saved_bytes, measured.cache = found


def _footprint(model: nn.Module) -> tuple[int | None, dict[str, Any]] | None:
    try:
        # adapters are saved apart from their base
        saved = None if adapter_configs(model) else saved_bytes(model)
        whole: Any = unwrap_adapters(model)
        generates = hasattr(whole, "can_generate") and whole.can_generate()
        cache = measure_cache(whole) if generates else None
    except Exception as error:  # model classes raise whatever their code raises
        logger.warning("What the model takes was not measured: %s: %s", type(error).__name__, error)
        return None
    return saved, {} if cache is None else cache.to_dict()
