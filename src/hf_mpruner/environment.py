"""What a run runs on and with: the libraries' versions, and the device in words."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from pathlib import Path

import torch

from hf_mpruner import __version__

_ALWAYS = ("transformers", "torch", "accelerate", "datasets")
_IF_USED = ("peft", "evaluate", "trl", "sentence_transformers", "deepspeed")


def library_versions() -> dict[str, str]:
    """Versions of python, of this library and of those it stands on; of others only if they are in use.

    Example:
        >>> list(library_versions())[:2]
        ['python', 'hf_mpruner']
    """
    versions = {"python": platform.python_version(), "hf_mpruner": __version__}
    used = [name for name in _IF_USED if name in sys.modules]
    return versions | {name: found for name in (*_ALWAYS, *used) if (found := _version(name)) is not None}


def describe_device(device: torch.device | str) -> str:
    """A device in words: the model of the accelerator or of the processor.

    Args:
        device (`torch.device` or `str`): where the model is.

    Example:
        >>> describe_device("cpu").startswith("CPU")
        True
    """
    device = torch.device(device)
    if device.type == "cpu":
        name = _processor()
        return f"CPU ({name})" if name else "CPU"
    name = getattr(torch.get_device_module(device), "get_device_name", lambda device: "")(device)
    return f"{name} ({device.type})" if name else device.type


def _version(name: str) -> str | None:
    found = getattr(sys.modules.get(name), "__version__", None)
    if isinstance(found, str):
        return found
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(encoding="utf-8", errors="replace").splitlines() if listed.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
