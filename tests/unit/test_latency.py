"""The time of a forward pass: what is timed, what it must not touch, and when it is left out."""

from __future__ import annotations

import logging
import random

import numpy as np
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

import hf_mpruner.latency as module
from hf_mpruner import PruningConfig, prune_
from hf_mpruner.data import FirstBatch
from hf_mpruner.latency import REPEATS, time_forward
from hf_mpruner.record import Measurement, PruningRecord
from hf_mpruner.runtime import SingleProcess
from trainer_kit import STACK, Rows


class Everyone(SingleProcess):
    """As if forward passes communicated."""

    equal_forwards = True


class Second(SingleProcess):
    """A process that does not decide."""

    rank = 1


def batch(rows=4, columns=6):
    return {"input_ids": torch.ones(rows, columns, dtype=torch.long), "attention_mask": torch.ones(rows, columns)}


@pytest.fixture
def record():
    return PruningRecord({STACK: 4})


def timed(model, record, give=batch, **settings):
    measured = Measurement(1, 1)
    time_forward(model, give, record, measured, **settings)
    return measured.latency_seconds


def test_it_says_what_was_timed_and_counts_one_pass_to_warm_up(make_bert, record):
    model, passes = make_bert(), []
    model.register_forward_pre_hook(lambda *_: passes.append((model.training, torch.is_grad_enabled())))
    model.train()
    assert timed(model, record) > 0
    assert passes == [(False, False)] * 2 * (1 + REPEATS)  # the batch, and its first row
    facts = dict(record.latency)
    assert facts.pop("device").startswith("CPU")
    assert facts == {
        "batch_size": 4, "shape": {"input_ids": [4, 6], "attention_mask": [4, 6]}, "repeats": REPEATS, "dtype": "float32",
        "sequence_length": 6, "num_tokens": 24, "single_repeats": REPEATS, "threads": torch.get_num_threads(),
    }  # fmt: skip


def test_the_first_row_alone_is_timed_as_it_stands_in_the_batch(make_bert, record):
    model, seen, measured = make_bert(), [], Measurement(1, 1)
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    padded = {
        "input_ids": torch.arange(12).reshape(2, 6),
        "attention_mask": torch.tensor([[1, 1, 1, 0, 0, 0], [1] * 6]),
    }
    time_forward(model, lambda: padded, record, measured)
    for given in seen[1 + REPEATS :]:
        assert {name: tensor.tolist() for name, tensor in given.items()} == {
            "input_ids": [[0, 1, 2, 3, 4, 5]], "attention_mask": [[1, 1, 1, 0, 0, 0]],
        }  # fmt: skip
    assert record.latency["num_tokens"] == 9
    assert measured.latency_range[0] <= measured.latency_seconds <= measured.latency_range[1]
    assert measured.single_latency_range[0] <= measured.single_latency_seconds <= measured.single_latency_range[1]
    record.latency, seen[:] = {}, []
    time_forward(model, lambda: padded, record, measured, single=False)
    assert len(seen) == 1 + REPEATS


def test_no_row_is_timed_alone_where_there_is_none(make_bert, record):
    model, measured = make_bert(), Measurement(1, 1)
    time_forward(model, lambda: batch(rows=1), record, measured)
    assert (measured.single_latency_seconds, "single_repeats" in record.latency) == (None, False)
    model.forward = lambda input_ids, patches: None  # rows of a second input that are not one an example
    record.latency = {}
    given = {"input_ids": torch.ones(2, 3, dtype=torch.long), "patches": torch.ones(7, 3)}
    time_forward(model, lambda: given, record, measured)
    assert measured.latency_seconds >= 0
    assert measured.single_latency_seconds is None


def test_a_record_of_an_older_version_is_gone_on_with(make_bert, record):
    timed(make_bert(), record)
    for name in ("sequence_length", "num_tokens", "single_repeats"):
        del record.latency[name]
    old = dict(record.latency)
    assert timed(make_bert(), record) > 0
    assert record.latency == old
    record.latency["autocast"] = "bfloat16"  # what an old one does say is held to
    assert timed(make_bert(), record) is None


def test_the_run_sees_nothing_of_it(make_bert, record):
    model = make_bert(hidden_dropout_prob=0.5).train()
    model.bert.encoder.eval()
    flags = [part.training for part in model.modules()]
    model(**batch()).logits.sum().backward()
    before = {name: (p.clone(), None if p.grad is None else p.grad.clone()) for name, p in model.named_parameters()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()

    def draw(*_):
        torch.rand(1), random.random(), np.random.rand()

    def give():
        draw()
        return batch()

    handle = model.register_forward_hook(draw)
    assert timed(model, record, give) > 0
    handle.remove()
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert flags == [part.training for part in model.modules()]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.grad is before[name][1] or torch.equal(parameter.grad, before[name][1])
    model(**batch()).logits.sum().backward()  # nothing that was made on the way is in the way


def test_a_slow_model_is_timed_once(make_bert, record, monkeypatch):
    monkeypatch.setattr(module, "BUDGET_SECONDS", 0.0)
    passes, model = [], make_bert()
    model.register_forward_pre_hook(lambda *_: passes.append(0))
    assert timed(model, record) > 0
    assert (len(passes), record.latency["repeats"], record.latency["single_repeats"]) == (4, 1, 1)
    monkeypatch.undo()
    assert timed(make_bert(2), record) > 0  # a faster one as often, so that the two can be compared
    assert record.latency["repeats"] == 1


def test_a_failure_is_said_and_the_time_is_left_out(make_bert, record, caplog):
    with caplog.at_level(logging.WARNING, logger="hf_mpruner"):
        assert timed(make_bert(), record, lambda: {"no_input": torch.ones(1)}) is None
    assert "Timing the model failed and is left out: ValueError: You must specify exactly one" in caplog.text
    assert record.latency == {}


def test_where_passes_communicate_a_failure_is_not_hidden(make_bert, record):
    assert timed(make_bert(), record, runtime=Everyone()) > 0
    with pytest.raises(ValueError, match="exactly one of input_ids"):
        timed(make_bert(), record, lambda: {"no_input": torch.ones(1)}, runtime=Everyone())


def test_another_process_runs_none_where_none_is_needed(make_bert, record):
    model = make_bert()
    model.register_forward_pre_hook(lambda *_: pytest.fail("a pass too many"))
    assert timed(model, record, runtime=Second()) is None


def test_times_of_other_batches_are_not_compared(make_bert, record, caplog):
    timed(make_bert(), record)
    with caplog.at_level(logging.WARNING, logger="hf_mpruner"):
        assert timed(make_bert(), record, lambda: batch(rows=2)) is None
    assert "earlier ones were measured otherwise (now batch_size=2, shape={'input_ids': [2, 6]" in caplog.text
    assert record.latency["batch_size"] == 4


def test_a_loss_is_not_timed_but_a_decoder_is_fed_with_its_labels(make_bert, record):
    labels = {"labels": torch.zeros(4, dtype=torch.long)}
    assert timed(make_bert(), record, lambda: {**batch(), **labels}) > 0
    assert list(record.latency["shape"]) == ["input_ids", "attention_mask"]
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_heads": 4, "decoder_start_token_id": 0}
    model = T5ForConditionalGeneration(T5Config(vocab_size=64, num_layers=2, **sizes)).eval()
    record.latency = {}
    assert timed(model, record, lambda: {**batch(), "labels": torch.ones(4, 3, dtype=torch.long)}) > 0
    assert record.latency["shape"]["labels"] == [4, 3]


def test_autocast_is_named(make_bert, record):
    model, kinds = make_bert(), []
    model.classifier.register_forward_hook(lambda *found: kinds.append(found[-1].dtype))
    assert timed(model, record, mixed_precision="bf16") > 0
    assert set(kinds) == {torch.bfloat16}
    assert (record.latency["dtype"], record.latency["autocast"]) == ("float32", "bfloat16")


def test_the_first_batch_is_read_while_others_measure():
    read = []

    class Batches:
        def __iter__(self):
            read.append(0)
            yield {"input_ids": torch.full((2, 3), len(read))}
            yield {"input_ids": torch.zeros(2, 3)}

    first = FirstBatch(Batches())
    assert len(list(first.batches)) == 2
    assert first()["input_ids"].tolist() == [[1] * 3] * 2
    assert len(list(first.batches)) == 2
    assert first()["input_ids"].tolist() == [[1] * 3] * 2
    assert len(read) == 2
    assert FirstBatch(Batches())()["input_ids"].tolist() == [[3] * 3] * 2


def test_prune_times_every_model_on_one_batch(make_bert):
    settings = {"threshold": 0.0, "max_metric_drop": 0.05, "calibration_samples": 12, "calibration_batch_size": 6}

    def evaluate(cut):
        return {"accuracy": {4: 0.9, 2: 0.89}.get(len(cut.bert.encoder.layer), 0.5)}

    record = prune_(make_bert(), PruningConfig(**settings), calibration=Rows(16, 0), evaluate=evaluate).record
    assert [round_.verdict for round_ in record.rounds] == ["rejected", "accepted", "rejected"]
    times = [record.baseline.latency_seconds, *(round_.after.latency_seconds for round_ in record.rounds)]
    assert all(seconds > 0 for seconds in times)
    assert all(round_.after.single_latency_seconds > 0 for round_ in record.rounds)
    sizes = [
        (one.saved_bytes, one.num_bytes) for one in (record.baseline, *(round_.after for round_ in record.rounds))
    ]
    assert all(saved == size for saved, size in sizes)  # no buffer of this model is saved
    assert record.baseline.cache == {}  # it generates nothing
    assert record.latency["shape"] == {"input_ids": [6, 8], "attention_mask": [6, 8]}
