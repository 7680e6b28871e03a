"""Resuming under settings of the Trainer that make a part of it anew, choose among checkpoints or delete them."""

from __future__ import annotations

import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, TrainerCallback, trainer_jit_checkpoint
from transformers import trainer as transformers_trainer

from hf_mpruner import LayerPruningCallback, errors, seal
from hf_mpruner.checkpoint import ROLLBACK_NAME, inspect_checkpoint
from hf_mpruner.rollback import Rollback, write_rollback
from resume_kit import (
    BY_DEPTH,
    STEPS,
    Keeper,
    assert_resumes,
    begin,
    copy_checkpoints,
    ended,
    live,
    lived,
    pending_at,
    verdicts,
)
from trainer_kit import CHECKPOINTING, STACK, assert_same, begun_at, everything


def test_with_a_function_that_makes_the_model(make_bert, tmp_path, monkeypatch):
    whole = lived(make_bert, tmp_path / "whole", from_init=True)
    assert [verdict for verdict, *_ in whole.verdicts] == ["rejected", "accepted", "rejected"]
    assert [pending_at(whole.folder, step) for step in STEPS] == [True, True, True, True, False]
    for step in STEPS:
        trainer, callback = assert_resumes(make_bert, whole, tmp_path / str(step), step, from_init=True)

    def interrupt(seed):
        raise KeyboardInterrupt

    checkpoint = str(whole.folder / "checkpoint-8")
    with monkeypatch.context() as patch:
        patch.setattr(transformers_trainer, "set_seed", interrupt)  # what train() does before it makes the model
        with pytest.raises(KeyboardInterrupt):
            trainer.train(resume_from_checkpoint=checkpoint)
    trainer.train()  # anew, so nothing of that resume may be left
    assert verdicts(callback) == whole.verdicts
    assert_same(whole.everything, everything(trainer))


def test_with_callbacks_that_the_trainer_makes_anew(make_bert, tmp_path):
    setting = {"restore_callback_states_from_checkpoint": True}
    whole = lived(make_bert, tmp_path / "whole", **setting)
    for step in STEPS:
        trainer, callback = assert_resumes(make_bert, whole, tmp_path / str(step), step, **setting)
        (ours,) = [one for one in trainer.callback_handler.callbacks if isinstance(one, LayerPruningCallback)]
        assert ours is not callback
        assert ours.report.to_dict() == callback.report.to_dict()  # the script's own object knows all that happened


@pytest.mark.parametrize("every", [1, 2])
def test_with_activation_checkpointing_also_of_layers_that_come_back(make_bert, tmp_path, every):
    """No bit depends on it, but the memory does."""
    setting = {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"every_n_layers": every}}

    def marks(trainer):
        layers = trainer.model.get_submodule(STACK)
        return [(layer.gradient_checkpointing, "_gradient_checkpointing_func" in vars(layer)) for layer in layers]

    setting["config"] = {"max_rounds": 1}
    trainer, callback = live(make_bert, tmp_path / "whole", **setting)
    whole = ended(trainer, callback, tmp_path / "whole")
    assert [verdict for verdict, *_ in whole.verdicts] == ["rejected"]
    assert marks(trainer) == [(n % every == 0, True) for n in range(4)]
    for step in (4, 6):
        resumed, _ = assert_resumes(make_bert, whole, tmp_path / str(step), step, **setting)
        assert marks(resumed) == marks(trainer)


@pytest.mark.slow
def test_with_a_compiled_model(make_bert, tmp_path):
    setting = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    whole = lived(make_bert, tmp_path / "whole", **setting)
    for step in (4, 8):
        assert_resumes(make_bert, whole, tmp_path / str(step), step, **setting)


@pytest.mark.parametrize("verify", ["structure", "full"])
def test_with_noise_on_the_embeddings(make_bert, tmp_path, verify):
    """NEFTune's noise is for training only: neither similarities nor evaluations see it, and none of it is used up."""
    setting = {"neftune_noise_alpha": 5.0, "config": {"verify": verify}}
    whole = lived(make_bert, tmp_path / "whole", **setting)
    plain = lived(make_bert, tmp_path / "plain", config={"verify": verify})
    assert whole.verdicts == plain.verdicts
    weights, noisy = plain.everything[0], whole.everything[0]
    assert any(not torch.equal(weights[name], noisy[name]) for name in weights)
    for step in (4, 8):
        assert_resumes(make_bert, whole, tmp_path / str(step), step, **setting)


def test_automatic_batch_sizes_are_refused_before_another_step(make_bert, tmp_path):
    whole = lived(make_bert, tmp_path / "whole")
    trainer, callback = begin(make_bert, tmp_path / "out", auto_find_batch_size=True)
    with pytest.raises(errors.UnsupportedBackendError, match="auto_find_batch_size=True restarts the training"):
        trainer.train(resume_from_checkpoint=str(whole.folder / "checkpoint-8"))
    assert trainer.state.global_step == 8
    assert len(trainer.model.get_submodule(STACK)) == trainer.model.config.num_hidden_layers == 4
    assert callback.engine is None


# -- best models, early stopping, deleted checkpoints -----------------------------------------------------------------

NOISE = [0.0, 0.02, 0.01, 0.03, -0.01]
BEST = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "accuracy", "load_best_model_at_end": True}


def noisy(depth, step):
    return BY_DEPTH[depth] + NOISE[step % 5]


def rejecting(depth, step):
    """No cut is good enough; the best model is that of step 2 unless `step 4` (a candidate) is better than it."""
    return (0.9 if depth == 4 else 0.5) + (0.05 if step == 2 else 0.0)


def flattering(depth, step):
    """As `rejecting`, but the candidate of step 4 looks best of all, until its verdict."""
    return 0.99 if step == 4 else rejecting(depth, step)


@pytest.mark.parametrize(
    ("values", "best", "setting"),
    [
        pytest.param(noisy, 18, BEST, marks=pytest.mark.slow),
        pytest.param(noisy, 18, {**BEST, "save_total_limit": 1}, marks=pytest.mark.slow),
        (noisy, 18, {**BEST, "save_total_limit": 2, "restore_callback_states_from_checkpoint": True}),
        (rejecting, 2, {**BEST, "save_total_limit": 1}),
        (flattering, 14, {**BEST, "save_total_limit": 1}),
        (noisy, None, {"save_total_limit": 1}),
        pytest.param(noisy, None, {"save_total_limit": 2}, marks=pytest.mark.slow),
    ],
)
def test_the_best_model_and_deleted_checkpoints(make_bert, tmp_path, values, best, setting):
    out, kept = tmp_path / "out", tmp_path / "kept"
    whole = lived(make_bert, out, values=values, callbacks=[Keeper(kept)], **setting)
    assert whole.best[1] == best
    for step in (4, 6, 10):
        shutil.rmtree(out)
        shutil.copytree(kept / str(step), out)
        trainer, callback = live(make_bert, out, resume=True, values=values, **setting)
        resumed = ended(trainer, callback, out)
        assert begun_at(trainer) == step
        assert resumed.verdicts == whole.verdicts
        assert_same(whole.everything, resumed.everything)
        assert (resumed.best, resumed.evaluated) == (whole.best, whole.evaluated)


def test_a_rollback_file_outlives_the_checkpoints_that_shared_it(make_bert, tmp_path, monkeypatch):
    written = []

    def counted(file, *arguments):
        written.append(file)
        write_rollback(file, *arguments)

    monkeypatch.setattr(seal, "write_rollback", counted)
    out, kept = tmp_path / "out", tmp_path / "kept"
    setting = {"save_steps": 1, "save_total_limit": 1, "config": {"recovery_epochs": 2, "max_rounds": 2}}
    whole = lived(make_bert, out, callbacks=[Keeper(kept)], **setting)
    assert [verdict for verdict, *_ in whole.verdicts] == ["rejected", "accepted"]
    assert [file.parent.name for file in written] == ["checkpoint-4", "checkpoint-10"]
    for step in (9, 13):
        assert [folder.name for folder in (kept / str(step)).glob("checkpoint-*")] == [f"checkpoint-{step}"]
        trainer, callback = live(make_bert, kept / str(step), resume=True, **setting)
        resumed = ended(trainer, callback, out)
        assert resumed.verdicts == whole.verdicts
        assert_same(whole.everything, resumed.everything)


class Interrupted(TrainerCallback):
    """Ends the training once, after step 7, and knows the weights that each epoch began with."""

    def __init__(self):
        self.begun, self.done = {}, False

    def on_epoch_begin(self, args, state, control, model=None, **kwargs):
        self.begun[state.global_step] = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 7 and not self.done:
            self.done = True
            raise KeyboardInterrupt


def test_a_training_after_one_that_was_interrupted_has_rollback_files_of_its_own(make_bert, tmp_path):
    look = Interrupted()
    trainer, callback = begin(make_bert, tmp_path, callbacks=[look], config={"recovery_epochs": 2})
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    first = look.begun[3]
    trainer.train()  # with the weights of the first one's step 3
    assert [verdict for verdict, *_ in verdicts(callback)][:2] == ["rejected", "accepted"]
    back = Rollback.read(tmp_path / "checkpoint-4" / ROLLBACK_NAME).tensors
    assert all(torch.equal(back[name], tensor) for name, tensor in look.begun[3].items())
    assert any(not torch.equal(back[name], tensor) for name, tensor in first.items())


class Start(TrainerCallback):
    """The weights that a run begins with."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_from_checkpoints_without_an_optimizer(make_bert, tmp_path):
    """Not the same bits, since the Trainer has no moments and no schedule then; but the same cuts, and nothing is mixed."""
    setting = {"save_only_model": True, "save_strategy": "steps"}
    whole = lived(make_bert, tmp_path / "whole", **setting)
    for step in (4, 6, 10):
        out = copy_checkpoints(whole.folder, tmp_path / str(step), step)
        saved = load_file(out / f"checkpoint-{step}" / "model.safetensors")
        start = Start()
        trainer, callback = live(make_bert, out, resume=True, callbacks=[start], **setting)
        assert begun_at(trainer) == step
        assert verdicts(callback) == whole.verdicts
        assert start.weights.keys() == saved.keys()
        assert all(torch.equal(start.weights[name], tensor) for name, tensor in saved.items())
        held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
        assert held == {id(p) for p in trainer.model.parameters()}
        assert {id(p) for p in trainer.optimizer.state} == held
        assert trainer.model.config.num_hidden_layers == len(trainer.model.get_submodule(STACK)) == 2


def test_early_stopping_counts_on(make_bert, tmp_path):
    """Three evaluations without a better one: those of steps 4, 6 and 8. The verdicts' own evaluations do not count."""

    def life(folder, **resumed):
        stopper = EarlyStoppingCallback(early_stopping_patience=3)
        trainer, callback = live(
            make_bert, folder, callbacks=[stopper], restore_callback_states_from_checkpoint=True, **BEST, **resumed
        )
        (stopper,) = [one for one in trainer.callback_handler.callbacks if isinstance(one, EarlyStoppingCallback)]
        return ended(trainer, callback, folder), stopper.early_stopping_patience_counter

    whole, count = life(tmp_path / "whole")
    assert (whole.step, count) == (8, 3)
    assert [verdict for verdict, *_ in whole.verdicts] == ["rejected", "accepted"]  # the second as training ends
    for step in (4, 6):
        out = copy_checkpoints(whole.folder, tmp_path / str(step), 2, step)
        resumed, count = life(out, resume=True)
        assert (resumed.step, count) == (8, 3)
        assert resumed.verdicts == whole.verdicts
        assert_same(whole.everything, resumed.everything)


@pytest.mark.parametrize("step", [4, 6, 13])
def test_from_a_checkpoint_that_was_saved_as_the_machine_went(make_bert, tmp_path, monkeypatch, step):
    """`enable_jit_checkpoint`: on SIGTERM the Trainer saves at once, outside of its usual events."""

    class Now:
        def __init__(self, seconds, function):
            self.start = function

    class Terminated(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step:
                signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(trainer_jit_checkpoint.threading, "Timer", Now)
    setting = {"enable_jit_checkpoint": True, "save_strategy": "no"}
    whole, out = lived(make_bert, tmp_path / "whole", **setting), tmp_path / "out"
    live(make_bert, out, callbacks=[Terminated()], **setting)
    (folder,) = out.glob("checkpoint-*")
    checkpoint = inspect_checkpoint(folder)
    assert (checkpoint.step, checkpoint.fault) == (step, "")
    assert (checkpoint.record.pending is not None) == (step != 13)
    trainer, callback = live(make_bert, out, resume=True, **setting)
    resumed = ended(trainer, callback, out)
    assert begun_at(trainer) == step
    assert resumed.verdicts == whole.verdicts
    assert_same(whole.everything, resumed.everything)
