"""Learning rates of `learning_rate_policy="restart"`: warm up and decay in each round, beside any scheduler."""

from __future__ import annotations

from typing import Any

import torch

from hf_mpruner.optimizer import unwrap_optimizer


def restart_factor(step: int, started_at: int, recovery_steps: int, warmup: float) -> float:
    """Share of the base learning rate at a step of a round: linear warm-up, then linear decay to 0.

    Args:
        step (`int`): the training step about to be made, as the Trainer counts them.
        started_at (`int`): the step at which the cut was made.
        recovery_steps (`int`): steps between the cut and its verdict; at least 1.
        warmup (`float`): share of them, in 0..1, that warm up.

    Returns:
        `float`: in 0..1; 0 once the round is over.

    Example:
        >>> [restart_factor(step, 100, 4, 0.5) for step in range(100, 105)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    done, rising = step - started_at, int(recovery_steps * warmup)
    if done < rising:
        return (done + 1) / rising
    return max(0.0, (recovery_steps - done) / max(1, recovery_steps - rising))


class RestartedRate:
    """Write a round's learning rate before an optimizer step, and the scheduled one back after it.

    Args:
        warmup (`float`): share of a round's steps, in 0..1, that warm up.
    """

    def __init__(self, warmup: float) -> None:
        """Nothing is written yet."""
        self.warmup = warmup
        self.used: float | None = None  # the first group's rate at the last step, for the log
        self._scheduled: list[tuple[dict[str, Any], float]] = []

    def before_step(self, optimizer: Any, step: int, started_at: int, recovery_steps: int) -> None:
        """For `on_pre_optimizer_step` while a cut is pending; `optimizer` may be accelerate's wrapper."""
        factor = restart_factor(step, started_at, recovery_steps, self.warmup)
        groups = unwrap_optimizer(optimizer).param_groups
        self._scheduled = [(group, float(group["lr"])) for group in groups]
        for group, scheduled in self._scheduled:
            _write(group, float(group.get("initial_lr", scheduled)) * factor)
        self.used = float(groups[0]["lr"])

    def after_step(self) -> None:
        """For `on_optimizer_step`; does nothing if nothing was written."""
        for group, scheduled in self._scheduled:
            _write(group, scheduled)
        self._scheduled = []

    def forget(self) -> None:
        """For the verdict: what is logged from now on is the scheduled rate."""
        self.after_step()
        self.used = None

    def correct_log(self, logs: dict[str, Any]) -> None:
        """For `on_log`: a logged learning rate becomes the one that was used."""
        if self.used is not None and "learning_rate" in logs:
            logs["learning_rate"] = self.used


def _write(group: dict[str, Any], rate: float) -> None:
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate
