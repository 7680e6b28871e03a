"""Rank 1 alone cannot read an example: of the calibration data, or of the evaluation before a verdict."""

from __future__ import annotations

import os
import sys

from distributed_kit import OUTPUT, bert
from hf_mpruner import LayerPruningCallback, PruningConfig
from trainer_kit import Rows, build_trainer

RANK, WHERE = int(os.environ["RANK"]), sys.argv[2]


class Broken(Rows):
    """Breaks on rank 1 after `good` examples were read."""

    good = 0

    def __getitem__(self, index):
        self.good -= 1
        if RANK == 1 and self.good < 0:
            raise OSError("the disk of rank 1 is gone")
        return super().__getitem__(index)


trainer = build_trainer(bert(2), OUTPUT / "run", per_device_train_batch_size=4)
calibration = Rows(16, 2)
if WHERE == "calibration":
    calibration = Broken(16, 2)
    calibration.good = 2
if WHERE == "evaluation":  # not the baseline, but the verdict: rank 0 waits inside the Trainer's own communication
    trainer.eval_dataset = Broken(16, 1)
    trainer.eval_dataset.good = 12
config = PruningConfig(threshold=0.0, max_metric_drop=1.0, calibration_samples=16, calibration_batch_size=4)
trainer.add_callback(LayerPruningCallback(trainer, config, calibration=calibration))
try:
    trainer.train()
except BaseException as error:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / f"rank{RANK}.txt").write_text(f"{type(error).__name__}: {error}")
    raise
