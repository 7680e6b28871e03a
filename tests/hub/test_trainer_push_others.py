"""Trainers that are built on transformers' push with what is their own, and with the pruning run's files."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.slow
OURS = {"pruning_plan.json", "pruning_config.json", "pruning_record.json", "report.json", "report.html", "README.md"}


def sentences(repo_id, folder):
    """A sentence-transformers model, pushed at its saves and at the end; its embeddings here and from the Hub."""
    import pathlib

    import torch
    from sentence_transformers import SentenceTransformer

    import sentence_kit as kit

    base = kit.save_bert(pathlib.Path(folder) / "bert")
    trainer = kit.build(
        kit.make_model(base), pathlib.Path(folder) / "out", evaluator=kit.Scripted(0.9, 0.9, 0.9, 0.9), save_strategy="steps",
        save_steps=6, push_to_hub=True, hub_model_id=repo_id,
    )  # fmt: skip
    callback = kit.add(trainer)
    trainer.train()
    trainer._finish_current_push()
    trainer.push_to_hub()
    loaded, lines = SentenceTransformer(repo_id, device="cpu"), kit.lines()[:4]
    trainer.model.eval()
    same = torch.equal(
        trainer.model.encode(lines, convert_to_tensor=True), loaded.encode(lines, convert_to_tensor=True)
    )
    return {
        "same": same,
        "kept": callback.record.kept["encoder.layer"],
        "failed": [str(job.exception()) for job in trainer.push_in_progress.jobs if job.exception()],
    }


def test_a_sentence_transformer(hub, client, tmp_path):
    mark = hub.journal.mark()
    told = client.call(sentences, repo_id="ann/sentences", folder=str(tmp_path))
    assert told == {"same": True, "kept": [0], "failed": []}
    history = hub.store.repo("ann/sentences").history()
    assert len(history) >= 3
    for commit in history[:-1]:
        assert {"modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors", *OURS} <= set(commit.files)
        card = commit.files["README.md"].data.decode()
        assert "SentenceTransformer" in card  # how such a model is used
        assert card.count("<!-- hf_mpruner: begin -->") == 1
        assert "sentence-transformers" in card.split("---")[1]
        plan = json.loads(commit.files["pruning_plan.json"].data)
        assert (
            len(plan["stacks"]["encoder.layer"]["kept"])
            == json.loads(commit.files["config.json"].data)["num_hidden_layers"]
        )
    assert [str(request) for request in hub.journal.containing(str(tmp_path), since=mark)] == []


def language(repo_id, folder):
    """trl's SFTTrainer, pushed at its saves and at the end; logits here and from the Hub."""
    import pathlib

    import torch
    from transformers import AutoModelForCausalLM

    import sft_kit as kit
    from text_kit import make_tokenizer
    from trainer_kit import realigned

    trainer = kit.build(
        make_tokenizer(),
        pathlib.Path(folder) / "out",
        save_strategy="steps",
        save_steps=8,
        bf16=False,
        push_to_hub=True,
        hub_model_id=repo_id,
    )
    callback = kit.add(trainer, metric="loss")
    trainer.train()
    trainer._finish_current_push()
    trainer.push_to_hub(dataset_name="ann/data")
    ids = torch.arange(2, 10)[None]
    loaded = realigned(AutoModelForCausalLM.from_pretrained(repo_id))
    with torch.no_grad():
        live = realigned(trainer.model)(input_ids=ids).logits
        same = bool(torch.equal(live, loaded(input_ids=ids).logits))
    return {
        "same": same,
        "kept": callback.record.kept["model.layers"],
        "failed": [str(job.exception()) for job in trainer.push_in_progress.jobs if job.exception()],
    }


def test_a_trainer_of_trl(hub, client, tmp_path):
    pytest.importorskip("trl")
    mark = hub.journal.mark()
    told = client.call(language, repo_id="ann/language", folder=str(tmp_path))
    assert told == {"same": True, "kept": [0], "failed": []}
    history = hub.store.repo("ann/language").history()
    assert len(history) >= 3
    for commit in history[:-1]:
        assert {*OURS} <= set(commit.files)
        card = commit.files["README.md"].data.decode()
        assert "TRL" in card
        assert card.count("<!-- hf_mpruner: begin -->") == 1
    assert "ann/data" in hub.store.repo("ann/language").files()["README.md"].decode()
    assert [str(request) for request in hub.journal.containing(str(tmp_path), since=mark)] == []
