"""Two processes under DDP in other settings, resumed, and with a cut that fails on one process."""

from __future__ import annotations

import os

import torch
from torch import distributed
from transformers import TrainerCallback

from distributed_kit import OUTPUT, STACK, bert, digest, facts, failure, is_consistent, write
from hf_mpruner.errors import UnsupportedArchitectureError
from trainer_kit import Rows, Scripted, add, build_trainer

RANK = int(os.environ["RANK"])
FOUND = {}
VALUES = (0.9, 0.1, 0.9, 0.9)
SETTINGS = {
    "accumulation": ({"gradient_accumulation_steps": 3, "num_train_epochs": 4}, {}),
    "checkpointing": ({"gradient_checkpointing": True}, {}),
    "static": ({"ddp_static_graph": True}, {}),
    "compiled": ({"torch_compile": True, "torch_compile_backend": "eager"}, {}),
    "bf16": ({"bf16": True}, {"snapshot": "disk"}),
    "frozen": ({}, {"freeze_untouched": True}),
    "lora": ({"ddp_find_unused_parameters": True}, {"recovery": "lora", "learning_rate_policy": "restart"}),
    "distilled": ({}, {"distillation_weight": 0.5, "distillation_hidden_weight": 0.1, "teacher_dtype": "bfloat16"}),
    "full": ({}, {"verify": "full"}),
}


def run(name, training, pruning, values=VALUES, checkpoint=None):
    settings = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 3,
        "ddp_find_unused_parameters": False,
        **training,
    }
    trainer = build_trainer(bert(), OUTPUT / name, Scripted(*values), **settings)
    callback = add(trainer, granularity=2, calibration_batch_size=6, max_rounds=2, **pruning)
    trainer.train(resume_from_checkpoint=checkpoint)
    return facts(trainer, callback)


for setting, (training, pruning) in SETTINGS.items():
    FOUND[setting] = run(setting, training, pruning)

# -- resumed in mid-epoch, just before a verdict, and in the round after it ----------------------------------------------
SAVING = {"save_strategy": "steps", "save_steps": 1}
FOUND["whole"] = run("resumed", SAVING, {})
for step, done in ((2, 1), (3, 1), (5, 2)):
    folder = str(OUTPUT / "resumed" / f"checkpoint-{step}")
    FOUND[f"resumed {step}"] = run("resumed", {}, {}, VALUES[done:], folder)


class Break(TrainerCallback):
    """Rank 1's cuts fail after they were made."""

    def __init__(self, pruning, error):
        self.pruning, self.error = pruning, error

    def on_train_begin(self, *args, **kwargs):
        self.original = self.pruning.engine.carry_out
        self.pruning.engine.carry_out = self.carry_out

    def carry_out(self, *args, **kwargs):
        cut = self.original(*args, **kwargs)
        if RANK == 1:
            cut.undo()
            self.pruning.engine.runtime.after_edit()
            raise self.error("only here")
        return cut


# -- a cut that fails, or is refused, on one process -------------------------------------------------------------------
for name, error in (("broken", RuntimeError), ("refused", UnsupportedArchitectureError)):
    trainer = build_trainer(bert(), OUTPUT / name, per_device_train_batch_size=4, ddp_find_unused_parameters=False)
    callback = add(trainer, max_metric_drop=1.0)
    trainer.add_callback(Break(callback, error))
    start = digest(trainer.model)
    FOUND[name] = {
        "error": failure(trainer.train),
        "unchanged": digest(trainer.model) == start and is_consistent(trainer),
        "layers": len(trainer.model.get_submodule(STACK)),
        "pending": callback.engine.pending,
        "rounds": len(callback.record.rounds),
    }
    callback.engine.runtime.check_same(trainer.model)
    batch = torch.stack([row["input_ids"] for row in Rows(2, RANK).rows])
    for _ in range(2):  # the wrapper knows all parameters again
        trainer.model_wrapped(input_ids=batch, labels=torch.tensor([0, 1])).loss.backward()
    grads = [param.grad.sum().item() for param in trainer.model.parameters()]
    FOUND[name]["reduced"] = callback.engine.runtime.all_equal(grads)

write(FOUND)
distributed.destroy_process_group()
