"""sentence-transformers' Trainers take the callback unchanged: the model inside is cut, all that trains goes back."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

import criteria_kit  # noqa: F401 - registers criteria
from hf_mpruner import PruningConfig, errors, find_block_stacks, measure_similarity
from hf_mpruner.sets import Sets
from hf_mpruner.subject import find_pretrained, trained_whole
from hf_mpruner.workbench import Workbench
from resume_kit import copy_checkpoints
from text_kit import lines, make_tokenizer
from trainer_kit import Spy, assert_same, everything

sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6.0")

from sentence_transformers import (  # noqa: E402 - skipped without it
    SentenceTransformer,
)
from sentence_transformers.base.modules import Router, Transformer  # noqa: E402
from sentence_transformers.cross_encoder import (  # noqa: E402
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
)
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss  # noqa: E402
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator  # noqa: E402
from sentence_transformers.sentence_transformer.losses import (  # noqa: E402
    AdaptiveLayerLoss,
    CoSENTLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.modules import (  # noqa: E402
    Pooling,
    StaticEmbedding,
    WeightedLayerPooling,
)
from sentence_transformers.sparse_encoder import (  # noqa: E402
    SparseEncoder,
    SparseEncoderTrainer,
    SparseEncoderTrainingArguments,
)
from sentence_transformers.sparse_encoder.losses import SparseMultipleNegativesRankingLoss, SpladeLoss  # noqa: E402
from sentence_transformers.sparse_encoder.modules import SpladePooling  # noqa: E402

from sentence_kit import (  # noqa: E402
    STACK,
    Scripted,
    add,
    build,
    labelled,
    make_model,
    pairs,
    save_bert,
    scored,
    softmax,
)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(pairs=True)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("bert"))


def assert_loads_the_same(model, folder, depth):
    model.save_pretrained(str(folder))
    loaded = SentenceTransformer(str(folder), device="cpu")
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == depth
    assert len(loaded[0].auto_model.encoder.layer) == depth
    texts = lines()[:8]
    assert (loaded.encode(texts) == model.encode(texts)).all()


@pytest.mark.parametrize(
    "config", [{}, {"verify": "full"}, {"recovery": "lora"}, {"freeze_untouched": True}, {"snapshot": "disk"}], ids=str
)
def test_a_rejected_and_an_accepted_round(bert, tmp_path, config):
    model = make_model(bert)
    trainer = build(model, tmp_path / "run", evaluator=Scripted(0.9, 0.1, 0.88))
    before, after = Spy(on_epoch_begin=lambda: everything(trainer)), Spy(on_epoch_end=lambda: everything(trainer))
    trainer.add_callback(before)
    callback = add(trainer, max_rounds=2, **config)
    trainer.add_callback(after)
    depths = Spy(on_step_end=lambda: len(model[0].auto_model.encoder.layer))
    trainer.add_callback(depths)
    trainer.train()
    first, second = callback.record.rounds
    assert (first.verdict, second.verdict) == ("rejected", "accepted")
    assert callback.record.metric == "quality"
    assert depths.seen["on_step_end"] == [1] * 4 + [2] * 12
    assert_same(before.seen["on_epoch_begin"][0], after.seen["on_epoch_end"][0])
    # what stands around the transformers model trained on, and was part of what went back
    assert any(name.startswith("2.linear") for name in before.seen["on_epoch_begin"][0][0])
    assert_loads_the_same(trainer.model, tmp_path / "saved", 2)


def test_an_evaluator_decides_without_an_evaluation_set_and_keeps_its_own_table(bert, tmp_path):
    model, data = make_model(bert), scored()
    evaluator = EmbeddingSimilarityEvaluator(data["sentence1"], data["sentence2"], data["score"], name="dev")
    trainer = build(model, tmp_path / "run", evaluator=evaluator, eval_strategy="epoch", save_strategy="epoch")
    callback = add(trainer, max_metric_drop=2.0)
    trainer.train()
    (round_,) = callback.record.rounds
    assert (round_.verdict, round_.kept) == ("accepted", {STACK: [0]})
    assert callback.record.metric == "dev_spearman_cosine"  # its primary_metric, known after its first call only
    found = callback.record.data
    assert found["calibration"]["source"] == "sample of the training set"
    assert found["judging"] == {"source": "an evaluator (EmbeddingSimilarityEvaluator)"}
    assert (round_.after.num_examples, round_.after.interval) == (None, None)
    assert round_.after.metrics["dev_spearman_cosine"] == round_.after.metric
    (table,) = (tmp_path / "run" / "eval").glob("*.csv")
    assert len(table.read_text().splitlines()) == 1 + 4  # an evaluation of the run an epoch, none of ours
    steps = [entry["Step"] for entry in model.model_card_data.training_logs]
    assert steps == sorted(set(steps))
    assert_loads_the_same(trainer.model, tmp_path / "saved", 1)
    for step in (4, 16):
        saved = SentenceTransformer(str(tmp_path / "run" / f"checkpoint-{step}"), device="cpu")
        assert len(saved[0].auto_model.encoder.layer) == 1


def test_results_of_a_rejected_candidate_are_not_in_the_model_card(bert, tmp_path):
    model, evaluator = make_model(bert), Scripted(0.9, 0.1)
    trainer = build(model, tmp_path, evaluator=evaluator, num_train_epochs=1)
    add(trainer)
    trainer.train()
    assert evaluator.folders == [None, None]
    assert model.model_card_data.eval_results_dict == {}
    assert not any("quality" in entry for entry in model.model_card_data.training_logs)
    assert trainer.evaluator is evaluator


def test_of_several_evaluation_sets_the_evaluator_runs_for_one(bert, tmp_path):
    sets = {"first": scored(8), "second": scored()}
    evaluator = Scripted(0.9, 0.88)
    trainer = build(
        make_model(bert), tmp_path, loss=CoSENTLoss, train=scored(32), eval_dataset=sets, evaluator=evaluator,
        num_train_epochs=1,
    )  # fmt: skip
    callback = add(trainer)
    trainer.train()
    assert (callback.record.metric, callback.record.rounds[0].verdict) == ("quality", "accepted")
    assert evaluator.values == []


@pytest.mark.parametrize("metric", ["loss", "perplexity"])
def test_the_loss_decides(bert, tmp_path, metric):
    trainer = build(make_model(bert), tmp_path, loss=CoSENTLoss, train=scored(32), eval_dataset=scored())
    callback = add(trainer, metric=metric, max_metric_drop=100.0)
    trainer.train()
    (round_,) = callback.record.rounds
    assert (round_.verdict, callback.record.metric, callback.record.greater_is_better) == ("accepted", metric, False)


def test_parts_of_a_loss_are_those_of_the_runs_own_evaluations(bert, tmp_path):
    def parts_of(model, prune):
        class Parts(CoSENTLoss):
            def forward(self, features, labels):
                return {"own": super().forward(features, labels)}

        trainer = build(
            model, tmp_path / str(prune), loss=Parts, train=scored(32), eval_dataset=scored(), eval_strategy="epoch"
        )
        if prune:  # the uncut model is evaluated after the first epoch; nothing is cut
            callback = add(trainer, metric="loss", threshold=1.0, start_epoch=1)
        trainer.train()
        assert not prune or callback.record.baseline is not None
        return [entry["eval_own"] for entry in trainer.state.log_history if "eval_own" in entry]

    assert parts_of(make_model(bert), False) == parts_of(make_model(bert), True)


def test_each_column_is_measured_with_its_own_padding(bert, tokenizer, tmp_path):
    model = make_model(bert)
    trainer = build(model, tmp_path, evaluator=Scripted(0.9, 0.1), num_train_epochs=1)
    callback = add(trainer)
    trainer.train()
    inner = find_pretrained(model)
    assert inner is model[0].auto_model
    batches = list(callback._bench._first.batches)
    assert len(batches) == 2  # sixteen pairs in one batch: the starts, and the ends
    assert {frozenset(batch) for batch in batches} == {frozenset({"input_ids", "attention_mask"})}
    assert not any(batch["attention_mask"].all() for batch in batches)
    whole = {tuple(tokenizer(text)["input_ids"]) for row in pairs() for text in row.values()}
    for batch in batches:
        rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
        assert {tuple(ids[mask.bool()].tolist()) for ids, mask in rows} <= whole
    stack = find_block_stacks(inner)
    encoded = [dict(batch) for batch in batches]
    for batch in encoded:  # what stands at padded places must not count
        batch["input_ids"] = torch.where(batch["attention_mask"].bool(), batch["input_ids"], 7)
    found, disturbed = (measure_similarity(inner, given, stack)[STACK].values for given in (batches, encoded))
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(disturbed), rtol=0, atol=1e-5)


def test_a_loss_with_weights_goes_back_too(bert, tmp_path):
    trainer = build(
        make_model(bert), tmp_path, loss=softmax, train=labelled(), evaluator=Scripted(0.9, 0.1),
        num_train_epochs=2,
    )  # fmt: skip

    def weights():
        state = trainer.optimizer.state[trainer.loss.classifier.weight]
        moments = state["exp_avg"].clone() if state else None
        return trainer.loss.classifier.weight.detach().clone(), moments

    before, during, after = Spy(on_epoch_begin=weights), Spy(on_step_end=weights), Spy(on_epoch_end=weights)
    trainer.add_callback(before)
    callback = add(trainer, start_epoch=1)
    for spy in (during, after):
        trainer.add_callback(spy)
    trainer.train()
    assert [round_.verdict for round_ in callback.record.rounds] == ["rejected"]
    assert trainer.loss.classifier in trained_whole(trainer).modules()
    (weight, moment), (trained, _), (restored, back) = (
        before.seen["on_epoch_begin"][1], during.seen["on_step_end"][-1], after.seen["on_epoch_end"][1],
    )  # fmt: skip
    assert not torch.equal(weight, trained)
    assert torch.equal(weight, restored)
    assert torch.equal(moment, back)


def test_a_loss_over_all_layers_follows(bert, tmp_path):
    def every_layer(model):
        return AdaptiveLayerLoss(model, MultipleNegativesRankingLoss(model), n_layers_per_step=-1)

    trainer = build(make_model(bert), tmp_path / "run", loss=every_layer, evaluator=Scripted(0.9, 0.1, 0.9))
    callback = add(trainer, max_rounds=2)
    trainer.train()
    assert [round_.verdict for round_ in callback.record.rounds] == ["rejected", "accepted"]
    assert_loads_the_same(trainer.model, tmp_path / "saved", 2)


def live(bert, folder, *values, resume=None):
    """4 -> 1 is pending at 6 and rejected at 8, 4 -> 2 is pending at 10 and accepted at 12."""
    trainer = build(make_model(bert), folder, evaluator=Scripted(*values), save_strategy="steps", save_steps=2)
    callback = add(trainer, max_rounds=2, start_epoch=1)
    trainer.train(resume_from_checkpoint=resume)
    return everything(trainer), [(r.verdict, r.kept, r.reason) for r in callback.record.rounds], trainer.model


@pytest.fixture(scope="module")
def whole_run(bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    weights, rounds, _ = live(bert, folder, 0.9, 0.1, 0.88)
    assert [verdict for verdict, _, _ in rounds] == ["rejected", "accepted"]
    return folder, weights, rounds


@pytest.mark.parametrize(("step", "left"), [(2, (0.9, 0.1, 0.88)), (6, (0.1, 0.88)), (10, (0.88,)), (14, ())])
def test_a_resumed_run_ends_with_the_same_weights(bert, whole_run, tmp_path, step, left):
    folder, weights, rounds = whole_run
    found, same, model = live(bert, copy_checkpoints(folder, tmp_path / "again", step), *left, resume=True)
    assert same == rounds
    assert_same(weights, found)
    assert_loads_the_same(model, tmp_path / "saved", 2)


def test_the_best_checkpoint_at_the_end_is_one_of_the_pruned_model(bert, tmp_path):
    # evaluations: baseline, verdict, then one an epoch; the one after the verdict (step 4) is the best
    evaluator = Scripted(0.9, 0.9, 0.95, 0.7, 0.6, 0.5)
    model = make_model(bert)
    trainer = build(
        model, tmp_path / "run", evaluator=evaluator, eval_strategy="epoch", save_strategy="epoch",
        load_best_model_at_end=True, metric_for_best_model="quality",
    )  # fmt: skip
    kept = Spy(on_save=lambda: model[2].linear.weight.detach().clone())
    add(trainer)
    trainer.add_callback(kept)
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")
    assert trainer.model is model
    assert torch.equal(kept.seen["on_save"][0], model[2].linear.weight)
    assert not torch.equal(kept.seen["on_save"][-1], model[2].linear.weight)
    assert_loads_the_same(model, tmp_path / "saved", 1)


def test_a_best_checkpoint_of_the_deeper_model_is_not_loaded(bert, tmp_path):
    # the best of all evaluations is that of the uncut model after the first epoch
    evaluator = Scripted(0.99, 0.9, 0.95, 0.95, 0.7, 0.6)
    model = make_model(bert)
    trainer = build(
        model, tmp_path / "run", evaluator=evaluator, eval_strategy="epoch", save_strategy="epoch",
        load_best_model_at_end=True, metric_for_best_model="quality",
    )  # fmt: skip
    callback = add(trainer, start_epoch=1, max_metric_drop=0.2)
    trainer.train()
    assert [round_.verdict for round_ in callback.record.rounds] == ["accepted"]
    assert not trainer.state.best_model_checkpoint.endswith("checkpoint-4")
    assert_loads_the_same(model, tmp_path / "saved", 1)
    with pytest.raises(errors.MPrunerError, match=r"have 4 blocks in 'encoder\.layer', but the model has 1"):
        trainer._load_from_checkpoint(str(tmp_path / "run" / "checkpoint-4"))


def test_a_cross_encoder_is_measured_on_its_pairs(tokenizer, tmp_path):
    folder = str(tmp_path / "bert")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "max_position_embeddings": 64}
    config = BertConfig(vocab_size=len(tokenizer), num_hidden_layers=4, num_labels=1, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = CrossEncoder(folder, device="cpu", num_labels=1)
    rows = [
        {"a": a, "b": b, "label": float(i % 2)} for i, (a, b) in enumerate(zip(lines()[:8], lines()[1:9], strict=True))
    ]
    data = Dataset.from_list(rows)
    arguments = CrossEncoderTrainingArguments(
        str(tmp_path / "run"), num_train_epochs=1, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = CrossEncoderTrainer(model, arguments, data, data, loss=BinaryCrossEntropyLoss(model))
    callback = add(trainer, metric="loss", max_metric_drop=10.0, calibration=data)
    trainer.train()
    assert callback.record.rounds[0].verdict == "accepted"
    (batch,) = callback._bench._first.batches
    texts = {
        tuple(ids[mask.bool()].tolist()) for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    }
    assert texts == {tuple(tokenizer(row["a"], row["b"])["input_ids"]) for row in rows}
    model.save_pretrained(str(tmp_path / "saved"))
    loaded = CrossEncoder(str(tmp_path / "saved"), device="cpu")
    assert loaded.config.num_hidden_layers == 1
    pairs = [(row["a"], row["b"]) for row in rows]
    assert (loaded.predict(pairs) == model.predict(pairs)).all()


def test_a_sparse_encoder(tokenizer, tmp_path):
    folder = str(tmp_path / "bert")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "max_position_embeddings": 32}
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), num_hidden_layers=4, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = SparseEncoder(modules=[Transformer(folder, transformer_task="fill-mask"), SpladePooling()], device="cpu")
    arguments = SparseEncoderTrainingArguments(
        str(tmp_path / "run"), num_train_epochs=1, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    splade = SpladeLoss(model, SparseMultipleNegativesRankingLoss(model), 1e-3, 1e-3)
    trainer = SparseEncoderTrainer(
        model, arguments, pairs(), pairs(), loss=splade
    )  # fmt: skip
    callback = add(trainer, metric="loss", max_metric_drop=10.0)
    trainer.train()
    assert (callback.record.rounds[0].verdict, callback.record.rounds[0].kept) == ("accepted", {f"bert.{STACK}": [0]})
    model.save_pretrained(str(tmp_path / "saved"))
    loaded = SparseEncoder(str(tmp_path / "saved"), device="cpu")
    assert torch.equal(loaded.encode(lines()[:4]).to_dense(), model.encode(lines()[:4]).to_dense())


def train_and_expect(error, match, model, folder, evaluator=None, config=None, **arguments):
    trainer = build(model, folder, evaluator=evaluator, **arguments)
    add(trainer, **(config or {}))
    with pytest.raises(error, match=match):
        trainer.train()


def test_what_counts_layers_around_the_model_is_refused(bert, tmp_path):
    weighted = SentenceTransformer(
        modules=[Transformer(bert), WeightedLayerPooling(16, num_hidden_layers=4, layer_start=2), Pooling(16)],
        device="cpu",
    )
    train_and_expect(
        errors.UnsupportedArchitectureError,
        r"'1' \(WeightedLayerPooling\) keeps .*layer_start=2.* a cut of BertModel would make wrong",
        weighted, tmp_path, Scripted(),
    )  # fmt: skip
    tapped = make_model(bert)
    tapped[0].modality_config["text"]["method_output_name"] = ("hidden_states", 2)
    train_and_expect(
        errors.UnsupportedArchitectureError, r"takes hidden_states\.2 of the model's output for text",
        tapped, tmp_path, Scripted(),
    )  # fmt: skip
    tapped[0].modality_config["text"]["method_output_name"] = ("hidden_states", -1)
    trainer = build(tapped, tmp_path, evaluator=Scripted(0.9, 0.9))
    callback = add(trainer)
    trainer.train()
    assert callback.record.rounds[0].verdict == "accepted"


def test_no_or_several_transformers_models_are_refused_by_name(bert, tokenizer, tmp_path):
    static = SentenceTransformer(modules=[StaticEmbedding(tokenizer.backend_tokenizer, embedding_dim=8)], device="cpu")
    train_and_expect(
        errors.UnsupportedArchitectureError, "SentenceTransformer holds no transformers model",
        static, tmp_path, Scripted(),
    )  # fmt: skip
    router = Router.for_query_document(
        query_modules=[Transformer(bert), Pooling(16)], document_modules=[Transformer(bert), Pooling(16)]
    )
    train_and_expect(
        errors.UnsupportedArchitectureError,
        r"holds 2 transformers models: '0\.sub_modules\.query\.0\.model' \(BertModel\), '0\.sub_modules\.document",
        SentenceTransformer(modules=[router], device="cpu"), tmp_path, Scripted(),
        router_mapping={"anchor": "query", "positive": "document"},
    )  # fmt: skip


def test_what_cannot_judge_is_said_before_training(bert, tmp_path):
    model = make_model(bert)
    train_and_expect(ValueError, "The Trainer has no eval_dataset, so no pruned model", model, tmp_path)
    train_and_expect(
        errors.UnsupportedBackendError, "Distillation does not go with SentenceTransformer, whose outputs",
        model, tmp_path, Scripted(), {"distillation_weight": 0.5},
    )  # fmt: skip
    train_and_expect(
        ValueError, r"metric='loss'\) needs an eval_dataset to compute a loss on",
        model, tmp_path, Scripted(), {"metric": "loss"},
    )  # fmt: skip


def test_a_criterion_measures_the_loss_around_the_model(bert, tmp_path):
    rows = pairs().select(range(8))
    wanted = build(make_model(bert), tmp_path, eval_dataset=rows).evaluate()["eval_loss"]
    trainer = build(make_model(bert), tmp_path, eval_dataset=pairs())
    callback = add(
        trainer,
        rows,
        criterion="from_the_end",
        target_num_layers=3,
        metric="loss",
        max_metric_drop=9.0,
        max_rounds=None,
    )
    trainer.train()
    scores = callback.record.rounds[0].scores
    assert scores["scores"][STACK]["details"]["loss"] == pytest.approx(wanted, rel=1e-5)
    assert scores["cost"]["forward_passes"] == 1.0
    assert callback.record.stopped == "target reached"


def test_an_evaluator_has_no_outcomes_and_the_loss_has(tmp_path):
    bert = save_bert(tmp_path / "bert")
    trainer = build(
        make_model(bert), tmp_path / "run", evaluator=Scripted(0.5), eval_dataset=pairs(), num_train_epochs=1
    )
    callback = add(trainer, calibration=pairs(), max_metric_drop=0.1, confidence=0.9)
    with pytest.raises(errors.MPrunerError, match=r"quality comes from an evaluator \(Scripted\).* metric='loss'"):
        trainer.train()
    assert callback.record is None or not callback.record.rounds
    assert trainer.state.global_step == 0
    trainer = build(make_model(bert), tmp_path / "run", eval_dataset=pairs(), per_device_eval_batch_size=3)
    bench = Workbench(trainer, PruningConfig(metric="loss", max_metric_drop=0.1, confidence=0.9))
    bench.sets = Sets()  # what judges is all of the evaluation set
    metrics = bench.evaluate()
    assert bench.outcomes("loss").value == metrics["loss"]
