"""Pushes of runs in other states: interrupted, recovered by adapters, of a Trainer that does not push by itself."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.slow
STACK = "bert.encoder.layer"


def interrupted(repo_id, folder):
    """Stopped by hand while round 2 is recovered, pushed, gone back, and pushed again."""
    import contextlib

    from transformers import TrainerCallback

    from hub.push_kit import build, loaded_logits, logits

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 8:
                raise KeyboardInterrupt

    trainer, callback, _ = build(folder, repo_id, push_to_hub=False)
    trainer.add_callback(Stop())
    with contextlib.suppress(KeyboardInterrupt):
        trainer.train()
    found = []
    for again in (False, True):
        if again:
            callback.rollback()
        info = trainer.push_to_hub()
        found.append([info.oid, logits(trainer.model) == loaded_logits(repo_id)])
    return found


def test_an_interrupted_run(hub, client, tmp_path):
    found = client.call(interrupted, repo_id="ann/interrupted", folder=str(tmp_path / "out"))
    repo = hub.store.repo("ann/interrupted")
    assert [same for _, same in found] == [True, True]
    for (oid, _), depth, pending in zip(found, (2, 4), (True, False), strict=True):
        files = {name: blob.data for name, blob in repo.commits[oid].files.items()}
        assert json.loads(files["config.json"])["num_hidden_layers"] == depth
        plan = json.loads(files["pruning_plan.json"])
        assert (len(plan["stacks"][STACK]["kept"]), "pending" in plan["evidence"]) == (depth, pending)
        assert ("is not judged yet" in files["README.md"].decode()) == pending


def adapters_recover(repo_id, folder):
    """`recovery="lora"`: no save falls into a round, so every push is of plain weights."""
    from hub.push_kit import build, loaded_logits, logits

    trainer, callback, patient = build(folder, repo_id, config={"recovery": "lora"}, save_strategy="epoch")
    trainer.train()
    trainer.push_to_hub()
    return [
        patient.failed,
        logits(trainer.model) == loaded_logits(repo_id),
        callback.record.kept["bert.encoder.layer"],
    ]


def test_recovery_with_adapters(hub, client, tmp_path):
    pytest.importorskip("peft")
    told = client.call(adapters_recover, repo_id="ann/lora", folder=str(tmp_path / "out"))
    assert told == [[], True, [0, 2]]
    for commit in hub.store.repo("ann/lora").history()[:-1]:
        assert not [name for name in commit.files if "adapter" in name]
        assert b"lora_" not in commit.files["model.safetensors"].data
        if "pruning_plan.json" in commit.files:
            kept = json.loads(commit.files["pruning_plan.json"].data)["stacks"][STACK]["kept"]
            assert json.loads(commit.files["config.json"].data)["num_hidden_layers"] == len(kept)


def merged(repo_id, folder):
    """What the refusal of a model with adapters advises."""
    import warnings

    import torch

    import peft_kit
    from hf_mpruner import push_pruned_model
    from hub.push_kit import loaded_logits, logits
    from trainer_kit import Scripted, add, build_trainer

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model = peft_kit.peft.get_peft_model(
        peft_kit.make_base(), peft_kit.peft.LoraConfig(target_modules=["query"], task_type="SEQ_CLS")
    )
    trainer = build_trainer(model, folder, Scripted(0.9, 0.9), num_train_epochs=2)
    callback = add(trainer, recovery_epochs=1, max_rounds=1)
    trainer.train()
    try:
        trainer.push_to_hub()
    except Exception as error:
        refused = str(error)
    plain = trainer.model.merge_and_unload()
    pushed = push_pruned_model(plain, repo_id, report=callback.report)
    return [refused, logits(plain) == loaded_logits(repo_id), pushed.repo_id, plain.config.num_hidden_layers]


def test_the_merged_model_of_adapters(hub, client, tmp_path):
    pytest.importorskip("peft")
    told = client.call(merged, repo_id="ann/merged", folder=str(tmp_path / "out"))
    assert told[0].startswith("The model carries adapters")
    assert told[1:] == [True, "ann/merged", 1]
    assert hub.store.repo("ann/merged").at("main").title != "initial commit"
