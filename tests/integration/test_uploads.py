"""What goes into a push and what does not, without a Hub: the tests with one are in tests/hub."""

from __future__ import annotations

import json
import logging
import os
import threading

import pytest
import torch
from safetensors.torch import save_file
from transformers import Trainer
from transformers.utils.hub import hf_api

from hf_mpruner import LayerPruningCallback
from hf_mpruner.checkpoint import find_fault, reseal
from hf_mpruner.errors import PushError, UnsupportedBackendError
from hf_mpruner.hub import Secrets
from hf_mpruner.uploads import check_pushes, limits, parcel, sweep_parcels
from hf_mpruner.uploads.checkpoints import add_checkpoint
from hf_mpruner.uploads.pages import check_depths, is_by_hand, plan_of_weights
from hf_mpruner.uploads.parcel import Parcel, names_to_push, written_weights
from hf_mpruner.uploads.redirect import Upload, uploads_to
from trainer_kit import STACK, Scripted, add, build_trainer

SECRETS = Secrets(frozenset({"hf_ann_write"}), frozenset({"/home/ann"}))


@pytest.fixture
def told(caplog):
    """What is logged; what was said once is said again."""
    parcel._told.clear()
    caplog.set_level(logging.INFO, "hf_mpruner")
    return caplog


def test_files_that_travel(tmp_path):
    for name in (
        "config.json", "training_args.bin", "plots/a.png", "_x/y", "checkpoint-2/config.json", ".git/config", "README.md.tmp",
        "inner/training_args.bin", "runs/1/events",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert names_to_push(tmp_path, ["_*", "checkpoint-*"]) == ["config.json", "plots/a.png", "runs/1/events"]


def test_weights_of_an_earlier_save_are_told_apart(make_bert, tmp_path):
    shards = {"model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
    for size, expected in ((None, {"model.safetensors"}), ("100KB", shards), (None, {"model.safetensors"})):
        make_bert().save_pretrained(tmp_path, **({} if size is None else {"max_shard_size": size}))
        assert written_weights(tmp_path) == expected
    assert {"model.safetensors.index.json"} <= {file.name for file in tmp_path.iterdir()}  # it was left there
    for name in ("pytorch_model.bin", "notes.bin"):
        (tmp_path / "bins").mkdir(exist_ok=True)
        (tmp_path / "bins" / name).write_text("x")
    assert written_weights(tmp_path / "bins") == {"pytorch_model.bin"}


def test_a_parcel_is_not_changed_by_what_is_written_later(tmp_path, monkeypatch):
    monkeypatch.setattr(parcel, "_IN_MEMORY_BYTES", 100)
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    for folder in (checkpoint, tmp_path):
        save_file({"w": torch.zeros(64)}, folder / "model.safetensors")
    (tmp_path / "notes.bin").write_bytes(b"1" * 200)
    (tmp_path / "small.txt").write_text("old")
    full = Parcel(tmp_path, 2, SECRETS)
    full.add("model.safetensors", tmp_path / "model.safetensors", lasting=checkpoint / "model.safetensors")
    full.add("notes.bin", tmp_path / "notes.bin")
    full.add("small.txt", tmp_path / "small.txt")
    held = {name: file if isinstance(file, bytes) else file.read_bytes() for name, file in full.files.items()}
    assert full.files["model.safetensors"].samefile(checkpoint / "model.safetensors")
    for name in held:
        (tmp_path / name).write_bytes(b"new")
    (checkpoint / "model.safetensors").unlink()  # the Trainer deletes older checkpoints
    assert {n: f if isinstance(f, bytes) else f.read_bytes() for n, f in full.files.items()} == held
    assert len(list(tmp_path.glob("_mpruner_push-2-*"))) == 1
    full.discard()
    assert list(tmp_path.glob("_mpruner*")) == []


def test_a_file_system_without_links(tmp_path, monkeypatch):
    monkeypatch.setattr(parcel, "_IN_MEMORY_BYTES", 1)
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    (tmp_path / "a.bin").write_bytes(b"content")
    full = Parcel(tmp_path, 1, SECRETS)
    full.add("a.bin", tmp_path / "a.bin", lasting=tmp_path / "a.bin")
    assert full.files["a.bin"].read_bytes() == b"content"
    assert not full.files["a.bin"].samefile(tmp_path / "a.bin")


def test_a_file_that_tells_a_secret_stays_here(tmp_path, told):
    (tmp_path / "notes.txt").write_text("see /home/ann/data")
    (tmp_path / "config.json").write_text('{"a": "/home/ann/data"}')
    full = Parcel(tmp_path, 1, SECRETS)
    for _ in range(2):
        full.add("notes.txt", tmp_path / "notes.txt")
    assert full.files == {}
    assert [record.getMessage() for record in told.records] == [
        "'notes.txt' is not pushed: it holds the local path '/home/ann/data', which must not leave this machine. The file in "
        f"'{tmp_path}' is as it was."
    ]
    with pytest.raises(PushError, match=r"config\.json' holds the local path '/home/ann/data', .*Nothing was sent"):
        full.add("config.json", tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"name_or_path": "/home/ann/data", "b": 1}')
    assert json.loads(full.add("config.json", tmp_path / "config.json")) == {"b": 1}
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors", metadata={"by": "hf_ann_write"})
    with pytest.raises(PushError, match="holds a token that this machine is logged in with"):
        full.add("model.safetensors", tmp_path / "model.safetensors")


def test_a_checkpoint_that_is_sealed_again(make_bert, tmp_path):
    trainer = build_trainer(
        make_bert(num_labels=2), tmp_path, Scripted(0.9, 0.9), save_strategy="epoch", num_train_epochs=1
    )
    add(trainer, recovery_epochs=1)
    trainer.train()
    folder = tmp_path / "checkpoint-3"
    state = json.loads((folder / "trainer_state.json").read_text())
    (folder / "trainer_state.json").write_text(
        json.dumps({**state, "best_model_checkpoint": "/home/ann/checkpoint-1"})
    )
    config = (folder / "config.json").read_bytes()
    full = Parcel(tmp_path, 3, SECRETS)
    add_checkpoint(full, folder, "last-checkpoint")
    sent = tmp_path / "sent"
    for name, content in full.files.items():
        (sent / name).parent.mkdir(parents=True, exist_ok=True)
        (sent / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    there = sent / "last-checkpoint"
    assert not (there / "training_args.bin").exists()
    assert json.loads((there / "trainer_state.json").read_text()) == {
        name: value for name, value in state.items() if name != "best_model_checkpoint"
    }
    record = json.loads((there / "pruning_record.json").read_text())
    assert "training_args.bin" in json.loads((folder / "pruning_record.json").read_text())["files"]
    assert find_fault(there, record["files"]) == ""
    assert {"config.json", "model.safetensors", "optimizer.pt"} <= set(record["files"])
    other = reseal((there / "pruning_record.json").read_bytes(), changed={"config.json": b"{}"}, gone=["optimizer.pt"])
    values = json.loads(other)
    assert "optimizer.pt" not in values["files"]
    assert values["files"]["config.json"]["size"] == 2
    assert find_fault(there, values["files"]).startswith(f"config.json has {len(config)} bytes, but 2 were written")


def test_what_a_killed_run_had_on_its_way_is_deleted(tmp_path, told):
    gone, mine = tmp_path / "_mpruner_push-4-1-0", tmp_path / f"_mpruner_push-4-{os.getpid()}-7"
    for folder in (gone, mine):
        folder.mkdir()
        (folder / "model.safetensors").write_text("x")
    sweep_parcels(tmp_path)
    assert (gone.exists(), mine.exists()) == (False, True)
    assert f"'{gone}' was left behind by a killed run and is deleted." in told.text


def test_only_the_uploads_of_this_thread_are_taken_over(monkeypatch):
    api, before = hf_api(), []
    monkeypatch.setattr(type(api), "upload_folder", lambda self, **kwargs: before.append(kwargs) or "the Hub's")
    call = {
        "repo_id": "ann/x",
        "folder_path": "/f",
        "run_as_future": True,
        "ignore_patterns": "_*",
        "commit_message": "m",
    }
    taken = []
    with uploads_to(lambda upload: taken.append(upload) or "ours"):
        assert api.upload_folder(**call) == "ours"
        thread = threading.Thread(target=lambda: before.append(api.upload_folder(**call)))
        thread.start()
        thread.join()
        with uploads_to(lambda upload: "inner"):
            assert api.upload_folder(**call) == "inner"
        assert api.upload_folder(**call) == "ours"
    assert before == [call, "the Hub's"]
    assert api.upload_folder(**call) == "the Hub's"
    assert "upload_folder" not in vars(api)
    assert taken[0] == Upload("ann/x", taken[0].folder, "m", background=True, ignored=("_*",))


def test_transformers_still_pushes_the_way_that_is_taken_over():
    for method in (Trainer.push_to_hub, Trainer._push_from_checkpoint):
        assert {"hf_api", "upload_folder"} <= set(method.__code__.co_names)


def test_without_the_callback_the_pushes_are_the_trainers_own(make_bert, tmp_path, monkeypatch):
    trainer = build_trainer(make_bert(num_labels=2), tmp_path)
    calls = []
    monkeypatch.setattr(trainer, "push_to_hub", lambda *args, **kwargs: calls.append((args, kwargs)))
    callback = add(trainer)
    trainer.remove_callback(callback)
    trainer.push_to_hub("message", revision="x")
    assert calls == [(("message",), {"revision": "x"})]


def test_the_plan_is_of_the_weights(make_bert, tmp_path):
    trainer = build_trainer(make_bert(num_labels=2), tmp_path, Scripted(0.9, 0.9), num_train_epochs=1)
    callback = add(trainer)
    trainer.train()
    record = callback.record
    record.rounds[-1].verdict = "pending"
    assert record.to_plan().stacks[STACK].kept == (0, 1, 2, 3)
    plan = plan_of_weights(record)
    assert plan.stacks[STACK].kept == tuple(record.rounds[-1].kept[STACK])
    assert plan.evidence["pending"] == "Round 1 is being recovered and is not judged yet: it may be taken back."
    check_depths(trainer, plan)
    with pytest.raises(
        PushError, match=rf"The model has {{'{STACK}': 1}} layers, but the pruning run ended with .*: 4"
    ):
        check_depths(trainer, record.to_plan())


@pytest.mark.parametrize(
    ("text", "by_hand"),
    [
        (None, False),
        ("# Mine\n", True),
        ("---\ntags: [generated_from_trainer]\n---\n# T\n", False),
        ("---\ntags: [generated_from_trainer]\n---\n<!-- hf_mpruner: begin -->\n", True),
        ("---\ntags: {\n---\n# Broken\n", True),
    ],
)
def test_a_card_by_hand(text, by_hand):
    assert is_by_hand(text) == by_hand


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads what transformers deprecates
def test_adapters_are_refused_before_training(tmp_path):
    import peft_kit

    model = peft_kit.peft.get_peft_model(peft_kit.make_base(), peft_kit.peft.LoraConfig(target_modules=["query"]))
    trainer = build_trainer(model, tmp_path)
    add(trainer)
    check_pushes(trainer)  # it does not push
    with pytest.raises(PushError, match=r"The model carries adapters.*push_pruned_model.*Nothing was sent"):
        trainer.push_to_hub()
    trainer.args.push_to_hub = True
    with pytest.raises(PushError, match=r"push_to_hub=True.*with a model that carries adapters.*Nothing was changed"):
        trainer.train()


def test_weights_in_parts_are_refused_before_training(make_bert, tmp_path, monkeypatch):
    from types import SimpleNamespace

    trainer = build_trainer(make_bert(num_labels=2), tmp_path)
    trainer.args.push_to_hub = True
    check_pushes(trainer)
    monkeypatch.setattr(trainer, "accelerator", SimpleNamespace(state=SimpleNamespace()))
    for kind, refused in (("FULL_STATE_DICT", False), ("SHARDED_STATE_DICT", True)):
        trainer.accelerator.state.fsdp_plugin = SimpleNamespace(state_dict_type=kind)
        if refused:
            with pytest.raises(
                UnsupportedBackendError, match=r"under FSDP with SHARDED_STATE_DICT: .*FULL_STATE_DICT"
            ):
                check_pushes(trainer)
        else:
            check_pushes(trainer)
    assert limits.check_pushes is check_pushes


def test_a_callback_that_is_attached_takes_the_pushes_over(make_bert, tmp_path):
    trainer = build_trainer(make_bert(num_labels=2), tmp_path)
    callback = LayerPruningCallback()
    assert "push_to_hub" not in vars(trainer)
    callback.attach(trainer)
    assert {"push_to_hub", "_push_from_checkpoint"} <= set(vars(trainer))
