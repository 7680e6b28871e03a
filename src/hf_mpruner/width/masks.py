"""Neurons of plain modules: linear layers and convolution channels masked by `torch.nn.utils.prune`, alive through training.

A mask zeroes weights; it makes nothing smaller. It is for models whose config cannot say another width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from hf_mpruner.errors import CalibrationError
from hf_mpruner.width.base import NeuronCriterion, NeuronInputs, check_survivors, number_of
from hf_mpruner.width.terc import amount_of, sweep_layers


@dataclass(frozen=True)
class PlainLayer:
    """One layer whose neurons may go.

    Where something is added to its output (a residual sum), a masked neuron is a zero of this layer alone, not of the sum.

    Args:
        name (`str`): dotted path of its `nn.Linear` or `nn.Conv2d`.
        output (`str`): dotted path of the module whose output is what the next layer reads: its activation function (or
            a pooling after it); `(samples, neurons)` or `(samples, channels, height, width)`.
        norm (`str`, *optional*): dotted path of a normalisation between the two, whose own shift would keep a masked
            neuron at a constant: it is masked with it.
    """

    name: str
    output: str
    norm: str | None = None


def mask_neurons(module: nn.Module, removed: Tensor | Sequence[int], bias: bool = True) -> None:
    """Set neurons of a layer to zero, for good: their weights are zero in each forward pass, whatever an optimizer does.

    Args:
        module (`nn.Module`): with a weight whose first dimension is neurons: `nn.Linear`, `nn.Conv2d`, a normalisation.
            `weight` becomes `weight_orig` times `weight_mask`, as `torch.nn.utils.prune` does; an optimizer that was
            built before holds what is now `weight_orig`, and goes on. Later masks are added to earlier ones.
            `copy.deepcopy` refuses a module with masks (torch's own limit): copy before, or after `make_permanent`.
        removed (`torch.Tensor` or sequence of `int`): which neurons.
        bias (`bool`): also their bias. Without it they still put out a constant, as in the published code of Higgins 2023.

    Raises:
        ValueError: for an index that is no neuron, or if none would be left.
    """
    alive = alive_neurons(module)
    chosen = torch.as_tensor(removed, dtype=torch.int64).flatten()
    name = type(module).__name__
    if len(chosen) and (int(chosen.min()) < 0 or int(chosen.max()) >= len(alive)):
        raise ValueError(
            f"neurons {chosen.tolist()} are not all of this {name}, which has {len(alive)}: 0 to {len(alive) - 1}."
        )
    left = alive.clone()
    left[chosen] = False
    check_survivors(int((~left).sum()), len(left), name)
    if torch.equal(left, alive):
        return
    for kind in ("weight", "bias") if bias else ("weight",):
        values = getattr(module, kind, None)
        if values is not None:
            mask = left.to(values.device).reshape(-1, *[1] * (values.ndim - 1)).expand_as(values)
            prune.custom_from_mask(module, kind, mask.to(values.dtype))


def alive_neurons(module: nn.Module) -> Tensor:
    """Which neurons of a layer are not masked, `(neurons,)`, `bool`; weights that merely are zero count as alive.

    Raises:
        TypeError: for a module without a weight.
    """
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        raise TypeError(
            f"{type(module).__name__} has no weight with a row for each neuron: pass an nn.Linear or nn.Conv2d."
        )
    mask = getattr(module, "weight_mask", None)
    if not isinstance(mask, Tensor):
        return torch.ones(len(weight), dtype=torch.bool)
    return mask.flatten(1).any(1).cpu() if mask.ndim > 1 else mask.bool().cpu()


def make_permanent(model: nn.Module) -> None:
    """Turn masks into plain zeros, and `weight_orig` back into `weight`; further training then revives them."""
    for module in model.modules():
        for kind in ("weight", "bias"):
            if hasattr(module, f"{kind}_mask"):
                prune.remove(module, kind)


def widths(model: nn.Module, layers: Iterable[PlainLayer]) -> dict[str, int]:
    """How many neurons of each layer are not masked."""
    return {layer.name: int(alive_neurons(model.get_submodule(layer.name)).sum()) for layer in layers}


@torch.no_grad()
def read_outputs(model: nn.Module, paths: Iterable[str], batches: Iterable[Any]) -> tuple[dict[str, Tensor], Tensor]:
    """What modules put out over batches, in eval mode; training flags are left as they were.

    Args:
        model (`nn.Module`): called with each batch: a tensor, a tuple of arguments, or a dict of named ones.
        paths (iterable of `str`): dotted paths; each module has to run once in a forward pass.
        batches (iterable): the calibration data, without labels.

    Returns:
        `tuple`: for each path its outputs, `(samples, ...)`, on the CPU; and those of the model.

    Raises:
        CalibrationError: without a batch, or if a module runs never or more than once.
    """
    found: dict[str, list[Tensor]] = {path: [] for path in paths}
    ends: list[Tensor] = []
    flags = {module: module.training for module in model.modules()}
    hooks = [
        # A copy: an activation function that works in place would write over it.
        model.get_submodule(path).register_forward_hook(
            lambda _module, _inputs, out, kept=kept: kept.append(out.detach().to("cpu", copy=True))
        )
        for path, kept in found.items()
    ]
    try:
        model.eval()
        for batch in batches:
            end = (
                model(**batch)
                if isinstance(batch, Mapping)
                else model(*batch)
                if isinstance(batch, tuple)
                else model(batch)
            )
            ends.append(end.detach().cpu())
            for path, kept in found.items():
                if len(kept) != len(ends):
                    raise CalibrationError(
                        f"'{path}' ran {len(kept) - len(ends) + 1} times in one forward pass of the model: name a module "
                        "that runs once, e.g. an activation function of this layer alone."
                    )
    finally:
        for hook in hooks:
            hook.remove()
        for module, flag in flags.items():
            module.training = flag
    if not ends:
        raise CalibrationError("No batch was given: pass calibration data.")
    return {path: torch.cat(kept) for path, kept in found.items()}, torch.cat(ends)


def layer_inputs(
    model: nn.Module, layers: Sequence[PlainLayer], batches: Iterable[Any], grid: int | None = None, seed: int = 0
) -> list[NeuronInputs]:
    """What criteria need of each layer, of its neurons that are not masked.

    The target of a layer is the next layer's activations, that of the last one the model's output. A channel's positions
    are kept, `(samples, channels, positions)`: CKA takes them as samples, MIPP as one multivariate variable.

    Args:
        model (`nn.Module`): see `read_outputs`.
        layers (sequence of `PlainLayer`): in forward order, each reading the one before it.
        batches (iterable): see `read_outputs`.
        grid (`int`, *optional*): average a channel's positions to at most `grid` x `grid` of them, which bounds the columns
            that MIPP inverts.
        seed (`int`): of criteria that draw.
    """
    outputs, end = read_outputs(model, [layer.output for layer in layers], batches)
    found: list[NeuronInputs] = []
    target = end.flatten(1)
    for layer in reversed(layers):
        module = model.get_submodule(layer.name)
        alive, values = alive_neurons(module), outputs[layer.output]
        if values.shape[1] != len(alive):
            raise ValueError(
                f"'{layer.output}' puts out {tuple(values.shape[1:])}, but '{layer.name}' has {len(alive)} neurons: name "
                "the activation function that follows it."
            )
        values = values[:, alive]
        if values.ndim == 4:
            if grid is not None and max(values.shape[2:]) > grid:
                height, width = (min(grid, size) for size in values.shape[2:])
                values = nn.functional.adaptive_avg_pool2d(values, (height, width))
            values = values.flatten(2)
        weight: Any = module.weight
        found.append(NeuronInputs(layer.name, values, target, weights=weight.detach().cpu()[alive], seed=seed))
        target = values.flatten(1)
    return found[::-1]


def mask_by_criterion(
    model: nn.Module,
    layers: Sequence[PlainLayer],
    criterion: NeuronCriterion,
    batches: Iterable[Any],
    amount: float | int | Mapping[str, float | int] | None = None,
    grid: int | None = None,
    bias: bool = True,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Mask the neurons that a criterion takes, in every layer; works on a trained model and on one before training.

    Activations are read once, before anything is masked. A criterion with a target is swept from the outputs to the
    inputs, with what is left of the next layer as target (`sweep_layers`).

    Args:
        model (`nn.Module`): see `layer_inputs`.
        layers (sequence of `PlainLayer`): likewise.
        criterion (`NeuronCriterion`): which measure.
        batches (iterable): see `read_outputs`.
        amount (`float`, `int`, or one of these a layer name): how many of the neurons that are left go, as a fraction or a
            number. Default: as the criterion decides, if it does (`mipp`, `mipp_neural`).
        grid (`int`, *optional*): see `layer_inputs`.
        bias (`bool`): see `mask_neurons`.
        seed (`int`): of criteria that draw.

    Returns:
        `dict`: for each layer name the neurons masked now, ascending, in the layer's own numbering.

    Raises:
        ValueError: if a layer would lose all its neurons; nothing is masked then.
    """
    inputs = layer_inputs(model, layers, batches, grid, seed)
    for one in inputs:
        asked = amount_of(criterion, one.layer, amount)
        if asked is not None:
            check_survivors(number_of(asked, one.num_neurons, one.layer), one.num_neurons, one.layer)
    orders = sweep_layers(criterion, inputs, amount)
    removed = {}
    for layer in layers:
        module = model.get_submodule(layer.name)
        removed[layer.name] = alive_neurons(module).nonzero().flatten()[orders[layer.name].select()]
    for layer in layers:
        mask_neurons(model.get_submodule(layer.name), removed[layer.name], bias)
        if layer.norm is not None:
            mask_neurons(model.get_submodule(layer.norm), removed[layer.name])
    return removed
