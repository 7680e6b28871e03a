"""`prune_in_cycles` under DeepSpeed, in two processes on the CPU: `zero.py FOLDER STAGE`."""

from __future__ import annotations

import sys

from accelerate import PartialState
from accelerate.utils import DistributedType
from torch import distributed
from transformers import TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from cycles_kit import CYCLES_LIKE_ONE, Maker, facts, prune, source_of
from distributed_kit import LIKE_ONE, OUTPUT, failure, write
from trainer_kit import accuracy, add

STAGE = int(sys.argv[2])
FOUND = {}


def zero(**settings):
    return {
        "zero_optimization": {"stage": STAGE, **settings},
        "zero_allow_untested_optimizer": True,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }


# On a CPU accelerate does not ask DeepSpeed how many processes there are, and would count one.
PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_CPU)

GATHERS = {"stage3_gather_16bit_weights_on_model_save": True}
SETTINGS = {**LIKE_ONE["adamw_torch"], "per_device_train_batch_size": 4, "compute_metrics": accuracy, "use_cpu": False}


class Engines(Maker):
    """Notes which parameters are partitioned as they are loaded."""

    partitioned = ()

    def __call__(self, path):
        trainer = super().__call__(path)
        self.partitioned = [*self.partitioned, any(hasattr(p, "ds_id") for p in trainer.model.parameters())]
        return trainer


class Early(Engines):
    """Makes TrainingArguments before the model, and keeps them: under ZeRO-3 all that is loaded is partitioned."""

    kept = ()

    def load(self, path):
        self.kept = [
            *self.kept,
            TrainingArguments(self.folder, use_cpu=False, deepspeed=zero(**GATHERS), report_to="none"),
        ]
        return super().load(path)


# -- a run, and one that is stopped and gone on with -------------------------------------------------------------------
maker = Engines(OUTPUT / "training", deepspeed=zero(**GATHERS), **SETTINGS)
FOUND["run"] = facts(prune(maker, source_of(OUTPUT), OUTPUT / "run", **CYCLES_LIKE_ONE))
FOUND["wrappers"] = sorted(set(maker.wrappers))
FOUND["stages"] = sorted({one.accelerator.state.deepspeed_plugin.zero_stage for one in maker.trainers[-1:]})
FOUND["late"] = maker.partitioned


class Stopping(Early):
    def __call__(self, path):
        trainer = super().__call__(path)
        if path.endswith("candidate-2"):

            def stop(*args, **kwargs):
                raise KeyError("stop")

            trainer.training_step = stop
        return trainer


arguments = {"deepspeed": zero(**GATHERS), **SETTINGS}
maker = Stopping(OUTPUT / "training", **arguments)
FOUND["stopped"] = failure(lambda: prune(maker, source_of(OUTPUT), OUTPUT / "again", **CYCLES_LIKE_ONE))
maker = Early(OUTPUT / "training", **arguments)
FOUND["again"] = facts(prune(maker, source_of(OUTPUT), OUTPUT / "again", **CYCLES_LIKE_ONE))
FOUND["early"] = maker.partitioned
FOUND["zero3"] = is_deepspeed_zero3_enabled()

# -- without a training before the first cut: the baseline is evaluated by an engine that never trains --------------------
maker = Early(OUTPUT / "training", **arguments)
FOUND["baseline"] = facts(
    prune(maker, source_of(OUTPUT), OUTPUT / "baseline", **{**CYCLES_LIKE_ONE, "start_epoch": 0, "max_rounds": 1})
)

# -- refusals ------------------------------------------------------------------------------------------------------------
maker = Early(OUTPUT / "training", **{**arguments, "deepspeed": zero()})
FOUND["scattered"] = failure(
    lambda: prune(maker, source_of(OUTPUT), OUTPUT / "scattered", **{**CYCLES_LIKE_ONE, "max_rounds": 1})
)
trainer = Maker(OUTPUT / "training", **arguments)(source_of(OUTPUT))
add(trainer)
FOUND["callback"] = failure(trainer.train)

write(FOUND)
distributed.destroy_process_group()
