"""Offloaded weights that stay where they run until they are let go, instead of being read anew for every call."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from typing import Any

from torch import nn

from hf_mpruner.placement.devices import hooks_of


class WeightHold:
    """Accelerate's hooks read a module's weights before each call and drop them after it; held ones are read once.

    Args:
        model (`nn.Module`): loaded with accelerate's `device_map`; of any other, nothing is held.
    """

    def __init__(self, model: nn.Module) -> None:
        """Nothing is held before `attach`."""
        self._hooks = {
            module: hook for module in model.modules() for hook in hooks_of(module) if getattr(hook, "offload", False)
        }
        self._held: dict[nn.Module, Any] = {}
        self._running: Counter[nn.Module] = Counter()

    def attach(self, undo: ExitStack) -> None:
        """Hold what runs, until `undo` closes."""
        undo.callback(self._release_all)
        for module in self._hooks:
            undo.callback(module.register_forward_pre_hook(self._take).remove)
            undo.callback(module.register_forward_hook(self._leave).remove)

    def release(self) -> None:
        """Let go of all weights but those of modules that are running."""
        for module in [one for one in self._held if not self._running[one]]:
            self._drop(module)

    def _take(self, module: nn.Module, args: Any) -> None:
        self._running[module] += 1
        if module not in self._held:
            hook = self._hooks[module]
            hook.pre_forward(module)
            hook.offload = False  # from now on it only moves inputs
            self._held[module] = hook

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._running[module] -= 1

    def _drop(self, module: nn.Module) -> None:
        hook = self._held.pop(module)
        hook.offload = True
        hook.post_forward(module, ())

    def _release_all(self) -> None:
        for module in list(self._held):
            self._drop(module)
        self._running.clear()
