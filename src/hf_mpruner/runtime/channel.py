"""`Channel`: how the processes of a run speak to each other, without ever waiting for one that failed."""

from __future__ import annotations

import atexit
import io
import time
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from hf_mpruner.errors import MPrunerError

T = TypeVar("T")

# A process that waits this long for another one gives up; less if `TrainingArguments(ddp_timeout=...)` is less. It must
# outlast the difference between the fastest and the slowest process over one evaluation.
LONGEST_WAIT = timedelta(minutes=30)

# A process that failed tells the others, who may be waiting for it inside the Trainer's own communication and not hear
# it. After this many seconds it raises; its end then breaks their connection.
SECONDS_TO_TELL = 15.0

_OK, _FAILED = "ok", "failed"
_LONGEST_POLL = 0.05


class PeerError(MPrunerError):
    """Another process failed."""


class Channel:
    """Numbered meetings of all processes.

    Everyone leaves a note in the store that the process group was started with, saying what it is about to do, or that
    it failed. Only when all notes are there, and say the same, values are sent, through a gloo group of our own. So no
    process begins to communicate with one that will not come, which nothing could end: not even the interpreter's exit.

    Args:
        timeout (`timedelta`): how long a meeting waits for the last one.
    """

    def __init__(self, timeout: timedelta) -> None:
        """Make the group; every process must do so at the same moment."""
        self.rank, self.world_size = distributed.get_rank(), distributed.get_world_size()
        self.timeout = timeout
        self._group: Any = distributed.new_group(backend="gloo", timeout=timeout)
        # no public name gives the store; torch's own elastic and DTensor code takes it from here
        store = distributed.distributed_c10d._get_default_store()
        self._store = distributed.distributed_c10d.PrefixStore("hf_mpruner", store)
        self._number = 0

    def close(self) -> None:
        """Let the group go; gloo aborts the process if its threads are still there when the interpreter ends."""
        group, self._group = self._group, None
        if group is not None and distributed.is_initialized() and group in distributed.distributed_c10d._world.pg_map:
            distributed.destroy_process_group(group)

    def meet(self, doing: str) -> None:
        """Wait until every process has come to this point.

        Args:
            doing (`str`): what all are doing, for messages.

        Raises:
            PeerError: if another process failed, does something else, or does not come in time.
        """
        self._leave(_OK, doing)
        notes = [self._read(rank, doing) for rank in range(self.world_size)]
        if self._number > 1:  # all are past the meeting before, so its notes have been read
            self._store.delete_key(f"{self._number - 1}/{self.rank}")
        if failed := _failures(dict(enumerate(notes))):
            raise PeerError(failed)
        if len({text for _, text in notes}) > 1:
            where = ", ".join(f"rank {rank} is {text}" for rank, (_, text) in enumerate(notes))
            raise PeerError(
                f"The processes are out of step: {where}. They must run the same code in the same order; look for a step "
                "that one of them leaves out, e.g. a callback that acts on the main process alone."
            )

    def gather(self, value: T, doing: str) -> list[T]:
        """What every process passed, by rank.

        Raises:
            PeerError: as `meet`.
        """
        buffer = io.BytesIO()
        torch.save(value, buffer)
        payload = torch.frombuffer(bytearray(buffer.getbuffer()), dtype=torch.uint8)
        self.meet(f"{doing} (exchange)")
        try:
            lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
            distributed.all_gather(lengths, torch.tensor([len(payload)]), group=self._group)
            sizes = [int(length) for length in lengths]
            padded = torch.zeros(max(sizes), dtype=torch.uint8)
            padded[: len(payload)] = payload
            received = [torch.empty_like(padded) for _ in sizes]
            distributed.all_gather(received, padded, group=self._group)
        except RuntimeError as error:  # gloo has no class of its own for a lost connection
            raise self._lost(doing, error) from error
        # the sender is a process of the same run, and values are objects of our own
        return [
            torch.load(io.BytesIO(part[:size].numpy().tobytes()), weights_only=False)
            for part, size in zip(received, sizes, strict=True)
        ]

    def tell(self, text: str) -> str:
        """Say at the next meeting that this process failed, and give the others a moment to come and hear it.

        Returns:
            `str`: who had failed before, and how; empty if this process is the first.
        """
        try:
            following = self._number + 1
            earlier = [rank for rank in range(self.world_size) if self._store.check([f"{following}/{rank}"])]
            notes = {rank: self._note(following, rank) for rank in earlier}
            self._leave(_FAILED, text)
            until = time.monotonic() + SECONDS_TO_TELL
            while not self._has_come(range(self.world_size)) and time.monotonic() < until:
                time.sleep(_LONGEST_POLL)
        except RuntimeError:
            return ""  # the store is gone already, and so are those who could listen
        return _failures(notes)

    def _leave(self, status: str, text: str) -> None:
        self._number += 1
        self._store.set(f"{self._number}/{self.rank}", f"{status} {text}")

    def _read(self, rank: int, doing: str) -> tuple[str, str]:
        until, pause = time.monotonic() + self.timeout.total_seconds(), 0.001
        try:
            # asked again and again, since a call that waits would keep torch's own threads from the store
            while not self._has_come([rank]):
                if time.monotonic() > until:
                    raise PeerError(
                        f"Rank {rank} did not come within {self.timeout.total_seconds():g} seconds while {doing}: it hangs or "
                        "ended. Its own log says why."
                    )
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_POLL)
            return self._note(self._number, rank)
        except RuntimeError as error:
            raise self._lost(doing, error) from error

    def _note(self, number: int, rank: int) -> tuple[str, str]:
        status, _, text = self._store.get(f"{number}/{rank}").decode().partition(" ")
        return status, text

    def _has_come(self, ranks: Any) -> bool:
        return self._store.check([f"{self._number}/{rank}" for rank in ranks])

    def _lost(self, doing: str, error: RuntimeError) -> PeerError:
        said = " ".join(str(error).split())[:300]
        return PeerError(f"Another process ended while {doing}. Its own log says why. ({said})")


def _failures(notes: dict[int, tuple[str, str]]) -> str:
    return "; ".join(f"rank {rank} failed while {text}" for rank, (status, text) in notes.items() if status == _FAILED)


# Groups are never freed, so repeated calls of `train()` share one.
_OPEN: list[tuple[Any, Channel]] = []


def open_channel(timeout: timedelta) -> Channel:
    """The channel of the process group that is running; made when first asked for, on every process."""
    world = distributed.group.WORLD
    for known, channel in _OPEN:
        if known is world:
            return channel
    _close_all()
    channel = Channel(min(timeout, LONGEST_WAIT))
    _OPEN.append((world, channel))
    return channel


@atexit.register
def _close_all() -> None:
    for _, channel in _OPEN:
        channel.close()
    _OPEN.clear()
