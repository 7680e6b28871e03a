"""Find out how a Trainer runs, and refuse by name what cannot lose layers in a running loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import accelerate
from accelerate.utils import compare_versions
from torch import nn

from hf_mpruner.errors import UnsupportedBackendError
from hf_mpruner.runtime.base import Runtime, SingleProcess
from hf_mpruner.runtime.ddp import DataParallelProcesses, find_ddp
from hf_mpruner.runtime.fsdp import ShardedProcesses, blocks_without_unit

if TYPE_CHECKING:
    from transformers import Trainer

_INSTEAD = (
    "Use one process, DDP (torchrun, or accelerate launch --multi_gpu) or FSDP2 with one unit per block. Nothing was "
    "changed."
)
# Where a Trainer can be made anew for each round.
_CYCLES = (
    "Use one process, DDP or FSDP2 with one unit per block, or hf_mpruner.prune_in_cycles(...), which trains each round "
    "with a fresh Trainer. Nothing was changed."
)


def detect_runtime(trainer: Trainer) -> Runtime:
    """Find out how a Trainer runs; to be called when its model is wrapped, in `on_train_begin`, on every process.

    Args:
        trainer (`Trainer`): about to train. Nothing is changed.

    Returns:
        `Runtime`: one process on one device, DDP or FSDP2, whether or not the whole model is compiled.

    Raises:
        UnsupportedBackendError: for anything else, naming what was found and what to use.
    """
    for find, reason, instead in _OBSTACLES:
        if found := find(trainer):
            raise UnsupportedBackendError(
                f"LayerPruningCallback cannot delete layers under <{found}>: {reason}. {instead}"
            )
    if _has_units(trainer.model):
        return ShardedProcesses(trainer)
    return SingleProcess() if find_ddp(trainer.model_wrapped) is None else DataParallelProcesses(trainer)


def _deepspeed(trainer: Any) -> str:
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    return "" if plugin is None else f"ZeRO-{plugin.zero_stage} (DeepSpeedEngine)"


def _fsdp1(trainer: Any) -> str:
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    old = plugin is not None and str(getattr(plugin, "fsdp_version", 1)) == "1"
    kinds = {name for module in _whole(trainer).modules() for name in _class_names(module)}
    return "FSDP1" if old or "FullyShardedDataParallel" in kinds else ""


def _fsdp_idle(trainer: Any) -> str:
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    return "" if plugin is None or _has_units(trainer.model) else "FSDP2 that sharded nothing"


def _sharded_adapters(trainer: Any) -> str:
    from hf_mpruner.architectures.adapters import adapted_modules

    return "FSDP2 with PEFT adapters" if _has_units(trainer.model) and adapted_modules(trainer.model) else ""


def _fsdp_units(trainer: Any) -> str:
    if not _has_units(trainer.model):
        return ""
    whole = blocks_without_unit(trainer.model)
    return f"FSDP2 without a unit for {whole[0]}" if whole else ""


def _old_accelerate(trainer: Any) -> str:
    old = _has_units(trainer.model) and compare_versions("accelerate", "<", "1.9")
    return f"FSDP2 with accelerate {accelerate.__version__}" if old else ""


def _hybrid(trainer: Any) -> str:
    if not _has_units(trainer.model):
        return ""
    dims = {param.device_mesh.ndim for param in trainer.model.parameters() if hasattr(param, "device_mesh")}
    return f"FSDP2 on a mesh of {max(dims)} dimensions" if dims and max(dims) > 1 else ""


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
    sharded = not _has_units(model) and any(hasattr(param, "device_mesh") for param in model.parameters())
    return "a model sharded over devices (DTensor)" if parallel or sharded else ""


def _data_parallel(trainer: Any) -> str:
    found = trainer.args.n_gpu > 1 or "DataParallel" in _class_names(_whole(trainer))
    return f"nn.DataParallel, {trainer.args.n_gpu} devices" if found else ""


def _no_wrapper(trainer: Any) -> str:
    count = trainer.accelerator.num_processes
    alone = find_ddp(trainer.model_wrapped) is None and not _has_units(trainer.model)
    return f"{count} processes without DDP or FSDP2" if count > 1 and alone else ""


def _regional_compile(trainer: Any) -> str:
    whole = _whole(trainer)
    compiled = [module for module in whole.modules() if "OptimizedModule" in _class_names(module)]
    inside = whole if find_ddp(whole) is not whole else whole.module
    return f"regional compilation, {len(compiled)} parts" if compiled and inside is not trainer.model else ""


def _unknown_wrapper(trainer: Any) -> str:
    whole = _whole(trainer)
    return "" if whole is trainer.model or find_ddp(whole) is whole else type(whole).__name__


# In this order: what is underneath is named before what it is wrapped in.
_OBSTACLES: tuple[tuple[Callable[[Any], str], str, str], ...] = (
    (
        _deepspeed,
        "the engine keeps flat copies of all parameters, and its checkpoints would describe the unpruned model",
        _CYCLES,
    ),
    (_fsdp1, "its units hold flat copies of their parameters, from which no layer can be taken", _CYCLES),
    (_other_engine, "the engine compiles or partitions the whole model before training", _INSTEAD),
    (
        _model_parallel,
        "the layers are spread over devices, and what connects them was set up for the full depth",
        _INSTEAD,
    ),
    (_data_parallel, "the model is copied to the devices anew in every step, which was not tested", _CYCLES),
    (
        _regional_compile,
        "a compiled copy holds its own list of layers and would go on training the deleted ones",
        _CYCLES,
    ),
    (_unknown_wrapper, "it is not known to follow a change of the model inside it", _CYCLES),
    (
        _fsdp_idle,
        "the plugin is on, but accelerate left the model whole",
        "Leave out fsdp=..., or train on devices that FSDP2 supports. Nothing was changed.",
    ),
    (
        _sharded_adapters,
        "the base that adapters are saved with would have to be gathered, which was not tested",
        "Train with DDP (torchrun without fsdp=...), where only the adapters are sent around. Nothing was changed.",
    ),
    (
        _fsdp_units,
        "parameters of a deleted layer would be gathered in every step, since they share a unit with others",
        "Wrap each layer: fsdp_config={'auto_wrap_policy': 'TRANSFORMER_BASED_WRAP', 'transformer_layer_cls_to_wrap': "
        "['BertLayer']}, with your model's class of layers. Nothing was changed.",
    ),
    (
        _old_accelerate,
        "it waits for ever when a checkpoint is loaded, pruned or not",
        "Update it: pip install -U 'accelerate>=1.9'. Nothing was changed.",
    ),
    (_hybrid, "only sharding over one dimension was tested", _INSTEAD),
    (
        _no_wrapper,
        "each process would train a model of its own. If trainer.evaluate() or trainer.predict() was called before "
        "trainer.train(), accelerate 1.14 and newer take the model for wrapped and leave DDP out, without an error",
        "Call train() first; the callback evaluates the uncut model itself. Nothing was changed.",
    ),
)


def _whole(trainer: Any) -> nn.Module:
    """The model that the training loop calls, without the wrapper of whole-model `torch.compile`."""
    wrapped: nn.Module = trainer.model_wrapped
    # accelerate also leaves `_orig_mod` on a regionally compiled copy, which is no such wrapper
    while wrapped is not trainer.model and "OptimizedModule" in _class_names(wrapped):
        wrapped = wrapped._orig_mod  # type: ignore[assignment]
    return wrapped


def _has_units(model: Any) -> bool:
    return any("FSDPModule" in _class_names(module) for module in model.modules())


def _class_names(module: nn.Module) -> set[str]:
    return {kind.__name__ for kind in type(module).__mro__}
