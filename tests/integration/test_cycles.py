"""`prune_in_cycles`: a fresh Trainer for each round, the same record as the callback's, and what it refuses."""

from __future__ import annotations

import dataclasses
import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from cycles_kit import Maker, prune, rounds_of, save_bert
from hf_mpruner import LayerPruningCallback, PruningPlan, PruningReport, apply_plan_, prune_in_cycles
from hf_mpruner.errors import MPrunerError, UnsupportedArchitectureError, UnsupportedBackendError
from hf_mpruner.record import PruningRecord
from trainer_kit import STACK, TIMES, Rows, Scripted, Spy, add, build_trainer


@pytest.fixture
def source(tmp_path):
    return save_bert(tmp_path / "source")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def names_in(folder):
    return sorted(entry.name for entry in Path(folder).iterdir())


def weights_in(folder):
    return BertForSequenceClassification.from_pretrained(folder).state_dict()


def assert_equal(weights, others):
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, others[name]), name


# -- what it does ------------------------------------------------------------------------------------------------------


def test_rejected_and_accepted_rounds_until_none_is_left(source, out, tmp_path):
    maker = Maker(tmp_path / "training")
    report = prune(maker, source, out)

    assert rounds_of(report.record) == [
        ("rejected", [0], 1),
        ("accepted", [0, 2], 2),
        ("rejected", [0], 2),
    ]
    assert [Path(path).name for path in maker.paths] == ["source", "candidate-1", "candidate-2", "candidate-3"]
    assert report.record.stopped == "rejected up to granularity 3"
    assert (report.before.metric, report.after.metric, report.rounds[1].drop) == (0.9, 0.89, pytest.approx(0.01))
    assert [(r.started_at_step, r.decided_at_step) for r in report.rounds] == [(0, 3), (3, 6), (6, 9)]
    assert report.record.data["calibration"] == {"source": "given by the user", "num_examples": 16}
    assert all(round_.recovery_seconds > 0 for round_ in report.rounds)


def test_the_folder_holds_a_plain_model_and_the_files_that_the_callback_writes(source, out, tmp_path):
    report = prune(Maker(tmp_path / "training"), source, out)
    assert names_in(out) == ["model", "pruning_plan.json", "pruning_record.json", "report.json"]
    loaded, info = AutoModelForSequenceClassification.from_pretrained(out / "model", output_loading_info=True)
    assert not any(info.values())
    assert len(loaded.bert.encoder.layer) == loaded.config.num_hidden_layers == 2
    assert loaded.num_parameters() == report.after.parameters
    assert PruningPlan.from_pretrained(out) == report.plan
    assert report.plan.kept == {STACK: (0, 2)}
    assert PruningReport.load(out).record == PruningRecord.load(out) == report.record


def test_the_model_is_the_one_that_is_made_by_hand(source, out, tmp_path):
    prune(Maker(tmp_path / "training"), source, out, recovery_epochs=2)

    model = BertForSequenceClassification.from_pretrained(source)
    apply_plan_(model, PruningPlan.from_pretrained(out))
    model.save_pretrained(tmp_path / "cut")
    fresh = BertForSequenceClassification.from_pretrained(tmp_path / "cut")
    trainer = build_trainer(fresh, tmp_path / "by hand", num_train_epochs=2)
    trainer.train()
    assert_equal(weights_in(out / "model"), trainer.model.state_dict())


def test_the_first_training_and_the_rounds_after_it_by_hand(source, out, tmp_path):
    report = prune(Maker(tmp_path / "training"), source, out, start_epoch=2, granularity=2, max_rounds=1)

    trainer = build_trainer(BertForSequenceClassification.from_pretrained(source), tmp_path / "1", num_train_epochs=2)
    trainer.train()
    apply_plan_(trainer.model, report.plan)
    trainer.save_model(tmp_path / "cut")
    cut = BertForSequenceClassification.from_pretrained(tmp_path / "cut")
    trainer = build_trainer(cut, tmp_path / "2", num_train_epochs=1)
    trainer.train()
    assert_equal(weights_in(out / "model"), trainer.model.state_dict())
    assert [(r.verdict, r.started_at_step, r.decided_at_step) for r in report.rounds] == [("accepted", 6, 9)]


def test_its_rounds_are_the_callbacks_where_training_changes_nothing(source, out, tmp_path):
    values = (0.9, 0.5, 0.88, 0.3, 0.87)
    trainer = build_trainer(
        BertForSequenceClassification.from_pretrained(source), tmp_path / "callback", Scripted(*values),
        learning_rate=0.0, num_train_epochs=9,
    )  # fmt: skip
    callback = add(trainer)
    trainer.train()

    scripted = Scripted(*values)
    maker = Maker(tmp_path / "training", compute_metrics=scripted, learning_rate=0.0)
    report = prune(maker, source, out)

    assert [round_.verdict for round_ in report.rounds] == ["rejected", "accepted", "rejected"]
    assert report.plan == callback.plan
    assert len(scripted.values) == 1
    for round_, other in zip(report.record.rounds, callback.record.rounds, strict=True):
        assert comparable(round_) == comparable(other)
    # the callback's training goes on after its last round
    assert comparable_measurement(report.before) == comparable_measurement(callback.record.baseline)
    rest = {"rounds": [], "baseline": None, "training": {}, "spent": {}, "peak_memory": {}}
    assert dataclasses.replace(report.record, **rest) == dataclasses.replace(callback.record, **rest)
    # the config says how long each round trains; before it no optimizer is there to ask
    known = {
        key: value for key, value in callback.record.training.items() if key not in ("num_train_epochs", "optimizer")
    }
    assert report.record.training == known


def comparable(round_):
    after = comparable_measurement(round_.after)
    return dataclasses.replace(round_, after=after, analysis_seconds=0.0, recovery_seconds=0.0)


def comparable_measurement(measured):
    return dataclasses.replace(measured, **{name: None for name in TIMES if hasattr(measured, name)})


def test_without_an_accepted_round_the_uncut_model_is_left(source, out, tmp_path):
    report = prune(Maker(tmp_path / "training", metric=lambda depth: depth / 10), source, out)
    assert [round_.verdict for round_ in report.rounds] == ["rejected"] * 3
    assert report.plan.num_removed == 0
    assert_equal(weights_in(out / "model"), weights_in(source))
    assert names_in(out) == ["model", "pruning_plan.json", "pruning_record.json", "report.json"]


def test_a_model_that_can_lose_nothing_is_refused_before_training(out, tmp_path):
    maker = Maker(tmp_path / "training")
    with pytest.raises(UnsupportedArchitectureError):
        prune(maker, save_bert(tmp_path / "flat", layers=1), out)
    assert [trainer.state.global_step for trainer in maker.trainers] == [0]
    assert not out.exists()


def test_recovery_epochs_decide_how_long_each_trainer_trains_and_max_steps_if_it_is_given(source, tmp_path):
    maker = Maker(tmp_path / "training", num_train_epochs=7)
    prune(maker, source, tmp_path / "epochs", recovery_epochs=2, start_epoch=1)
    assert [trainer.state.global_step for trainer in maker.trainers] == [3, 6, 6, 6]
    assert {trainer.args.num_train_epochs for trainer in maker.trainers} == {7}
    maker = Maker(tmp_path / "training", max_steps=4)
    prune(maker, source, tmp_path / "steps")
    assert [trainer.state.global_step for trainer in maker.trainers] == [0, 4, 4, 4]


def test_without_recovery_nothing_trains(source, out, tmp_path):
    maker = Maker(tmp_path / "training")
    report = prune(maker, source, out, recovery_epochs=0)
    assert [trainer.state.global_step for trainer in maker.trainers] == [0, 0, 0, 0]
    model = BertForSequenceClassification.from_pretrained(source)
    apply_plan_(model, report.plan)
    assert_equal(weights_in(out / "model"), model.state_dict())


def test_freeze_untouched_and_what_the_script_freezes(source, out, tmp_path):
    class Freezing(Maker):
        def load(self, path):
            model = super().load(path)
            model.classifier.bias.requires_grad_(False)
            return model

    report = prune(
        Freezing(tmp_path / "training", metric=float), source, out, freeze_untouched=True, protect=[1, 2], granularity=1, max_rounds=1,
        max_metric_drop=1.0,
    )  # fmt: skip
    assert report.plan.kept == {STACK: (0, 1, 2)}  # 3 is gone: 2 is beside it
    before, after = weights_in(source), weights_in(out / "model")
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert {name.split(".")[3] for name in changed if name.startswith(STACK)} == {"2"}
    assert {name for name in changed if not name.startswith(STACK)} == {"classifier.weight"}


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"recovery": "lora"}, "recovery='lora'"),
        ({"distillation_weight": 0.5}, "distillation"),
        ({"learning_rate_policy": "restart"}, "learning_rate_policy='restart'"),
        ({"recovery_learning_rate": 1e-3}, "recovery_learning_rate"),
    ],
)
def test_recovery_that_only_the_callback_has(config, named, source, out, tmp_path):
    maker = Maker(tmp_path / "training")
    with pytest.raises(ValueError, match=f"prune_in_cycles does not support {named}: "):
        prune(maker, source, out, **config)
    assert maker.paths == []


def make_tokenizer():
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")


@pytest.mark.parametrize("accepted", [True, False])
def test_a_language_model_with_tied_weights_and_its_tokenizer(accepted, out, tmp_path):
    """The script loads its tokenizer from the folder, too, and the loss decides."""
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 16, "vocab_size": 99}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=1)).save_pretrained(tmp_path / "source")
    make_tokenizer().save_pretrained(tmp_path / "source")
    rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in Rows(16, 0).rows]

    def make_trainer(path):
        settings = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "learning_rate": 1e-2}
        return Trainer(
            GPT2LMHeadModel.from_pretrained(path), TrainingArguments(tmp_path / "training", **settings),
            train_dataset=rows, eval_dataset=rows, processing_class=AutoTokenizer.from_pretrained(path),
        )  # fmt: skip

    config = {"metric": "loss", "max_metric_drop": 0.0, "recovery_epochs": 2 if accepted else 0, "max_rounds": 1}
    report = prune(make_trainer, tmp_path / "source", out, calibration=rows, **config)
    before = GPT2LMHeadModel.from_pretrained(tmp_path / "source")
    # the loss of what was trained falls, that of what was cut alone need not
    assert (report.rounds[0].verdict == "accepted") == (report.rounds[0].drop <= 1e-9)
    if accepted:
        assert report.rounds[0].verdict == "accepted"
    after, info = AutoModelForCausalLM.from_pretrained(out / "model", output_loading_info=True)
    assert not any(info.values())
    assert after.lm_head.weight is after.transformer.wte.weight
    assert torch.equal(after.lm_head.weight, before.lm_head.weight) == (not accepted)
    assert len(after.transformer.h) == report.plan.stacks["transformer.h"].depth - report.plan.num_removed
    assert AutoTokenizer.from_pretrained(out / "model").get_vocab() == make_tokenizer().get_vocab()


def test_a_full_check_runs_on_the_plain_model(source, out, tmp_path):
    report = prune(Maker(tmp_path / "training"), source, out, verify="full")
    assert [round_.verdict for round_ in report.rounds] == ["rejected", "accepted", "rejected"]


def test_a_best_checkpoint_of_a_round_is_that_rounds(source, out, tmp_path):
    """Each training writes into the same folder, where the checkpoints of bigger candidates lie; here it is the run's own."""
    settings = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    maker = Maker(out, save_total_limit=1, **settings)
    report = prune(maker, source, out, recovery_epochs=2)
    assert report.plan.kept == {STACK: (0, 2)}
    assert len(weights_in(out / "model")) == len(maker.trainers[2].model.state_dict())
    assert all(one.state.best_global_step in (3, 6) for one in maker.trainers[1:])


def test_an_evaluation_in_half_precision_costs_no_weights_theirs(source, out, tmp_path):
    prune(Maker(tmp_path / "training", bf16_full_eval=True), source, out)
    prune(Maker(tmp_path / "training"), source, tmp_path / "whole")
    assert_equal(weights_in(out / "model"), weights_in(tmp_path / "whole" / "model"))


def test_the_trainers_own_callbacks_see_no_evaluation_of_ours(source, out, tmp_path):
    seen = Spy(on_evaluate=lambda: True)
    maker = Maker(tmp_path / "training", callbacks=[seen])
    prune(maker, source, out)
    assert seen.seen["on_evaluate"] == []
    assert not any("mpruner_accuracy" in entry for one in maker.trainers for entry in one.state.log_history)


def test_a_trainer_that_is_no_longer_needed_is_let_go(source, out, tmp_path):
    alive = []

    class Counting(Maker):
        def __call__(self, path):
            gc.collect()
            alive.append(sum(one() is not None for one in self.refs))
            trainer = super().__call__(path)
            self.trainers.clear()
            self.refs.append(weakref.ref(trainer.model))
            return trainer

    maker = Counting(tmp_path / "training")
    maker.refs = []
    prune(maker, source, out)
    assert alive == [0, 0, 0, 0]


# -- going on ----------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_not_repeated(source, out, tmp_path):
    first = prune(Maker(tmp_path / "training"), source, out)
    before = weights_in(out / "model")
    again = Maker(tmp_path / "training")
    assert prune(again, source, out).record == first.record
    assert again.paths == [source]
    assert_equal(weights_in(out / "model"), before)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(call, start, source, out, tmp_path):
    whole = prune(Maker(tmp_path / "training"), source, tmp_path / "whole", start_epoch=start)

    class Stopping(Maker):
        def __call__(self, path):
            trainer = super().__call__(path)
            if len(self.paths) == call:

                def stop(*args, **kwargs):
                    raise StoppedError

                trainer.training_step = trainer.evaluate = stop
            return trainer

    with pytest.raises(StoppedError):
        prune(Stopping(tmp_path / "training"), source, out, start_epoch=start)
    report = prune(Maker(tmp_path / "training"), source, out, start_epoch=start)
    assert [comparable(one) for one in report.rounds] == [comparable(one) for one in whole.rounds]
    assert_equal(weights_in(out / "model"), weights_in(tmp_path / "whole" / "model"))
    assert names_in(out) == names_in(tmp_path / "whole")


def test_a_record_in_the_folder_says_what_is_being_trained(source, out, tmp_path):
    pending = []

    class Looking(Maker):
        def __call__(self, path):
            if (out / "pruning_record.json").is_file():
                record = PruningRecord.load(out)
                pending.append(record.pending and record.pending.kept[STACK])
            return super().__call__(path)

    prune(Looking(tmp_path / "training"), source, out)
    assert pending == [[0], [0, 2], [0]]


# -- what it refuses ---------------------------------------------------------------------------------------------------


def everything_in(folder):
    return {file: file.read_bytes() for file in sorted(Path(folder).rglob("*")) if file.is_file()}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"threshold": 0.5}, r"another run, with PruningConfig\(threshold=0\.0 \(now 0\.5\)\)"),
        ({"seed": 8}, "another run, of a model with other weights"),
        ({"layers": 6}, r"another run, of a model with \{'bert.encoder.layer': 4\} layers, but this one has .*6"),
    ],
)
def test_the_run_of_another_model_or_config_is_not_gone_on_with(change, text, source, out, tmp_path):
    prune(Maker(tmp_path / "training"), source, out)
    before = everything_in(out)
    config = {key: value for key, value in change.items() if key == "threshold"}
    model = {key: value for key, value in change.items() if key != "threshold"}
    other = save_bert(tmp_path / "other", **model) if model else source
    with pytest.raises(MPrunerError, match=text):
        prune(Maker(tmp_path / "training"), other, out, **config)
    assert everything_in(out) == before


def test_a_model_of_another_type_is_not_gone_on_with(source, out, tmp_path):
    from transformers import RobertaConfig, RobertaForSequenceClassification

    prune(Maker(tmp_path / "training"), source, out)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 99}
    other = RobertaForSequenceClassification(RobertaConfig(num_hidden_layers=4, **sizes))
    other.save_pretrained(tmp_path / "roberta")

    class Loading(Maker):
        def load(self, path):
            return RobertaForSequenceClassification.from_pretrained(path)

    with pytest.raises(MPrunerError, match="another run, of a 'bert', but the model is a 'roberta'"):
        prune(Loading(tmp_path / "training"), str(tmp_path / "roberta"), out)


@pytest.mark.parametrize("name", ["model", "candidate-1", "report.json"])
def test_a_folder_with_something_else_is_left_alone(name, source, out, tmp_path):
    (out / name).mkdir(parents=True)
    with pytest.raises(MPrunerError, match=f"holds '{name}', but no run that could be gone on with"):
        prune(Maker(tmp_path / "training"), source, out)
    assert names_in(out) == [name]


@pytest.mark.parametrize("text", ["{", "[]", '{"depths": {}}'])
def test_a_record_of_something_else_is_left_alone(text, source, out, tmp_path):
    out.mkdir()
    (out / "pruning_record.json").write_text(text)
    with pytest.raises(MPrunerError, match="is no record of prune_in_cycles"):
        prune(Maker(tmp_path / "training"), source, out)
    assert (out / "pruning_record.json").read_text() == text


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_an_accepted_model_that_was_changed_is_not_gone_on_with(damage, source, out, tmp_path):
    prune(Maker(tmp_path / "training"), source, out)
    weights = out / "model" / "model.safetensors"
    if damage == "gone":
        (out / "model").rename(tmp_path / "moved")
    else:
        weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(MPrunerError, match=r"should be in '.*model', but .*(changed or damaged|is missing)"):
        prune(Maker(tmp_path / "training"), source, out)


def test_a_record_of_other_processes_and_a_loss(source, out, tmp_path):
    prune(Maker(tmp_path / "training"), source, out, metric="loss", max_rounds=1)
    values = json.loads((out / "pruning_record.json").read_text())
    (out / "pruning_record.json").write_text(json.dumps({**values, "world_size": 2}))
    with pytest.raises(UnsupportedBackendError, match="2 processes, this run has 1, and the loss decides"):
        prune(Maker(tmp_path / "training"), source, out, metric="loss", max_rounds=1)


def test_a_trainer_for_another_model_than_the_folders(source, out, tmp_path):
    class Stubborn(Maker):
        def load(self, path):
            return super().load(source)

    with pytest.raises(
        MPrunerError, match=r"candidate-1'\) returned a Trainer whose model is not .* 48 parameters more"
    ):
        prune(Stubborn(tmp_path / "training"), source, out)

    class Other(Maker):
        def load(self, path):
            model = super().load(path)
            model.classifier.weight.data[0, 0] += 1e-6
            return model

    with pytest.raises(MPrunerError, match=r"is not the one of that folder: its 'classifier.weight' has other values"):
        prune(Other(tmp_path / "training"), source, tmp_path / "other")


def test_a_head_that_every_process_would_begin_anew(out, tmp_path):
    from transformers import BertModel

    BertModel.from_pretrained(save_bert(tmp_path / "source")).save_pretrained(tmp_path / "headless")
    maker = Maker(tmp_path / "training")
    with pytest.raises(
        MPrunerError, match=r"has no weights for \['classifier.bias', 'classifier.weight'\].*start_epoch=1"
    ):
        prune(maker, str(tmp_path / "headless"), out)
    assert not out.exists()
    report = prune(maker, str(tmp_path / "headless"), out, start_epoch=1)  # which trains it first
    assert report.plan.kept == {STACK: (0, 2)}
    assert prune(maker, str(tmp_path / "headless"), out, start_epoch=1).record == report.record


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"eval_dataset": None}, ValueError, "has no eval_dataset"),
        ({"compute_metrics": None}, ValueError, "has no compute_metrics and PruningConfig names no metric"),
        ({"model_init": lambda: None}, ValueError, "with model_init"),
        ({"model": torch.nn.Linear(2, 2)}, TypeError, "a Trainer of a Linear"),
    ],
)
def test_a_trainer_that_cannot_be_used(change, error, text, source, out, tmp_path):
    class Changing(Maker):
        def __call__(self, path):
            trainer = super().__call__(path)
            vars(trainer).update(change)
            return trainer

    with pytest.raises(error, match=text):
        prune(Changing(tmp_path / "training"), source, out)
    assert not out.exists()


def test_what_make_trainer_must_not_return(source, out, tmp_path):
    with pytest.raises(TypeError, match="make_trainer returned NoneType, not a Trainer"):
        prune(lambda path: None, source, out)

    def pushing(path):
        trainer = Maker(tmp_path / "training")(path)
        trainer.args.push_to_hub = True  # with it a Trainer asks the Hub as it is made
        return trainer

    with pytest.raises(ValueError, match=r"push_to_hub=True\) would upload candidates"):
        prune(pushing, source, out)
    maker = Maker(tmp_path / "training", callbacks=[LayerPruningCallback()])
    with pytest.raises(ValueError, match="with a LayerPruningCallback"):
        prune(maker, source, out)
    trainer = Maker(tmp_path / "training")(source)
    with pytest.raises(MPrunerError, match="not the one of that folder"):
        prune(lambda path: trainer, source, out)
    trainer = Maker(tmp_path / "training")(source)
    trainer.train()
    with pytest.raises(MPrunerError, match="that has trained already"):
        prune(lambda path: trainer, source, tmp_path / "trained")


def test_arguments_that_are_none(source, out, tmp_path):
    maker = Maker(tmp_path / "training")
    with pytest.raises(TypeError, match="make_trainer is a Trainer, not a function"):
        prune_in_cycles(maker(source), source, output_dir=out)
    with pytest.raises(
        TypeError, match=r"model is a BertForSequenceClassification, .*model\.save_pretrained\(folder\)"
    ):
        prune_in_cycles(maker, maker.load(source), output_dir=out)


@pytest.mark.parametrize("metric", [float("nan"), float("inf")])
def test_metrics_that_are_no_numbers(metric, source, out, tmp_path):
    with pytest.raises(MPrunerError, match=f"The uncut model's accuracy is {metric}"):
        prune(Maker(tmp_path / "training", metric=lambda depth: metric), source, out)
    assert names_in(out) == ["pruning_record.json"]
    report = prune(Maker(tmp_path / "training", metric=lambda depth: 0.9 if depth == 4 else metric), source, out)
    assert [(r.verdict, r.reason) for r in report.rounds] == [("rejected", f"accuracy is {metric}")] * 3
    assert_equal(weights_in(out / "model"), weights_in(source))


def test_regional_compilation_which_the_callback_refuses(source, out, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION", "true")
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}
    trainer = Maker(tmp_path / "callback", **compiled)(source)
    add(trainer)
    with pytest.raises(
        UnsupportedBackendError, match=r"regional compilation, .* hf_mpruner.prune_in_cycles\(\.\.\.\)"
    ):
        trainer.train()
    report = prune(Maker(tmp_path / "training", **compiled), source, out)
    assert report.plan.kept == {STACK: (0, 2)}
    whole = prune(Maker(tmp_path / "training"), source, tmp_path / "whole")
    assert rounds_of(report.record) == rounds_of(whole.record)
    weights, others = weights_in(out / "model"), weights_in(tmp_path / "whole" / "model")
    assert max((weights[name] - value).abs().max() for name, value in others.items()) < 1e-6
