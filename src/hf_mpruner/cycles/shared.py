"""What the main process alone does, and what all processes see of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from hf_mpruner.errors import MPrunerError
from hf_mpruner.runtime import Runtime
from hf_mpruner.storage import new_folder

T = TypeVar("T")


def on_main(runtime: Runtime, what: str, do: Callable[[], T]) -> T:
    """Do something on the main process; all processes get its result, or fail with it.

    Args:
        runtime (`Runtime`): the processes.
        what (`str`): what it does, for messages: "writing the record".
        do (callable): called on the main process.
    """
    with runtime.together(what):
        result = do() if runtime.is_main_process else None
    return runtime.broadcast(result)  # type: ignore[return-value]


@contextmanager
def shared_folder(runtime: Runtime, folder: Path) -> Iterator[Path]:
    """A folder that appears whole, made by the main process, for all processes to look into.

    Args:
        runtime (`Runtime`): the processes; every one enters at the same moment.
        folder (`Path`): where it appears.

    Yields:
        `Path`: an empty folder, the same on every process.

    Raises:
        MPrunerError: if some process does not see it.
    """
    if not runtime.is_main_process:
        draft = runtime.broadcast(folder)
        yield draft
        _check_seen(runtime, draft)
        return
    with new_folder(folder) as draft:
        runtime.broadcast(draft)
        yield draft
        _check_seen(runtime, draft)


def _check_seen(runtime: Runtime, folder: Path) -> None:
    seen = runtime.gather(folder.is_dir())
    if not all(seen):
        blind = [str(rank) for rank, sees in enumerate(seen) if not sees]
        raise MPrunerError(
            f"'{folder.parent}' is not seen by rank {', '.join(blind)}: pass a folder that all processes share."
        )
