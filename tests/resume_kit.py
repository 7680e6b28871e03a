"""What the tests of resuming share: one life of a run, and what it ended with."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

from transformers import TrainerCallback

from hf_mpruner.record import PruningRecord
from trainer_kit import STACK, add, assert_same, begun_at, build_trainer, everything, facts_of

# Of the model that is evaluated, by its depth: four layers to one is rejected, to two accepted, two to one rejected.
BY_DEPTH = {4: 0.9, 2: 0.89, 1: 0.5}


# A cut is pending at 4 and 6 (to be rejected; its epoch is over at 6), 8 (to be accepted) and 10 (of two layers).
STEPS = [4, 6, 8, 10, 14]


class Keeper(TrainerCallback):
    """Keeps what lies in the output folder after each save, as a run finds it that is killed then."""

    def __init__(self, place):
        self.place = place

    def on_save(self, args, state, control, **kwargs):
        shutil.copytree(args.output_dir, self.place / str(state.global_step), copy_function=os.link)


def begin(make_bert, folder, *, values=None, config=None, from_init=False, optimizers=None, **arguments):
    """What a script does before it trains: build the uncut model; returns trainer and callback.

    `values(depth, step)` is the metric; `optimizers(model)` makes optimizer and scheduler; `from_init` passes a
    function that builds the model instead of the model.
    """

    def build():
        return make_bert(hidden_dropout_prob=0.1, num_labels=2)

    def metric(_):
        depth = len(trainer.model.get_submodule(STACK))
        return {"accuracy": BY_DEPTH[depth] if values is None else values(depth, trainer.state.global_step)}

    Path(folder).mkdir(parents=True, exist_ok=True)
    model = None if from_init else build()
    settings = {"num_train_epochs": 6, "save_strategy": "steps", "save_steps": 2, **arguments}
    trainer = build_trainer(
        model, folder, metric, model_init=build if from_init else None,
        optimizers=(None, None) if optimizers is None else optimizers(model), **settings,
    )  # fmt: skip
    callback = add(trainer, **{"start_epoch": 1, "recovery_epochs": 1, **(config or {})})
    return trainer, callback


def live(make_bert, folder, *, resume=None, **settings):
    """One process's life: `begin`, then train (and resume); returns trainer and callback."""
    trainer, callback = begin(make_bert, folder, **settings)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, callback


def verdicts(callback):
    return [(r.verdict, r.kept[STACK], r.granularity, r.reason) for r in callback.record.rounds]


def ended(trainer, callback, folder):
    """What a resumed run is compared with; taken before anything else moves the trainer."""
    return SimpleNamespace(
        folder=folder,
        everything=everything(trainer),
        verdicts=verdicts(callback),
        record=facts_of(callback.record),
        rates=[group["lr"] for group in trainer.optimizer.param_groups],
        step=trainer.state.global_step,
        best=[getattr(trainer.state, name) for name in ("best_metric", "best_global_step", "best_model_checkpoint")],
        evaluated=[(e["step"], e["eval_accuracy"]) for e in trainer.state.log_history if "eval_accuracy" in e],
    )


def copy_checkpoints(source, target, *steps):
    """Some checkpoints of a run into the folder of another life."""
    for step in steps:
        shutil.copytree(source / f"checkpoint-{step}", target / f"checkpoint-{step}")
    return target


def pending_at(folder, step):
    """Whether a cut was pending in a checkpoint."""
    return PruningRecord.load(folder / f"checkpoint-{step}").pending is not None


def lived(make_bert, folder, **settings):
    """A run that nobody interrupts."""
    return ended(*live(make_bert, folder, **settings), folder)


def assert_resumes(make_bert, whole, out, step, **settings):
    """From one checkpoint of a run to its very end."""
    copy_checkpoints(whole.folder, out, step)
    trainer, callback = live(make_bert, out, resume=True, **settings)
    resumed = ended(trainer, callback, out)
    assert begun_at(trainer) == step
    assert resumed.verdicts == whole.verdicts
    assert resumed.record == whole.record
    measures_after = resumed.record["config"]["criterion"] == "cka" and len(trainer.model.get_submodule(STACK)) > 1
    assert bool(resumed.record["similarity_after"]) == measures_after
    assert_same(whole.everything, resumed.everything)
    assert (resumed.step, resumed.rates) == (whole.step, whole.rates)
    return trainer, callback
