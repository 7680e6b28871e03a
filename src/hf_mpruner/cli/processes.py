"""A command under `accelerate launch` or `torchrun`: one process speaks and writes, all of them work.

Read from the launcher's environment, so that `--help` needs no torch.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from .parser import UsageError

if TYPE_CHECKING:
    from hf_mpruner.runtime import Runtime

_LONGEST_WAIT = timedelta(minutes=30)


def rank() -> int:
    """Number of this process, 0 for the main one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes that the launcher has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_one_process(command: str, instead: str = "") -> None:
    """Refuse several processes for what one does as well.

    Args:
        command (`str`): what was asked for.
        instead (`str`): what to do if it should run in several, as a sentence.

    Raises:
        UsageError: if the launcher started more than one process.
    """
    if world_size() > 1:
        also = f" {instead}" if instead else ""
        raise UsageError(
            f"{command} runs in one process, but the launcher started {world_size()}: leave out 'accelerate launch'.{also}"
        )


@contextmanager
def sharing(what: str) -> Iterator[Runtime]:
    """The processes, each with a whole model of its own, to share work among; if one fails, all do.

    Args:
        what (`str`): what they do, for messages.
    """
    from hf_mpruner.runtime import Copies, SingleProcess

    if world_size() == 1:
        yield SingleProcess()
        return
    from accelerate import PartialState

    PartialState()  # makes the process group, and chooses this process's device
    runtime = Copies(_LONGEST_WAIT)
    with runtime.together(what):
        yield runtime


@contextmanager
def main_process_first() -> Iterator[None]:
    """The main process prepares data, then the others, which find it in the cache."""
    if world_size() == 1:
        yield
        return
    from accelerate import PartialState

    with PartialState().main_process_first():
        yield


@contextmanager
def shared_temporary_folder() -> Iterator[str]:
    """A temporary folder that has the same name in all processes; gone when all have left it."""
    with tempfile.TemporaryDirectory(prefix="hf_mpruner-") as folder:
        if world_size() == 1:
            yield folder
            return
        from accelerate import PartialState
        from torch import distributed

        state = PartialState()  # makes the process group
        names = [folder]
        distributed.broadcast_object_list(names, device=state.device)  # accelerate's own leaves CPU processes alone
        Path(names[0]).mkdir(exist_ok=True)  # on another machine
        yield names[0]
        state.wait_for_everyone()


def finish() -> None:
    """Wait for the others and leave the process group, so that nobody is cut off."""
    if world_size() == 1:
        return
    from torch import distributed

    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
