"""`DataParallelProcesses`: DistributedDataParallel, made anew in its own place after every edit."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from torch.nn.parallel import DistributedDataParallel

from hf_mpruner.runtime.processes import Processes

if TYPE_CHECKING:
    from transformers import Trainer


class DataParallelProcesses(Processes):
    """DDP: the training loop holds the wrapper, so it must stay the same object, but know other parameters.

    Its reducer waits for the gradient of every parameter that it was built with. Left alone it keeps deleted layers
    alive, and processes can go apart without an error when the cut comes before the last step of a training.

    Args:
        trainer (`Trainer`): with `model_wrapped` a DistributedDataParallel, compiled or not.
    """

    name = "DDP"
    _compares_weights = True

    def __init__(self, trainer: Trainer) -> None:
        """Remember the Trainer: a later `train()` may wrap anew."""
        super().__init__(timedelta(seconds=trainer.args.ddp_timeout))
        self._trainer = trainer

    def before_edit(self) -> None:
        """Nothing to do."""

    def after_edit(self) -> None:
        """Run the wrapper's public constructor once more on the same object, with the arguments it was made with."""
        wrapper = find_ddp(self._trainer.model_wrapped)
        handler: Any = self._trainer.accelerator.ddp_handler
        options = handler.to_kwargs() if handler is not None else {}
        module, training = wrapper.module, wrapper.training
        places = {name: getattr(wrapper, name) for name in ("device_ids", "output_device", "process_group")}
        wrapper.reducer = wrapper.logger = None  # the hooks on the gradients go with the old reducer
        # weights are equal already; sending them around would also hide it from check_same if they were not
        DistributedDataParallel.__init__(wrapper, module, **{**places, **options, "init_sync": False})
        if handler is not None:
            handler.register_comm_hook(wrapper)
        wrapper.train(training)

    def on_keep(self) -> None:
        """Nothing to do: the old reducer is gone."""


def find_ddp(wrapped: Any) -> Any:
    """The DistributedDataParallel in what the training loop calls, also inside `torch.compile`; `None` without one."""
    while not isinstance(wrapped, DistributedDataParallel):
        if "_orig_mod" not in getattr(wrapped, "_modules", {}):
            return None
        wrapped = wrapped._orig_mod
    return wrapped
