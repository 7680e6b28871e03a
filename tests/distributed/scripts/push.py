"""Two processes that push, under DDP or FSDP2: the main one sends, with the random states of both."""

from __future__ import annotations

import sys

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import distributed

from distributed_kit import OUTPUT, SHARDED_PRUNING, STACK, bert, digest, failure, write
from trainer_kit import Scripted, add, begun_at, build_trainer

KIND, REPO = sys.argv[2:4]
RESUMED = sys.argv[4] if len(sys.argv) > 4 else None
begin = AcceleratorState.__init__


def patch_state(self, *args, fsdp_plugin=None, **kwargs):
    """As in fsdp.py: accelerate leaves FSDP out on the CPU."""
    begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.fsdp_plugin = fsdp_plugin
    if getattr(self, "fsdp_plugin", None) is not None:
        self.distributed_type = DistributedType.FSDP


def trainer_of(name, kind="FULL_STATE_DICT"):
    sharding = {}
    if KIND == "fsdp":
        AcceleratorState.__init__ = patch_state
        AcceleratorState._reset_state()
        wrap = {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "transformer_layer_cls_to_wrap": ["BertLayer"]}
        sharding = {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": kind, **wrap}}
    trainer = build_trainer(
        bert(), OUTPUT / name, Scripted(0.9, 0.1, 0.9), per_device_train_batch_size=4, num_train_epochs=4,
        save_strategy="epoch", hub_model_id=REPO, hub_strategy="checkpoint", push_to_hub=RESUMED is None, **sharding,
    )  # fmt: skip
    return trainer, add(trainer, **SHARDED_PRUNING)


trainer, callback = trainer_of("out")
found = {}
if RESUMED is None:
    trainer.train()
    trainer.push_to_hub()
    if KIND == "fsdp":
        found["refused"] = failure(trainer_of("parts", "SHARDED_STATE_DICT")[0].train)
else:
    trainer.train(resume_from_checkpoint=RESUMED)
    found["begun"] = begun_at(trainer)
found["digest"] = digest(trainer.model)
found["kept"] = callback.record.kept[STACK]
found["pushes"] = "push_in_progress" in vars(trainer)
write(found)
distributed.barrier()
