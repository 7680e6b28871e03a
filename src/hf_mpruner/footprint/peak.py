"""The most memory that a piece of work has held, above what was held when it began."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_SAMPLE_SECONDS = 0.01


# Contexts that are open, in one another.
_open: list[PeakMemory] = []


class PeakMemory:
    """Measures, while its context is open, how far memory has grown above what it was before.

    Of the process: its resident memory, by the kernel's own high-water mark, which is set back when the context opens
    (Linux; where that is forbidden the size is looked at a hundred times a second, and elsewhere nothing is known). It has
    whatever the process holds: pages of files that are mapped, memory that an allocator keeps after it was freed; and
    nothing of what was kept from before and is used again. Of an accelerator: what torch's allocator has handed out.
    Contexts may lie in each other.

    Args:
        device (`torch.device` or `str`, *optional*): the accelerator; the CPU has no memory of its own.

    Attributes:
        host_bytes (`int`, *optional*): growth of the process; `None` until the context ends, and where it is not known.
        device_bytes (`int`, *optional*): growth on the accelerator; `None` without one that counts.
        loaded_bytes (`int`, *optional*): resident memory when the context was opened.

    Example:
        >>> with PeakMemory() as peak:
        ...     held = torch.ones(16 * 2**20)  # so much comes fresh from the system, not from what was freed
        >>> peak.host_bytes is None or peak.host_bytes > 2**25
        True
    """

    def __init__(self, device: torch.device | str | None = None) -> None:
        """Nothing is measured yet."""
        device = None if device is None else torch.device(device)
        self.device = None if device is None or device.type in ("cpu", "meta") else device
        self.host_bytes: int | None = None
        self.device_bytes: int | None = None
        self.loaded_bytes: int | None = None
        self._seen = self._seen_on_device = 0
        self._sampler: _Sampler | None = None
        self._loaded_on_device: int | None = None

    def __enter__(self) -> PeakMemory:
        """Set the high-water marks back; what they were goes to the contexts around this one."""
        for other in _open:
            other._note()
        self.loaded_bytes, self._loaded_on_device = _status("VmRSS"), _counter(self.device, "memory_allocated")
        self._seen, self._seen_on_device = self.loaded_bytes or 0, self._loaded_on_device or 0
        if self.loaded_bytes is not None and not _reset():
            self._sampler = _Sampler()
        _counter(self.device, "reset_peak_memory_stats")
        _open.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Read the high-water marks."""
        self._note()
        _open.remove(self)
        if self.loaded_bytes is not None:
            self.host_bytes = self._seen - self.loaded_bytes
        if self._loaded_on_device is not None:
            self.device_bytes = self._seen_on_device - self._loaded_on_device

    def _note(self) -> None:
        if self._sampler is not None:
            self._seen = max(self._seen, self._sampler.stop(), _status("VmRSS") or 0)
            self._sampler = None
        elif self.loaded_bytes is not None:
            self._seen = max(self._seen, _status("VmHWM") or 0)
        self._seen_on_device = max(self._seen_on_device, _counter(self.device, "max_memory_allocated") or 0)


def process_peak() -> int | None:
    """The most resident memory that this process has held since it began, or since its mark was set back; in bytes."""
    return _status("VmHWM")


def device_peak(device: torch.device | str) -> int | None:
    """The most that torch's allocator has handed out on an accelerator so far, in bytes; `None` on a CPU."""
    device = torch.device(device)
    return None if device.type in ("cpu", "meta") else _counter(device, "max_memory_allocated")


class _Sampler:
    """Looks at the resident memory again and again."""

    def __init__(self) -> None:
        self.most = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            self.most = max(self.most, _status("VmRSS") or 0)

    def stop(self) -> int:
        self._ended.set()
        self._thread.join()
        return self.most


def _status(name: str) -> int | None:
    """A size of this process in bytes, as the kernel tells it."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(encoding="ascii", errors="replace"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _reset() -> bool:
    """Set the process's high-water mark back to what it holds now; false where that is not allowed."""
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _counter(device: torch.device | None, name: str) -> int | None:
    """A function of an accelerator's allocator; `torch.accelerator` has them since torch 2.9, its module before."""
    if device is None:
        return None
    ask: Any = getattr(torch.accelerator, name, None) or getattr(torch.get_device_module(device), name, None)
    try:
        found = None if ask is None else ask(device)
    except (RuntimeError, NotImplementedError, AttributeError):  # of a backend whose allocator does not count
        return None
    return found if isinstance(found, int) else None
