"""`Snapshot`: what training changes after a cut, so that a rejected cut can be taken back bit for bit.

Deleted blocks are not copied: nobody trains them, so whoever undoes the cut keeps them by reference. Survivors are
cloned and later written back in place, since the optimizer, compiled graphs and wrappers hold on to the same tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hf_mpruner.architectures.adapters import adapted_modules
from hf_mpruner.errors import MPrunerError, UnsupportedBackendError
from hf_mpruner.optimizer import unwrap_optimizer
from hf_mpruner.snapshot.store import InFile, InMemory, Store, local_tensor, num_bytes_of

# What a schedule or the user moves in a parameter group. It goes on after a rollback, like the step count of the run.
# Everything else in a group belongs to the weights, e.g. the counters and the mode of schedule-free optimizers.
_SCHEDULED = {
    "lr",
    "initial_lr",
    "max_lr",
    "min_lr",
    "momentum",
    "betas",
    "max_momentum",
    "base_momentum",
    "weight_decay",
}
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


class Snapshot:
    """The surviving weights, buffers and optimizer state of a model at one moment; made by `Snapshot.take`.

    Not part of it, on purpose: learning rates, the scheduler, random states and step counts of the run. The run's
    clock goes on after a rollback; only what was learned is forgotten.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> snapshot = Snapshot.take(model, None, removed=(), where="cpu", directory=None)
        >>> before = model.weight.detach().clone()
        >>> _ = nn.init.zeros_(model.weight)
        >>> snapshot.restore()
        >>> torch.equal(model.weight, before)
        True
    """

    def __init__(self, live: _Live, store: Store, num_bytes: int) -> None:
        """Hold what `take` collected."""
        self._live: _Live | None = live
        self._store = store
        self._num_bytes = num_bytes

    @classmethod
    def take(
        cls,
        model: nn.Module,
        optimizer: Any,
        *,
        removed: Iterable[nn.Parameter],
        frozen: Iterable[nn.Parameter] = (),
        where: Literal["cpu", "device", "disk"],
        directory: Path | None = None,
        scaler: Any = None,
    ) -> Snapshot:
        """Copy what training will change, before a cut.

        Args:
            model (`nn.Module`): not yet cut.
            optimizer (*optional*): the live one, or accelerate's wrapper of it.
            removed (`Iterable[nn.Parameter]`): parameters of the blocks that will go. Neither they, nor the buffers
                beside them, nor their optimizer state are copied; only their `requires_grad` is remembered. Nor is the
                frozen base model under PEFT adapters, which would be most of the memory.
            frozen (`Iterable[nn.Parameter]`): parameters that stay but do not train: they and their state are not copied
                either, only the buffers beside them.
            where (`"cpu"`, `"device"` or `"disk"`): main memory, the device of each tensor, or a file. The file's
                name begins with `_`, which keeps it out of uploads by `Trainer.push_to_hub`.
            directory (`Path`, *optional*): folder of the file, made if needed. Not a `checkpoint-*` folder: the
                Trainer deletes those.
            scaler (*optional*): the gradient scaler of mixed precision, e.g. `accelerator.scaler`.

        Returns:
            `Snapshot`: the model and the optimizer are untouched.

        Raises:
            ValueError: for an unknown `where`, or a missing or unfit `directory`.
            MPrunerError: if the file cannot be written; says how many bytes were needed and how many are free.
            UnsupportedBackendError: if the optimizer keeps objects that cannot be copied.
        """
        if where not in ("cpu", "device", "disk"):
            raise ValueError(f"where={where!r} is no place for a snapshot. Pass 'cpu', 'device' or 'disk'.")
        live = _collect(model, optimizer, set(removed), set(frozen), scaler)
        store: Store
        if where == "disk":
            store = InFile.write(live.tensors, _checked(directory))
        else:
            store = InMemory.copy(live.tensors, to_cpu=where == "cpu")
        return cls(live, store, num_bytes_of(live.tensors))

    @property
    def untouched(self) -> set[nn.Parameter]:
        """The frozen parameters under adapters, those of the removed blocks included: not stored, nobody trains them.

        Raises:
            MPrunerError: if the snapshot was released.
        """
        return self._require().untouched

    @property
    def num_bytes(self) -> int:
        """Bytes of tensors in the snapshot: surviving weights x (1 + state tensors of that size a parameter)."""
        return self._num_bytes

    @torch.no_grad()
    def restore(self) -> None:
        """Write everything back in place; may be called again. Gradients are dropped.

        Raises:
            MPrunerError: if the snapshot was released, or its file is missing, truncated or not readable; the model
                is untouched then.
        """
        live = self._require()
        saved = self._store.read()
        for tensor, values in zip(live.tensors, saved, strict=True):
            local_tensor(tensor).copy_(values)
        for module, name, buffer in live.buffers:
            if module._buffers.get(name) is not buffer:
                module._buffers[name] = buffer
        for param, requires_grad in live.flags:
            param.requires_grad_(requires_grad)
            param.grad = None
        if live.optimizer is not None:
            _restore_optimizer(live)
        if live.scaler is not None:
            live.scaler.load_state_dict(live.scaler_state)

    def saved_values(self) -> dict[int, Tensor]:
        """The stored values, by the `id` of the live tensor they belong to.

        Raises:
            MPrunerError: as `restore`.
        """
        live = self._require()
        return {id(tensor): values for tensor, values in zip(live.tensors, self._store.read(), strict=True)}

    def saved_training(self) -> SavedTraining:
        """The stored state of optimizer and scaler, and the flags, with stored values in place of live tensors.

        Raises:
            MPrunerError: as `restore`.
        """
        live, values = self._require(), self.saved_values()
        return SavedTraining(
            states={param: _with_values(state, values) for param, state in live.states.items()},
            groups=[_with_values(options, values) for _, options in live.groups],
            flags=live.flags,
            scaler_state=live.scaler_state,
        )

    def _require(self) -> _Live:
        if self._live is None:
            raise MPrunerError("This snapshot was released: nothing is left to go back to.")
        return self._live

    def release(self) -> None:
        """Free the copies and delete the file; may be called again. `restore` is an error from now on."""
        self._live = None
        self._store.release()


@dataclass(frozen=True)
class SavedTraining:
    """What a snapshot holds besides weights and buffers.

    Args:
        states (`dict`): optimizer state by live parameter.
        groups (`list[dict]`): the options of each parameter group that go back with the weights.
        flags: `requires_grad` of every parameter.
        scaler_state (`dict`): of the gradient scaler; empty without one.
    """

    states: dict[Any, Any]
    groups: list[dict[str, Any]]
    flags: list[tuple[nn.Parameter, bool]]
    scaler_state: dict[str, Any]


@dataclass
class _Live:
    """References into the live model and optimizer; `tensors` are the ones whose values are stored."""

    tensors: list[Tensor]
    buffers: list[tuple[nn.Module, str, Tensor | None]]
    flags: list[tuple[nn.Parameter, bool]]
    optimizer: Any
    still: set[nn.Parameter]  # removed or frozen: as they are now
    untouched: set[nn.Parameter]
    states: dict[Any, Any]
    groups: list[tuple[dict[str, Any], dict[str, Any]]]
    scaler: Any
    scaler_state: dict[str, Any]


def untouched_parameters(model: nn.Module, optimizer: Any) -> set[nn.Parameter]:
    """The frozen parameters of a model with PEFT adapters that no optimizer holds; none for other models.

    Others may have frozen weights that move all the same, such as averages of those that train.

    Args:
        model (`nn.Module`): what trains.
        optimizer (*optional*): the live one, or accelerate's wrapper of it.

    Example:
        >>> untouched_parameters(nn.Linear(1, 1).requires_grad_(False), None)
        set()
    """
    if not adapted_modules(model):
        return set()
    groups = [] if optimizer is None else unwrap_optimizer(optimizer).param_groups
    held = {param for group in groups for param in group["params"]}
    return {param for param in model.parameters() if not param.requires_grad and param not in held}


def _collect(
    model: nn.Module, optimizer: Any, removed: set[nn.Parameter], frozen: set[nn.Parameter], scaler: Any
) -> _Live:
    params = list(model.parameters())
    buffers = [
        (module, name, buffer)
        for module in _surviving_modules(model, removed)
        for name, buffer in module._buffers.items()
    ]
    untouched = untouched_parameters(model, optimizer)
    still = removed | frozen | untouched
    tensors: list[Tensor] = [param for param in params if param not in still]
    tensors.extend(buffer for _, _, buffer in buffers if buffer is not None)
    live = _Live(
        tensors=tensors,
        buffers=buffers,
        flags=[(param, param.requires_grad) for param in params],
        optimizer=None if optimizer is None else unwrap_optimizer(optimizer),
        still=still,
        untouched=untouched,
        states={},
        groups=[],
        scaler=scaler,
        scaler_state={} if scaler is None else scaler.state_dict(),
    )
    if live.optimizer is not None:
        owner = type(live.optimizer).__name__
        for param, state in live.optimizer.state.items():
            if param not in still:
                live.states[param] = _outline(state, tensors, owner)
        for group in live.optimizer.param_groups:
            own = {key: value for key, value in group.items() if key not in {"params", "param_names", *_SCHEDULED}}
            live.groups.append((group, {key: _outline(value, tensors) for key, value in own.items()}))
    return live


def _surviving_modules(
    module: nn.Module, removed: set[nn.Parameter], seen: set[nn.Module] | None = None
) -> Iterator[nn.Module]:
    """All modules, each once, but those of which every parameter goes, and what is inside them."""
    seen = set() if seen is None else seen
    if module in seen:
        return
    seen.add(module)
    params = list(module.parameters())
    if params and all(param in removed for param in params):
        return
    yield module
    for child in module.children():
        yield from _surviving_modules(child, removed, seen)


def _outline(value: Any, tensors: list[Tensor], owner: str = "") -> Any:
    """Copy the containers of a value, keep its tensors by reference, and note those in `tensors`.

    With `owner`, the name of the optimizer whose state this is, other objects are refused; without, kept.
    """
    if isinstance(value, Tensor):
        tensors.append(value)
        return value
    if isinstance(value, dict):
        return {key: _outline(item, tensors, owner) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_outline(item, tensors, owner) for item in value)
    if owner and not isinstance(value, _PLAIN):
        raise UnsupportedBackendError(
            f"{owner} keeps a {type(value).__name__} in its state, which cannot be copied and put back. Use an "
            'optimizer of torch, e.g. TrainingArguments(optim="adamw_torch"). Nothing was changed.'
        )
    return value


def _containers(value: Any) -> Any:
    """Fresh containers around the same tensors, so that a later change does not reach the snapshot."""
    if isinstance(value, dict):
        return {key: _containers(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_containers(item) for item in value)
    return value


def _with_values(value: Any, values: dict[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return values[id(value)]
    if isinstance(value, dict):
        return {key: _with_values(item, values) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_with_values(item, values) for item in value)
    return value


def _restore_optimizer(live: _Live) -> None:
    state = live.optimizer.state
    # A parameter that had no state then begins anew. Removed ones are the business of whoever undoes the cut.
    for param in [param for param in state if param not in live.states and param not in live.still]:
        del state[param]
    for param, outline in live.states.items():
        state[param] = _containers(outline)
    for group, values in live.groups:
        group.update(_containers(values))


def _checked(directory: Path | None) -> Path:
    if directory is None:
        raise ValueError("where='disk' needs a folder to write to: pass directory=Path(...), e.g. the output_dir.")
    directory = Path(directory).absolute()
    if directory.name.startswith("checkpoint-"):
        raise ValueError(
            f"directory='{directory}' is named like a checkpoint of the Trainer, which deletes old ones and the "
            f"snapshot with them. Pass another folder, e.g. '{directory.parent}'."
        )
    return directory
