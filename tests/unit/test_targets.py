"""Limits on parameters, bytes and time become numbers of layers: against models that were really cut, and their files."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from hf_mpruner import PruningConfig, PruningPlan, apply_plan_, find_block_stacks, prune_
from hf_mpruner.architectures import count_parameters, examine, parameters_after, remains_of
from hf_mpruner.footprint import saved_bytes, weight_files_bytes
from hf_mpruner.record import Measurement, PruningRecord
from hf_mpruner.report import PruningReport
from hf_mpruner.targets import settle_target

BERT = "bert.encoder.layer"


def make_t5():
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "decoder_start_token_id": 0}
    return T5ForConditionalGeneration(T5Config(num_layers=6, num_decoder_layers=3, **sizes)).eval()


def cut(model, kept):
    copied = copy.deepcopy(model)
    apply_plan_(copied, PruningPlan.from_kept(kept, find_block_stacks(model)))
    return copied


def settle(model, *, time_forward=None, record=None, protected=None, **config):
    stacks = find_block_stacks(model)
    record = record or PruningRecord({stack.path: stack.depth for stack in stacks})
    given = PruningConfig(**config)
    return settle_target(model, given, stacks, record, protected or {}, time_forward)


@pytest.fixture
def bert(make_bert):
    return make_bert(num_hidden_layers=5)


@pytest.fixture(scope="module")
def t5():
    return make_t5()


# -- what a cut leaves, before it is made -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kept", [{"encoder.block": [0, 2, 5]}, {"encoder.block": [1, 4], "decoder.block": [0, 2]}, {"decoder.block": [2]}]
)
def test_bytes_as_saved_are_those_of_the_model_that_was_really_cut(t5, kept, tmp_path):
    smaller = cut(t5, kept)  # tied embeddings, and the first block hands on its position bias
    assert saved_bytes(t5, remains_of(t5, kept)) == saved_bytes(smaller)
    assert parameters_after(t5, kept)[0] == count_parameters(smaller)
    smaller.save_pretrained(tmp_path)
    assert 0 < weight_files_bytes(tmp_path) - saved_bytes(smaller) < 20_000  # the header of the file


# -- one stack --------------------------------------------------------------------------------------------------------


SMALLER = {}


def really(model, removed):
    """A model of so many layers less, whose size is all that is asked for."""
    if removed not in SMALLER:
        SMALLER[removed] = cut(model, {BERT: list(range(5 - removed))}) if removed else model
    return SMALLER[removed]


@pytest.mark.parametrize(("field", "measure"), [("target_parameters", count_parameters), ("target_size", saved_bytes)])
def test_the_fewest_layers_go_that_bring_a_model_within_the_limit(bert, field, measure):
    sizes = [measure(really(bert, removed)) for removed in range(5)]
    for removed in range(1, 5):
        for limit in (sizes[removed], sizes[removed - 1] - 1):
            found = settle(bert, **{field: limit})
            assert found.num_layers == {BERT: 5 - removed}
            assert found.expected == {field: sizes[removed]}
            assert found.uncut == {field: sizes[0]}


def test_a_share_is_of_the_uncut_model(bert):
    sizes = [count_parameters(really(bert, removed)) for removed in range(5)]
    share = f"{100 * sizes[2] / sizes[0] + 0.01:.4f}%"
    assert settle(bert, target_parameters=share).num_layers == {BERT: 3}
    # of a run that has come to three layers the model is smaller, the uncut one is not
    record = PruningRecord({BERT: 5}, baseline=Measurement(sizes[0], 4 * sizes[0]))
    record.rounds.append(accepted({BERT: [0, 1, 2]}))
    smaller = really(bert, 2)
    assert settle(smaller, record=record, target_parameters=share).num_layers == {BERT: 3}
    assert settle(smaller, record=record, target_parameters=f"{100 * sizes[3] / sizes[0] + 0.01:.4f}%").num_layers == {
        BERT: 2
    }


def accepted(kept):
    from hf_mpruner.record import Round

    return Round(1, 1, kept, {}, {}, Measurement(1, 4), verdict="accepted")


class Clock:
    """Times a model by the layers that it has at that moment."""

    def __init__(self, model, seconds=lambda depth: 0.01 + 0.002 * depth):
        self.model, self.seconds, self.timed = model, seconds, []

    def __call__(self, record, measured):
        depth = len(self.model.bert.encoder.layer)
        assert self.model.config.num_hidden_layers == depth
        self.timed.append(depth)
        measured.latency_seconds = self.seconds(depth)


def test_a_time_is_that_of_the_model_without_the_layers_which_is_whole_again_afterwards(make_bert):
    model = make_bert(num_hidden_layers=9)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    clock = Clock(model)
    found = settle(model, time_forward=clock, target_latency="19ms")  # 0.01 + 0.002 * 4 = 18 ms
    assert found.num_layers == {BERT: 4}
    assert found.expected == {"target_latency": pytest.approx(0.018)}
    assert clock.timed[0] == 9
    depths = set(clock.timed)
    assert len(depths) <= 2 + 3  # the uncut one, the smallest, and a bisection of what lies between
    assert len(clock.timed) == 2 * len(depths)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_of_two_times_the_one_without_other_work_counts(make_bert):
    model = make_bert(num_hidden_layers=4)
    clock = Clock(model, lambda depth: 0.01 * depth + (1.0 if len(clock.timed) % 2 else 0.0))
    assert settle(model, time_forward=clock, target_latency="25ms").num_layers == {BERT: 2}


def test_the_model_is_whole_again_if_timing_fails(make_bert):
    model = make_bert(num_hidden_layers=4)

    def failing(record, measured):
        if len(model.bert.encoder.layer) < 4:
            raise KeyError("no time")
        measured.latency_seconds = 1.0

    with pytest.raises(KeyError):
        settle(model, time_forward=failing, target_latency="50%")
    assert len(model.bert.encoder.layer) == model.config.num_hidden_layers == 4


def test_the_strictest_limit_counts(bert):
    sizes = [count_parameters(really(bert, removed)) for removed in range(5)]
    clock = Clock(bert)
    both = {"target_parameters": sizes[1], "target_latency": "16.5ms"}
    assert settle(bert, time_forward=clock, **both).num_layers == {BERT: 3}
    assert settle(bert, time_forward=clock, **{**both, "target_parameters": sizes[4]}).num_layers == {BERT: 1}


# -- several stacks ---------------------------------------------------------------------------------------------------


def test_stacks_shrink_in_proportion_and_a_named_one_has_its_number(t5):
    sizes, found = {}, examine(t5)
    for encoder, decoder in itertools.product(range(1, 7), range(1, 4)):
        kept = {"encoder.block": list(range(encoder)), "decoder.block": list(range(decoder))}
        sizes[encoder, decoder] = parameters_after(t5, kept, found=found)[0]
    # five layers of the encoder and two of the decoder can go: one of the decoder for every two and a half
    steps = [(6, 3), (5, 3), (5, 2), (4, 2), (3, 2), (2, 2), (2, 1), (1, 1)]
    for last, left in itertools.pairwise(steps):
        found = settle(t5, target_parameters=sizes[last] - 1).num_layers
        assert (found.get("encoder.block", 6), found.get("decoder.block", 3)) == left
    named = settle(t5, target_num_layers="encoder.block:4", target_parameters=sizes[4, 2])
    assert named.num_layers == {"encoder.block": 4, "decoder.block": 2}
    already = settle(t5, target_num_layers="encoder.block:4", target_parameters=sizes[4, 3])
    assert already.num_layers == {"encoder.block": 4}


def test_numbers_that_a_round_would_refuse_are_passed_over(t5):
    """A decoder deeper than its encoder cannot generate with a cache, so it is not cut to be."""
    left = {"encoder.block": list(range(2)), "decoder.block": list(range(3))}
    limit = count_parameters(cut(t5, left)) + 1
    found = settle(t5, target_num_layers="encoder.block:2", target_parameters=limit).num_layers
    assert found == {"encoder.block": 2, "decoder.block": 2}  # three decoder layers are within the limit
    t5.generation_config.use_cache = False
    try:
        found = settle(t5, target_num_layers="encoder.block:2", target_parameters=limit).num_layers
    finally:
        t5.generation_config.use_cache = True
    assert found == {"encoder.block": 2}


# -- what cannot be ---------------------------------------------------------------------------------------------------


def test_nothing_has_to_go(bert):
    with pytest.raises(
        ValueError, match=r"Nothing has to go: the model has [\d,]+ parameters, and target_parameters='1B'"
    ):
        settle(bert, target_parameters="1B")


def test_a_limit_that_no_plan_reaches(bert):
    least = count_parameters(really(bert, 4))
    with pytest.raises(
        ValueError, match=rf"'10' cannot be reached: .*\(1 of '{BERT}'\) the model has {least:,} parameters, and 10 p"
    ):
        settle(bert, target_parameters="10")
    held = count_parameters(cut(bert, {BERT: [0, 1]}))
    with pytest.raises(ValueError, match=rf"\(2 of '{BERT}'\) the model has {held:,} parameters"):
        settle(bert, target_parameters="10", protected={BERT: [0, 1]})


def test_targets_that_contradict_each_other(bert):
    sizes = [count_parameters(really(bert, removed)) for removed in range(5)]
    with pytest.raises(
        ValueError, match=rf"target_num_layers=4 contradicts .*{sizes[1]:,} parameters.*allows {sizes[2]:,}"
    ):
        settle(bert, target_num_layers=4, target_parameters=sizes[2])
    assert settle(bert, target_num_layers=3, target_parameters=sizes[2]).num_layers == {BERT: 3}


# -- a run ------------------------------------------------------------------------------------------------------------


def rows():
    return [{"input_ids": [5, 7, 9, 11 + i], "attention_mask": [1, 1, 1, 1], "labels": i % 2} for i in range(8)]


def test_a_run_ends_within_its_limit_and_says_so(make_bert):
    model = make_bert(num_hidden_layers=5)
    sizes = [count_parameters(really(model, removed)) for removed in range(5)]
    config = PruningConfig(criterion="tail", target_parameters=sizes[2], layers_per_round=1)
    report = prune_(model, config, calibration=rows())
    assert len(model.bert.encoder.layer) == 3
    assert report.record.stopped == "target reached"
    assert report.record.target["num_layers"] == {BERT: 3}
    assert f"target_parameters={sizes[2]} reached: {sizes[2]:,} parameters, at most {sizes[2]:,}" in str(report)
    again = PruningRecord.from_dict(report.record.to_dict())
    assert again.target == report.record.target
    assert "reached: " in PruningReport(again).to_html()


def test_a_run_that_loses_too_much_says_what_is_left(make_bert):
    model = make_bert(num_hidden_layers=5)
    values = iter([0.9, 0.1, 0.1, 0.1])
    config = PruningConfig(criterion="tail", target_size="50%", metric="accuracy", max_metric_drop=0.01)
    report = prune_(model, config, calibration=rows(), evaluate=lambda _: {"accuracy": next(values)})
    removed = [5 - len(round_.kept[BERT]) for round_ in report.rounds]
    assert removed == sorted(removed, reverse=True)
    assert len(set(removed)) > 1
    assert len(model.bert.encoder.layer) == 5
    assert "target_size=50% not reached: " in str(report)


def test_a_run_with_a_limit_out_of_reach_is_refused_before_anything_is_measured(make_bert):
    model = make_bert(num_hidden_layers=3)
    for config in (PruningConfig(target_parameters="10"), PruningConfig(target_latency="0.00001ms")):
        with pytest.raises(ValueError, match="cannot be reached"):
            prune_(model, config, calibration=rows(), evaluate=lambda _: pytest.fail("evaluated"))
    assert len(model.bert.encoder.layer) == 3
