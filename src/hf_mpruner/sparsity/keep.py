"""Zeros that stay zero while a Trainer goes on training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import TrainerCallback

from hf_mpruner.errors import UnsupportedBackendError

if TYPE_CHECKING:
    from .report import SparsityReport


class KeepZeros(TrainerCallback):
    """Sets the weights that `sparsify_` set to zero to zero again after each step of the optimizer.

    Training is as it would be with masks, but for what the optimizer remembers of the masked weights' gradients, which
    moves nothing. One bit (a byte in memory) a weight is held.

    Args:
        model (`nn.Module`): the model that was made sparse, with its zeros.
        report (`SparsityReport`): what `sparsify_` returned for it; names the layers.

    Raises:
        ValueError: if the report is of another model, or of other weights.

    Example:
        >>> from hf_mpruner.sparsity import LayerZeros, SparsityReport
        >>> model = nn.Sequential(nn.Linear(4, 4))
        >>> _ = model[0].weight.data[:, :2].zero_()
        >>> report = SparsityReport("magnitude", "unstructured", 0.5, {"0": LayerZeros(16, 8)})
        >>> callback = KeepZeros(model, report)  # trainer.add_callback(callback)
    """

    def __init__(self, model: nn.Module, report: SparsityReport) -> None:
        """Remember where the zeros are."""
        self._masks: list[tuple[nn.Parameter, torch.Tensor]] = []
        for name in report.layers:
            try:
                weight = model.get_submodule(name).get_parameter("weight")
            except AttributeError as error:
                raise ValueError(
                    f"The model has no layer '{name}', which the report names. Make KeepZeros before layers are removed, "
                    "or run sparsify_ after."
                ) from error
            mask = weight.detach() == 0
            if int(mask.sum()) != report.layers[name].zeros:
                raise ValueError(
                    f"'{name}' has {int(mask.sum())} zeros, but {report.layers[name].zeros} by the report: these are other "
                    "weights, or they were trained since. Make KeepZeros right after sparsify_, or of the sparse model that was "
                    "saved (load it, then resume)."
                )
            self._masks.append((weight, mask))

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Check that the Trainer trains these very weights, whole.

        Raises:
            UnsupportedBackendError: if it trains others, e.g. split by FSDP or DeepSpeed, or of a model loaded anew.
        """
        if model is None:
            return
        trained = {id(parameter) for parameter in model.parameters()}
        if not any(id(weight) in trained for weight, _ in self._masks):
            raise UnsupportedBackendError(
                "KeepZeros holds weights of a model that this Trainer does not train as they are (another model, or one "
                "split by FSDP or DeepSpeed). Make it of trainer.model, on one device or with DDP."
            )

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Zero again, before anything is evaluated or saved."""
        with torch.no_grad():
            for number, (weight, mask) in enumerate(self._masks):
                if mask.device != weight.device:
                    mask = mask.to(weight.device)
                    self._masks[number] = (weight, mask)
                weight.masked_fill_(mask, 0)
