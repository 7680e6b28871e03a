"""Two processes under DDP: a run equal to one process, verdicts, agreement, refusals."""

from __future__ import annotations

import gc
import os
import sys
import weakref
from dataclasses import replace

import torch
from torch import distributed
from transformers import TrainerCallback

from distributed_kit import (
    LIKE_ONE,
    LIKE_ONE_PRUNING,
    OUTPUT,
    PROMISED,
    PROMISED_PRUNING,
    STACK,
    bert,
    digest,
    facts,
    failure,
    is_consistent,
    write,
)
from hf_mpruner.plan import PruningPlan, StackPlan
from trainer_kit import Rows, Scripted, Spy, add, build_trainer

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
FOUND = {}


def trainer_of(name, **arguments):
    return build_trainer(bert(), OUTPUT / name, per_device_train_batch_size=4, **arguments)


# -- the same as one process -------------------------------------------------------------------------------------------
for optim, unused in (("sgd", False), ("adamw_torch", True)):
    trainer = build_trainer(
        bert(),
        OUTPUT / optim,
        per_device_train_batch_size=8 // WORLD,
        ddp_find_unused_parameters=unused,
        **LIKE_ONE[optim],
    )
    callback = add(trainer, **LIKE_ONE_PRUNING)
    trainer.train()
    FOUND[optim] = facts(trainer, callback)
    if RANK == 0:
        torch.save(trainer.model.state_dict(), OUTPUT / f"{optim}.pt")

if WORLD > 2:  # that was all
    write(FOUND)
    distributed.destroy_process_group()
    sys.exit()

# -- a cut before the last step, a freed block -------------------------------------------------------------------------
trainer = trainer_of("last", ddp_find_unused_parameters=False, num_train_epochs=2, max_steps=-1)
trainer.train_dataset = Rows(8, 0)
callback = add(trainer, max_metric_drop=1.0, start_epoch=1)
block = weakref.ref(trainer.model.get_submodule(STACK)[-1])
trainer.train()
callback.engine._planner.forget()
gc.collect()
FOUND["last"] = facts(trainer, callback) | {"steps": trainer.state.global_step, "freed": block() is None}

# -- rejected: everything as before ------------------------------------------------------------------------------------
first = Spy(on_epoch_begin=lambda: digest(trainer.model))
second = Spy(on_epoch_end=lambda: (digest(trainer.model), is_consistent(trainer)))
trainer = build_trainer(
    bert(), OUTPUT / "rejected", Scripted(0.9, 0.1), per_device_train_batch_size=4, ddp_find_unused_parameters=False,
    callbacks=[first],
)  # fmt: skip
callback = add(trainer, max_rounds=1)
trainer.add_callback(second)
trainer.train()
FOUND["rejected"] = facts(trainer, callback) | {
    "before": first.seen["on_epoch_begin"][0],
    "after": second.seen["on_epoch_end"][0][0],
    "next": second.seen["on_epoch_end"][1][0],
    "consistent": all(one[1] for one in second.seen["on_epoch_end"]),
}

# -- a promise, by the main process's outcomes ----------------------------------------------------------------------------
trainer = trainer_of("promised", **PROMISED)
callback = add(trainer, **PROMISED_PRUNING)


class Lie(TrainerCallback):
    def on_train_begin(self, *args, **kwargs):
        if RANK == 1:
            promise = callback.engine.judge.promise
            take = promise._take
            promise._take = lambda metric: replace(take(metric), values=(0.0,) * 121)


trainer.add_callback(Lie())
trainer.train()
FOUND["promised"] = facts(trainer, callback) | {
    "outcomes": callback.record.baseline.outcomes,
    "bounds": [round_.bound for round_ in callback.record.rounds],
    "levels": [round_.level for round_ in callback.record.rounds],
    "steps": trainer.state.global_step,
}

# -- the main process's plan holds --------------------------------------------------------------------------------------------------
trainer = trainer_of("healed", num_train_epochs=1)
callback = add(trainer, max_metric_drop=1.0, max_granularity=2)


class Disturb(TrainerCallback):
    def on_train_begin(self, *args, **kwargs):
        if RANK == 1:
            plan = callback.engine._planner.plan
            callback.engine._planner.plan = lambda record, step: plan(record, step) and "rank 1 wants to stop"


trainer.add_callback(Disturb())
trainer.train()
FOUND["healed"] = facts(trainer, callback)
engine = callback.engine

# -- plans that differ -------------------------------------------------------------------------------------------------
trainer = trainer_of("divergent", num_train_epochs=1)
callback = add(trainer, max_metric_drop=1.0)


def other_plan(plan, *args, **kwargs):
    if RANK == 1:
        plan = PruningPlan({STACK: StackPlan(6, (0, 1, 5))})
    return original(plan, *args, **kwargs)


class Inject(TrainerCallback):
    def on_train_begin(self, *args, **kwargs):
        global original
        original = callback.engine.carry_out
        callback.engine.carry_out = other_plan


trainer.add_callback(Inject())
start = digest(trainer.model)
FOUND["divergent"] = {
    "error": failure(trainer.train),
    "unchanged": digest(trainer.model) == start and is_consistent(trainer),
    "layers": len(trainer.model.get_submodule(STACK)),
}

# -- weights that differ -----------------------------------------------------------------------------------------------
runtime = engine.runtime
runtime.check_same(engine.model)
if RANK == 1:
    with torch.no_grad():
        engine.model.classifier.bias[0] += 1e-7
FOUND["weights"] = failure(lambda: runtime.check_same(engine.model))
FOUND["names"] = failure(lambda: runtime.check_same(engine.model if RANK == 0 else engine.model.bert))
FOUND["sums"] = [
    runtime.all_sum([torch.tensor([1.0 + RANK])])[0].item(),
    runtime.gather(RANK),
    runtime.all_equal(RANK),
]


def fails_on_one():
    with runtime.together("testing"):
        if RANK == 1:
            raise KeyError("only here")


FOUND["together"] = failure(fails_on_one)
FOUND["step"] = failure(lambda: runtime.gather(0) if RANK else runtime.check_same(engine.model))
FOUND["healthy"] = runtime.broadcast(RANK)  # they still talk to each other

# -- evaluated before training -----------------------------------------------------------------------------------------
trainer = trainer_of("early")
add(trainer)
trainer.evaluate()
start = digest(trainer.model)
FOUND["early"] = {"error": failure(trainer.train), "unchanged": digest(trainer.model) == start}

write(FOUND)
distributed.destroy_process_group()
