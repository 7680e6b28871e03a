"""`prune_`: the rounds of Algorithm 1 in one call, on encoders, decoders and both."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from hf_mpruner import PruningConfig, apply_plan_, find_block_stacks, prune_
from hf_mpruner.errors import CalibrationError, MPrunerError, PlanMismatchError
from trainer_kit import STACK, Rows

ALL_ALIKE = {"threshold": 0.0, "calibration_samples": 16, "calibration_batch_size": 8}


def make_t5():
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=64,
        d_model=16,
        d_kv=4,
        d_ff=32,
        num_heads=4,
        num_layers=5,
        num_decoder_layers=4,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config).eval()


def seq2seq_batches():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 64, (3, 8, 7), generator=generator)
    return [
        {"input_ids": rows, "attention_mask": torch.ones_like(rows), "labels": rows[:, :5].contiguous()}
        for rows in ids
    ]


def test_without_a_metric_it_cuts_once_and_says_that_nothing_judged(make_bert):
    model = make_bert()
    report = prune_(model, PruningConfig(**ALL_ALIKE), calibration=Rows(16, 0))
    assert len(model.bert.encoder.layer) == model.config.num_hidden_layers == 1
    assert [round_.verdict for round_ in report.rounds] == ["unjudged"]
    assert "nothing can judge a second one" in report.record.stopped
    assert report.before.parameters > report.after.parameters == model.num_parameters()


def test_with_a_metric_it_goes_on_until_a_round_is_rejected_at_every_granularity(make_bert):
    model = make_bert()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen = []

    def evaluate(cut):
        seen.append(len(cut.bert.encoder.layer))
        return {"accuracy": {4: 0.9, 3: 0.9}.get(len(cut.bert.encoder.layer), 0.1)}

    report = prune_(model, PruningConfig(**ALL_ALIKE), calibration=Rows(16, 0), evaluate=evaluate)
    # k = 1 leaves 1 of 4 layers, k = 2 leaves 2, k = 3 leaves 3; from there k = 3 leaves 2
    assert seen == [4, 1, 2, 3, 2]
    assert [round_.verdict for round_ in report.rounds] == ["rejected", "rejected", "accepted", "rejected"]
    assert report.plan.kept == {STACK: (0, 2, 3)}
    survivors = dict(enumerate((0, 2, 3)))
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if name.startswith(STACK):
            parts[3] = str(survivors[int(parts[3])])
        assert torch.equal(tensor, before[".".join(parts)]), name


def test_encoder_and_decoder_are_cut_apart_and_the_plan_replays():
    model, fresh = make_t5(), make_t5()
    batch = seq2seq_batches()[0]
    report = prune_(model, PruningConfig(**ALL_ALIKE, granularity=2), calibration=seq2seq_batches())
    assert report.plan.kept == {"encoder.block": (0, 2, 4), "decoder.block": (0, 2)}
    apply_plan_(fresh, report.plan)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, fresh(**batch).logits)
    assert model.generate(batch["input_ids"], max_new_tokens=4, use_cache=True).tolist() == (
        model.generate(batch["input_ids"], max_new_tokens=4, use_cache=False).tolist()
    )


def test_a_generator_serves_every_round():
    report = prune_(
        make_t5(),
        PruningConfig(**ALL_ALIKE, granularity=2, max_rounds=2),
        calibration=(batch for batch in seq2seq_batches()),
        evaluate=lambda model: {"loss": 1.0},
    )
    assert [len(round_.kept["encoder.block"]) for round_ in report.rounds] == [3, 2]


def test_only_the_stacks_that_were_named():
    report = prune_(make_t5(), PruningConfig(**ALL_ALIKE, stacks=["decoder.block"]), calibration=seq2seq_batches())
    assert report.plan.kept == {"decoder.block": (0,)}


def test_protected_layers_stay_round_after_round():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=6
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    batches = [{"input_ids": torch.randint(0, 64, (8, 6), generator=torch.Generator().manual_seed(i))} for i in (0, 1)]
    report = prune_(
        model, PruningConfig(**ALL_ALIKE, granularity=2, protect=[-1, 3]), calibration=batches, evaluate=lambda m: {"loss": 1.0}
    )  # fmt: skip
    assert report.rounds[0].kept == {"model.layers": [0, 2, 3, 4, 5]}
    assert report.plan.kept == {"model.layers": (0, 3, 5)}
    assert report.record.stopped == "the layers that are alike are protected or pinned"


def test_the_random_state_is_left_alone(make_bert):
    model = make_bert()
    before = torch.get_rng_state()
    prune_(
        model, PruningConfig(**ALL_ALIKE), calibration=Rows(16, 0), evaluate=lambda m: {"loss": float(torch.rand(1))}
    )
    assert torch.equal(before, torch.get_rng_state())


def test_calibration_without_examples(make_bert):
    model = make_bert()
    with pytest.raises(CalibrationError):
        prune_(model, PruningConfig(**ALL_ALIKE), calibration=[])
    assert len(model.bert.encoder.layer) == 4


def test_evaluate_must_name_its_metrics(make_bert):
    with pytest.raises(MPrunerError, match=r"evaluate returned float, not metrics by name.*'accuracy': 0\.93"):
        prune_(make_bert(), PruningConfig(**ALL_ALIKE), calibration=Rows(16, 0), evaluate=lambda model: 0.5)


def test_an_uncut_model_that_cannot_be_measured_is_not_pruned(make_bert):
    model = make_bert()
    with pytest.raises(MPrunerError, match=r"The uncut model's loss is nan: no drop can be measured"):
        prune_(
            model,
            PruningConfig(**ALL_ALIKE),
            calibration=Rows(16, 0),
            evaluate=lambda m: {"loss": float("nan")},
        )
    assert len(model.bert.encoder.layer) == 4


def test_its_plan_does_not_fit_the_model_it_has_cut(make_bert):
    model = make_bert()
    report = prune_(model, PruningConfig(**ALL_ALIKE, granularity=2), calibration=Rows(16, 0))
    with pytest.raises(PlanMismatchError, match=r"keeps 2 of 4 layers of 'bert\.encoder\.layer', but the model has 2"):
        apply_plan_(model, report.plan)
    assert [stack.depth for stack in find_block_stacks(model)] == [2]


def test_a_cut_that_generate_fails_on_is_a_refused_round_and_not_the_end_of_the_run():
    def evaluate(cut):
        cut.generate(input_ids=torch.tensor([[5, 6, 7]]), max_new_tokens=3)
        return {"accuracy": 0.9}

    config = PruningConfig(**ALL_ALIKE, stacks=["encoder.block"])
    model = make_t5()
    report = prune_(model, config, calibration=seq2seq_batches(), evaluate=evaluate)
    assert {round_.refused for round_ in report.rounds} == {True}
    assert "generate() keeps keys and values for 1 layers, the length of the encoder" in report.rounds[0].reason
    assert "set model.generation_config.use_cache = False before the run" in report.rounds[0].reason
    assert (model.config.num_layers, model.config.num_decoder_layers) == (5, 4)

    model = make_t5()
    model.generation_config.use_cache = False
    with pytest.warns(UserWarning, match="generate\\(\\) keeps keys and values"):
        prune_(model, config, calibration=seq2seq_batches(), evaluate=evaluate)
    assert model.config.num_layers < model.config.num_decoder_layers == 4


def test_with_a_search_what_judges_is_not_what_chooses(make_bert):
    def evaluate(model):
        return {"accuracy": 1.0}

    rows = [{"input_ids": torch.arange(5) + i, "labels": i % 2} for i in range(60)]
    settings = {"threshold": "auto", "calibration_samples": 8, "max_rounds": 1}
    model = make_bert(num_labels=2)
    with pytest.raises(CalibrationError, match="calibration and eval_dataset share 20 of 40 examples"):
        prune_(model, PruningConfig(criterion="cka", **settings), calibration=rows[:40], evaluate=evaluate,
               eval_dataset=rows[20:])  # fmt: skip
    with pytest.raises(CalibrationError, match="'metric_drop' would choose by the very examples that judge"):
        prune_(model, PruningConfig(criterion="metric_drop", **settings), calibration=rows[:40], evaluate=evaluate)
    assert model.config.num_hidden_layers == 4
    report = prune_(model, PruningConfig(criterion="loss", **settings), calibration=rows[:20], choosing=rows[20:40],
                    evaluate=evaluate, eval_dataset=rows[40:])  # fmt: skip
    assert report.record.data["choosing"] == {"source": "given by the user", "num_examples": 8}
    assert "calibration" not in report.record.data
    with pytest.raises(ValueError, match="choosing would not be used"):
        prune_(model, PruningConfig(), calibration=rows, choosing=rows)
