"""`measure_layer_by_layer`: the similarities of a model whose weights are read from the disk once, not once a batch."""

from __future__ import annotations

import inspect
import itertools
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_mpruner.architectures.adapters import unwrap_adapters
from hf_mpruner.architectures.stack import BlockStack
from hf_mpruner.features.interleaved import Pass, Passes, StatefulModelError, StateWatch
from hf_mpruner.features.measure import batches_of, evaluating, measured_stacks
from hf_mpruner.features.recorder import StackRecorder
from hf_mpruner.features.rows import padding_mask
from hf_mpruner.placement import input_device
from hf_mpruner.placement.holding import WeightHold
from hf_mpruner.similarity import SimilarityMatrix, SimilarityProtocol

logger = logging.getLogger(__name__)


def measure_layer_by_layer(
    model: nn.Module,
    loader: Iterable[Mapping[str, Any]],
    stacks: Sequence[BlockStack] | None = None,
    *,
    protocol: str | SimilarityProtocol = "default",
    max_samples: int | None = None,
    in_flight: int | None = None,
    show_progress: bool | None = None,
) -> dict[str, SimilarityMatrix]:
    """As `measure_similarity`, block after block: one block does all batches before the next one is read.

    For models that lie on the disk (`device_map={"": "disk"}`), of which `measure_similarity` reads all weights once a batch.
    Here each is read once, those behind the last block not at all. Held in memory are the weights of one block (or of what
    lies before the first) and one block's outputs for all examples, with whatever else the model's code holds of a batch:
    inputs, embeddings, masks, positions, the encoder's output; no key-value cache. The results are the same bits, or
    (gpt_neo, nllb-moe) differ in the last ones, where attention reads a cache with another order of its numbers in memory.

    A model that keeps something of a batch in its modules while it runs cannot do several at a time: a warning says so, and
    its batches run one after the other.

    Args:
        model (`torch.nn.Module`): as for `measure_similarity`; one that is not offloaded gains nothing.
        loader (`Iterable[Mapping]`): as for `measure_similarity`.
        stacks (`Sequence[BlockStack]`, *optional*): what to measure. Default: all of the model's.
        protocol (`str` or `SimilarityProtocol`): rows, estimator and average. Not all tokens of a batch in one Gram matrix
            (`token_groups="batch"`), for which the outputs of all layers would have to be kept.
        max_samples (`int`, *optional*): stop after this many examples.
        in_flight (`int`, *optional*): at most so many batches at a time; weights are read once for each so many. Default: all.
        show_progress (`bool`, *optional*): progress bar on stderr. Default: only when stderr is a terminal.

    Returns:
        `dict[str, SimilarityMatrix]`: one matrix per stack, by its path.

    Raises:
        ValueError: for that protocol, or `in_flight` below 1; else as `measure_similarity`.
    """
    model, protocol = unwrap_adapters(model), SimilarityProtocol.named(protocol)
    if protocol.is_pooled:
        raise ValueError(
            "token_groups='batch' compares all tokens of a batch at once, so the outputs of all layers would be kept for all "
            "batches. Measure layer by layer with another protocol (rows='mean', or token_groups='example'), or use "
            "measure_similarity."
        )
    for name, value in (("max_samples", max_samples), ("in_flight", in_flight)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} is below 1. Pass a number, or None for all.")
    stacks = measured_stacks(model, stacks)
    totals = [StackRecorder(model, stack, protocol) for stack in stacks]
    show = sys.stderr.isatty() if show_progress is None else show_progress
    batches = batches_of(model, loader, max_samples, False)
    with evaluating(model), torch.no_grad():
        while group := list(itertools.islice(batches, in_flight)):
            for recorders in _measure(model, stacks, protocol, group, show):
                for total, recorder in zip(totals, recorders, strict=True):
                    total.add(recorder)
    skipped = [recorder.skipped_message() for recorder in totals if recorder.num_skipped]
    if skipped:
        logger.warning("%s", "; ".join(skipped))
    return {recorder.path: recorder.compute() for recorder in totals}


def _measure(
    model: nn.Module,
    stacks: Sequence[BlockStack],
    protocol: SimilarityProtocol,
    batches: list[dict[str, Tensor]],
    show: bool,
) -> Iterator[list[StackRecorder]]:
    """What each batch shows of each stack: all batches side by side, or one by one if the model does not allow it."""
    try:
        yield from _side_by_side(model, stacks, protocol, batches, show)
        return
    except StatefulModelError as error:
        logger.warning(
            "%s: %s, so its batches are measured one after the other, and each reads all weights. The results are the same.",
            type(model).__name__,
            error,
        )
    for batch in batches:
        yield from _side_by_side(model, stacks, protocol, [batch], False)


def _side_by_side(
    model: nn.Module,
    stacks: Sequence[BlockStack],
    protocol: SimilarityProtocol,
    batches: Sequence[dict[str, Tensor]],
    show: bool,
) -> list[list[StackRecorder]]:
    places = {block: (number, layer) for number, layer, block in _blocks(model, stacks)}
    recorders = [[StackRecorder(model, stack, protocol) for stack in stacks] for _ in batches]
    left = [set(places) for _ in batches]
    device = input_device(model)
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    watch = StateWatch(model) if len(batches) > 1 else None
    passes: list[Pass] = []
    bar = tqdm(total=len(places), desc="Measuring layer by layer", disable=not show, leave=False)
    with ExitStack() as undo:
        undo.callback(bar.close)
        hold = WeightHold(model)
        hold.attach(undo)
        running = Passes(model, places, undo)
        for batch, own in zip(batches, recorders, strict=True):
            for recorder in own:
                recorder.begin(padding_mask(model, recorder.path, batch))
            given: dict[str, Any] = {name: one.to(device) for name, one in batch.items()}
            passes.append(running.start({**given, **options}))
        while waiting := [number for number, one in enumerate(passes) if one.call is not None]:
            hold.release()
            if watch is not None:
                watch.check()
            block = _block_of(passes[waiting[0]])
            for number in (one for one in waiting if _block_of(passes[one]) is block):
                one, (stack, layer) = passes[number], places[block]
                output = running.run_block(one)
                recorders[number][stack].record(layer, output)
                left[number].discard(block)
                if left[number]:
                    running.goes_on(one, output)
                else:  # what follows the last block is not needed, nor read
                    one.close()
                del output
            bar.update()
    for own in recorders:
        for recorder in own:
            recorder.end()
    return recorders


def _block_of(one: Pass) -> nn.Module:
    return one.call[0]  # type: ignore[index]


def _blocks(model: nn.Module, stacks: Sequence[BlockStack]) -> Iterator[tuple[int, int, nn.Module]]:
    for number, stack in enumerate(stacks):
        for layer, block in enumerate(model.get_submodule(stack.path).children()):
            yield number, layer, block
