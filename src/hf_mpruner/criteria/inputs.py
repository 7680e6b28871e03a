"""`CriterionInputs`: what a criterion may use of a model, its data and its task."""

from __future__ import annotations

import copy
import inspect
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_mpruner.architectures import BlockStack
from hf_mpruner.clusters import Linkage
from hf_mpruner.criteria.scores import ScoringCost
from hf_mpruner.errors import CalibrationError
from hf_mpruner.features.measure import evaluating
from hf_mpruner.heads import find_head
from hf_mpruner.placement import input_device
from hf_mpruner.runtime import Runtime, SingleProcess, keep_rng_state
from hf_mpruner.similarity import SimilarityProtocol

Batch = Mapping[str, Any]
ComputeLoss = Callable[[nn.Module, dict[str, Any]], Tensor]


@dataclass
class CriterionInputs:
    """What a criterion may use. The model is in eval mode while it scores, and is handed back as it was.

    Args:
        model (`nn.Module`): not wrapped.
        stacks (`Sequence[BlockStack]`): to score, as they are now; protected layers are among the pinned ones.
        batches (`Iterable[Mapping]`, *optional*): calibration data as the model's forward takes it, with labels if there
            are any; can be iterated again and again, always the same.
        proposing (`Iterable[Mapping]`, *optional*): the same of other examples, for what proposes where `batches` choose among
            proposals.
        compute_loss (callable, *optional*): gets the model and a batch on its device, returns the mean loss as a scalar.
            By default the model's own.
        evaluate (callable, *optional*): returns the user's metric of the model as it stands, higher is better.
        num_removed (`Mapping[str, int]`): for each stack the most layers that will be asked for; of no stack, as many as
            can go. What is measured anew after each removal stops there.
        protocol (`SimilarityProtocol`): how similarity is measured.
        linkage (`"anchor"` or `"chain"`): how layers are clustered.
        seed (`int`): for what is drawn.
        show_progress (`bool`, *optional*): progress bars; by default only on a terminal.
        runtime (`Runtime`): the processes. All of them score; only what says so shares the work.
    """

    model: nn.Module
    stacks: Sequence[BlockStack]
    batches: Iterable[Batch] | None = None
    proposing: Iterable[Batch] | None = None
    compute_loss: ComputeLoss | None = None
    evaluate: Callable[[], float] | None = None
    num_removed: Mapping[str, int] = field(default_factory=dict)
    protocol: SimilarityProtocol = field(default_factory=SimilarityProtocol)
    linkage: Linkage = "anchor"
    seed: int = 0
    show_progress: bool | None = None
    runtime: Runtime = field(default_factory=SingleProcess)
    _counted: list[int] = field(default_factory=lambda: [0, 0, 0], init=False, repr=False)

    def __post_init__(self) -> None:
        """Count an evaluation as one pass, in batches of whatever size it runs."""
        evaluate = self.evaluate
        if evaluate is None:
            return

        def counted() -> float:
            before = self._counted[0]
            value = evaluate()
            self._counted[0] = before + (self._counted[2] or self._num_batches())
            return value

        self.evaluate = counted

    def to_propose(self) -> CriterionInputs:
        """The same on the batches that propose, where there are any; what runs on these is counted with the rest."""
        if self.proposing is None:
            return self
        found = copy.copy(self)
        found.batches, found.proposing = self.proposing, None
        return found

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs."""
        return input_device(self.model)

    def blocks(self, stack: BlockStack) -> list[nn.Module]:
        """The blocks of a stack, in order."""
        return list(self.model.get_submodule(stack.path))  # type: ignore[call-overload]

    def each_batch(self, what: str = "Scoring layers") -> Iterator[dict[str, Any]]:
        """The calibration batches with their tensors on the model's device, and nothing else; one full pass.

        Args:
            what (`str`): what the progress bar says.

        Raises:
            CalibrationError: if there is no calibration data.
        """
        if self.batches is None:
            raise CalibrationError("This criterion runs the model on calibration data, but none was given.")
        show = sys.stderr.isatty() if self.show_progress is None else self.show_progress
        device, seen = self.device, 0
        bar = tqdm(self.batches, desc=what, disable=not (show and self.runtime.is_main_process), leave=False)
        for batch in bar:
            seen += 1
            yield {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
        if not seen:
            raise CalibrationError("The calibration data gave no batch. Is its dataset empty, or was it read before?")
        self._counted[2] = seen

    def forward(self, batch: Mapping[str, Any], **more: Any) -> Any:
        """Run the model, without a key-value cache: what a batch leaves in one would be of a model with other layers."""
        options = {"use_cache": False} if _takes_cache(self.model) else {}
        return self.model(**{**batch, **options, **more})

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Mean loss of a batch as a scalar; with its graph where gradients are on.

        A causal language model is measured on the texts themselves where a batch has no labels: its labels are then the
        `input_ids`, with -100 for padding.

        Raises:
            CalibrationError: if the model gives none, or one that is not finite.
        """
        loss = self.raw_loss(batch)
        if not loss.isfinite():
            raise CalibrationError(
                f"The loss on the calibration data is {loss.item()}: nothing can be compared with it."
            )
        return loss

    def raw_loss(self, batch: Mapping[str, Any]) -> Tensor:
        """As `loss`, but it may be infinite or NaN."""
        batch = self._with_labels(batch)
        missing = CalibrationError(
            f"{type(self.model).__name__} gives no loss on {', '.join(batch)}. Pass calibration data with labels, or a "
            "criterion that needs none: cka, block_influence, angular, relative_magnitude, magnitude, tail."
        )
        if self.compute_loss is not None:
            before = self._counted[0]
            loss: Any = self.compute_loss(self.model, dict(batch))
            # what stands around the model may run it in ways that no hook sees, or once for each column of a batch
            self._counted[0] = before + 1
        else:
            try:
                output = self.forward(batch)
            except ValueError as error:  # some decoders are fed with labels, and do not run without
                if "labels" in batch:
                    raise
                raise missing from error
            loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if not isinstance(loss, Tensor):
            raise missing
        loss = loss.mean()
        if loss.requires_grad:
            loss.register_hook(self._count_backward)  # hooks of modules see no tensors in the outputs of transformers
        return loss

    def _count_backward(self, gradient: Tensor) -> None:
        self._counted[1] += 1

    def size(self, batch: Mapping[str, Any]) -> int:
        """Number of examples in a batch."""
        return len(batch.get(getattr(self.model, "main_input_name", ""), next(iter(batch.values()))))

    def _with_labels(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        if "labels" in batch or "input_ids" not in batch or not _is_causal(self.model):
            return batch
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        labels = ids if mask is None or mask.shape != ids.shape else ids.masked_fill(mask == 0, -100)
        return {**batch, "labels": labels}

    def mean_loss(self, what: str = "Measuring the loss") -> float:
        """Loss over all calibration data without gradients, batches weighted by their examples."""
        total, examples = 0.0, 0
        with torch.no_grad():
            for batch in self.each_batch(what):
                size = self.size(batch)
                total += float(self.loss(batch)) * size
                examples += size
        return total / examples

    @contextmanager
    def counting(self) -> Iterator[Callable[[], ScoringCost]]:
        """Eval mode, kept random state, and a count of passes and seconds until the context ends."""
        self._counted[:] = [0, 0, 0]
        started = time.perf_counter()

        def count(*_: Any) -> None:
            self._counted[0] += 1

        handle = self.model.register_forward_pre_hook(count)

        def cost() -> ScoringCost:
            forward, backward, batches = self._counted
            each = batches or self._num_batches()
            return ScoringCost(forward / each, backward / each, time.perf_counter() - started)

        try:
            with keep_rng_state(), evaluating(self.model):
                yield cost
        finally:
            handle.remove()

    def _num_batches(self) -> int:
        """Of data that only other code has read, e.g. `measure_similarity`; 1 if it cannot be known."""
        try:
            return max(1, len(self.batches))  # type: ignore[arg-type]
        except TypeError:
            return 1


def _takes_cache(model: nn.Module) -> bool:
    return "use_cache" in inspect.signature(model.forward).parameters


def _is_causal(model: Any) -> bool:
    """Whether a model predicts each next token, by its class."""
    head = find_head(model.config, type(model).__name__) if hasattr(model, "config") else None
    return head is not None and head.task == "text-generation"
