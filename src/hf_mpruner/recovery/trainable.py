"""What trains between a cut and its verdict: one interface for all of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import nn

from hf_mpruner.plan import PruningPlan
from hf_mpruner.recovery.touched import FrozenParameters, freeze_untouched_, touched_layers


class Trainable(ABC):
    """Which parameters recover a cut model. `apply` comes after the cut, then `undo` or `keep`, once.

    Attributes:
        base_is_frozen (`bool`): whether no parameter that the model has without this one changes, so that a rollback
            needs no copy of them.
        adds_modules (`bool`): whether the model has modules until the verdict that it will not have after it.
    """

    base_is_frozen: bool = False
    adds_modules: bool = False

    @abstractmethod
    def apply(self, model: nn.Module, optimizer: Any, plan: PruningPlan, whole: nn.Module | None = None) -> None:
        """Let these parameters train, and no others.

        Args:
            model (`nn.Module`): the cut model, changed in place.
            optimizer (*optional*): the live one, or accelerate's wrapper of it, without the removed parameters.
            plan (`PruningPlan`): the cut, in the numbering before it.
            whole (`nn.Module`, *optional*): what the optimizer trains, if the model is only a part of it.
        """

    def settle(self) -> None:
        """Before a verdict about the very weights that would be kept: give the model these; `undo` can still follow."""
        return None

    @abstractmethod
    def undo(self) -> None:
        """Put model and optimizer back as `apply` found them; does nothing if nothing was applied."""

    @abstractmethod
    def keep(self) -> None:
        """Make what was learned a part of the model, and let everything train again that did before."""


class WholeModel(Trainable):
    """Full fine-tuning: whatever trained before goes on training."""

    def apply(self, model: nn.Module, optimizer: Any, plan: PruningPlan, whole: nn.Module | None = None) -> None:
        """Nothing to do."""

    def undo(self) -> None:
        """Nothing to do."""

    def keep(self) -> None:
        """Nothing to do."""


class BesideCuts(Trainable):
    """The blocks beside the gaps, and the head (MPruner's flag b, `freeze_untouched`)."""

    def __init__(self) -> None:
        """Nothing is frozen yet."""
        self._frozen = FrozenParameters([])

    def apply(self, model: nn.Module, optimizer: Any, plan: PruningPlan, whole: nn.Module | None = None) -> None:
        """Freeze the rest.

        Raises:
            ValueError: if nothing would be left to train; nothing is changed then.
        """
        touched = {path: touched_layers(stack.depth, stack.kept) for path, stack in plan.stacks.items()}
        self._frozen = freeze_untouched_(model, touched)

    def undo(self) -> None:
        """Let the rest train again."""
        self._frozen.undo()

    def keep(self) -> None:
        """Let the rest train again."""
        self._frozen.undo()
