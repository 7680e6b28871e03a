"""Learning rates of a round's recovery, beside any scheduler: warm up and decay again, or another highest rate."""

from __future__ import annotations

from typing import Any, Literal

import torch

from hf_mpruner.errors import UnsupportedBackendError
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


class RecoveryRate:
    """Write a round's learning rate before an optimizer step, and the scheduled one back after it.

    What is written depends on the step, the round and the schedule only, so that a resumed run goes on with it.

    Args:
        policy (`"run"` or `"restart"`): the schedule's rate, or `restart_factor` of each group's first rate.
        warmup (`float`): share of a round's steps, in 0..1, that warm up under `"restart"`.
        peak (`float`, *optional*): the highest group's rate becomes this in place of its first one, the others in
            proportion.

    Attributes:
        used (`float`, *optional*): the first group's rate at the last step of this round.
    """

    def __init__(self, policy: Literal["run", "restart"], warmup: float, peak: float | None) -> None:
        """Nothing is written yet."""
        self.policy, self.warmup, self.peak = policy, warmup, peak
        self.used: float | None = None
        self._scheduled: list[tuple[dict[str, Any], float]] = []

    @property
    def differs(self) -> bool:
        """Whether rates differ from the Trainer's at all."""
        return self.policy == "restart" or self.peak is not None

    def check(self, optimizer: Any) -> None:
        """Refuse an optimizer without learning rates, before any work is done.

        Raises:
            UnsupportedBackendError: if it computes its own rates (Adafactor with `lr=None`) and others are asked for.
        """
        inner = unwrap_optimizer(optimizer)
        if self.differs and any(group.get("lr") is None for group in inner.param_groups):
            raise UnsupportedBackendError(
                f"{type(inner).__name__} has no learning rate of its own (lr=None), so learning_rate_policy='restart' and "
                "recovery_learning_rate cannot set one. Give it a rate, or leave these two at their defaults."
            )

    def before_step(self, optimizer: Any, step: int, started_at: int, recovery_steps: int) -> None:
        """For `on_pre_optimizer_step` while a cut is pending; `optimizer` may be accelerate's wrapper."""
        if not self.differs:
            return
        groups = unwrap_optimizer(optimizer).param_groups
        self._scheduled = [(group, float(group["lr"])) for group in groups]
        first = [float(group.get("initial_lr", scheduled)) for group, scheduled in self._scheduled]
        factor = 1.0 if self.peak is None else self.peak / max(first)
        if self.policy == "restart":
            factor *= restart_factor(step, started_at, recovery_steps, self.warmup)
        for (group, scheduled), rate in zip(self._scheduled, first, strict=True):
            _write(group, (rate if self.policy == "restart" else scheduled) * factor)
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


def _write(group: dict[str, Any], rate: float) -> None:
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate
