"""Peak memory against what was really held, counts of passes against the model's own, and the profile's way to a reader."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hf_mpruner.footprint.peak as peak_module
from hf_mpruner.architectures import find_block_stacks
from hf_mpruner.cli.profile import Profile
from hf_mpruner.footprint import PeakMemory
from hf_mpruner.footprint.peak import device_peak, process_peak
from hf_mpruner.footprint.profile import BATCHES, REPEATS, Stages, counting_passes, run_beside

MB = 2**20
needs_proc = pytest.mark.skipif(process_peak() is None, reason="this system does not tell a process's memory")


def hold(megabytes):
    return torch.ones(megabytes * MB // 4)


@needs_proc
@pytest.mark.parametrize("reset", [True, False], ids=["high-water mark", "sampled"])
def test_the_peak_is_what_was_held_even_after_it_was_freed(reset, monkeypatch):
    if not reset:
        monkeypatch.setattr(peak_module, "_reset", lambda: False)
    with PeakMemory() as peak:
        held = hold(64)
        peak_module.threading.Event().wait(0.05)  # the sampler has to see it
        del held
    assert 60 * MB < peak.host_bytes < 100 * MB
    assert peak.device_bytes is None
    if reset and peak_module._reset():  # an earlier peak is not this one's
        with PeakMemory() as later:
            hold(16)
        assert later.host_bytes < 40 * MB


@needs_proc
def test_contexts_in_each_other_keep_the_larger_peak():
    with PeakMemory() as outer:
        held = hold(64)
        del held
        with PeakMemory() as inner:
            held = hold(16)
        del held
    assert outer.host_bytes > 60 * MB
    assert inner.host_bytes < 40 * MB
    assert not peak_module._open


def test_where_nothing_is_known_nothing_is_said(monkeypatch):
    monkeypatch.setattr(peak_module, "_status", lambda name: None)
    with PeakMemory("cpu") as peak:
        hold(1)
    assert (peak.host_bytes, peak.device_bytes, device_peak("cpu")) == (None, None, None)


def test_an_allocator_that_counts_is_asked(monkeypatch):
    """`torch.accelerator` has these since torch 2.9; before, and here, the device's own module."""
    asked = {"memory_allocated": 100, "max_memory_allocated": 350, "reset_peak_memory_stats": None}

    class Backend:
        def __getattr__(self, name):
            return lambda device: asked[name]

    for name in asked:
        monkeypatch.delattr(torch.accelerator, name, raising=False)
    monkeypatch.setattr(torch, "get_device_module", lambda device: Backend())
    with PeakMemory("xpu:0") as peak:
        pass
    assert (peak.device_bytes, device_peak("xpu:0")) == (250, 350)


def test_passes_and_examples_are_counted(make_bert):
    model = make_bert()
    with counting_passes(model) as count:
        model(input_ids=torch.ones(3, 4, dtype=torch.long))
        model(torch.ones(2, 4, dtype=torch.long))
    model(input_ids=torch.ones(3, 4, dtype=torch.long))
    assert (count.passes, count.examples) == (2, 5)
    with counting_passes(linear := nn.Linear(2, 2)) as count:
        linear(torch.ones(7, 2))
    assert (count.passes, count.examples) == (1, 7)


def test_plain_and_measured_passes_are_of_the_same_batches(make_bert):
    model, seen = make_bert(hidden_dropout_prob=0.5).train(), []
    drawn, flags = torch.get_rng_state(), [part.training for part in model.modules()]
    batches = [{"input_ids": torch.randint(1, 9, (4, 6)), "text": "left out"} for _ in range(BATCHES + 2)]
    drawn = torch.get_rng_state()
    model.register_forward_pre_hook(lambda _, args, given: seen.append(given["input_ids"]), with_kwargs=True)
    hooked = [len(part._forward_hooks) for part in model.modules()]
    beside = run_beside(model, batches, find_block_stacks(model), "default")
    assert (beside.batches, beside.examples) == (BATCHES, 4 * BATCHES)
    assert len(beside.plain) == len(beside.measured) == REPEATS
    assert beside.ratio > 0
    assert len(seen) == BATCHES * (1 + 2 * REPEATS)
    assert all(torch.equal(given, batches[i % BATCHES]["input_ids"]) for i, given in enumerate(seen))
    assert torch.equal(drawn, torch.get_rng_state())
    assert run_beside(model, batches, None).ratio is None
    assert flags == [part.training for part in model.modules()]
    assert hooked == [len(part._forward_hooks) for part in model.modules()]


def test_a_stage_that_comes_twice_is_added_up(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr("hf_mpruner.footprint.profile.time.perf_counter", lambda: next(clock))
    stages = Stages()
    for name in ("loading", "measuring", "loading"):
        stages.mark(name)
    assert stages.seconds == {"loading": 5.0, "measuring": 2.0}


def test_without_the_flag_nothing_is_done():
    profile = Profile(False)
    profile.mark("loading")
    profile.measure(None, None, None)
    assert (profile.to_values(), profile.to_table()) == ({}, "")
