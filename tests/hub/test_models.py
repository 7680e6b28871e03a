"""transformers against the test server: a model pushed and loaded back, its card, and a Trainer that pushes."""

from __future__ import annotations

import hashlib
import json

import pytest

CARD = b"---\nlicense: mit\ntags:\n- mine\n---\n# Written by hand\n"


def push_and_load(repo_id, cache, options=None):
    """Digest of a tiny model's weights before the push and after loading, each with what else is compared."""
    import hashlib

    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        BertConfig,
        BertForSequenceClassification,
        PreTrainedTokenizerFast,
    )

    def digest(model):
        total = hashlib.sha256()
        for name, tensor in sorted(model.state_dict().items()):
            total.update(name.encode() + tensor.numpy().tobytes())
        return total.hexdigest()

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 20}
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=2, num_labels=2, **sizes))
    model.add_model_tags(["pruned"])
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "a": 2, "b": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
    model.push_to_hub(repo_id, **(options or {}))
    tokenizer.push_to_hub(repo_id, **(options or {}))

    where = {"cache_dir": cache, "revision": (options or {}).get("revision", "main")}
    loaded = AutoModelForSequenceClassification.from_pretrained(repo_id, **where)
    same = AutoTokenizer.from_pretrained(repo_id, **where)("b a c")["input_ids"]
    return [digest(model), digest(loaded), tokenizer("b a c")["input_ids"], same]


@pytest.mark.parametrize("uploads", ["lfs", "regular"])
def test_a_model_goes_there_and_comes_back(hub, client, xet_client, tmp_path, uploads):
    hub.uploads = uploads
    sender, name = {"lfs": client, "regular": xet_client}[uploads], f"ann/model-{uploads}"
    before, after, ids, same = sender.call(push_and_load, repo_id=name, cache=str(tmp_path))
    assert before == after
    assert ids == same == [3, 2, 0]
    repo = hub.store.repo(name)
    assert repo.at("main").files["model.safetensors"].lfs == (uploads == "lfs")
    assert [commit.title for commit in repo.history()][1] == "Upload BertForSequenceClassification"
    assert b"- pruned" in repo.files()["README.md"]
    if uploads == "regular":
        return

    def look(repo_id):
        from huggingface_hub import HfApi

        info = HfApi().model_info(repo_id)
        return [info.safetensors.parameters, info.config, info.library_name]

    parameters, config, library = client.call(look, repo_id=name)
    assert list(parameters) == ["F32"]
    assert config == {"architectures": ["BertForSequenceClassification"], "model_type": "bert"}
    assert library == "transformers"


def test_a_model_goes_to_a_branch(hub, client, tmp_path):
    options = {"revision": "half", "private": True}
    before, after, *_ = client.call(push_and_load, repo_id="ann/branch", cache=str(tmp_path), options=options)
    assert before == after
    repo = hub.store.repo("ann/branch")
    assert repo.private
    assert "config.json" in repo.files("half")
    assert "config.json" not in repo.files()


def push(repo_id):
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 20}
    BertModel(BertConfig(num_hidden_layers=1, **sizes)).push_to_hub(repo_id)


def test_a_card_is_kept_unless_the_hub_fails_while_it_is_looked_for(hub, client):
    repo = hub.add_repo("ann/carded", {"README.md": CARD})
    client.call(push, repo_id=repo.id)
    assert b"Written by hand" in repo.files()["README.md"]
    repo = hub.add_repo("ann/lost", {"README.md": CARD})
    fault = hub.faults.add("HEAD", "README.md", status=503, times=99)
    client.call(push, repo_id=repo.id)
    assert b"Written by hand" not in repo.files()["README.md"]
    assert (fault.used, client.waits) == (7, [1, 2, 4, 8, 8])


def train(repo_id, folder, token):
    """A Trainer that pushes at its only save and at the end; what went wrong in the background is told."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 20}
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=2, num_labels=2, **sizes))
    rows = [{"input_ids": torch.tensor([2, 3, i]), "labels": i % 2} for i in range(4)]
    arguments = TrainingArguments(
        folder, max_steps=1, save_steps=1, per_device_train_batch_size=4, report_to="none", disable_tqdm=True,
        push_to_hub=True, hub_model_id=repo_id, hub_token=token,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    trainer.push_in_progress.wait_until_done()
    failed = [repr(job.exception()) for job in trainer.push_in_progress.jobs if job.exception()]
    trainer.push_to_hub()
    return failed


@pytest.mark.parametrize("uploads", ["lfs", "regular"])
def test_a_trainer_pushes(hub, client, xet_client, tmp_path, uploads):
    hub.uploads = uploads
    sender, name = {"lfs": client, "regular": xet_client}[uploads], f"ann/trained-{uploads}"
    folder = tmp_path / "out"
    assert sender.call(train, repo_id=name, folder=str(folder), token=None) == []
    repo = hub.store.repo(name)
    titles = [commit.title for commit in repo.history()]
    assert titles[:1] + titles[-2:] == ["End of training", "Training in progress, step 1", "initial commit"]
    weights = (folder / "model.safetensors").read_bytes()
    assert hashlib.sha256(repo.files()["model.safetensors"]).digest() == hashlib.sha256(weights).digest()
    assert b"generated_from_trainer" in repo.files()["README.md"]
    assert json.loads(repo.files()["config.json"])["num_hidden_layers"] == 2


def test_a_token_that_is_given_to_the_trainer_is_found_in_what_it_pushed(hub, client, tmp_path):
    mark, token = hub.journal.mark(), hub.add_user("ann", role="write")
    client.call(train, repo_id="ann/told", folder=str(tmp_path / "out"), token=token)
    leaks = hub.journal.containing(token, since=mark)
    assert [(request.method, request.origin) for request in leaks] == [("PUT", "storage")]  # training_args.bin
    assert token.encode() in hub.store.repo("ann/told").files()["training_args.bin"]


def test_a_background_push_that_fails_is_silent_until_asked(hub, client, tmp_path):
    hub.faults.add("POST", "/commit/", status=500)
    failed = client.call(train, repo_id="ann/silent", folder=str(tmp_path / "out"), token=None)
    assert len(failed) == 1
    assert "500 Internal Server Error" in failed[0]
    titles = [commit.title for commit in hub.store.repo("ann/silent").history()]
    assert titles == ["End of training", "initial commit"]
