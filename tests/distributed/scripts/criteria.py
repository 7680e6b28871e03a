"""Two processes, each criterion once: under DDP, or under FSDP2 with one unit per layer (second argument)."""

from __future__ import annotations

import sys

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import distributed

from distributed_kit import CRITERIA, OUTPUT, scored_run, write

SHARDED = sys.argv[2] == "fsdp"
begin = AcceleratorState.__init__


def patch_state(self, *args, fsdp_plugin=None, **kwargs):
    """accelerate leaves FSDP out on the CPU without saying so."""
    begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.fsdp_plugin = fsdp_plugin
    if getattr(self, "fsdp_plugin", None) is not None:
        self.distributed_type = DistributedType.FSDP


AcceleratorState.__init__ = patch_state
wrap = {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "transformer_layer_cls_to_wrap": ["BertLayer"]}
fsdp = {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "FULL_STATE_DICT", **wrap}} if SHARDED else {}

found = {}
for name in CRITERIA:
    AcceleratorState._reset_state()
    try:
        found[name] = scored_run(name, OUTPUT / name, ranks=2, **fsdp)
    except Exception as error:
        found[name] = {"failed": f"{type(error).__name__}: {error}"}
        distributed.barrier()
write(found)
distributed.destroy_process_group()
