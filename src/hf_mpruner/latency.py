"""How long a forward pass takes: wall-clock time on one batch, so that a cut model can be compared with the uncut one."""

from __future__ import annotations

import inspect
import logging
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hf_mpruner.architectures.adapters import unwrap_adapters
from hf_mpruner.environment import describe_device
from hf_mpruner.features.measure import evaluating
from hf_mpruner.record import Measurement, PruningRecord
from hf_mpruner.runtime import Runtime, SingleProcess, keep_rng_state

logger = logging.getLogger(__name__)

GiveBatch = Callable[[], Mapping[str, Tensor]]

REPEATS = 5
# What the repeats may take together, after the first pass; a single one may take longer.
BUDGET_SECONDS = 2.0
_LABELS = ("labels", "label", "label_ids", "start_positions", "end_positions")
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def time_forward(
    model: nn.Module,
    batch: GiveBatch,
    record: PruningRecord,
    measured: Measurement,
    *,
    runtime: Runtime | None = None,
    mixed_precision: str | None = None,
) -> None:
    """Time forward passes of a model, and write the median down; the run sees nothing of it.

    In eval mode, without gradients or a loss, after one pass to warm up. The main process's time holds. Where forward passes
    communicate every process runs as many; elsewhere the main one runs alone. A failure there is a warning, and the time
    is left out: it is nothing to lose a run for.

    Args:
        model (`nn.Module`): not wrapped, but for peft's wrapper.
        batch (callable): returns the arguments of `forward`; tensors are moved to the model's device.
        record (`PruningRecord`): its `latency` says what is timed; filled by the first time, and held to by later ones.
        measured (`Measurement`): gets the time.
        runtime (`Runtime`, *optional*): the processes, which all call this at the same moment.
        mixed_precision (`str`, *optional*): `"bf16"` or `"fp16"`, as accelerate calls autocast.
    """
    runtime = runtime or SingleProcess()
    repeats = record.latency.get("repeats")
    found: tuple[float, dict[str, Any]] | None = None
    with runtime.attempt("timing the model"):
        if runtime.equal_forwards:
            found = _time(model, batch, repeats, mixed_precision, runtime)
        elif runtime.is_main_process:
            found = _time(model, batch, repeats, mixed_precision, SingleProcess())
    found = runtime.broadcast(found)
    if found is None:
        return
    seconds, facts = found
    record.latency = record.latency or facts
    if record.latency == facts:
        measured.latency_seconds = seconds
    else:
        told = ", ".join(f"{name}={facts[name]}" for name in facts if facts[name] != record.latency.get(name))
        logger.warning("The latency is left out, since earlier ones were measured otherwise (now %s).", told)


def _time(
    model: nn.Module,
    batch: GiveBatch,
    repeats: int | None,
    mixed_precision: str | None,
    runtime: Runtime,
) -> tuple[float, dict[str, Any]]:
    model = unwrap_adapters(model)
    first = next(model.parameters())
    device, wide = first.device, _AUTOCAST.get(mixed_precision or "")
    autocast = nullcontext() if wide is None else torch.autocast(device.type, dtype=wide)
    # not inference_mode: a buffer that a model fills lazily during this pass must stay usable in training
    with keep_rng_state(), evaluating(model), torch.no_grad(), autocast:
        given = {name: tensor.to(device) for name, tensor in _inputs(model, batch()).items()}
        warm = _seconds(model, given, device)
        if repeats is None:
            repeats = runtime.broadcast(max(1, min(REPEATS, int(BUDGET_SECONDS / max(warm, 1e-9)))))
        seconds = statistics.median(_seconds(model, given, device) for _ in range(repeats))
    main_input = getattr(model, "main_input_name", "input_ids")
    return seconds, {
        "batch_size": len(given.get(main_input, next(iter(given.values())))),
        "shape": {name: list(tensor.shape) for name, tensor in given.items()},
        "repeats": repeats,
        "dtype": str(first.dtype).removeprefix("torch."),
        **({} if wide is None else {"autocast": str(wide).removeprefix("torch.")}),
        "device": describe_device(device),
        **({"threads": torch.get_num_threads()} if device.type == "cpu" else {}),
    }


def _inputs(model: nn.Module, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A batch without labels, since a loss is no part of using a model; a decoder may be fed with them, though."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return batch
    parameters = inspect.signature(model.forward).parameters
    optional = {
        name for name in _LABELS if name in parameters and parameters[name].default is not inspect.Parameter.empty
    }
    return {name: tensor for name, tensor in batch.items() if name not in optional}


def _seconds(model: nn.Module, given: Mapping[str, Tensor], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    model(**given)
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type != "cpu" and torch.accelerator.is_available():
        torch.accelerator.synchronize(device)
