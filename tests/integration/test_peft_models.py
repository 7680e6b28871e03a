"""Models that carry PEFT adapters from the start, inside a Trainer: base and adapters are cut and saved together."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hf_mpruner import LayerPruningCallback, PruningConfig, errors
from hf_mpruner.checkpoint import ROLLBACK_NAME
from hf_mpruner.record import PruningRecord
from peft_kit import (
    IDS,
    KINDS,
    QUERY,
    all_of,
    logits,
    lora,
    make_base,
    make_llama,
    make_sentence_transformer,
    make_tokenizer,
    needs_peft,
    peft,
    reload,
    reload_by_hand,
    wrap,
)  # fmt: skip
from trainer_kit import STACK, Scripted, Spy, add, assert_same, build_trainer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads what transformers deprecates


def run(folder, *values, model=None, config=None, resume=None, callbacks=None, pruning=None, **arguments):
    """One process's life: build the uncut model with its adapters, train, return what is left."""
    model = wrap(make_base(), config or lora()) if model is None else model
    settings = {"num_train_epochs": 5, "save_strategy": "steps", "save_steps": 2, **arguments}
    trainer = build_trainer(model, folder, compute_metrics=Scripted(*values), callbacks=callbacks, **settings)
    callback = add(trainer, **{"start_epoch": 1, "recovery_epochs": 2, "granularity": 1, **(pruning or {})})
    trainer.train(resume_from_checkpoint=resume)
    return trainer, callback


def verdicts(callback):
    return [(r.verdict, r.kept[STACK], r.granularity, r.reason) for r in callback.record.rounds]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_loads_with_peft_alone_and_computes_the_same(tmp_path, kind):
    trainer, callback = run(tmp_path / "out", 0.5, 0.1, 0.5, config=KINDS[kind](), save_strategy="no")
    assert [r.verdict for r in callback.record.rounds] == ["rejected", "accepted"]
    trainer.save_model(tmp_path / "final")
    wanted = logits(trainer.model)
    assert len(trainer.model.get_base_model().bert.encoder.layer) == 2
    for loaded in (reload(tmp_path / "final"), reload_by_hand(tmp_path / "final")):
        assert torch.equal(logits(loaded), wanted)
        assert loaded.config.num_hidden_layers == 2
    merged = trainer.model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(again), logits(merged))
    assert torch.allclose(logits(again), wanted, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rejected_round_leaves_no_trace(tmp_path, kind):
    config = KINDS[kind]()
    if hasattr(config, "layers_to_transform"):
        config.layers_to_transform = [0, 2, 3]
    around = {}
    looks = {"on_epoch_begin": lambda: around.update(before=all_of(trainer)) if not around else None}
    first = Spy(**looks)
    model = wrap(make_base(), config)
    modules = list(model.modules())
    trainer = build_trainer(model, tmp_path, compute_metrics=Scripted(0.5, 0.1), callbacks=[first], num_train_epochs=1)
    add(trainer, start_epoch=0, recovery_epochs=1, max_granularity=1)
    last = Spy(on_epoch_end=lambda: around.update(after=all_of(trainer)))
    trainer.add_callback(last)
    trainer.train()
    (before, settings), (after, settings_after) = around["before"], around["after"]
    assert_same((before[0], {}, *before[2:]), (after[0], {}, *after[2:]))
    assert settings == settings_after
    assert list(model.modules()) == modules
    trainer.save_model(tmp_path / "final")
    assert not (tmp_path / "final" / "pruned_base").exists()  # it still fits the base that it names


def test_the_base_stays_frozen_and_is_not_copied(tmp_path):
    seen = []
    model = wrap(make_base(), lora())
    trainer = build_trainer(model, tmp_path, compute_metrics=Scripted(0.5, 0.1, 0.5), num_train_epochs=2)
    callback = add(trainer, start_epoch=0, recovery_epochs=1)
    names = {id(param): name for name, param in model.get_base_model().named_parameters()}

    def look():
        if callback.engine.pending:
            stored = {names[key] for key in callback.engine.cut.snapshot.saved_values() if key in names}
            seen.append(stored)

    trainer.add_callback(Spy(on_step_end=look))
    trainer.train()
    assert seen
    assert all("lora_" in name or name.startswith("classifier.modules_to_save") for stored in seen for name in stored)
    training = {name for name, param in model.named_parameters() if param.requires_grad}
    assert training == {name for name in training if "lora_" in name or "modules_to_save" in name}
    held = {id(param) for group in trainer.optimizer.param_groups for param in group["params"]}
    assert held == {id(param) for param in model.parameters() if param.requires_grad}


def test_layers_that_the_config_names_are_renumbered(tmp_path):
    config = lora(layers_to_transform=[1, 3], rank_pattern={r"layer\.3\.attention\.self\.query": 5})
    trainer, callback = run(tmp_path, 0.5, 0.5, config=config, pruning={"protect": [0, 3]}, save_strategy="no")
    assert callback.record.kept == {STACK: [0, 3]}
    live = trainer.model.peft_config["default"]
    assert live.layers_to_transform == [1]
    assert live.rank_pattern == {QUERY.format(1): 5}
    trainer.save_model(tmp_path / "final")
    saved = json.loads((tmp_path / "final" / "adapter_config.json").read_text())
    assert saved["layers_to_transform"] == [1]
    assert saved["base_model_name_or_path"] == str(tmp_path / "final" / "pruned_base")
    loaded = reload(tmp_path / "final")
    assert torch.equal(logits(loaded), logits(trainer.model))
    assert loaded.base_model.model.bert.encoder.layer[1].attention.self.query.r == {"default": 5}


def test_one_base_on_the_disk_for_each_cut(tmp_path):
    trainer, _ = run(tmp_path / "out", 0.5, 0.1, 0.5, 0.5)
    trainer.save_model(tmp_path / "final")
    weights = sorted((tmp_path / "out").glob("checkpoint-*/pruned_base/model.safetensors"))
    # steps 4 to 8 are of the candidate that was rejected after step 9, what follows of the accepted cut
    assert [int(file.parts[-3].split("-")[1]) for file in weights] == [10, 12, 14, 15, 4, 6, 8]
    files = {file.stat().st_ino for file in weights}
    assert len(files) == 2
    assert (tmp_path / "final" / "pruned_base" / "model.safetensors").stat().st_ino in files
    for checkpoint in (tmp_path / "out" / "checkpoint-15", tmp_path / "out" / "checkpoint-4"):
        assert len(reload(checkpoint).base_model.model.bert.encoder.layer) == (
            2 if checkpoint.name[-2:] == "15" else 1
        )
    # saving once more does not write into the files that other folders share
    shared = weights[0].read_bytes()
    with torch.no_grad():
        trainer.model.get_base_model().bert.embeddings.word_embeddings.weight.add_(1)
    trainer.save_model(tmp_path / "final")
    assert weights[0].read_bytes() == shared
    assert torch.equal(logits(reload(tmp_path / "final")), logits(trainer.model))


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """An uninterrupted run with every second step saved: 4 -> 1 rejected, 4 -> 2 accepted."""
    folder = tmp_path_factory.mktemp("run") / "out"
    trainer, callback = run(folder, 0.9, 0.5, 0.89, 0.5, config=lora(lora_dropout=0.1, layers_to_transform=[0, 2, 3]))
    return folder, all_of(trainer), verdicts(callback)


@pytest.mark.parametrize("step", [2, 4, 8, 10, 12, 14])
def test_resumed_from_any_checkpoint_to_the_same_bits(whole_run, tmp_path, step):
    folder, (left, settings), decided = whole_run
    out = tmp_path / "out"
    shutil.copytree(folder / f"checkpoint-{step}", out / f"checkpoint-{step}")
    shutil.rmtree(
        out / f"checkpoint-{step}" / "pruned_base", ignore_errors=True
    )  # not needed: the script has the base
    record = PruningRecord.load(out / f"checkpoint-{step}")
    done = len([r for r in record.rounds if r.verdict != "pending"])
    values = [0.9, 0.5, 0.89, 0.5][(1 + done) if record.baseline else 0 :]
    config = lora(lora_dropout=0.1, layers_to_transform=[0, 2, 3])
    trainer, callback = run(out, *values, config=config, resume=True)
    assert verdicts(callback) == decided
    assert_same(left, all_of(trainer)[0])
    assert settings == all_of(trainer)[1]
    trainer.save_model(tmp_path / "final")
    assert torch.equal(logits(reload(tmp_path / "final")), logits(trainer.model))


def test_resumed_with_the_model_of_the_checkpoint(tmp_path):
    out = tmp_path / "out"
    settings = {"num_train_epochs": 4, "pruning": {"recovery_epochs": 1, "max_rounds": 2}}
    left = all_of(run(out, 0.9, 0.5, 0.89, **settings)[0])[0]
    for step in (2, 4, 6, 8, 12):
        shutil.rmtree(out / f"checkpoint-{step}")
    base = AutoModelForSequenceClassification.from_pretrained(out / "checkpoint-10" / "pruned_base")
    model = peft.PeftModel.from_pretrained(base, out / "checkpoint-10", is_trainable=True)
    trainer, callback = run(out, model=model, resume=True, **settings)
    assert [r.verdict for r in callback.record.rounds] == ["rejected", "accepted"]
    again = all_of(trainer)[0]
    assert all(torch.equal(left[0][name], value) for name, value in again[0].items())
    shutil.rmtree(out)  # as the Trainer does with old checkpoints
    trainer.save_model(tmp_path / "final")
    assert torch.equal(logits(reload(tmp_path / "final")), logits(trainer.model))


def test_the_way_back_holds_no_frozen_base(whole_run):
    values = torch.load(whole_run[0] / "checkpoint-4" / ROLLBACK_NAME, weights_only=True)
    assert {name for name in values["tensors"] if "lora_" in name}
    assert not [name for name in values["tensors"] if "base_layer" in name or "original_module" in name]
    assert [name for name in values["untouched"] if "layer.3" in name]


def test_adapters_of_another_depth_are_not_loaded(whole_run, tmp_path):
    config = lora(layers_to_transform=[0, 2, 3])
    trainer, _ = run(tmp_path / "out", 0.9, 0.9, config=config, num_train_epochs=3, save_strategy="no")
    assert len(trainer.model.get_base_model().bert.encoder.layer) == 1
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    for step in (2, 14):  # of four blocks and of two
        with pytest.raises(
            errors.MPrunerError, match=r"adapter weights being loaded are for blocks \[0, .*has 1 blocks"
        ):
            trainer.model.load_adapter(str(whole_run[0] / f"checkpoint-{step}"), "default")
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())
    trainer.model.load_adapter(str(whole_run[0] / "checkpoint-4"), "default")  # of one block, as here
    assert any(not torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


def test_a_pending_cut_is_withdrawn_for_the_adapters_before_it(whole_run, tmp_path):
    loaded = []

    def load():
        if callback.engine.pending and not loaded:
            trainer.model.load_adapter(str(whole_run[0] / "checkpoint-2"), "default")
            loaded.append(len(trainer.model.get_base_model().bert.encoder.layer))
            trainer.control.should_training_stop = True

    model = wrap(make_base(), lora(layers_to_transform=[0, 2, 3]))
    trainer = build_trainer(model, tmp_path, compute_metrics=Scripted(0.9), num_train_epochs=2)
    callback = add(trainer, start_epoch=0, recovery_epochs=2)
    trainer.add_callback(Spy(on_step_end=load))
    trainer.train()
    assert loaded == [4]
    assert [(r.verdict, r.reason[:31]) for r in callback.record.rounds] == [
        ("rejected", "the weights before this cut are")
    ]
    assert model.peft_config["default"].layers_to_transform == [0, 2, 3]


def test_only_what_is_beside_the_cut_recovers(tmp_path):
    model = wrap(make_base(), lora())
    trainer = build_trainer(model, tmp_path, compute_metrics=Scripted(0.9, 0.9), num_train_epochs=1)
    callback = add(trainer, start_epoch=0, freeze_untouched=True, protect=["0", "1", "3"], max_rounds=1)
    seen = []
    before = {name for name, param in model.named_parameters() if param.requires_grad}
    names = lambda: {name for name, param in model.named_parameters() if param.requires_grad}  # noqa: E731
    trainer.add_callback(Spy(on_step_end=lambda: seen.append(names())))
    trainer.train()
    assert callback.record.kept == {STACK: [0, 1, 3]}
    kinds = {name.split("layer.")[1][0] if "layer." in name else "head" for name in seen[0]}
    assert kinds == {"1", "2", "head"}
    assert names() == {name for name in before if "layer.3" not in name}


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"recovery": "lora"}, "carries some already"),
        ({"distillation_weight": 0.5}, "does not go with adapters of PEFT"),
    ],
)
def test_recoveries_that_are_for_models_without_adapters(tmp_path, settings, error):
    trainer = build_trainer(wrap(make_base(), lora()), tmp_path)
    add(trainer, **settings)
    with pytest.raises(errors.MPrunerError, match=error):
        trainer.train()


def test_the_best_model_is_one_of_the_same_depth(tmp_path):
    trainer, callback = run(
        tmp_path / "out", *[0.5, 0.9, 0.4, 0.1, 0.3, 0.5, 0.2, 0.5, 0.2], save_strategy="epoch", eval_strategy="epoch",
        load_best_model_at_end=True, metric_for_best_model="accuracy", pruning={"recovery_epochs": 1, "start_epoch": 2},
        num_train_epochs=4,
    )  # fmt: skip
    assert callback.record.rounds
    depth = len(trainer.model.get_base_model().bert.encoder.layer)
    assert depth == len(callback.record.kept[STACK])
    best = reload(trainer.state.best_model_checkpoint)
    assert torch.equal(logits(best), logits(trainer.model))


@needs_peft("0.20")
def test_add_adapter_of_transformers(tmp_path):
    base = make_base()
    torch.manual_seed(1)
    base.add_adapter(peft.LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False))
    trainer, callback = run(tmp_path / "out", 0.5, 0.1, 0.5, model=base, save_strategy="epoch")
    assert [r.verdict for r in callback.record.rounds] == ["rejected", "accepted"]
    trainer.save_model(tmp_path / "final")
    assert base._hf_peft_config_loaded
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "final")
    assert len(loaded.bert.encoder.layer) == 2
    assert torch.equal(logits(loaded), logits(trainer.model))


def test_two_adapters(tmp_path):
    model = wrap(make_base(), lora())
    model.add_adapter("other", lora(target_modules=["key"], layers_to_transform=[3]))
    trainer, callback = run(tmp_path / "out", 0.5, 0.5, model=model, pruning={"protect": [0, 3]}, save_strategy="no")
    assert callback.record.kept == {STACK: [0, 3]}
    assert model.peft_config["other"].layers_to_transform == [1]
    trainer.save_model(tmp_path / "final")
    loaded = reload(tmp_path / "final")
    assert torch.equal(logits(loaded), logits(model))
    loaded.load_adapter(str(tmp_path / "final" / "other"), "other")
    loaded.set_adapter("other")
    model.set_adapter("other")
    assert torch.equal(logits(loaded), logits(model))


def test_what_begins_by_changing_the_base_is_not_begun_again(tmp_path):
    model = wrap(make_base(), lora(init_lora_weights="pissa"))
    trainer, _ = run(tmp_path / "out", 0.5, 0.5, model=model, save_strategy="no")
    assert model.peft_config["default"].init_lora_weights is True
    trainer.save_model(tmp_path / "final")
    assert torch.equal(logits(reload(tmp_path / "final")), logits(model))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (lambda: peft.AdaLoraConfig(task_type="SEQ_CLS", total_step=9), "of kind ADALORA.*Use LoraConfig"),
        (lambda: peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2), "of kind PREFIX_TUNING"),
        (lambda: peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2), "of kind PROMPT_TUNING"),
        (lambda: peft.VeraConfig(task_type="SEQ_CLS", target_modules=["query"]), "of kind VERA"),
        (lambda: peft.LNTuningConfig(task_type="SEQ_CLS", target_modules=["LayerNorm"]), "of kind LN_TUNING.*nobody"),
    ],
)
def test_refused_kinds(tmp_path, config, reason):
    model = wrap(make_base(), config())
    trainer = build_trainer(model, tmp_path)
    trainer.add_callback(LayerPruningCallback(trainer))
    before = logits(model)
    with pytest.raises(errors.UnsupportedArchitectureError, match=reason):
        trainer.train()
    assert torch.equal(logits(model), before)


# Trainers of other libraries


def rounds_of(trainer):
    callback = LayerPruningCallback(
        trainer,
        PruningConfig(threshold=0.0, metric="loss", max_metric_drop=10.0, calibration_samples=16, protect=["3"]),
    )
    trainer.add_callback(callback)
    trainer.train()
    return [(round_.verdict, list(round_.kept.values())) for round_ in callback.record.rounds]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trl_puts_the_adapters_on(tmp_path, checkpointing):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    rows = [{"input_ids": [1, *(2 + (i * 7 + j * 3) % 90 for j in range(8))]} for i in range(24)]
    settings = trl.SFTConfig(
        str(tmp_path / "out"), num_train_epochs=2, per_device_train_batch_size=8, report_to="none", use_cpu=True,
        save_strategy="no", bf16=False, gradient_checkpointing=checkpointing, disable_tqdm=True, eos_token="</s>",
    )  # fmt: skip
    config = lora(task_type="CAUSAL_LM", layers_to_transform=[0, 3])
    data = datasets.Dataset.from_list(rows)
    trainer = trl.SFTTrainer(
        make_llama(), settings, train_dataset=data, eval_dataset=data, processing_class=make_tokenizer(),
        peft_config=config,
    )  # fmt: skip
    assert rounds_of(trainer) == [("accepted", [[0, 3]])]
    trainer.save_model(str(tmp_path / "final"))
    assert trainer.model.peft_config["default"].layers_to_transform == [0, 1]
    loaded = reload(tmp_path / "final", peft.AutoPeftModelForCausalLM)
    assert torch.equal(logits(loaded, input_ids=IDS), logits(trainer.model, input_ids=IDS))


@needs_peft("0.20")
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_sentence_transformer_saves_the_base_in_its_folder(tmp_path, wrapped):
    library = pytest.importorskip("sentence_transformers")
    losses = pytest.importorskip("sentence_transformers.losses")
    datasets = pytest.importorskip("datasets")
    model = make_sentence_transformer(tmp_path / "base")
    config = lora(task_type="FEATURE_EXTRACTION", layers_to_transform=[0, 3])
    if wrapped:
        model[0].model = wrap(model[0].model, config)
    else:
        model.add_adapter(config)
    data = datasets.Dataset.from_list(
        [{"a": f"w{i} w{i + 1} w3", "b": f"w{i + 2} w5", "score": float(i % 2)} for i in range(24)]
    )
    settings = library.SentenceTransformerTrainingArguments(
        str(tmp_path / "out"), num_train_epochs=2, per_device_train_batch_size=8, report_to="none", use_cpu=True,
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = library.SentenceTransformerTrainer(
        model, settings, train_dataset=data, eval_dataset=data, loss=losses.CosineSimilarityLoss(model)
    )
    assert rounds_of(trainer) == [("accepted", [[0, 3]])]
    model.save(str(tmp_path / "final"))
    assert (tmp_path / "final" / "pruned_base" / "config.json").is_file()
    loaded = library.SentenceTransformer(str(tmp_path / "final"), device="cpu")
    texts = ["w1 w2", "w7 w8 w9"]
    assert (loaded.encode(texts) == model.encode(texts)).all()
