"""A look at every state dict before it is loaded: weights of another depth are never loaded in silence.

`Trainer` loads checkpoints with `strict=False`, so a model with fewer layers takes the first of a bigger one's, and a
bigger model keeps layers that were never saved, with no more than a log line. peft loads adapters alike.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from .architectures.adapters import block_numbers, saved_blocks
from .errors import MPrunerError

Withdraw = Callable[[], None]


class DepthGuard:
    """Watches `load_state_dict` of a model that is pruned while it trains.

    Args:
        model (`nn.Module`): holds the stacks.
        paths (`list[str]`): of the stacks.
        depth_before (callable): depths before a pending cut, by path; empty if none is pending.
        withdraw (callable): takes the pending cut back.
    """

    def __init__(
        self, model: nn.Module, paths: list[str], depth_before: Callable[[], Mapping[str, int]], withdraw: Withdraw
    ) -> None:
        """Begin to watch."""
        self.paths = paths
        self._depth_before, self._withdraw = depth_before, withdraw
        self._model = weakref.ref(model)
        self._handle = model.register_load_state_dict_pre_hook(self._check)

    def watches(self, model: nn.Module) -> bool:
        """Whether this is the model."""
        return self._model() is model

    def remove(self) -> None:
        """Stop watching."""
        self._handle.remove()

    def _check(self, module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
        if saved_blocks(module, self.paths) and not _is_whole(module, state_dict, prefix, self.paths):
            self._check_adapter(module, state_dict, prefix)
            return
        coming = {path: count_blocks(state_dict, f"{prefix}{path}.") for path in self.paths}
        coming = {path: number for path, number in coming.items() if number}
        live = {path: _depth(module, path) for path in self.paths}
        bigger = [path for path, number in coming.items() if number > live[path]]
        before = self._depth_before()
        if bigger and before and all(number <= before.get(path, 0) for path, number in coming.items()):
            self._withdraw()
            live = {path: _depth(module, path) for path in self.paths}
        for path, number in coming.items():
            # a part of a sharded checkpoint may hold a few blocks only, so fewer is wrong in a whole one only
            if number > live[path] or (number < live[path] and _is_whole(module, state_dict, prefix, self.paths)):
                raise MPrunerError(
                    f"The weights being loaded have {number} blocks in '{path}', but the model has {live[path]} there: "
                    "they belong to a model of another depth. Load that folder with from_pretrained instead, or resume "
                    "with trainer.train(resume_from_checkpoint=...), which cuts the model first. Nothing was loaded."
                )

    def _check_adapter(self, module: nn.Module, state_dict: Mapping[str, Any], prefix: str) -> None:
        """An adapter's weights come without those of its base: they must be for the blocks that have adapters here."""
        coming = {path: block_numbers(state_dict, f"{prefix}{path}.") for path in self.paths}
        if coming in saved_blocks(module, self.paths):
            return
        if self._depth_before():
            self._withdraw()
            self._check(module, state_dict, prefix)
            return
        here = saved_blocks(module, self.paths)[0]
        path = next(path for path in self.paths if coming[path] != here[path])
        raise MPrunerError(
            f"The adapter weights being loaded are for blocks {sorted(coming[path])} of '{path}', but the model has "
            f"{_depth(module, path)} blocks there and adapters in {sorted(here[path])}: they "
            "belong to a model of another depth. Load that folder with peft's from_pretrained instead, or resume with "
            "trainer.train(resume_from_checkpoint=...), which cuts the model first. Nothing was loaded."
        )


def count_blocks(names: Mapping[str, Any], prefix: str) -> int:
    """How many blocks the names of a state dict speak of.

    Example:
        >>> count_blocks({"layer.0.weight": 0, "layer.2.bias": 0, "head.weight": 0}, "layer.")
        3
    """
    return max(block_numbers(names, prefix), default=-1) + 1


def _depth(module: nn.Module, path: str) -> int:
    return len(module.get_submodule(path)._modules)


def _is_whole(module: nn.Module, state_dict: Mapping[str, Any], prefix: str, paths: list[str]) -> bool:
    inside = tuple(f"{path}." for path in paths)
    outside = [name for name, _ in module.named_parameters() if not name.startswith(inside)]
    return all(f"{prefix}{name}" in state_dict for name in outside)
