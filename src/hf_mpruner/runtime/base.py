"""`Runtime`: what an edit needs besides the edit itself, and how processes agree; and the simplest one."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

from torch import Tensor, nn

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Runtime(ABC):
    """What an edit of a live model needs besides the edit itself, on one kind of process group.

    Attributes:
        name (`str`): what is running, for messages.
        world_size (`int`): number of processes.
        rank (`int`): the number of this one.
        equal_forwards (`bool`): whether a forward pass communicates, so that every process must run as many.
    """

    name: str
    world_size: int = 1
    rank: int = 0
    equal_forwards: bool = False

    @property
    def is_main_process(self) -> bool:
        """Whether this process decides, writes and speaks."""
        return self.rank == 0

    @abstractmethod
    def before_edit(self) -> None:
        """Prepare wrappers for a change of the model; every process calls it before the change."""

    @abstractmethod
    def after_edit(self) -> None:
        """Bring wrappers in line with the changed model; every process calls it after the change."""

    @abstractmethod
    def on_keep(self) -> None:
        """Let go of blocks that are gone for good; every process calls it after the verdict."""

    @abstractmethod
    def gather(self, value: T) -> list[T]:
        """What every process passed, by rank."""

    @abstractmethod
    def together(self, what: str) -> AbstractContextManager[None]:
        """Run a block on every process, and fail on all if it fails on one.

        Args:
            what (`str`): what the block does, for messages: "measuring similarity".
        """

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Run a block, on every process, that a run can do without: if it fails, a warning says so on all.

        Where forward passes communicate the failure is raised: who failed alone and went on would leave the others
        waiting in the middle of a pass.

        Args:
            what (`str`): what the block does, for messages: "timing the model".
        """
        try:
            with self.together(what):
                yield
        except Exception as error:
            if self.equal_forwards:
                raise
            reason = " ".join(str(error).split())
            logger.warning("%s failed and is left out: %s: %s", what.capitalize(), type(error).__name__, reason)

    @abstractmethod
    def check_same(self, model: nn.Module) -> None:
        """Compare the model over all processes.

        Raises:
            MPrunerError: on every process, naming those that differ.
        """

    def broadcast(self, value: T) -> T:
        """What the main process passed, on every process."""
        return self.gather(value)[0]

    def all_equal(self, value: Any) -> bool:
        """Whether every process passed an equal value."""
        first, *others = self.gather(value)
        return all(other == first for other in others)

    def all_sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sums over the processes, in float64 and in the order of ranks, so that they are the same bits everywhere."""
        first, *others = self.gather([tensor.double().cpu() for tensor in tensors])
        for other in others:
            first = [total + more for total, more in zip(first, other, strict=True)]
        return first


class SingleProcess(Runtime):
    """One process on one device: nothing stands between the model and its parameters.

    Example:
        >>> SingleProcess().broadcast([0, 2])
        [0, 2]
    """

    name = "one process"

    def before_edit(self) -> None:
        """Nothing to do."""

    def after_edit(self) -> None:
        """Nothing to do: a compiled model notices the change by its guards and compiles again."""

    def on_keep(self) -> None:
        """Nothing to do."""

    def gather(self, value: T) -> list[T]:
        """The value itself."""
        return [value]

    def together(self, what: str) -> AbstractContextManager[None]:
        """Nobody else can fail."""
        return nullcontext()

    def check_same(self, model: nn.Module) -> None:
        """Nothing to compare with."""
