"""Two processes leave checkpoints for one to resume from, and resume from those of one."""

from __future__ import annotations

from torch import distributed

from distributed_kit import OUTPUT, facts, failure, life, write
from trainer_kit import begun_at

FOUND = {}
for metric in ("accuracy", "loss"):
    trainer, callback = life(OUTPUT / f"two {metric}", metric, ranks=2)
    FOUND[f"two {metric}"] = facts(trainer, callback)
for step in (2, 5, 8):
    trainer, callback = life(OUTPUT / f"one {step}", "accuracy", ranks=2, checkpoint=OUTPUT / f"one/checkpoint-{step}")
    FOUND[f"one {step}"] = {**facts(trainer, callback), "begun": begun_at(trainer)}
trainer, callback = life(OUTPUT / "refused", "loss", ranks=2, train=False)
layers = len(trainer.model.bert.encoder.layer)
checkpoint = str(OUTPUT / "one loss/checkpoint-5")
error = failure(lambda: trainer.train(resume_from_checkpoint=checkpoint))
FOUND["refused"] = {"error": error, "unchanged": layers == len(trainer.model.bert.encoder.layer)}
write(FOUND)
distributed.destroy_process_group()
