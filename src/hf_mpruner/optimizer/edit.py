"""`OptimizerEdit`: parameters leave a live optimizer and its scheduler, and come back exactly.

The optimizer object is never replaced: the training loop, accelerate's wrapper and the gradient scaler hold on to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from hf_mpruner.errors import MPrunerError
from hf_mpruner.optimizer.wrappers import find_schedulers, is_scheduler, unwrap_optimizer

# Lists of torch's schedulers that count milestones or phases, not parameter groups, whatever their length.
_NOT_PER_GROUP = {"_milestones", "milestones", "_schedule_phases"}


@dataclass(frozen=True)
class _Before:
    """What `OptimizerEdit.apply` changed, by reference."""

    groups: list[dict[str, Any]]
    values: list[dict[str, list[Any]]]  # per group: "params" and, if there, "param_names"
    kept_groups: list[int]
    after: list[list[nn.Parameter]]  # what each surviving group held right after the edit
    rates: list[float]
    state_order: list[Any]
    removed_state: dict[Any, Any]
    trimmed_state: dict[Any, Any]
    lists: list[tuple[Any, str, list[Any]]]  # (scheduler, attribute, values)
    clock: int | None


class OptimizerEdit:
    """Remove parameters from an optimizer and its scheduler in place, with an exact undo.

    A group that loses all its parameters is dropped, and with it its entry in every per-group list of the schedulers,
    so that `optimizer.pt` and `scheduler.pt` fit the smaller model. The state of removed parameters is kept by
    reference. What moves meanwhile in the groups that stay (learning rate, steps, moments) is not touched by `undo`.

    A dropped group comes back with the learning rate that its schedule has reached: `base_lr * lr_lambda(step)` under
    a plain `LambdaLR` (every schedule of transformers but the plateau ones). Under any other scheduler its former
    rate is multiplied by the smallest factor that a surviving group's rate went through, and not below its `min_lrs`:
    exact for schedules that multiply, and for all others right again at their next step.

    Args:
        optimizer (`torch.optim.Optimizer`): the live one, or accelerate's wrapper of it.
        scheduler (*optional*): the live one, possibly accelerate's wrapper, nested or not.
        removed (`Iterable[nn.Parameter]`): parameters of the deleted blocks; some may be in no group.
        trimmed (`Mapping[nn.Parameter, Callable]`, *optional*): parameters that stay but lose entries, not yet changed,
            each with what makes a shorter tensor of one of its present shape. Their moments lose the same entries.
        model (`nn.Module`, *optional*): what the optimizer trains. `optimizer.pt` numbers parameters by their place, and
            a cut can change the order in which a model names them (T5's relative bias moves into the new first block).
            A group that was in the model's order is put in the order of the model as it is when `apply` is called, i.e.
            after the cut, as a fresh small model's would be. Groups in another order keep theirs.

    Raises:
        MPrunerError: from `apply`, if it was applied already or no parameter would be left to train; from `undo`, if
            something else changed the groups in between. Nothing is changed then.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> edit = OptimizerEdit(optimizer, None, model[1].parameters())
        >>> edit.apply()
        >>> len(optimizer.param_groups[0]["params"])
        2
        >>> edit.undo()
        >>> len(optimizer.param_groups[0]["params"])
        4
    """

    def __init__(
        self,
        optimizer: Any,
        scheduler: Any,
        removed: Iterable[nn.Parameter],
        trimmed: Mapping[nn.Parameter, Callable[[Tensor], Tensor]] | None = None,
        model: nn.Module | None = None,
    ) -> None:
        """Look at the optimizer; nothing is changed yet. The model is not cut yet either: its order is noted."""
        self._trimmed = {param: (param.shape, trim) for param, trim in (trimmed or {}).items()}
        self._optimizer = unwrap_optimizer(optimizer)
        self._schedulers = list(find_schedulers(scheduler))
        self._removed = set(removed)
        self._model = model
        self._ordered = [_in_order(group["params"], model) for group in self._optimizer.param_groups]
        self._before: _Before | None = None

    def apply(self) -> None:
        """Take the parameters out."""
        if self._before is not None:
            raise MPrunerError("This OptimizerEdit is applied already: call undo() first.")
        groups, state = self._optimizer.param_groups, self._optimizer.state
        stay = [[p not in self._removed for p in group["params"]] for group in groups]
        if not any(any(flags) for flags in stay):
            raise MPrunerError(
                f"The cut would remove all {sum(map(len, stay))} parameters that {type(self._optimizer).__name__} "
                "trains. Protect a layer that trains, or unfreeze others. Nothing was changed."
            )
        # A group that was empty before is the user's own and stays.
        kept_groups = [i for i, flags in enumerate(stay) if any(flags) or not flags]
        before = _Before(
            groups=list(groups),
            values=[{key: list(group[key]) for key in ("params", "param_names") if key in group} for group in groups],
            kept_groups=kept_groups,
            after=[[p for p in groups[i]["params"] if p not in self._removed] for i in kept_groups],
            rates=[float(group["lr"]) if "lr" in group else 0.0 for group in groups],
            state_order=list(state),
            removed_state={p: state[p] for p in list(state) if p in self._removed},
            trimmed_state={p: state[p] for p in self._trimmed if p in state},
            lists=self._find_lists(len(groups)) if len(kept_groups) < len(groups) else [],
            clock=getattr(self._schedulers[-1], "last_epoch", None) if self._schedulers else None,
        )
        self._before = before
        for param, former in before.trimmed_state.items():
            shape, trim = self._trimmed[param]
            if any(isinstance(value, Tensor) and value.dim() and value.shape != shape for value in former.values()):
                del state[param]  # factored moments (Adafactor) cannot be cut: they begin anew
            else:
                state[param] = {
                    name: trim(value) if isinstance(value, Tensor) and value.dim() else value
                    for name, value in former.items()
                }
        for param in before.removed_state:
            del state[param]
        for group, flags in zip(before.groups, stay, strict=True):
            for key in ("params", "param_names"):
                if key in group:
                    group[key][:] = [value for value, stays in zip(group[key], flags, strict=True) if stays]
        groups[:] = [before.groups[i] for i in kept_groups]
        self._put_in_order(before)
        for values in _distinct(getattr(owner, name) for owner, name, _ in before.lists):
            values[:] = [values[i] for i in kept_groups]

    def undo(self) -> None:
        """Put the parameters back where they were; does nothing if nothing was applied."""
        before = self._before
        if before is None:
            return
        self._check_unchanged(before)
        self._before = None
        survivors = dict(zip(before.kept_groups, list(self._optimizer.param_groups), strict=True))
        rebuilt = [survivors.get(i, group) for i, group in enumerate(before.groups)]
        for group, values in zip(rebuilt, before.values, strict=True):
            for key, former in values.items():
                group[key][:] = former
        self._optimizer.param_groups[:] = rebuilt
        self._restore_state(before)
        self._restore_lists(before)
        self._restore_rates(before, survivors)

    @property
    def former_groups(self) -> list[list[nn.Parameter]]:
        """Parameters of each group before the edit; the live ones while nothing is applied."""
        if self._before is None:
            return [list(group["params"]) for group in self._optimizer.param_groups]
        return [values["params"] for values in self._before.values]

    @property
    def dropped_groups(self) -> list[int]:
        """Positions of the groups that lost all their parameters."""
        if self._before is None:
            return []
        return [i for i in range(len(self._before.groups)) if i not in self._before.kept_groups]

    @property
    def removed_state(self) -> dict[Any, Any]:
        """State of the removed parameters, by reference."""
        return {} if self._before is None else dict(self._before.removed_state)

    def describe(self) -> dict[str, Any]:
        """What `recall` needs, as plain values and tensors for a file; empty if no group was dropped."""
        before, dropped = self._before, self.dropped_groups
        if before is None or not dropped:
            return {}
        return {
            "groups": {
                i: {key: value for key, value in before.groups[i].items() if key not in ("params", "param_names")}
                for i in dropped
            },
            "rates": before.rates,
            "clock": before.clock,
            "lists": [
                (self._schedulers.index(owner), name, None if any(map(callable, values)) else values)
                for owner, name, values in before.lists
            ],
        }

    def recall(self, saved: Mapping[str, Any]) -> None:
        """Undo will bring dropped groups back as the edit that `describe` was called of.

        Args:
            saved (`Mapping`): of the same edit in another process, made when the clock stood elsewhere.
        """
        before = self._before
        if before is None or not saved:
            return
        for position, options in saved["groups"].items():
            before.groups[position].update(options)
        known = {(number, name): values for number, name, values in saved["lists"]}
        lists = [
            (owner, name, known.get((self._schedulers.index(owner), name)) or values)
            for owner, name, values in before.lists
        ]
        self._before = replace(before, rates=saved["rates"], clock=saved["clock"], lists=lists)

    # -- parts ------------------------------------------------------------------------------------------------------

    def _put_in_order(self, before: _Before) -> None:
        """Each group that was in the order of the uncut model: in the order of the cut one."""
        for position, (old, group) in enumerate(zip(before.kept_groups, self._optimizer.param_groups, strict=True)):
            if self._model is None or not self._ordered[old]:
                continue
            place = _places(self._model)
            places = [place.get(param, len(place)) for param in group["params"]]
            order = sorted(range(len(places)), key=places.__getitem__)
            for key in ("params", "param_names"):
                if key in group:
                    group[key][:] = [group[key][i] for i in order]
            before.after[position] = list(group["params"])

    def _find_lists(self, num_groups: int) -> list[tuple[Any, str, list[Any]]]:
        """Every list of a scheduler that has one entry a group: `base_lrs`, `lr_lambdas`, `min_lrs`, ..."""
        return [
            (owner, name, list(values))
            for owner in self._schedulers
            for name, values in vars(owner).items()
            if isinstance(values, list)
            and len(values) == num_groups
            and name not in _NOT_PER_GROUP
            and not any(is_scheduler(value) or isinstance(value, Optimizer) for value in values)
        ]

    def _check_unchanged(self, before: _Before) -> None:
        now = [group["params"] for group in self._optimizer.param_groups]
        fault = ""
        for owner, name, _ in before.lists:
            if (length := len(getattr(owner, name))) != len(before.kept_groups):
                fault = f"{type(owner).__name__}.{name} of length {length}, but the cut left {len(before.kept_groups)}"
        if [list(map(id, params)) for params in now] != [list(map(id, params)) for params in before.after]:
            sizes = [len(params) for params in now], [len(params) for params in before.after]
            fault = f"groups of {sizes[0]} parameters, but the cut left {sizes[1]}, or others"
        if fault:
            raise MPrunerError(
                f"{type(self._optimizer).__name__} cannot take its removed parameters back: it has {fault}. Something "
                "changed it since the cut: undo in the reverse order of the edits. Nothing was changed."
            )

    def _restore_state(self, before: _Before) -> None:
        state = self._optimizer.state
        now = dict(state)
        state.clear()
        for key in before.state_order:
            if key in before.removed_state:
                state[key] = before.removed_state[key]
            elif key in before.trimmed_state:
                state[key] = before.trimmed_state[key]
                now.pop(key, None)
            elif key in now:
                state[key] = now.pop(key)
        state.update(now)

    def _restore_lists(self, before: _Before) -> None:
        former = {id(getattr(owner, name)): values for owner, name, values in before.lists}
        for values in _distinct(getattr(owner, name) for owner, name, _ in before.lists):
            survivors = dict(zip(before.kept_groups, list(values), strict=True))
            values[:] = [survivors.get(i, value) for i, value in enumerate(former[id(values)])]

    def _restore_rates(self, before: _Before, survivors: dict[int, dict[str, Any]]) -> None:
        factors = [
            float(group["lr"]) / before.rates[i] for i, group in survivors.items() if before.rates[i] and "lr" in group
        ]
        for i, group in enumerate(before.groups):
            if i in survivors or "lr" not in group:
                continue
            rate = self._scheduled_rate(i, before.rates[i], min(factors, default=1.0), before.clock)
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
            for owner, name, former in before.lists:
                # an inactive part of a SequentialLR remembers another rate, which is right as it is
                if name == "_last_lr" and float(former[i]) == before.rates[i]:
                    getattr(owner, name)[i] = rate

    def _scheduled_rate(self, position: int, former: float, factor: float, clock: int | None) -> float:
        """The learning rate of a group that comes back; see the class."""
        leaves = [scheduler for scheduler in self._schedulers if hasattr(scheduler, "optimizer")]
        if len(leaves) == 1 and type(leaves[0]) is LambdaLR:
            schedule = leaves[0]
            if schedule.last_epoch == clock:
                return former
            return float(schedule.base_lrs[position] * schedule.lr_lambdas[position](schedule.last_epoch))
        floor = min(
            (scheduler.min_lrs[position] for scheduler in leaves if hasattr(scheduler, "min_lrs")), default=0.0
        )
        return max(former * factor, min(floor, former))


def _places(model: nn.Module) -> dict[nn.Parameter, int]:
    return {param: place for place, param in enumerate(model.parameters())}


def _in_order(params: list[nn.Parameter], model: nn.Module | None) -> bool:
    """Whether a group lists its parameters in the model's order; not, if one is no parameter of the model."""
    if model is None:
        return False
    place = _places(model)
    if any(param not in place for param in params):
        return False
    places = [place[param] for param in params]
    return places == sorted(places)


def _distinct(values: Iterable[list[Any]]) -> list[list[Any]]:
    """Each list once: SequentialLR shares its `_last_lr` with the scheduler that is active."""
    return list({id(value): value for value in values}.values())
