"""What kind of process group this is, what it needs around an edit, and the random state that we must not touch."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import nn

from .errors import UnsupportedBackendError

if TYPE_CHECKING:
    from transformers import Trainer

T = TypeVar("T")


class Runtime(ABC):
    """What an edit of a live model needs besides the edit itself, on one kind of process group.

    Args:
        name (`str`): what is running, for messages.
    """

    name: str

    @property
    @abstractmethod
    def is_main_process(self) -> bool:
        """Whether this process decides, writes and speaks."""

    @abstractmethod
    def before_edit(self) -> None:
        """Prepare wrappers for a change of the model; every process calls it before the change."""

    @abstractmethod
    def after_edit(self) -> None:
        """Bring wrappers in line with the changed model; every process calls it after the change."""

    @abstractmethod
    def broadcast(self, value: T) -> T:
        """What the main process passed, on every process."""

    @abstractmethod
    def all_equal(self, value: Any) -> bool:
        """Whether every process passed an equal value."""


class SingleProcess(Runtime):
    """One process on one device: nothing stands between the model and its parameters.

    Example:
        >>> SingleProcess().broadcast([0, 2])
        [0, 2]
    """

    name = "one process"

    @property
    def is_main_process(self) -> bool:
        """Always."""
        return True

    def before_edit(self) -> None:
        """Nothing to do."""

    def after_edit(self) -> None:
        """Nothing to do: a compiled model notices the change by its guards and compiles again."""

    def broadcast(self, value: T) -> T:
        """The value itself."""
        return value

    def all_equal(self, value: Any) -> bool:
        """Always."""
        return True


def detect_runtime(trainer: Trainer) -> Runtime:
    """Find out how a Trainer runs; to be called when its model is wrapped, in `on_train_begin`.

    Args:
        trainer (`Trainer`): about to train. Nothing is changed.

    Returns:
        `Runtime`: for one process on one device, whether or not the whole model is compiled.

    Raises:
        UnsupportedBackendError: for anything else, naming what was found and what to use.
    """
    for find, reason in _OBSTACLES:
        if found := find(trainer):
            raise UnsupportedBackendError(
                f"LayerPruningCallback cannot delete layers under <{found}>: {reason}. Train in one process on one "
                "device (python script.py, with one accelerator visible). Nothing was changed."
            )
    return SingleProcess()


def _deepspeed(trainer: Any) -> str:
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    return "" if plugin is None else f"ZeRO-{plugin.zero_stage} (DeepSpeedEngine)"


def _fsdp(trainer: Any) -> str:
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None:
        return f"FSDP{getattr(plugin, 'fsdp_version', 1)}"
    kinds = {name for module in _whole(trainer).modules() for name in _class_names(module)}
    return "FSDP1" if "FullyShardedDataParallel" in kinds else "FSDP2" if "FSDPModule" in kinds else ""


def _other_engine(trainer: Any) -> str:
    # both enumerations are compared by their text, which spares importing accelerate
    kind, mode = str(trainer.accelerator.distributed_type.value), str(trainer.args.parallel_mode.value)
    if kind in ("XLA", "MEGATRON_LM"):
        return {"XLA": "TorchXLA", "MEGATRON_LM": "Megatron-LM"}[kind]
    return {"tpu": "TorchXLA"}.get(mode, f"SageMaker ({mode})" if mode.startswith("sagemaker") else "")


def _model_parallel(trainer: Any) -> str:
    model = trainer.model
    devices = sorted({str(device) for device in (getattr(model, "hf_device_map", None) or {}).values()})
    if len(devices) > 1:
        return f"device_map over {', '.join(devices)}"
    if (size := getattr(model, "tp_size", None) or 1) > 1:
        return f"tensor parallel over {size} devices"
    parallel = getattr(model, "is_distributed_loading_by_transformers", False)
    sharded = any(hasattr(param, "device_mesh") for param in model.parameters())
    return "a model sharded over devices (DTensor)" if parallel or sharded else ""


def _data_parallel(trainer: Any) -> str:
    names = _class_names(_whole(trainer))
    count = max(trainer.accelerator.num_processes, 1)
    if count > 1 or "DistributedDataParallel" in names:
        return f"DistributedDataParallel, {count} processes"
    if trainer.args.n_gpu > 1 or "DataParallel" in names:
        return f"nn.DataParallel, {trainer.args.n_gpu} devices"
    return ""


def _regional_compile(trainer: Any) -> str:
    whole = _whole(trainer)
    compiled = [module for module in whole.modules() if "OptimizedModule" in _class_names(module)]
    return f"regional compilation, {len(compiled)} parts" if compiled and whole is not trainer.model else ""


def _unknown_wrapper(trainer: Any) -> str:
    whole = _whole(trainer)
    return "" if whole is trainer.model else type(whole).__name__


# In this order: what is underneath is named before what it is wrapped in.
_OBSTACLES: tuple[tuple[Callable[[Any], str], str], ...] = (
    (
        _deepspeed,
        "the engine keeps flat copies of all parameters, and its checkpoints would describe the unpruned model",
    ),
    (_fsdp, "the parameters are sharded over processes, which is not supported yet"),
    (_other_engine, "the engine compiles or partitions the whole model before training"),
    (_model_parallel, "the layers are spread over devices, and what connects them was set up for the full depth"),
    (_data_parallel, "the gradients of deleted layers would still be waited for"),
    (_regional_compile, "a compiled copy holds its own list of layers and would go on training the deleted ones"),
    (_unknown_wrapper, "it is not known to follow a change of the model inside it"),
)


def _whole(trainer: Any) -> nn.Module:
    """The model that the training loop calls, without the wrapper of whole-model `torch.compile`."""
    wrapped: nn.Module = trainer.model_wrapped
    # accelerate also leaves `_orig_mod` on a regionally compiled copy, which is no such wrapper
    while wrapped is not trainer.model and "OptimizedModule" in _class_names(wrapped):
        wrapped = wrapped._orig_mod  # type: ignore[assignment]
    return wrapped


def _class_names(module: nn.Module) -> set[str]:
    return {kind.__name__ for kind in type(module).__mro__}


@contextmanager
def keep_rng_state() -> Iterator[None]:
    """Leave the random generators of Python, NumPy and torch (CPU and accelerator) as they are found.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> with keep_rng_state():
        ...     first = torch.rand(1)
        >>> torch.equal(torch.rand(1), first)
        True
    """
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    read, write = _accelerator_generators()
    accelerator = read()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        write(accelerator)


def _accelerator_generators() -> tuple[Callable[[], Any], Callable[[Any], None]]:
    """Functions that read and set the state of every generator of the current accelerator."""
    device = torch.accelerator.current_accelerator()
    if device is None or not torch.accelerator.is_available():
        return (lambda: None), (lambda state: None)
    module = torch.get_device_module(device)
    if hasattr(module, "get_rng_state_all"):
        return module.get_rng_state_all, module.set_rng_state_all
    return module.get_rng_state, module.set_rng_state
