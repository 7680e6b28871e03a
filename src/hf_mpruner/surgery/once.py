"""`Edit`: steps that are carried out together and undone together, each at most once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Undoable(Protocol):
    """One step."""

    def apply(self) -> None:
        """Do it."""

    def undo(self) -> None:
        """Put back what was."""


class Edit:
    """A change of a model that was prepared whole: applied once, undone once, in this order. Preparing changes nothing.

    Attributes:
        _steps (`list`): in the order in which they are carried out; undone from the last one.
    """

    def __init__(self) -> None:
        """No steps yet."""
        self._steps: list[Undoable] = []
        self._state = "prepared"

    def apply(self) -> None:
        """Carry out every step, or none.

        Raises:
            RuntimeError: the edit was applied before, or the model changed since it was made; the model is as it was.
        """
        self._advance("prepared", "applied")
        done: list[Undoable] = []
        try:
            for step in self._steps:
                step.apply()
                done.append(step)
        except BaseException:
            _undo(done)
            self._state = "prepared"
            raise

    def undo(self) -> None:
        """Make the model what it was: the same objects in the same places.

        Raises:
            RuntimeError: the edit is not in force.
        """
        self._advance("applied", "undone")
        _undo(self._steps)

    def _advance(self, expected: str, following: str) -> None:
        if self._state != expected:
            call = "apply" if following == "applied" else "undo"
            raise RuntimeError(
                f"{call}() needs an edit that is {expected}, but this one is {self._state}. An edit is applied once and "
                f"undone once; make a new {type(self).__name__} for another change."
            )
        self._state = following


def _undo(steps: Sequence[Undoable]) -> None:
    for step in reversed(steps):
        step.undo()
