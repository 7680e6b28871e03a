"""`measure_similarity`: one forward pass over the data, one similarity matrix per stack."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_mpruner.architectures.adapters import unwrap_adapters
from hf_mpruner.architectures.stack import BlockStack
from hf_mpruner.errors import CalibrationError
from hf_mpruner.features.looks import Looks
from hf_mpruner.features.recorder import StackRecorder
from hf_mpruner.features.rows import padding_mask
from hf_mpruner.placement import input_device
from hf_mpruner.runtime import Runtime, SingleProcess
from hf_mpruner.sequential import SequentialStop
from hf_mpruner.similarity import SimilarityMatrix, SimilarityProtocol

logger = logging.getLogger(__name__)


def measure_similarity(
    model: nn.Module,
    loader: Iterable[Mapping[str, Any]],
    stacks: Sequence[BlockStack] | None = None,
    *,
    protocol: str | SimilarityProtocol = "default",
    max_samples: int | None = None,
    stop: SequentialStop | None = None,
    null_seed: int | None = None,
    show_progress: bool | None = None,
    runtime: Runtime | None = None,
) -> dict[str, SimilarityMatrix]:
    """Measure how alike the outputs of a model's blocks are, in one forward pass over the data.

    The model runs in eval mode without gradients and is left as it was: training flags, hooks, random state.

    Args:
        model (`torch.nn.Module`): the model, not wrapped (no DDP, no compiled wrapper), but for peft's wrapper.
        loader (`Iterable[Mapping]`): batches as the model's forward takes them, e.g. a `DataLoader` with a padding
            collator. Tensors are moved to where the model takes its inputs, anything else is left out.
        stacks (`Sequence[BlockStack]`, *optional*): what to measure. Default: `find_block_stacks(model)`.
        protocol (`str` or `SimilarityProtocol`): rows, estimator and average; `"default"` or `"paper"` by name.
        max_samples (`int`, *optional*): stop after this many examples.
        stop (`SequentialStop`, *optional*): stop once the clusters at its threshold are settled at its error rate, see
            `SimilarityMatrix.sampling`. The batches must be in random order. Default: use all examples.
        null_seed (`int`, *optional*): draws another order of the rows, for `SimilarityMatrix.calibrated`. Default: none.
        show_progress (`bool`, *optional*): progress bar on stderr. Default: only when stderr is a terminal.
        runtime (`Runtime`, *optional*): of several processes that share the work: all call this with the same loader,
            process r of W measures batches r, r + W, ..., and all get the matrices of all batches.

    Returns:
        `dict[str, SimilarityMatrix]`: one matrix per stack, by its path.

    Raises:
        MPrunerError: if another process fails.
        CalibrationError: if the loader is empty, no batch has enough rows for the estimator, a block puts out NaN or
            infinite values or no tensor, or a padding mask does not fit the positions it should mask.
        PlanMismatchError: if a stack does not describe this model.
        ValueError: if `stacks` is empty, `max_samples` below 1 or the protocol unknown.
        TypeError: if the loader yields something else than mappings.
    """
    model, protocol = unwrap_adapters(model), SimilarityProtocol.named(protocol)
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"max_samples={max_samples} is below 1. Pass how many examples to measure, or None for all.")
    recorders = [StackRecorder(model, stack, protocol, null_seed) for stack in measured_stacks(model, stacks)]
    device = input_device(model)
    runtime = runtime or SingleProcess()
    with runtime.together("measuring similarity"), ExitStack() as undo:
        undo.enter_context(evaluating(model))
        # Not inference_mode: a buffer that a model fills lazily during this pass must stay usable in training.
        undo.enter_context(torch.no_grad())
        for recorder in recorders:
            recorder.attach(undo)
        looks = None if stop is None else Looks(stop, recorders, runtime, loader)
        for batch, counts in _own_batches(model, loader, max_samples, show_progress, runtime, looks):
            for recorder in recorders:
                recorder.begin(padding_mask(model, recorder.path, batch))
            model(**{name: tensor.to(device) for name, tensor in batch.items()})
            for recorder in recorders:
                if counts:
                    recorder.end()
    for recorder in recorders:
        recorder.merge(runtime)
    matrices = {recorder.path: recorder.compute() for recorder in recorders}
    if looks is not None:
        matrices = looks.conclude(matrices, max_samples)
    skipped = [recorder.skipped_message() for recorder in recorders if recorder.num_skipped]
    if skipped and runtime.is_main_process:
        logger.warning("%s", "; ".join(skipped))
    return matrices


def measured_stacks(model: nn.Module, stacks: Sequence[BlockStack] | None) -> Sequence[BlockStack]:
    """Those that were passed, or all of a model's; it may be quantised."""
    if stacks is None:
        from hf_mpruner.placement import measurable_stacks

        stacks = measurable_stacks(model)
    if not stacks:
        raise ValueError("stacks is empty: there is nothing to measure. Pass stacks=None to find them.")
    return stacks


def batches_of(
    model: nn.Module, loader: Iterable[Mapping[str, Any]], max_samples: int | None, show_progress: bool | None
) -> Iterator[dict[str, Tensor]]:
    """The tensors of each batch, cut after `max_samples` examples."""
    if show_progress is None:
        show_progress = sys.stderr.isatty()
    main_input = getattr(model, "main_input_name", "input_ids")
    num_samples = 0
    for batch in tqdm(loader, desc="Measuring similarity", disable=not show_progress, leave=False):
        if not isinstance(batch, Mapping):
            raise TypeError(
                f"the calibration loader yields {type(batch).__name__}; similarity needs mappings from argument names to "
                "tensors, e.g. {'input_ids': ..., 'attention_mask': ...}."
            )
        tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        if not tensors:
            raise CalibrationError(
                f"a calibration batch holds no tensor, only {list(batch)}. Use a collator that makes tensors."
            )
        size = len(tensors.get(main_input, next(iter(tensors.values()))))
        if max_samples is not None and num_samples + size > max_samples:
            left = max_samples - num_samples
            tensors = {name: value[:left] if value.shape[:1] == (size,) else value for name, value in tensors.items()}
            size = left
        yield tensors
        num_samples += size
        if num_samples == max_samples:
            return
    if not num_samples:
        raise CalibrationError(
            "the calibration loader is empty: it yields no batch. Pass one with at least one batch."
        )


def _own_batches(
    model: nn.Module,
    loader: Iterable[Mapping[str, Any]],
    max_samples: int | None,
    show_progress: bool | None,
    runtime: Runtime,
    looks: Looks | None = None,
) -> Iterator[tuple[dict[str, Tensor], bool]]:
    """This process's batches, and whether each counts: where forward passes communicate, all run as many of them.

    They end early, on all processes after as many batches, once a look says that it is enough.
    """
    rank, world = runtime.rank, runtime.world_size
    part = _own_part(loader, rank, world) if max_samples is None else None
    if not runtime.is_main_process:
        show_progress = False
    last: dict[str, Tensor] = {}
    seen = count = 0
    for batch in batches_of(model, loader if part is None else part.loader, max_samples, show_progress):
        mine = seen % world == rank if part is None else seen < part.own
        seen += 1
        if mine:
            count += 1
            yield batch, True
        last = batch if mine or not last else last
        # a number that all processes come to: they measure one batch each in turn
        together = seen if part is None else seen * world
        if looks is not None and (part is None or together <= part.total) and looks.enough(together):
            return
    if runtime.equal_forwards:
        for _ in range(count, -(-(seen if part is None else part.total) // world)):
            yield last, False


class _Part(NamedTuple):
    """The batches of one process, not empty, of which the first `own` are its own."""

    loader: DataLoader[Any]
    own: int
    total: int


def _own_part(loader: Any, rank: int, world: int) -> _Part | None:
    """A loader of this process's batches alone, where they can be told apart without loading the others."""
    if world == 1 or not isinstance(loader, DataLoader) or not isinstance(loader.batch_sampler, list):
        return None
    everything = loader.batch_sampler
    own = everything[rank::world]
    part: DataLoader[Any] = DataLoader(
        loader.dataset,
        batch_sampler=own or everything[:1],
        collate_fn=loader.collate_fn,
        generator=loader.generator,
    )
    return _Part(part, len(own), len(everything))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode; every module gets back the flag it had."""
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag
