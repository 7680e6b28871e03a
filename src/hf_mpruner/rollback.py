"""A pending cut in a file: the model and the optimizer as they were before it, so that a resumed run can go back, too."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .errors import MPrunerError, UnsupportedBackendError
from .optimizer import OptimizerEdit, cannot_insert, insert_dropped_groups, unwrap_optimizer
from .snapshot import untouched_parameters
from .storage import write_tensors

if TYPE_CHECKING:
    from .cut import PendingCut

_VERSION = 1


def names_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer of a model by name, each once; to be taken before a cut."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def write_rollback(file: Path, before: Mapping[str, Tensor], cut: PendingCut) -> None:
    """Write what `cut.undo()` would bring back: weights, buffers, optimizer state, flags, by the names before the cut.

    Args:
        file (`Path`): where to; complete or absent.
        before (`Mapping[str, Tensor]`): `names_of` the model before the cut.
        cut (`PendingCut`): not yet decided.

    Raises:
        MPrunerError: if the file cannot be written; the training is as it was.
    """
    if cut.snapshot is None:
        raise MPrunerError("This cut has no snapshot, so nothing can be written to go back to.")
    names = {id(tensor): name for name, tensor in before.items()}
    saved, training = cut.snapshot.saved_values(), cut.snapshot.saved_training()
    # what the snapshot does not hold is trained by nobody: frozen weights, which a merge may have written over, and the
    # removed blocks, whose live tensors are as they were
    merged = {id(param): value for merge in cut.model_edit.merges for param, value in merge.before.items()}
    untouched = {id(param) for param in cut.snapshot.untouched}
    values: dict[str, Any] = {
        "version": _VERSION,
        "tensors": {
            name: saved.get(id(tensor), merged.get(id(tensor), tensor.detach()))
            for name, tensor in before.items()
            if id(tensor) not in untouched
        },
        "untouched": sorted(name for name, tensor in before.items() if id(tensor) in untouched),
        "flags": {names[id(param)]: flag for param, flag in training.flags},
        "scaler": training.scaler_state,
        "checkpointed_every": cut.model_edit.checkpointed_every,
    }
    if cut.optimizer_edit is not None:
        states = {**cut.optimizer_edit.removed_state, **training.states}
        values["optimizer"] = {
            "groups": [[names[id(param)] for param in params] for params in cut.optimizer_edit.former_groups],
            "dropped": cut.optimizer_edit.describe(),
            "options": training.groups,
            "state": {names[id(param)]: state for param, state in states.items()},
        }
    write_tensors(file, values)


@dataclass(frozen=True)
class Rollback:
    """The contents of a rollback file.

    Args:
        tensors (`dict[str, Tensor]`): parameters and buffers before the cut.
        untouched (`list[str]`): parameters of a base model under adapters, which the script's model has.
        flags (`dict[str, bool]`): `requires_grad` of the parameters.
        optimizer (`dict`, *optional*): names of each group's parameters, options, states by name.
        scaler (`dict`): state of the gradient scaler.
        checkpointed_every (`int`): n if the activations of every n-th layer were checkpointed; else 0.
    """

    tensors: dict[str, Tensor]
    untouched: list[str]
    flags: dict[str, bool]
    optimizer: dict[str, Any] | None
    scaler: dict[str, Any]
    checkpointed_every: int = 0

    @classmethod
    def read(cls, file: Path) -> Rollback:
        """Read a file that `write_rollback` wrote.

        Raises:
            MPrunerError: if it is missing, truncated or of a newer format.
        """
        try:
            values = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            if values["version"] > _VERSION:
                raise ValueError(f"it has format {values['version']}, this hf_mpruner reads up to {_VERSION}")
        except (OSError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
            raise MPrunerError(
                f"'{file}' cannot be read: {error}. It holds the model before a cut that was not decided; without it the "
                "run cannot go on from this checkpoint. Resume from an older one."
            ) from error
        untouched = values.get("untouched", [])
        every = values.get("checkpointed_every", 0)
        return cls(values["tensors"], untouched, values["flags"], values.get("optimizer"), values["scaler"], every)

    @torch.no_grad()
    def restore_model(self, model: nn.Module) -> None:
        """Write weights, buffers and flags into a model that has all its blocks again.

        Raises:
            MPrunerError: if names or shapes differ; nothing was written then.
        """
        live = names_of(model)
        wrong = sorted(live.keys() ^ {*self.tensors, *self.untouched}) or [
            name for name, tensor in self.tensors.items() if tensor.shape != live[name].shape
        ]
        if wrong:
            raise MPrunerError(
                f"The model before the pending cut cannot be put back: '{wrong[0]}' is not the same in {type(model).__name__} "
                "and in the checkpoint. Build the model as the first run did, or resume from an older checkpoint."
            )
        for name, tensor in self.tensors.items():
            live[name].detach().copy_(tensor)
        for name, param in model.named_parameters():
            param.requires_grad_(self.flags[name])
            param.grad = None

    def check_optimizer(self, optimizer: Any, scheduler: Any, own: OptimizerEdit | None) -> None:
        """See whether `restore_optimizer` can do its work.

        Raises:
            UnsupportedBackendError: if groups that the cut had emptied cannot be put back; nothing was changed.
        """
        if self.optimizer is None or own is not None:
            return
        expected, dropped = len(self.optimizer["groups"]), self.optimizer["dropped"] or {"groups": {}, "lists": []}
        if reason := cannot_insert(optimizer, scheduler, dropped, expected):
            raise UnsupportedBackendError(
                f"{type(unwrap_optimizer(optimizer)).__name__} had {expected} parameter groups before the pending cut, "
                f"which cannot be put back: {reason}. Build optimizer and scheduler as the first run did, pass them as "
                "Trainer(optimizers=(optimizer, scheduler)), or resume from a checkpoint that was saved before that cut "
                'or after its verdict (save_strategy="epoch" makes such). Nothing was changed.'
            )

    def restore_optimizer(self, model: nn.Module, optimizer: Any, scheduler: Any, own: OptimizerEdit | None) -> None:
        """Put the groups and states before the cut into an optimizer that holds the candidate's.

        Args:
            model (`nn.Module`): with all its blocks again.
            optimizer: the live one, or accelerate's wrapper of it.
            scheduler (*optional*): the live one.
            own (`OptimizerEdit`, *optional*): the cut as it was made on an optimizer that the script had built.
        """
        if self.optimizer is None:
            return
        inner = unwrap_optimizer(optimizer)
        params = dict(model.named_parameters())
        if own is not None:
            own.undo()
        elif self.optimizer["dropped"]:
            insert_dropped_groups(optimizer, scheduler, self.optimizer["dropped"])
        # the step counts of fused and capturable optimizers lie beside the weights, those of others on the CPU
        counts = (v.device for s in inner.state.values() for v in s.values() if isinstance(v, Tensor) and not v.dim())
        place = next(counts, torch.device("cpu"))
        inner.state.clear()
        groups = zip(inner.param_groups, self.optimizer["groups"], self.optimizer["options"], strict=True)
        for group, names, options in groups:
            group["params"][:] = [params[name] for name in names]
            if "param_names" in group:
                group["param_names"][:] = names
            group.update(options)
        for name, state in self.optimizer["state"].items():
            inner.state[params[name]] = {
                key: _owned(value, params[name].device, place) for key, value in state.items()
            }


@dataclass(frozen=True)
class Candidate:
    """Weights and optimizer state of a candidate, by name: lifted off, and put back once the cut is made again."""

    tensors: dict[str, Tensor]
    states: dict[str, dict[str, Any]]
    options: list[dict[str, Any]]
    scaler: dict[str, Any]

    @classmethod
    def lift(cls, model: nn.Module, optimizer: Any, scaler: Any) -> Candidate:
        """Copy what the Trainer has loaded from the checkpoint."""
        inner = unwrap_optimizer(optimizer)
        names = {id(param): name for name, param in model.named_parameters()}
        untouched = {id(param) for param in untouched_parameters(model, optimizer)}
        moving = {name: tensor for name, tensor in names_of(model).items() if id(tensor) not in untouched}
        return cls(
            tensors={name: tensor.detach().clone() for name, tensor in moving.items()},
            states={names[id(param)]: dict(state) for param, state in inner.state.items()},
            options=[{k: v for k, v in g.items() if k not in ("params", "param_names")} for g in inner.param_groups],
            scaler={} if scaler is None else scaler.state_dict(),
        )

    @torch.no_grad()
    def put_back(self, model: nn.Module, optimizer: Any, scaler: Any) -> None:
        """Write it into the model that was cut again."""
        inner = unwrap_optimizer(optimizer)
        live = names_of(model)
        for name, tensor in self.tensors.items():
            live[name].detach().copy_(tensor)
        params = dict(model.named_parameters())
        for param in params.values():
            inner.state.pop(param, None)
        for name, state in self.states.items():
            inner.state[params[name]] = state
        for group, options in zip(inner.param_groups, self.options, strict=True):
            group.update(options)
        if scaler is not None:
            scaler.load_state_dict(self.scaler)


def _owned(value: Any, device: torch.device, place: torch.device) -> Any:
    """A tensor that is no view into the mapped file, where the optimizer expects it."""
    if not isinstance(value, Tensor):
        return value
    return value.to(device if value.dim() else place, copy=True)
