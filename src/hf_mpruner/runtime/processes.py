"""`Processes`: what all runtimes of several processes share: they agree, or all of them fail."""

from __future__ import annotations

import io
import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from hf_mpruner.errors import MPrunerError
from hf_mpruner.runtime.base import Runtime

T = TypeVar("T")

# A process that waits this long for another one gives up; less if `TrainingArguments(ddp_timeout=...)` is less. It must
# outlast the difference between the fastest and the slowest process over one evaluation.
LONGEST_WAIT = timedelta(minutes=30)

# A process that failed tells the others, who may be waiting for it inside the Trainer's own communication and not hear
# it. After this many seconds it raises; its end then breaks their connection.
SECONDS_TO_TELL = 15.0

_TEXT_BYTES = 2000
_OK, _FAILED = 0, 1

# `new_group` is slow and groups are never freed, so repeated calls of `train()` share one.
_GROUPS: list[tuple[Any, Any]] = []


class PeerError(MPrunerError):
    """Another process failed."""


class Processes(Runtime):
    """Several processes with one model each, or one model between them.

    What they say to each other goes through a gloo group of our own: on the CPU, with a time limit, and out of the way
    of the Trainer's. Every exchange begins with a frame of fixed size that says whether its sender is well, so a
    process that failed anywhere is heard at the next exchange of the others, whatever they were about to exchange.

    Args:
        timeout (`timedelta`): how long the Trainer's own communication waits.
    """

    def __init__(self, timeout: timedelta) -> None:
        """Make the group; every process must do so at the same moment."""
        self.rank, self.world_size = distributed.get_rank(), distributed.get_world_size()
        self._group = _own_group(min(timeout, LONGEST_WAIT))
        self._doing = "agreeing with the others"
        self._told: BaseException | None = None
        self._last_words: list[Any] = []

    @property
    @abstractmethod
    def _compares_weights(self) -> bool:
        """Whether every process holds all of every weight."""

    def gather(self, value: T) -> list[T]:
        """What every process passed, by rank.

        Raises:
            MPrunerError: if another process failed or does not answer.
        """
        buffer = io.BytesIO()
        torch.save(value, buffer)
        payload = torch.frombuffer(bytearray(buffer.getbuffer()), dtype=torch.uint8)
        frames = self._exchange_frames(_frame(_OK, len(payload), f"{self._doing} (exchange)"))
        lengths = [length for _, length, _ in frames]
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(payload)] = payload
        received = [torch.empty_like(padded) for _ in lengths]
        self._wait(distributed.all_gather(received, padded, group=self._group, async_op=True))
        # the sender is a process of the same run, and values are objects of our own
        return [
            torch.load(io.BytesIO(part[:length].numpy().tobytes()), weights_only=False)
            for part, length in zip(received, lengths, strict=True)
        ]

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
                if error is not self._told:  # an inner block said so already
                    self._told = error
                    self._tell(f"{what}: {type(error).__name__}: {error}")
                raise
            self._exchange_frames(_frame(_OK, 0, f"{what} (done)"))

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

    def _exchange_frames(self, frame: Tensor) -> list[tuple[int, int, str]]:
        frames = [torch.empty_like(frame) for _ in range(self.world_size)]
        self._wait(distributed.all_gather(frames, frame, group=self._group, async_op=True))
        read = [_read_frame(one) for one in frames]
        failed = [(rank, text) for rank, (status, _, text) in enumerate(read) if status == _FAILED]
        if failed:
            raise PeerError("; ".join(f"rank {rank} failed while {text}" for rank, text in failed))
        places = [text for _, _, text in read]
        if len(set(places)) > 1:
            where = ", ".join(f"rank {rank} is {text}" for rank, text in enumerate(places))
            raise PeerError(
                f"The processes are out of step: {where}. They must run the same code in the same order; look for a step "
                "that one of them leaves out, e.g. a callback that acts on the main process alone."
            )
        return read

    def _wait(self, work: Any) -> None:
        try:
            work.wait()
        except RuntimeError as error:  # gloo has no class of its own for a lost connection or a passed time limit
            raise PeerError(
                f"Another process did not answer while {self._doing}: it ended, or hangs. Its own log says why. "
                f"({' '.join(str(error).split())[:300]})"
            ) from error

    def _tell(self, text: str) -> None:
        """Say that this process failed, without waiting for ever for those who do not listen."""
        frame = _frame(_FAILED, 0, text)
        frames = [torch.empty_like(frame) for _ in range(self.world_size)]
        try:
            work = distributed.all_gather(frames, frame, group=self._group, async_op=True)
        except RuntimeError:
            return  # the connection is gone already, and so are those who could listen
        self._last_words = [work, frame, frames]  # gloo reads them as long as the process lives
        until = time.monotonic() + SECONDS_TO_TELL
        while not work.is_completed() and time.monotonic() < until:
            time.sleep(0.05)


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


def _own_group(timeout: timedelta) -> Any:
    world = distributed.group.WORLD
    for known, group in _GROUPS:
        if known is world:
            return group
    group = distributed.new_group(backend="gloo", timeout=timeout)
    _GROUPS[:] = [(world, group)]
    return group


def _frame(status: int, length: int, text: str) -> Tensor:
    words = text.encode()[:_TEXT_BYTES]
    head = bytes([status]) + length.to_bytes(8, "little") + len(words).to_bytes(4, "little")
    return torch.frombuffer(bytearray(head + words.ljust(_TEXT_BYTES, b"\0")), dtype=torch.uint8)


def _read_frame(frame: Tensor) -> tuple[int, int, str]:
    data = frame.numpy().tobytes()
    size = int.from_bytes(data[9:13], "little")
    return data[0], int.from_bytes(data[1:9], "little"), data[13 : 13 + size].decode(errors="replace")


def _ranks(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]} differs"
    return f"ranks {', '.join(map(str, ranks))} differ"
