"""`StackRecorder`: the hooks on one stack.

A hook reduces the output of its block to the rows that count and to their Gram matrix at once; when the forward pass ends,
they are centred, one product compares all layers, and the Gram matrices are dropped. Memory does not grow with the data.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from hf_mpruner.architectures.stack import BlockStack
from hf_mpruner.errors import CalibrationError, PlanMismatchError
from hf_mpruner.features.rows import RowLayout, build_rows, fit_mask, hidden_states, lay_out
from hf_mpruner.runtime import Runtime
from hf_mpruner.similarity import (
    SimilarityAccumulator,
    SimilarityMatrix,
    SimilarityProtocol,
    centre_grams,
    multiply_rows,
)


class StackRecorder:
    """Feeds the outputs of one stack's blocks, batch after batch, to an accumulator."""

    def __init__(
        self, model: nn.Module, stack: BlockStack, protocol: SimilarityProtocol, null_seed: int | None = None
    ) -> None:
        self.path, self.depth = stack.path, stack.depth
        self.protocol = protocol
        self.num_skipped = self.num_seen = self.most_rows = 0
        self._blocks = _blocks_of(model, stack)
        names = [f"{stack.path}.{i}" for i in range(stack.depth)]
        self._accumulator = SimilarityAccumulator(stack.depth, protocol, names, null_seed)
        self._padding: Tensor | None = None
        self._layout: RowLayout | None = None
        self._row_mask: Tensor | None = None
        self._outputs: dict[int, Any] = {}  # rows where all are pooled, else a Gram

    def attach(self, undo: ExitStack) -> None:
        """Hook every block until `undo` closes."""
        for index, block in enumerate(self._blocks):

            def hook(module: nn.Module, args: object, output: object, index: int = index) -> None:
                self.record(index, output)

            undo.callback(block.register_forward_hook(hook).remove)

    def begin(self, padding: Tensor | None) -> None:
        """Start a batch."""
        self._padding, self._layout, self._row_mask = padding, None, None
        self._outputs.clear()

    def end(self) -> None:
        """Compare the layers of this batch and drop their Gram matrices."""
        missing = sorted(set(range(len(self._blocks))) - set(self._outputs))
        if missing or self._layout is None:
            raise CalibrationError(
                f"{self.path}.{missing[0]} did not run in the forward pass of this batch. Give the batch every input that "
                "the stack needs (an encoder-decoder model: labels or decoder_input_ids), or leave the stack out."
            )
        layout = self._layout
        self.num_seen += layout.num_examples
        self.num_skipped += layout.num_examples - int(layout.weights.sum())
        self.most_rows = max(self.most_rows, layout.most_rows)
        outputs = [self._outputs[index] for index in range(len(self._blocks))]
        self._outputs.clear()
        if not len(layout.weights):
            return
        if self.protocol.is_pooled:
            self._accumulator.update(outputs, weights=layout.weights)
        else:
            grams = centre_grams(outputs, self._row_mask, self.protocol.estimator)
            self._accumulator.update_grams(grams, layout.num_rows, layout.weights, self._row_mask)

    @property
    def num_groups(self) -> int:
        """Batches (or examples, where each is compared by itself) that were compared."""
        return self._accumulator.num_groups

    def so_far(self, runtime: Runtime | None = None) -> SimilarityAccumulator:
        """A copy of the sums, with those of the other processes if there is a runtime; what is here stays as it is."""
        state = self._accumulator.state_dict()
        if runtime is not None:
            state = dict(zip(state, runtime.all_sum(list(state.values())), strict=True))
        names, null_seed = self._accumulator.layer_names, self._accumulator.null_seed
        copy = SimilarityAccumulator(self.depth, self.protocol, names, null_seed)
        copy.load_state_dict(state)
        return copy

    def add(self, other: StackRecorder) -> None:
        """Add what another recorder of the same stack has seen of whole batches."""
        self._accumulator.merge(other._accumulator)
        self.num_seen += other.num_seen
        self.num_skipped += other.num_skipped
        self.most_rows = max(self.most_rows, other.most_rows)

    def merge(self, runtime: Runtime) -> None:
        """Add what the other processes have seen. Exact: sums are added."""
        counts = torch.tensor([self.num_seen, self.num_skipped], dtype=torch.float64)
        self._accumulator = self.so_far(runtime)
        (counts,) = runtime.all_sum([counts])
        self.num_seen, self.num_skipped = (int(count) for count in counts)
        self.most_rows = max(runtime.gather(self.most_rows))

    def compute(self) -> SimilarityMatrix:
        """The matrix of this stack; refuses by name when no example could be used."""
        if self.num_seen and self.num_seen == self.num_skipped:
            needed, unit = self.protocol.min_rows, "an example" if self.protocol.is_per_example else "a batch"
            advice = "longer examples" if self.protocol.is_per_example else "a larger batch"
            raise CalibrationError(
                f"{self.path}: none of {self.num_seen} examples could be measured: {unit} had at most {self.most_rows} rows "
                f"({self._unit}), and estimator={self.protocol.estimator!r} needs at least {needed}. Use {advice}"
                + (", or estimator='biased'." if needed > self.most_rows >= 2 else ".")
            )
        return replace(self._accumulator.compute(), path=self.path)

    def skipped_message(self) -> str:
        """How many examples did not count, and why."""
        where = "examples" if self.protocol.is_per_example else "batches"
        return (
            f"{self.path}: skipped {self.num_skipped} of {self.num_seen} examples, in {where} of fewer than "
            f"{self.protocol.min_rows} rows ({self._unit}) or without any real token"
        )

    @property
    def _unit(self) -> str:
        return "tokens" if self.protocol.rows == "tokens" else "examples"

    def record(self, index: int, output: object) -> None:
        """Reduce the output of block `index` to what the comparison needs."""
        name = f"{self.path}.{index}"
        hidden = hidden_states(output, name)
        if index in self._outputs:
            raise CalibrationError(
                f"{name} ran twice in one forward pass: layers that share a block cannot be compared."
            )
        spatial = hidden.dim() == 4  # (batch, channels, height, width): positions are pixels
        shape = (hidden.shape[0], hidden.shape[2] * hidden.shape[3] if spatial else hidden.shape[1])
        if self._layout is None:
            mask = None if spatial or self._padding is None else fit_mask(self._padding, shape, name)
            self._layout = lay_out(self.protocol, shape, mask, hidden.device)
        if shape != self._layout.shape:
            raise CalibrationError(
                f"{name} puts out {shape[0]} x {shape[1]} positions, the first block of the stack {self._layout.shape[0]} x "
                f"{self._layout.shape[1]}; blocks of one stack must agree."
            )
        if not len(self._layout.weights):
            self._outputs[index] = hidden.new_empty(0)
            return
        if spatial:
            hidden = hidden.flatten(2).transpose(1, 2)
        rows, mask = build_rows(hidden, self._layout, self.protocol)
        if self.protocol.is_pooled:
            self._outputs[index] = rows
        else:
            self._outputs[index], self._row_mask = multiply_rows(rows, mask), mask


def _blocks_of(model: nn.Module, stack: BlockStack) -> list[nn.Module]:
    try:
        # Not `children()`, which names a shared block once.
        blocks = list(cast("nn.ModuleList", model.get_submodule(stack.path)))
    except AttributeError as error:
        raise PlanMismatchError(
            f"{type(model).__name__} has no module {stack.path!r}. Find its stacks with find_block_stacks(model)."
        ) from error
    if len(blocks) != stack.depth:
        raise PlanMismatchError(
            f"the stack {stack.path!r} is described with {stack.depth} blocks, but this model has {len(blocks)} there. "
            "Describe it anew with find_block_stacks(model)."
        )
    return blocks
