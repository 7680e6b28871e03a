"""`prune_in_cycles` in two processes: a run equal to one process, interrupted and gone on with, failures on one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from torch import distributed

from cycles_kit import CYCLES_LIKE_ONE, Maker, facts, prune, source_of
from distributed_kit import LIKE_ONE, OUTPUT, failure, write
from trainer_kit import Rows, accuracy

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
FOUND = {}
WHERE = sys.argv[2] if len(sys.argv) > 2 else ""


class Broken(Rows):
    def __getitem__(self, index):
        raise OSError("the disk of rank 1 is gone")


class Failing(Maker):
    """Fails on rank 1 alone, with the first candidate."""

    def __call__(self, path):
        candidate = path.endswith("candidate-1")
        if WHERE == "making" and candidate and RANK == 1:
            raise OSError("the disk of rank 1 is gone")
        trainer = super().__call__(path)
        if candidate and RANK == 1:
            if WHERE == "training":
                trainer.train_dataset = Broken(24, 0)
            if WHERE == "evaluation":
                trainer.eval_dataset = Broken(16, 1)
        return trainer


settings = {"per_device_train_batch_size": 8 // WORLD, "compute_metrics": accuracy}
if WHERE:
    maker = Failing(OUTPUT / "training", **settings)
    try:
        prune(maker, source_of(OUTPUT), OUTPUT / "failed")
    except BaseException as error:
        (OUTPUT / f"rank{RANK}.txt").write_text(f"{type(error).__name__}: {error}")
        raise
    sys.exit()

for optim in ("sgd", "adamw_torch"):
    maker = Maker(OUTPUT / "training", **{**settings, **LIKE_ONE[optim]})
    report = prune(maker, source_of(OUTPUT), OUTPUT / optim, **CYCLES_LIKE_ONE)
    FOUND[optim] = facts(report) | {"wrappers": sorted(set(maker.wrappers))}


# -- going on ----------------------------------------------------------------------------------------------------------
class Stopping(Maker):
    def __call__(self, path):
        if path.endswith("candidate-2"):
            raise KeyError("stop")
        return super().__call__(path)


arguments = {**settings, **LIKE_ONE["sgd"]}
FOUND["stopped"] = failure(
    lambda: prune(Stopping(OUTPUT / "training", **arguments), source_of(OUTPUT), OUTPUT / "again", **CYCLES_LIKE_ONE)
)
maker = Maker(OUTPUT / "training", **arguments)
FOUND["again"] = facts(prune(maker, source_of(OUTPUT), OUTPUT / "again", **CYCLES_LIKE_ONE))
FOUND["trainings"] = len(maker.paths) - 1


# -- evaluated before training: accelerate leaves DDP out -----------------------------------------------------------------
class Early(Maker):
    def __call__(self, path):
        trainer = super().__call__(path)
        if path.endswith("candidate-1"):
            trainer.evaluate()
        return trainer


FOUND["early"] = failure(
    lambda: prune(Early(OUTPUT / "training", **arguments), source_of(OUTPUT), OUTPUT / "early", **CYCLES_LIKE_ONE)
)

# -- a disk that one process does not see ------------------------------------------------------------------------------
if RANK == 1:
    is_dir = Path.is_dir
    Path.is_dir = lambda path: not path.name.endswith(".tmp") and is_dir(path)
maker = Maker(OUTPUT / "training", **arguments)
FOUND["apart"] = failure(lambda: prune(maker, source_of(OUTPUT), OUTPUT / "apart"))

write(FOUND)
distributed.destroy_process_group()
