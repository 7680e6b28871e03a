"""Norms of the inputs of one block's layers, over the calibration data and the real tokens in it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from torch import Tensor, nn

from hf_mpruner.errors import CalibrationError
from hf_mpruner.features.rows import padding_mask

from .layers import LinearLayer
from .unpadded import take_apart


class _UnmatchedError(CalibrationError):
    """Which rows of a layer's input are padding cannot be told."""


class _Enough(BaseException):  # no Exception, which a model's own code may catch
    """Ends a forward pass behind the block that is measured."""


class Norms:
    """Runs a model over calibration data, and sums the squares of what goes into the layers of one block.

    Only the sums of one block are held at a time: no activations, and one number for each input of each layer.

    Args:
        model (`nn.Module`): in eval mode.
        stacks (`Sequence[str]`): paths of the lists of blocks.
        batches (`Iterable[Mapping]`): can be iterated again and again.

    Attributes:
        order: `(dotted path, block)` of all blocks, in the order in which the model runs them; each block once.
        num_examples: of one pass over the data.
    """

    def __init__(self, model: nn.Module, stacks: Sequence[str], batches: Iterable[Mapping[str, Any]]) -> None:
        """Run the first batch, to see which blocks run, in which order and how often."""
        self._model, self._batches = model, batches
        self._device = next(parameter.device for parameter in model.parameters())
        self._options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
        self._runs = 0
        self._alone = False
        self.num_examples = 0
        places: list[tuple[str, nn.Module, str]] = [
            (f"{stack}.{number}", model.get_submodule(f"{stack}.{number}"), stack)
            for stack in stacks
            for number in model.get_submodule(stack)._modules
        ]
        self._num_blocks = len(places)
        self._stack_of = {path: stack for path, _, stack in places}
        seen: list[int] = []
        with ExitStack() as undo:
            for block in {id(block): block for _, block, _ in places}.values():

                def enter(module: nn.Module, args: object) -> None:
                    seen.append(id(module))

                undo.callback(block.register_forward_pre_hook(enter).remove)
            self._forward(next(self._each_batch()))
        self._runs += len(seen)
        for path, block, _ in places:
            if id(block) not in seen:
                raise CalibrationError(
                    f"{path} did not run in the forward pass of the first batch. Give the batch every input that the stack "
                    "needs (an encoder-decoder model: labels or decoder_input_ids). Nothing was changed."
                )
        first = {id(block): (path, block) for path, block, _ in reversed(places)}
        self.order = [first[identity] for identity in dict.fromkeys(seen)]
        # Blocks that run several times are seen whole only in whole passes.
        self._stops = len(seen) == len(set(seen))

    @property
    def passes(self) -> float:
        """Forward passes over all data so far, counted in runs of blocks."""
        return self._runs / (self._num_blocks * max(self._num_batches, 1))

    def measure(self, path: str, block: nn.Module, layers: Sequence[LinearLayer]) -> dict[str, Tensor]:
        """Norm of each input of some layers, over all real tokens of the data.

        Args:
            path (`str`): of the block.
            block (`nn.Module`): the pass ends behind it.
            layers (`Sequence[LinearLayer]`): in the block.

        Returns:
            `dict[str, torch.Tensor]`: by name of the layer, (inputs,) in float64; without the layers that saw no token.

        Raises:
            CalibrationError: if a norm is not finite, or padding cannot be told from tokens.
        """
        try:
            sums = self._sum(path, block, layers)
        except _UnmatchedError:
            if self._alone:
                raise
            # routed to experts, positions first, split into chunks: from here on each example alone, without padding
            self._alone = True
            sums = self._sum(path, block, layers)
        norms = {name: total.sqrt() for name, total in sums.items()}
        for name, norm in norms.items():
            if not norm.isfinite().all():
                raise CalibrationError(f"{name}: what goes into it on the calibration data is NaN or infinite.")
        return norms

    def _sum(self, path: str, block: nn.Module, layers: Sequence[LinearLayer]) -> dict[str, Tensor]:
        """Sums of squares by layer."""
        sums: dict[str, Tensor] = {}
        masks = _Masks(self._model, self._stack_of[path])
        with ExitStack() as undo:
            for layer in layers:

                def add(module: nn.Module, args: Any, kwargs: Any, layer: LinearLayer = layer) -> None:
                    hidden = args[0] if args else next(iter(kwargs.values()))
                    if hidden.numel():
                        image = isinstance(module, nn.Conv2d)
                        found = layer.squares(hidden, None if image else masks.rows(hidden, layer.name))
                        sums[layer.name] = found if layer.name not in sums else sums[layer.name] + found

                undo.callback(layer.module.register_forward_pre_hook(add, with_kwargs=True).remove)
            undo.callback(block.register_forward_pre_hook(masks.enter, with_kwargs=True).remove)
            undo.callback(block.register_forward_hook(self._leave).remove)
            for other in {id(other): other for _, other in self.order if other is not block}.values():
                undo.callback(other.register_forward_hook(self._count).remove)
            for batch in self._each_batch():
                masks.batch = batch
                self._forward(batch)
        return sums

    def _count(self, *_: Any) -> None:
        self._runs += 1

    def _leave(self, *_: Any) -> None:
        self._count()
        if self._stops:
            raise _Enough

    def _forward(self, batch: Mapping[str, Tensor]) -> None:
        with suppress(_Enough):
            self._model(**{name: value.to(self._device) for name, value in batch.items()}, **self._options)

    def _each_batch(self) -> Iterator[dict[str, Tensor]]:
        self._num_batches = examples = 0
        name = getattr(self._model, "main_input_name", "")
        for batch in self._batches:
            tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
            if not tensors:
                raise CalibrationError(f"A calibration batch holds no tensor, only {list(batch)}.")
            examples += len(tensors.get(name, next(iter(tensors.values()))))
            for part in take_apart(self._model, tensors) if self._alone else (tensors,):
                self._num_batches += 1
                yield part
        if not examples:
            raise CalibrationError("The calibration data gave no batch. Is its data set empty, or was it read before?")
        self.num_examples = examples


class _Masks:
    """Which rows of a layer's input are tokens, and which are padding."""

    def __init__(self, model: nn.Module, stack: str) -> None:
        self._model, self._stack = model, stack
        self.batch: Mapping[str, Tensor] = {}
        self._own: Tensor | None = None
        self._other: Tensor | None = None

    def enter(self, block: nn.Module, args: Any, kwargs: Any) -> None:
        """Remember what a block is given: its own positions, and what an encoder hands to it."""
        try:
            given = inspect.signature(block.forward).bind_partial(*args, **kwargs).arguments
        except TypeError:  # a wrapper whose signature says nothing
            given = dict(kwargs)
        given = {**given, **given.get("kwargs", {})}
        other = given.get("encoder_hidden_states")
        self._other = other if isinstance(other, Tensor) else None
        self._own = next((one for one in [*args, *kwargs.values()] if isinstance(one, Tensor)), None)

    def rows(self, hidden: Tensor, name: str) -> Tensor | None:
        """Bool (rows,) for the input of a layer with all but its last dimension flattened; `None` if all are real."""
        source, mask = self._own, padding_mask(self._model, self._stack, self.batch)
        if self._other is not None and _same_memory(hidden, self._other):
            source = self._other
            seq2seq = getattr(getattr(self._model, "config", None), "is_encoder_decoder", False)
            mask = self.batch.get("attention_mask" if seq2seq else "encoder_attention_mask")
        if mask is None or bool(mask.all()):
            return None
        if mask.dim() == 2 and source is not None and source.dim() > 2:
            size, positions = source.shape[:2]
            fits = (
                len(mask) == size and hidden.shape[:-1].numel() == size * positions and not mask.shape[1] % positions
            )
            shape = tuple(length for length in hidden.shape[:-1] if length > 1)
            if fits and shape in {tuple(length for length in (size, positions) if length > 1), (size * positions,)}:
                return mask.bool().reshape(size, positions, -1).any(2).flatten().to(hidden.device)
        raise _UnmatchedError(
            f"{name} is called with {tuple(hidden.shape)}, and which of these rows are padding cannot be told from a mask "
            f"of shape {tuple(mask.shape)}. Pass calibration data without padding: examples of one length, or batch_size=1."
        )


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
