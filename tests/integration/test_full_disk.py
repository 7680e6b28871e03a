"""A disk that is full at the worst moment: a clear error, nothing half-written, and the run can be gone on with."""

from __future__ import annotations

import contextlib
import resource
import signal

import pytest

from hf_mpruner import checkpoint, errors, rollback
from hf_mpruner.snapshot import snapshot
from resume_kit import begin, ended, live, verdicts
from trainer_kit import STACK, Spy, assert_same, begun_at, everything


@contextlib.contextmanager
def full_disk(size):
    """No file grows beyond `size` bytes: a write fails in its middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def fill(monkeypatch, owner, name, nth):
    """The disk is full during the nth call of a function that writes, and has room again after it."""
    original, calls = getattr(owner, name), []

    def call(*args, **kwargs):
        calls.append(name)
        with full_disk(2000) if len(calls) == nth else contextlib.nullcontext():
            return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


def left_behind(folder):
    return [path for path in folder.rglob("*") if path.suffix == ".tmp" or "_mpruner_rollback_" in path.name]


@pytest.fixture
def whole(make_bert, tmp_path):
    return ended(*live(make_bert, tmp_path / "whole"), tmp_path / "whole")


def test_no_room_for_a_snapshot(make_bert, tmp_path, monkeypatch, whole):
    out = tmp_path / "out"
    trainer, callback = begin(make_bert, out, config={"snapshot": "disk"})
    before = Spy(on_step_end=lambda: everything(trainer))
    trainer.add_callback(before)
    fill(monkeypatch, snapshot.InFile, "write", 2)  # of the cut that is accepted otherwise
    with pytest.raises(errors.MPrunerError, match=r"A snapshot of \d+ bytes cannot be written.*Nothing was changed"):
        trainer.train()
    assert trainer.state.global_step == 6
    assert len(trainer.model.get_submodule(STACK)) == 4
    assert [verdict for verdict, *_ in verdicts(callback)] == ["rejected"]
    assert not left_behind(out)
    trainer.train(resume_from_checkpoint=True)
    assert begun_at(trainer) == 6
    assert verdicts(callback) == whole.verdicts
    assert_same(whole.everything, everything(trainer))


@pytest.mark.parametrize(
    ("owner", "name", "nth", "step"),
    [(rollback, "write_tensors", 1, 4), (rollback, "write_tensors", 2, 8), (checkpoint, "write_json", 2, 4)],
)
def test_no_room_for_what_goes_into_a_checkpoint(make_bert, tmp_path, monkeypatch, whole, owner, name, nth, step):
    out = tmp_path / "out"
    trainer, callback = begin(make_bert, out)
    before = Spy(on_step_end=lambda: everything(trainer))
    trainer.add_callback(before)
    fill(monkeypatch, owner, name, nth)
    with pytest.raises(
        errors.MPrunerError, match=r"cannot be written \(\d+ bytes free\).*The model and the optimizer are"
    ):
        trainer.train()
    assert trainer.state.global_step == step
    assert callback.engine.pending
    assert_same(before.seen["on_step_end"][-1], everything(trainer))
    assert not left_behind(out)
    trainer.train(resume_from_checkpoint=True)  # the checkpoint that was not finished is passed over
    assert begun_at(trainer) == step - 2
    assert verdicts(callback) == whole.verdicts
    assert_same(whole.everything, everything(trainer))
