"""The linear layers inside a model's blocks whose weights may be set to zero, and why the others are left out."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

from hf_mpruner.architectures.adapters import adapter_configs
from hf_mpruner.criteria.base import any_quantised

_MATRIX_DIMS = 2


@dataclass(frozen=True)
class LinearLayer:
    """A layer that multiplies by a matrix, whatever the layout of its weight.

    Args:
        name (`str`): dotted path in the model.
        module (`nn.Module`): `nn.Linear`, GPT-2's `Conv1D` (which holds the transpose), or `nn.Conv2d`.
    """

    name: str
    module: nn.Module

    @property
    def weight(self) -> nn.Parameter:
        """The parameter."""
        return self.module.weight  # type: ignore[return-value]

    def matrix(self) -> Tensor:
        """The weight as (outputs, inputs). Inputs of a convolution: kernel positions, and in each the channels."""
        weight = self.weight.detach()
        if isinstance(self.module, Conv1D):
            return weight.t()
        return weight.permute(0, 2, 3, 1).flatten(1) if isinstance(self.module, nn.Conv2d) else weight

    @property
    def num_inputs(self) -> int:
        """Length of a row of `matrix()`."""
        outputs = 1 if isinstance(self.module, Conv1D) else 0
        return self.weight.numel() // self.weight.shape[outputs]

    def set_to_zero_(self, going: Tensor) -> None:
        """Set weights to zero.

        Args:
            going (`torch.Tensor`): bool, of the shape of `matrix()`.
        """
        if isinstance(self.module, Conv1D):
            going = going.t()
        elif isinstance(self.module, nn.Conv2d):
            out, channels, height, width = self.weight.shape
            going = going.view(out, height, width, channels).permute(0, 3, 1, 2)
        with torch.no_grad():
            self.weight.masked_fill_(going, 0)

    @cached_property
    def _dtype(self) -> torch.dtype:
        # MPS has no float64
        return torch.float32 if self.weight.device.type == "mps" else torch.float64

    def squares(self, hidden: Tensor, real: Tensor | None = None) -> Tensor:
        """Sum of squares of each input over the positions, in the order of `matrix()`'s columns.

        Args:
            hidden (`torch.Tensor`): what the layer is called with: (..., inputs), or an image (batch, channels, height,
                width) for a convolution, of which every place of the kernel is a position.
            real (`torch.Tensor`, *optional*): bool (positions,), true where a position counts.

        Returns:
            `torch.Tensor`: (inputs,), in float64 where the device has it.
        """
        if isinstance(self.module, nn.Conv2d):
            conv = self.module
            total = torch.zeros(self.num_inputs, dtype=self._dtype, device=hidden.device)
            for image in hidden.detach().float().square().split(1):  # unfolded, a batch is nine times as large
                columns = unfold(image, conv.kernel_size, conv.dilation, conv.padding, conv.stride)  # type: ignore[arg-type]
                places = columns.sum((0, 2), dtype=self._dtype).view(conv.in_channels, -1)
                total += places.t().flatten()
            return total
        rows = hidden.detach().flatten(0, -2)
        return (rows if real is None else rows[real]).float().square().sum(0, dtype=self._dtype)


@dataclass(frozen=True)
class FoundLayers:
    """What may be set to zero, and what is left as it is.

    Args:
        by_block (`dict`): dotted path of a block -> its layers; a block that stands at several places once.
        left_out (`dict`): layer or parameter inside the blocks -> why it is left dense.
    """

    by_block: dict[str, list[LinearLayer]]
    left_out: dict[str, str]


def find_layers(model: nn.Module, stacks: Sequence[str], skip: Sequence[str] = ()) -> FoundLayers:
    """The linear layers in the blocks of a model's stacks.

    Args:
        model (`nn.Module`): not wrapped.
        stacks (`Sequence[str]`): paths of lists whose blocks are looked into; heads and embeddings lie outside.
        skip (`Sequence[str]`): layers to leave dense, by the end of their names, with `*`: `"attention.output.dense"`.

    Returns:
        `FoundLayers`: nothing was changed.

    Raises:
        ValueError: if `skip` fits nothing, or no layer is found.
    """
    uses = Counter(
        id(parameter)
        for module in model.modules()
        for parameter in module._parameters.values()
        if parameter is not None
    )
    by_block: dict[str, list[LinearLayer]] = {}
    left_out: dict[str, str] = {}
    seen: set[int] = set()
    skipped: set[str] = set()
    for stack in stacks:
        for number in model.get_submodule(stack)._modules:
            path = f"{stack}.{number}"
            for inside, module in model.get_submodule(path).named_modules():
                if id(module) in seen:
                    continue
                seen.add(id(module))
                name = f"{path}.{inside}" if inside else path
                pattern = next((one for one in skip if fnmatch.fnmatchcase(name, f"*{one}")), None)
                reason = _reason(module, uses) if pattern is None else f"skip={pattern!r}"
                if isinstance(module, nn.Linear | Conv1D | nn.Conv2d):
                    skipped |= {pattern} if pattern else set()
                    if reason is None:
                        by_block.setdefault(path, []).append(LinearLayer(name, module))
                        continue
                if reason is not None:
                    left_out[name] = reason
    unknown = [one for one in skip if one not in skipped]
    if unknown:
        raise ValueError(f"skip={unknown} fits no linear layer of the blocks. Their names: {_examples(by_block)}.")
    if not by_block:
        raise ValueError(
            f"{type(model).__name__} has no linear layer in its blocks whose weights can be set to zero"
            + (f" ({'; '.join(f'{name}: {why}' for name, why in list(left_out.items())[:3])})" if left_out else "")
            + "."
        )
    return FoundLayers(by_block, left_out)


def check_weights(model: nn.Module) -> None:
    """Refuse a model whose weights are not there, or not what they seem.

    Raises:
        ValueError: for quantised weights, adapters, or weights that are elsewhere.
    """
    odd = sorted({str(weight.dtype) for weight in model.parameters() if not weight.is_floating_point()})
    if odd or any_quantised(model):
        types = f" (weights of type {', '.join(odd)})" if odd else ""
        raise ValueError(
            f"The model is quantised{types}: setting entries of packed weights to zero changes others. Load it without "
            "quantisation, make it sparse, and quantise the result."
        )
    if adapter_configs(model):
        raise ValueError(
            "The model carries adapters, whose product would be added to the zeros: merge them first "
            "(model = model.merge_and_unload())."
        )
    elsewhere = next((name for name, weight in model.named_parameters() if weight.is_meta or not weight.numel()), None)
    if elsewhere is not None:
        raise ValueError(
            f"'{elsewhere}' has no values in this process (offloaded, or split among processes): load the whole model in one."
        )


def check_groups(found: FoundLayers, size: int | None) -> None:
    """Refuse rows that do not divide into groups, before anything is changed.

    Raises:
        ValueError: names the layers.
    """
    odd = [
        layer for layers in found.by_block.values() for layer in layers if size is not None and layer.num_inputs % size
    ]
    if odd:
        shown = ", ".join(f"{layer.name} ({layer.num_inputs} inputs)" for layer in odd[:3])
        raise ValueError(
            f"The inputs of {len(odd)} layers do not divide into groups of {size}: {shown}. Leave them dense with "
            f"skip={[odd[0].name.rpartition('.')[2]]!r}, or pass pattern='unstructured'."
        )


def _reason(module: nn.Module, uses: Counter[int]) -> str | None:
    """Why the weight of a module is left as it is; `None` for a layer to take, or a module without a matrix."""
    if isinstance(module, nn.Linear | Conv1D | nn.Conv2d):
        weight = module._parameters.get("weight")
        if weight is None:
            return "its weight is computed from others"
        if uses[id(weight)] > 1:
            return "its weight is shared with another module"
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            return "a grouped convolution: each output reads only some inputs"
        if isinstance(module, nn.Conv2d) and isinstance(module.padding, str):
            return f"padding={module.padding!r}"
        return None
    if isinstance(module, _ConvNd):
        return "a convolution over something else than an image"
    stacked = [name for name, one in module._parameters.items() if one is not None and one.dim() > _MATRIX_DIMS]
    if stacked:
        return f"{', '.join(stacked)}: several matrices in one tensor, e.g. of experts, each of which sees tokens of its own"
    return None


def _examples(by_block: dict[str, list[LinearLayer]]) -> str:
    return ", ".join(layer.name for layers in list(by_block.values())[:1] for layer in layers)
