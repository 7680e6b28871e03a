"""How long a forward pass takes: wall-clock time on one batch and on its first row, to compare a cut model with the uncut one."""

from __future__ import annotations

import inspect
import logging
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_mpruner.architectures.adapters import unwrap_adapters
from hf_mpruner.environment import describe_device
from hf_mpruner.features.measure import evaluating
from hf_mpruner.placement import input_device
from hf_mpruner.record import Measurement, PruningRecord
from hf_mpruner.runtime import Runtime, SingleProcess, keep_rng_state

logger = logging.getLogger(__name__)

GiveBatch = Callable[[], Mapping[str, Tensor]]

REPEATS = 5
# What the repeats on one batch may take together, after the first pass; a single one may take longer.
BUDGET_SECONDS = 2.0
_LABELS = ("labels", "label", "label_ids", "start_positions", "end_positions")
# Facts that records of earlier versions do not have.
_NEWER = ("sequence_length", "num_tokens", "single_repeats")
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class _Times(NamedTuple):
    """Seconds of repeated passes on a batch, and on its first row."""

    batch: list[float]
    single: list[float]


def time_forward(
    model: nn.Module,
    batch: GiveBatch,
    record: PruningRecord,
    measured: Measurement,
    *,
    runtime: Runtime | None = None,
    mixed_precision: str | None = None,
    single: bool = True,
) -> None:
    """Time forward passes of a model, and write the medians down; the run sees nothing of it.

    In eval mode, without gradients or a loss, after one pass to warm up. The main process's time holds. Where forward passes
    communicate every process runs as many; elsewhere the main one runs alone. A failure there is a warning, and the time
    is left out: it is nothing to lose a run for.

    Args:
        model (`nn.Module`): not wrapped, but for peft's wrapper.
        batch (callable): returns the arguments of `forward`; tensors are moved to the model's device.
        record (`PruningRecord`): its `latency` says what is timed; filled by the first time, and held to by later ones.
        measured (`Measurement`): gets the times.
        runtime (`Runtime`, *optional*): the processes, which all call this at the same moment.
        mixed_precision (`str`, *optional*): `"bf16"` or `"fp16"`, as accelerate calls autocast.
        single (`bool`): whether to time the batch's first row alone, too. It keeps its padding, so that nothing differs but
            the batch size.
    """
    runtime = runtime or SingleProcess()
    given = (record.latency, mixed_precision, single)
    found: tuple[_Times, dict[str, Any]] | None = None
    with runtime.attempt("timing the model"):
        if runtime.equal_forwards:
            found = _time(model, batch, *given, runtime)
        elif runtime.is_main_process:
            found = _time(model, batch, *given, SingleProcess())
    found = runtime.broadcast(found)
    if found is None:
        return
    times, facts = found
    record.latency = record.latency or facts
    # what earlier versions did not write down cannot be compared
    others = [
        name
        for name in {**record.latency, **facts}
        if facts.get(name) != record.latency.get(name) and (name in record.latency or name not in _NEWER)
    ]
    if others:
        told = ", ".join(f"{name}={facts.get(name)}" for name in others)
        logger.warning("The latency is left out, since earlier ones were measured otherwise (now %s).", told)
        return
    measured.latency_seconds, measured.latency_range = _median(times.batch)
    if times.single:
        measured.single_latency_seconds, measured.single_latency_range = _median(times.single)


def _median(seconds: list[float]) -> tuple[float, list[float]]:
    return statistics.median(seconds), [min(seconds), max(seconds)]


def _time(
    model: nn.Module,
    batch: GiveBatch,
    earlier: Mapping[str, Any],
    mixed_precision: str | None,
    single: bool,
    runtime: Runtime,
) -> tuple[_Times, dict[str, Any]]:
    model = unwrap_adapters(model)
    first = next(model.parameters())
    device, wide = input_device(model), _AUTOCAST.get(mixed_precision or "")
    autocast = nullcontext() if wide is None else torch.autocast(device.type, dtype=wide)
    # not inference_mode: a buffer that a model fills lazily during this pass must stay usable in training
    with keep_rng_state(), evaluating(model), torch.no_grad(), autocast:
        given = {name: tensor.to(device) for name, tensor in _inputs(model, batch()).items()}
        main_input = given.get(getattr(model, "main_input_name", "input_ids"), next(iter(given.values())))
        size = len(main_input)
        seconds = _repeat(model, given, device, earlier.get("repeats"), runtime)
        alone: list[float] = []
        # where some input is not a row an example, there is no telling what the first one's is
        if single and size > 1 and all(len(tensor) == size for tensor in given.values() if tensor.dim()):
            row = {name: tensor[:1] if tensor.dim() else tensor for name, tensor in given.items()}
            alone = _repeat(model, row, device, earlier.get("single_repeats"), runtime)
    return _Times(seconds, alone), {
        "batch_size": size,
        "shape": {name: list(tensor.shape) for name, tensor in given.items()},
        **_text(main_input, given.get("attention_mask")),
        "repeats": len(seconds),
        **({"single_repeats": len(alone)} if alone else {}),
        "dtype": str(first.dtype).removeprefix("torch."),
        **({} if wide is None else {"autocast": str(wide).removeprefix("torch.")}),
        "device": describe_device(device),
        **({"threads": torch.get_num_threads()} if device.type == "cpu" else {}),
    }


def _repeat(
    model: nn.Module, given: Mapping[str, Tensor], device: torch.device, repeats: int | None, runtime: Runtime
) -> list[float]:
    """Seconds of repeated passes, after one to warm up; without a number, of as many as there is time for."""
    warm = _seconds(model, given, device)
    if repeats is None:
        repeats = runtime.broadcast(max(1, min(REPEATS, int(BUDGET_SECONDS / max(warm, 1e-9)))))
    return [_seconds(model, given, device) for _ in range(repeats)]


def _text(main_input: Tensor, mask: Tensor | None) -> dict[str, int]:
    """Of token ids, `(batch, positions)`: how long they are, and how many are no padding."""
    if main_input.dim() != 2 or main_input.is_floating_point():
        return {}
    fits = mask is not None and mask.shape == main_input.shape
    tokens = int((mask != 0).sum()) if mask is not None and fits else main_input.numel()
    return {"sequence_length": main_input.shape[1], "num_tokens": tokens}


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
    wait_for(device)
    started = time.perf_counter()
    model(**given)
    wait_for(device)
    return time.perf_counter() - started


def wait_for(device: torch.device) -> None:
    """Until an accelerator has done what it was given; a CPU always has."""
    if device.type != "cpu" and torch.accelerator.is_available():
        torch.accelerator.synchronize(device)
