"""A Trainer with a pruning callback pushes to the test server: everything that belongs together, and nothing secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

STACK = "bert.encoder.layer"
PENDING = {4: 1, 8: 2, 12: 3}  # the round without a verdict at a step of push_kit's run
STEPS = (4, 8, 12, 16, 18)
OURS = {"pruning_plan.json", "pruning_config.json", "pruning_record.json", "report.json", "report.html", "README.md"}
MODEL = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
CARD = b"---\nlicense: mit\ntags:\n- mine\n---\n# Written by hand\n\nRead me first.\n"


def train(repo_id, folder, final=None, **options):
    """A run with its pushes; logits of the live model and of the pushed one, and what failed in the background."""
    from hub.push_kit import KEPT, LOG, build, digest, loaded_logits, logits

    LOG.take()
    trainer, callback, patient = build(folder, repo_id, **options)
    trainer.train()
    info = trainer.push_to_hub(**(final or {}))
    KEPT["trainer"] = trainer
    where = (info.pr_revision if info.pr_url else None) or options.get("hub_revision", "main")
    return {
        "failed": patient.failed,
        "same": logits(trainer.model) == loaded_logits(repo_id, revision=where),
        "digest": digest(trainer.model),
        "kept": callback.record.kept["bert.encoder.layer"],
        "info": [info.commit_url, info.commit_message, info.oid, info.pr_url],
        "log": LOG.take(),
    }


def contents(commit):
    return {name: blob.data for name, blob in commit.files.items()}


def check_agreement(files):
    """Weights, config, plan, record, report and card of a commit are of one model; returns its pending round."""
    plan, record = json.loads(files["pruning_plan.json"]), json.loads(files["pruning_record.json"])
    depth = json.loads(files["config.json"])["num_hidden_layers"]
    header = json.loads(files["model.safetensors"][8 : 8 + int.from_bytes(files["model.safetensors"][:8], "little")])
    assert {int(name.split(".")[3]) for name in header if name.startswith(STACK)} == set(range(depth))
    assert len(plan["stacks"][STACK]["kept"]) == depth
    assert json.loads(files["report.json"])["record"] == record
    last = record["rounds"][-1]
    pending = last["number"] if last["verdict"] == "pending" else None
    card = files["README.md"].decode()
    assert ("is not judged yet" in card) == (pending is not None) == ("pending" in plan["evidence"])
    if pending is not None:
        assert plan["stacks"][STACK]["kept"] == last["kept"][STACK]
        assert plan["evidence"]["pending"].startswith(f"Round {pending} is being recovered")
    return pending


def titles_of(strategy):
    """Of the commits that a strategy makes in the background, oldest first."""
    saves = [f"Training in progress, step {step}" for step in STEPS if strategy != "end"]
    if strategy in ("end", "every_save"):
        return saves
    return [title for save in saves for title in (save, f"{save}, checkpoint")]


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param("end", marks=pytest.mark.slow),
        "checkpoint",
        pytest.param("every_save", marks=pytest.mark.slow),
        pytest.param("all_checkpoints", marks=pytest.mark.slow),
    ],
)
def test_what_a_trainer_pushes(hub, client, tmp_path, strategy):
    title = strategy.replace("_", "-")
    mark, name, folder = hub.journal.mark(), f"ann/{title}", tmp_path / "out"
    told = client.call(train, repo_id=name, folder=str(folder), hub_strategy=strategy, hub_token=hub.token)
    assert (told["failed"], told["same"], told["kept"], told["log"]) == ([], True, [0, 2], [])
    history = hub.store.repo(name).history()
    assert told["info"] == [f"{hub.url}/{name}/commit/{history[0].oid}", "End of training", history[0].oid, None]
    assert [commit.title for commit in reversed(history)][1:] == [*titles_of(strategy), "End of training"]
    for commit in history[:-1]:
        files = contents(commit)
        pending = check_agreement(files)
        if commit.title.startswith("Training"):
            assert pending == PENDING.get(int(commit.title.removesuffix(", checkpoint").rpartition(" ")[2]))
        top = {file for file in files if "/" not in file}
        assert top == {".gitattributes", "notes.md", *MODEL, *OURS}
        assert files["README.md"].decode().count(f"\n# {title}\n") == 1
        assert "More information needed" not in files["README.md"].decode()  # the words of the Trainer's own card
        assert "- tagged\n" in files["README.md"].decode().split("---")[1]
        if commit.title.startswith("Training"):
            step = commit.title.removesuffix(", checkpoint").removeprefix("Training in progress, ")
            assert files["notes.md"].decode() == f"{step}\n"  # a user's callback wrote it in on_push_begin
        assert any(file.startswith("plots/") for file in files) == (pending != 1)  # nothing was judged before that
    final = contents(history[0])
    for file in {*MODEL, *OURS} - {"tokenizer_config.json"}:  # the path in it is taken out
        assert final[file] == (folder / file).read_bytes(), file
    places = {file.rpartition("/")[0] for file in final if "checkpoint" in file}
    expected = {"checkpoint": {"last-checkpoint"}, "all_checkpoints": {f"checkpoint-{step}" for step in STEPS}}
    assert places == expected.get(strategy, set())
    # nothing secret in any request, no folder left behind; on the disk all is as the Trainer wrote it
    assert not [file for commit in history for file in commit.files if file.endswith("training_args.bin")]
    for secret in (hub.token, str(tmp_path), str(client.home), str(Path.home()) + "/"):
        assert [str(request) for request in hub.journal.containing(secret, since=mark)] == []
    assert list(folder.glob("_mpruner*")) == []
    assert hub.token.encode() in (folder / "training_args.bin").read_bytes()
    assert str(folder).encode() in (folder / "tokenizer_config.json").read_bytes()
    if strategy == "checkpoint":
        check_downloads(hub, client, tmp_path, name, told["digest"])


def check_downloads(hub, client, tmp_path, name, digest):
    """Who downloads a pushed checkpoint goes on from it to the same weights, with a cut pending in it or not."""
    history = {commit.title: commit for commit in hub.store.repo(name).history()}
    for step in (8, 16):
        commit = history[f"Training in progress, step {step}, checkpoint"]
        assert ("last-checkpoint/pruning_rollback.pt" in commit.files) == (step in PENDING)
        places = {"target": str(tmp_path / f"down{step}"), "folder": str(tmp_path / f"again{step}")}
        again = client.call(resume, repo_id=name, revision=commit.oid, **places)
        assert again == {"digest": digest, "verdicts": ["rejected", "accepted", "rejected"], "begun": step}


def resume(repo_id, revision, target, folder):
    """Go on from a checkpoint that was pushed, in a new folder."""
    from huggingface_hub import snapshot_download

    from hub.push_kit import build, digest
    from trainer_kit import begun_at

    place = snapshot_download(repo_id, revision=revision, allow_patterns="last-checkpoint/*", local_dir=target)
    trainer, callback, _ = build(folder, repo_id, push_to_hub=False)
    trainer.train(resume_from_checkpoint=f"{place}/last-checkpoint")
    verdicts = [round_.verdict for round_ in callback.record.rounds]
    return {"digest": digest(trainer.model), "verdicts": verdicts, "begun": begun_at(trainer)}


def test_a_hand_written_card_and_the_arguments_of_the_trainers_card(hub, client, tmp_path):
    """The Hub's card keeps its words; what is passed to `push_to_hub` for the card is in its metadata."""
    old = {
        "model.safetensors.index.json": b'{"weight_map": {}}',
        "model-00001-of-00002.safetensors": b"of a larger model",
    }
    repo = hub.add_repo("ann/carded", {"README.md": CARD, **old})
    (tmp_path / "out").mkdir()
    for name, content in old.items():
        (tmp_path / "out" / name).write_bytes(content)
    final = {
        "license": "apache-2.0",
        "language": "en",
        "tags": "extra",
        "dataset": "ann/data",
        "dataset_tags": "ann/data",
    }
    told = client.call(train, repo_id=repo.id, folder=str(tmp_path / "out"), final=final, num_train_epochs=3)
    assert (told["failed"], told["same"]) == ([], True)
    for commit in repo.history()[:-2]:
        text = commit.files["README.md"].data.decode()
        assert text.startswith("---\nlicense: mit\ntags:\n- mine\n")
        assert "# Written by hand\n\nRead me first.\n" in text
        assert not old.keys() & commit.files.keys()
        assert text.count("<!-- hf_mpruner: begin -->") == 1
    card = repo.files()["README.md"].decode()
    metadata = card.split("---")[1]
    for line in ("- extra", "- generated_from_trainer", "- pruned", "language", "- ann/data", "license: mit"):
        assert line in metadata, line
    local = (tmp_path / "out" / "README.md").read_text()
    assert "license: apache-2.0" in local
    assert "<!-- hf_mpruner: begin -->" in local


@pytest.mark.slow
def test_a_branch_a_pull_request_and_a_private_repository(hub, client, tmp_path):
    repo = hub.add_repo("ann/branched", {"README.md": CARD})
    repo.branches["pruned"] = repo.branches["main"]
    main = repo.at("main").oid
    options = {"hub_revision": "pruned", "num_train_epochs": 3}
    told = client.call(train, repo_id=repo.id, folder=str(tmp_path / "a b"), **options)
    assert (told["failed"], told["same"], repo.at("main").oid) == ([], True, main)
    assert check_agreement(contents(repo.at("pruned"))) is None
    assert repo.files("pruned")["README.md"].startswith(b"---\nlicense: mit\n")

    final = {"create_pr": True, "commit_message": "Pruned"}
    told = client.call(
        train, repo_id=repo.id, folder=str(tmp_path / "b"), final=final, hub_strategy="end", num_train_epochs=3
    )
    assert (told["same"], repo.at("main").oid) == (True, main)
    assert told["info"][3] == f"{hub.url}/{repo.id}/discussions/1"
    assert check_agreement(contents(repo.at("refs/pr/1"))) is None
    assert repo.discussions[1].title == "Pruned"

    options = {"hub_private_repo": True, "num_train_epochs": 3, "hub_strategy": "end"}
    told = client.call(train, repo_id="ann/hidden", folder=str(tmp_path / "c"), **options)
    assert (told["same"], hub.store.repo("ann/hidden").private) == (True, True)
    hub.add_repo("ann/open")
    failure = client.fails(train, repo_id="ann/open", folder=str(tmp_path / "d"), **options)
    assert failure.is_a("PushError")
    assert "'ann/open' is public, and private was asked for" in failure.message
    assert len(hub.store.repo("ann/open").history()) == 1


def overlap(repo_id, folder):
    """Saves that do not wait for each other's pushes."""
    from hub.push_kit import build, loaded_logits, logits

    trainer, _, patient = build(
        folder, repo_id, save_steps=1, hub_always_push=True, hub_strategy="all_checkpoints", save_total_limit=1
    )
    patient.waits = False
    trainer.train()
    failed = [str(job.exception()) for job in trainer.push_in_progress.jobs if job.exception()]
    trainer.push_to_hub()
    return {"failed": failed, "same": logits(trainer.model) == loaded_logits(repo_id)}


@pytest.mark.slow
@pytest.mark.parametrize("uploads", ["lfs", "regular"])
def test_pushes_that_wait_in_a_queue_are_of_their_own_save(hub, client, xet_client, tmp_path, uploads):
    """`hub_always_push`: the next save writes over the output folder, and older checkpoints are deleted, while jobs wait."""
    hub.uploads, name = uploads, f"ann/queue-{uploads}"
    sender = {"lfs": client, "regular": xet_client}[uploads]
    hub.faults.add("POST", "/commit/", delay=0.3, times=99)
    told = sender.call(overlap, repo_id=name, folder=str(tmp_path / "out"))
    assert (told["failed"], told["same"]) == ([], True)
    history = hub.store.repo(name).history()
    assert len([commit for commit in history if commit.title.startswith("Training")]) == 2 * 18
    for commit in history[:-1]:
        files = contents(commit)
        if "pruning_plan.json" in files:
            check_agreement(files)
            newest = max(
                int(file.split("/")[0].removeprefix("checkpoint-")) for file in files if file.startswith("checkpoint-")
            )
            if commit.title.endswith("checkpoint"):
                assert files["model.safetensors"] == files[f"checkpoint-{newest}/model.safetensors"]
