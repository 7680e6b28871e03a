"""What an analysis costs, beside plain forward passes of the same batches in the same process."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hf_mpruner.architectures import BlockStack
from hf_mpruner.features import measure_similarity
from hf_mpruner.features.measure import evaluating
from hf_mpruner.latency import wait_for
from hf_mpruner.placement import input_device
from hf_mpruner.runtime import keep_rng_state
from hf_mpruner.similarity import SimilarityProtocol

from .peak import PeakMemory

# How many batches are run beside the analysis, and how often each way.
BATCHES, REPEATS = 4, 3


class Stages:
    """Wall-clock time of one stage after the other.

    Example:
        >>> stages = Stages()
        >>> stages.mark("loading")
        >>> list(stages.seconds)
        ['loading']
    """

    def __init__(self) -> None:
        """The first stage begins."""
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def mark(self, name: str) -> None:
        """The stage of this name ends here, and the next one begins; a second one of a name is added to the first."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


@dataclass
class PassCount:
    """Forward passes of a model.

    Args:
        passes (`int`): calls of the model.
        examples (`int`): rows of their inputs, together.
    """

    passes: int = 0
    examples: int = 0


@contextmanager
def counting_passes(model: nn.Module) -> Iterator[PassCount]:
    """Count a model's forward passes while the context is open."""
    count = PassCount()

    def add(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        tensors = [value for value in (*args, *given.values()) if isinstance(value, torch.Tensor) and value.dim()]
        main = given.get(getattr(model, "main_input_name", "input_ids"), tensors[0] if tensors else None)
        count.passes += 1
        count.examples += 0 if main is None else len(main)

    handle = model.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield count
    finally:
        handle.remove()


@dataclass
class Beside:
    """The same few batches, run plainly and measured, in turns.

    Args:
        batches (`int`), examples (`int`): how many were run.
        plain (`list[float]`): seconds of a plain pass over them, in eval mode without gradients, for each repeat.
        measured (`list[float]`): seconds of `measure_similarity` over them; empty if only plain passes were run.
        memory (`PeakMemory`): of the plain passes, the first ones.
    """

    batches: int
    examples: int
    plain: list[float] = field(default_factory=list)
    measured: list[float] = field(default_factory=list)
    memory: PeakMemory = field(default_factory=PeakMemory)

    @property
    def ratio(self) -> float | None:
        """What measuring takes for each second of plain passes: of the medians."""
        return statistics.median(self.measured) / statistics.median(self.plain) if self.measured else None

    @property
    def seconds_per_example(self) -> float:
        """Of plain passes, the median."""
        return statistics.median(self.plain) / self.examples


def run_beside(
    model: nn.Module,
    loader: Iterable[Mapping[str, Any]],
    stacks: Sequence[BlockStack] | None,
    protocol: str | SimilarityProtocol = "default",
) -> Beside:
    """Run a few batches plainly and measured, in turns, after one plain pass over them to warm up.

    Args:
        model (`nn.Module`): left as it is: flags, random state.
        loader (`Iterable[Mapping]`): batches; the first `BATCHES` are used.
        stacks (`Sequence[BlockStack]`, *optional*): that are measured; `None` for plain passes alone.
        protocol (`str` or `SimilarityProtocol`): how.
    """
    device = input_device(model)
    with keep_rng_state():
        batches = [
            {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
            for batch in itertools.islice(loader, BATCHES)
        ]

        def plain() -> float:
            wait_for(device)
            started = time.perf_counter()
            with evaluating(model), torch.no_grad():
                for batch in batches:
                    model(**{name: tensor.to(device) for name, tensor in batch.items()})
            wait_for(device)
            return time.perf_counter() - started

        def measured() -> float:
            wait_for(device)
            started = time.perf_counter()
            measure_similarity(model, batches, stacks, protocol=protocol, show_progress=False)
            wait_for(device)
            return time.perf_counter() - started

        with counting_passes(model) as count, PeakMemory(device) as memory:
            plain()
        beside = Beside(len(batches), count.examples, memory=memory)
        for _ in range(REPEATS):
            beside.plain.append(plain())
            if stacks is not None:
                beside.measured.append(measured())
    return beside
