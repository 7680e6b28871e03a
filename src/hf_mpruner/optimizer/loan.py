"""`OptimizerLoan`: a live optimizer trains other parameters for a while, and then its own again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from hf_mpruner.errors import MPrunerError
from hf_mpruner.optimizer.wrappers import unwrap_optimizer


class OptimizerLoan:
    """Put other parameters into one group of an optimizer, in place, and leave the other groups empty meanwhile.

    Lists and states of its own parameters are kept by reference. No group is dropped, so schedulers see nothing of it.

    Args:
        optimizer (`torch.optim.Optimizer`): the live one, or accelerate's wrapper of it.
        parameters (`Mapping[str, nn.Parameter]`): what shall train, by name.
        like (`Iterable[nn.Parameter]`): parameters of the optimizer; the group with most of their entries is used, so
            that the newcomers get the learning rate and weight decay of what they stand for.

    Raises:
        MPrunerError: from `undo`, if something else changed the groups in between; nothing is changed then.

    Example:
        >>> import torch
        >>> own, other = (nn.Parameter(torch.ones(2)) for _ in range(2))
        >>> optimizer = torch.optim.SGD([own], lr=0.1)
        >>> loan = OptimizerLoan(optimizer, {"other": other}, like=[own])
        >>> loan.apply()
        >>> optimizer.param_groups[0]["params"][0] is other
        True
        >>> loan.undo()
        >>> optimizer.param_groups[0]["params"][0] is own
        True
    """

    def __init__(self, optimizer: Any, parameters: Mapping[str, nn.Parameter], like: Iterable[nn.Parameter]) -> None:
        """Nothing is changed yet."""
        self._optimizer = unwrap_optimizer(optimizer)
        self._parameters = dict(parameters)
        sizes = {id(param): param.numel() for param in like}
        weights = [sum(sizes.get(id(p), 0) for p in group["params"]) for group in self._optimizer.param_groups]
        self._group = weights.index(max(weights))
        self._lists: list[dict[str, list[Any]]] = []
        self._states: dict[Any, Any] | None = None

    def apply(self) -> None:
        """Lend the optimizer."""
        groups, state = self._optimizer.param_groups, self._optimizer.state
        self._lists = [
            {key: list(group[key]) for key in ("params", "param_names") if key in group} for group in groups
        ]
        self._states = dict(state)
        state.clear()
        for position, group in enumerate(groups):
            chosen = self._parameters if position == self._group else {}
            group["params"][:] = list(chosen.values())
            if "param_names" in group:
                group["param_names"][:] = list(chosen)

    def undo(self) -> None:
        """Give it back; does nothing if it was not lent."""
        if self._states is None:
            return
        groups, state = self._optimizer.param_groups, self._optimizer.state
        if [id(p) for group in groups for p in group["params"]] != [id(p) for p in self._parameters.values()]:
            raise MPrunerError(
                f"{type(self._optimizer).__name__} no longer trains what it was lent for: something else changed its groups "
                "during the recovery. Run without it, or with recovery='full'. Nothing was changed."
            )
        for group, lists in zip(groups, self._lists, strict=True):
            for key, values in lists.items():
                group[key][:] = values
        state.clear()
        state.update(self._states)
        self._states = None
