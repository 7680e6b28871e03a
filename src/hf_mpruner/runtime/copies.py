"""`Copies`: every process holds a whole plain model that no Trainer sees, whatever the Trainers' engines do with theirs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from torch import distributed

from hf_mpruner.errors import UnsupportedBackendError
from hf_mpruner.runtime.base import Runtime, SingleProcess
from hf_mpruner.runtime.processes import Processes

if TYPE_CHECKING:
    from transformers import Trainer


class Copies(Processes):
    """Several processes that edit equal models of their own; nothing is wrapped.

    Args:
        timeout (`timedelta`): how long the Trainers' own communication waits.
    """

    name = "a whole model on every process"
    _compares_weights = True

    def __init__(self, timeout: timedelta) -> None:
        """Open the channel; every process must do so at the same moment."""
        super().__init__(timeout)

    def before_edit(self) -> None:
        """Nothing to do."""

    def after_edit(self) -> None:
        """Nothing to do."""

    def on_keep(self) -> None:
        """Nothing to do."""


def copies_runtime(trainer: Trainer) -> Runtime:
    """The processes that a Trainer runs on, for models that it does not see.

    Args:
        trainer (`Trainer`): made, and not yet training; every process calls this at the same moment.

    Raises:
        UnsupportedBackendError: for processes that do not speak through `torch.distributed`.
    """
    kind, mode = str(trainer.accelerator.distributed_type.value), str(trainer.args.parallel_mode.value)
    if kind in ("XLA", "MEGATRON_LM") or mode == "tpu" or mode.startswith("sagemaker"):
        raise UnsupportedBackendError(
            f"prune_in_cycles cannot drive <{kind}, {mode}>: what it trains cannot be saved and loaded as one ordinary "
            "model here. Use one process, DDP, FSDP or DeepSpeed. Nothing was changed."
        )
    if trainer.args.world_size == 1:
        return SingleProcess()
    if not distributed.is_initialized():
        raise UnsupportedBackendError(
            f"prune_in_cycles found {trainer.args.world_size} processes, but no torch.distributed process group. Start "
            "them with torchrun, accelerate launch or deepspeed. Nothing was changed."
        )
    return Copies(timedelta(seconds=trainer.args.ddp_timeout))


def check_wrapped(trainer: Trainer) -> None:
    """Refuse several processes of which each would train a model of its own; to be called in `on_train_begin`.

    Raises:
        UnsupportedBackendError: naming what leaves the wrapper out.
    """
    inner: Any = trainer.model_wrapped
    while "_orig_mod" in getattr(inner, "_modules", {}) and inner is not trainer.model:
        inner = inner._orig_mod  # of torch.compile
    kinds = {kind.__name__ for module in inner.modules() for kind in type(module).__mro__}
    sharded = kinds & {"FSDPModule", "FullyShardedDataParallel"}
    if trainer.accelerator.num_processes > 1 and inner is trainer.model and not sharded:
        raise UnsupportedBackendError(
            f"The model is not wrapped, so each of {trainer.accelerator.num_processes} processes would train one of its own. "
            "If make_trainer calls trainer.evaluate() or trainer.predict(), accelerate 1.14 and newer take the model for "
            "wrapped and leave DDP out, without an error: leave these calls to prune_in_cycles."
        )


@contextmanager
def whole_models() -> Iterator[None]:
    """Build and load models whole, also while a ZeRO-3 configuration is alive, which would have them partitioned."""
    from transformers.integrations import deepspeed

    # transformers has public functions to set and to forget it, but none to read it
    active = getattr(deepspeed, "_hf_deepspeed_config_weak_ref", None)
    config = None if active is None else active()
    if config is None:
        yield
        return
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed.set_hf_deepspeed_config(config)
