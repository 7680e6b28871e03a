"""`ShardedProcesses`: FSDP2 with one unit per block, of which whole units can go."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from torch import nn

from hf_mpruner.runtime.processes import Processes

if TYPE_CHECKING:
    from transformers import Trainer


class ShardedProcesses(Processes):
    """FSDP2: every parameter is a DTensor of which each process holds a part.

    Args:
        trainer (`Trainer`): its model has been through `fully_shard`, each block of every stack as a unit of its own.
    """

    name = "FSDP2"
    equal_forwards = True
    _compares_weights = False  # each process holds another part

    def __init__(self, trainer: Trainer) -> None:
        """Remember the Trainer, whose model may be made anew."""
        super().__init__(timedelta(seconds=trainer.args.ddp_timeout))
        self._trainer = trainer

    def before_edit(self) -> None:
        """Put every unit back to its sharded parameters.

        A forward pass leaves the last units whole: `model.parameters()` would give plain tensors there, which the
        optimizer does not hold.
        """
        for unit in _units(self._trainer.model):
            unit.reshard()

    def after_edit(self) -> None:
        """Nothing to do: the units that are left communicate each for itself."""

    def on_keep(self) -> None:
        """Let the root forget the units that went, which frees their memory.

        The list is private to torch, so without it nothing happens, and the memory is held until training ends.
        """
        states: list[Any] = [unit._get_fsdp_state() for unit in _units(self._trainer.model)]
        live = {id(state) for state in states}
        for state in states:
            everyone = getattr(getattr(state, "_state_ctx", None), "all_states", None)
            if isinstance(everyone, list):
                everyone[:] = [one for one in everyone if id(one) in live]


def blocks_without_unit(model: Any) -> list[str]:
    """Blocks of the model's stacks that are not each a unit of FSDP2."""
    from torch.distributed.fsdp import FSDPModule

    from hf_mpruner.architectures import find_block_stacks

    names = (f"{stack.path}.{i}" for stack in find_block_stacks(model) for i in range(stack.depth))
    return [name for name in names if not isinstance(model.get_submodule(name), FSDPModule)]


def _units(model: nn.Module | Any) -> Iterator[Any]:
    from torch.distributed.fsdp import FSDPModule

    return (module for module in model.modules() if isinstance(module, FSDPModule))
