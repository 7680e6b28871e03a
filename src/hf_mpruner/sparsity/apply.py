"""`sparsify_`: block by block, each with inputs from the sparse blocks before it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_mpruner.data import calibration_loader
from hf_mpruner.errors import CalibrationError
from hf_mpruner.features.measure import evaluating
from hf_mpruner.runtime import keep_rng_state

from .layers import FoundLayers, LinearLayer, check_groups, check_weights, find_layers
from .norms import Norms
from .pattern import Pattern, choose_zeros
from .report import LayerZeros, SparsityReport
from .where import find_paths

if TYPE_CHECKING:
    from transformers import PreTrainedModel

METHODS = ("wanda", "magnitude")


def sparsify_(
    model: PreTrainedModel,
    sparsity: float = 0.5,
    *,
    method: str = "wanda",
    pattern: str = "unstructured",
    calibration: Any = None,
    processing_class: Any = None,
    num_samples: int = 128,
    batch_size: int = 8,
    seed: int = 0,
    stacks: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    show_progress: bool | None = None,
) -> SparsityReport:
    """Set a fraction of the weights of every linear layer in a model's blocks to zero, in place and without training.

    Wanda (Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024, equation 1): the
    score of a weight is `|W_ij| * ||X_j||_2`, the norm of its input over all real tokens of calibration; in each row the
    lowest go. The inputs of each block are those that the sparse blocks before it put out. No activations are held: the
    model runs anew for each block, up to it, about half as many passes over the data as there are blocks.

    Embeddings, heads, biases, norms, shared weights, and experts whose matrices lie in one tensor stay as they are. Zeros
    by themselves make nothing smaller or faster.

    Args:
        model (`PreTrainedModel`): changed in place; `save_pretrained` writes the zeros.
        sparsity (`float`): fraction in 0..1; of each row of n weights the whole part of `sparsity` x n goes.
        method (`"wanda"` or `"magnitude"`): `"magnitude"` scores by `|W_ij|` alone and runs nothing.
        pattern (`str`): `"unstructured"`, or `"n:m"`: of every m neighbouring weights of a row n stay. `"2:4"` needs
            `sparsity=0.5`.
        calibration: for `"wanda"`: data set, list of examples or batches, as `prune_` takes them.
        processing_class (*optional*): tokenizer or image processor for raw data.
        num_samples (`int`): examples of calibration.
        batch_size (`int`): most of them at a time.
        seed (`int`): draws the sample.
        stacks (`Sequence[str]`, *optional*): paths of the lists of blocks; by default all that are found.
        skip (`Sequence[str]`): layers to leave dense, by the end of their names, with `*`.
        show_progress (`bool`, *optional*): by default only on a terminal.

    Returns:
        `SparsityReport`: zeros of every layer, what was left out and why, seconds, and passes as counted.

    Raises:
        ValueError: for a sparsity, pattern or method that is none, rows without groups of m, quantised weights, or
            adapters. The model is as it was.
        CalibrationError: without calibration data for `"wanda"`, or with data that cannot be run. A failure in the middle
            leaves the blocks before it sparse, and says so.
    """
    style = _check(method, Pattern.named(pattern), sparsity, calibration)
    check_weights(model)
    paths = find_paths(model, stacks)
    found = find_layers(model, paths, skip)
    check_groups(found, style.size)
    started = time.perf_counter()
    norms: Norms | None = None
    with keep_rng_state(), evaluating(model), torch.no_grad():
        if method == "wanda":
            sampling: dict[str, Any] = {"num_samples": num_samples, "batch_size": batch_size, "seed": seed}
            loader = calibration_loader(calibration, processing_class=processing_class, model=model, **sampling)
            norms = Norms(model, paths, loader)
        show = sys.stderr.isatty() if show_progress is None else show_progress
        layers, unseen = _go_through(model, found, norms, sparsity, style, show)
    left_out = {**found.left_out, **dict.fromkeys(unseen, "no calibration token reached it")}
    passes, examples = (0.0, 0) if norms is None else (norms.passes, norms.num_examples)
    numbers = (*_count_zeros(model), time.perf_counter() - started, passes, examples)
    return SparsityReport(method, str(style), sparsity, layers, left_out, *numbers)


def _check(method: str, pattern: Pattern, sparsity: float, calibration: Any) -> Pattern:
    pattern.check_sparsity(sparsity)
    if method not in METHODS:
        raise ValueError(f"method={method!r} is not known. Pass one of {', '.join(map(repr, METHODS))}.")
    if method == "wanda" and calibration is None:
        raise CalibrationError(
            "method='wanda' measures the inputs of the layers: pass calibration=dataset, or method='magnitude', which "
            "needs no data."
        )
    return pattern


def _go_through(
    model: nn.Module, found: FoundLayers, norms: Norms | None, sparsity: float, pattern: Pattern, show: bool
) -> tuple[dict[str, LayerZeros], list[str]]:
    """Zeros of each layer, block by block, and the layers that no token reached."""
    if norms is None:
        blocks = [(path, model.get_submodule(path)) for path in found.by_block]
    else:
        blocks = [(path, block) for path, block in norms.order if path in found.by_block]
    layers: dict[str, LayerZeros] = {}
    unseen: list[str] = []
    for path, block in tqdm(blocks, desc="Setting weights to zero", disable=not show, leave=False):
        with _said(path) if layers else nullcontext():
            scales = {} if norms is None else norms.measure(path, block, found.by_block[path])
        for layer in found.by_block[path]:
            if norms is not None and layer.name not in scales:
                unseen.append(layer.name)
            else:
                layers[layer.name] = _set_to_zero(layer, scales.get(layer.name), sparsity, pattern)
    if not layers:
        raise CalibrationError("No calibration token reached any linear layer of the blocks. Nothing was changed.")
    return layers, unseen


def _set_to_zero(layer: LinearLayer, norm: Tensor | None, sparsity: float, pattern: Pattern) -> LayerZeros:
    matrix = layer.matrix()
    scores = matrix.abs().float()
    if norm is not None:
        scores = scores * norm.to(scores.dtype)
    layer.set_to_zero_(choose_zeros(scores, sparsity, pattern))
    return LayerZeros(matrix.numel(), int((layer.weight == 0).sum()))


def _count_zeros(model: nn.Module) -> tuple[int, int]:
    parameters = list(model.parameters())
    return sum(one.numel() for one in parameters), sum(int((one == 0).sum()) for one in parameters)


@contextmanager
def _said(path: str) -> Iterator[None]:
    """Add to an error what has been done to the model before it."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"The blocks before {path} have their zeros already: load the model anew.")
        raise
