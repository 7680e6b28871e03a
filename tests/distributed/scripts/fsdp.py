"""Two processes under FSDP2, one unit per layer: accepted, rejected, saved, resumed, refused.

accelerate leaves FSDP out on the CPU without saying so; `patch_state` makes it take it.
"""

from __future__ import annotations

import gc
import os
import weakref

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import distributed
from torch.distributed.fsdp import FSDPModule
from transformers import BertForSequenceClassification

from distributed_kit import OUTPUT, SHARDED, SHARDED_PRUNING, STACK, bert, digest, facts, failure, is_consistent, write
from trainer_kit import Scripted, Spy, add, build_trainer

RANK = int(os.environ["RANK"])
FOUND = {}
EACH_LAYER = {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "transformer_layer_cls_to_wrap": ["BertLayer"]}
begin = AcceleratorState.__init__


def patch_state(self, *args, fsdp_plugin=None, **kwargs):
    begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.fsdp_plugin = fsdp_plugin
    if getattr(self, "fsdp_plugin", None) is not None:  # each later call takes the type from PartialState again
        self.distributed_type = DistributedType.FSDP


AcceleratorState.__init__ = patch_state


def trainer_of(name, values, *, wrap=None, callbacks=None, **arguments):
    AcceleratorState._reset_state()
    return build_trainer(
        bert(), OUTPUT / name, Scripted(*values), per_device_train_batch_size=4, fsdp=True,
        fsdp_config={"version": 2, "state_dict_type": "FULL_STATE_DICT", **(wrap or EACH_LAYER)},
        callbacks=callbacks, **arguments,
    )  # fmt: skip


def look(trainer):
    return {"digest": digest(trainer.model), "consistent": is_consistent(trainer)}


# -- rejected, then accepted, saved with every epoch -------------------------------------------------------------------
first = Spy(on_epoch_begin=lambda: look(trainer))
second = Spy(on_epoch_end=lambda: look(trainer))
trainer = trainer_of("run", (0.9, 0.1, 0.9), callbacks=[first], **SHARDED)
callback = add(trainer, **SHARDED_PRUNING)
trainer.add_callback(second)
blocks = []
trainer.add_callback(
    Spy(on_train_begin=lambda: blocks.extend(weakref.ref(one) for one in trainer.model.get_submodule(STACK)))
)
trainer.train()
trainer.save_model(str(OUTPUT / "saved"))
units = [isinstance(one, FSDPModule) for one in trainer.model.get_submodule(STACK)]
FOUND["run"] = facts(trainer, callback) | {
    "name": callback.engine.runtime.name,
    "units": units,
    "before": first.seen["on_epoch_begin"],
    "after": second.seen["on_epoch_end"],
}
callback.engine._planner.forget()
trainer.optimizer.zero_grad()
gc.collect()
FOUND["freed"] = [one() is None for one in blocks]
distributed.barrier()
saved = BertForSequenceClassification.from_pretrained(OUTPUT / "saved")
FOUND["saved"] = digest(saved)

# -- resumed after the last verdict ------------------------------------------------------------------------------------
steps = 3  # an epoch
trainer = trainer_of("run", (), **SHARDED)
callback = add(trainer, **SHARDED_PRUNING)
trainer.train(resume_from_checkpoint=str(OUTPUT / "run" / f"checkpoint-{3 * steps}"))
FOUND["resumed"] = facts(trainer, callback)

# -- resumed with a cut that has no verdict: what was taken out cannot be sharded again --------------------------------
trainer = trainer_of("pending", (0.9, 0.9, 0.9), save_strategy="steps", save_steps=4, num_train_epochs=2)
callback = add(trainer, granularity=2, max_rounds=1, start_epoch=1)
trainer.train()
trainer = trainer_of("pending", (0.9, 0.9), num_train_epochs=2)
callback = add(trainer, granularity=2, max_rounds=1, start_epoch=1)
FOUND["pending"] = failure(lambda: trainer.train(resume_from_checkpoint=str(OUTPUT / "pending" / "checkpoint-4")))

# -- refused -----------------------------------------------------------------------------------------------------------
trainer = trainer_of("root", (0.9,), wrap={"auto_wrap_policy": "NO_WRAP"})
callback = add(trainer)
FOUND["root"] = failure(trainer.train)
FOUND["engine"] = callback.engine is None

write(FOUND)
distributed.destroy_process_group()
