"""`Processes`: what all runtimes of several processes share: they agree, or all of them fail."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, nn

from hf_mpruner.errors import MPrunerError
from hf_mpruner.runtime.base import Runtime
from hf_mpruner.runtime.channel import PeerError, open_channel

T = TypeVar("T")


class Processes(Runtime):
    """Several processes with one model each, or one model between them.

    Args:
        timeout (`timedelta`): how long the Trainer's own communication waits.
    """

    def __init__(self, timeout: timedelta) -> None:
        """Open the channel; every process must do so at the same moment."""
        self._channel = open_channel(timeout)
        self.rank, self.world_size = self._channel.rank, self._channel.world_size
        self._doing = "agreeing with the others"
        self._told: BaseException | None = None

    @property
    @abstractmethod
    def _compares_weights(self) -> bool:
        """Whether every process holds all of every weight."""

    def gather(self, value: T) -> list[T]:
        """What every process passed, by rank.

        Raises:
            MPrunerError: if another process failed or does not answer.
        """
        return self._channel.gather(value, self._doing)

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        """Run a block on every process, and fail on all if it fails on one.

        The process that fails raises its own error, the others say which one failed and how. None waits for ever.
        """
        with self._named(what):
            try:
                yield
            except PeerError:
                raise
            except BaseException as error:
                if error is self._told:  # an inner block said so already
                    raise
                self._told = error
                earlier = self._channel.tell(f"{what}: {type(error).__name__}: {error}")
                if earlier and isinstance(error, RuntimeError):  # the connection broke since another one failed
                    raise PeerError(earlier) from error
                raise
            self._channel.meet(f"{what} (done)")

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        before, self._doing = self._doing, what
        try:
            yield
        finally:
            self._doing = before

    def check_same(self, model: nn.Module) -> None:
        """Compare names, shapes and, where every process holds all of them, the bits of all parameters.

        Raises:
            MPrunerError: on every process, naming those that differ from rank 0 and where.
        """
        with self._named("comparing models"):
            self._compare(model)

    def _compare(self, model: nn.Module) -> None:
        shapes = [(name, tuple(param.shape)) for name, param in model.named_parameters()]
        sums = weight_sums(model) if self._compares_weights else torch.zeros(0, 2, dtype=torch.int64)
        everywhere = self.gather((shapes, sums))
        first_shapes, first_sums = everywhere[0]
        other = [rank for rank, (names, _) in enumerate(everywhere) if names != first_shapes]
        if other:
            lengths = ", ".join(f"rank {rank}: {len(names)}" for rank, (names, _) in enumerate(everywhere))
            names = sorted({name for name, _ in set(first_shapes) ^ set(everywhere[other[0]][0])})
            where = f"first '{names[0]}'" if names else "their order"
            raise MPrunerError(
                f"The processes hold different models: {_ranks(other)} from rank 0, {where} (parameters on {lengths}). "
                "Build the same model on every process, and do not change it on one alone."
            )
        other = [rank for rank, (_, values) in enumerate(everywhere) if not torch.equal(values, first_sums)]
        if other:
            unequal = (everywhere[other[0]][1] != first_sums).any(1)
            name = first_shapes[int(unequal.nonzero()[0])][0]
            raise MPrunerError(
                f"The processes hold different weights: {_ranks(other)} from rank 0 in {int(unequal.sum())} of "
                f"{len(first_shapes)} parameters, first '{name}'. Gradients were not averaged over all processes, or a "
                "callback changes weights on one process alone."
            )


def weight_sums(model: nn.Module) -> Tensor:
    """For each parameter two sums over its bits, exact and independent of the device.

    Args:
        model (`nn.Module`): its weights are read where they are, nothing is copied but the sums.

    Returns:
        `torch.Tensor` of shape `(parameters, 2)`, int64: unequal if one bit of a parameter differs.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = weight_sums(layer)
        >>> _ = layer.weight.data[0, 0].neg_()
        >>> (weight_sums(layer) != before).any(1).tolist()
        [True, False]
    """
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = []
    for param in model.parameters():
        values = torch.view_as_real(param.detach()) if param.is_complex() else param.detach()
        bits = values.view(integers[values.element_size()])
        # the second one tells apart what a change of two weights leaves alike in the first
        sums.append(torch.stack([bits.sum(dtype=torch.int64), (bits >> 3).bitwise_xor(bits).sum(dtype=torch.int64)]))
    return torch.stack([both.cpu() for both in sums]) if sums else torch.zeros(0, 2, dtype=torch.int64)


def _ranks(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]} differs"
    return f"ranks {', '.join(map(str, ranks))} differ"
