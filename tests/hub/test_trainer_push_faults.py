"""The Hub, the network and the disk fail while a Trainer pushes: nothing lost, nothing doubled, and what to do is said."""

from __future__ import annotations

import json

import pytest

NAME = "ann/shaken"


def train(repo_id, folder):
    """A run that ends with a pushed model; the Trainer is kept for the tests."""
    from hub.push_kit import KEPT, build

    trainer, _, patient = build(folder, repo_id, num_train_epochs=3, save_steps=4)
    trainer.train()
    trainer.push_to_hub()
    KEPT.update(trainer=trainer, patient=patient)


def save(times=1, full=False):
    """Saves with their pushes, each of other weights: errors of the jobs, what was logged, what lies on the disk."""
    import errno
    import os
    import pathlib
    import shutil
    import types

    import torch

    from hf_mpruner.uploads import parcel
    from hub.push_kit import KEPT, LOG

    trainer, parcel._IN_MEMORY_BYTES = KEPT["trainer"], 1000  # so that the weights wait as a link
    LOG.take()

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    failed = []
    for _ in range(times):
        trainer.state.global_step += 1
        with torch.no_grad():
            trainer.model.classifier.bias += 1
        if full:
            parcel.os = types.SimpleNamespace(link=fail, getpid=os.getpid)
            parcel.shutil = types.SimpleNamespace(copyfile=fail, rmtree=shutil.rmtree)
        try:
            trainer._save_checkpoint(trainer.model, trial=None)
        finally:
            parcel.os, parcel.shutil = os, shutil
        trainer.push_in_progress.wait_until_done()
        failed += [str(job.exception()) for job in trainer.push_in_progress.jobs if job.exception()]
    left = [entry.name for entry in pathlib.Path(trainer.args.output_dir).glob("_mpruner*")]
    return {"failed": failed, "log": LOG.take(), "left": left}


def finish(**options):
    """`trainer.push_to_hub` with other weights than those that were pushed last."""
    import torch

    from hub.push_kit import KEPT, LOG

    LOG.take()
    with torch.no_grad():
        KEPT["trainer"].model.classifier.bias += 1
    result = KEPT["trainer"].push_to_hub(**options)
    if options.get("blocking") is False:
        result = result.result()
    return {"info": str(result), "log": LOG.take()}


def same():
    """Whether the pushed model is the live one."""
    from hub.push_kit import KEPT, loaded_logits, logits

    trainer = KEPT["trainer"]
    return logits(trainer.model) == loaded_logits(trainer.hub_model_id)


def type_command(line):
    """What the message says; a command that fails ends with another status."""
    import shlex

    from hf_mpruner.cli import main

    assert (main(shlex.split(line)[1:]) or 0) == 0


@pytest.fixture(scope="module")
def shaken(shared_hub, client, tmp_path_factory):
    """A trained and pushed model, whose Trainer waits in the client."""
    folder = tmp_path_factory.mktemp("shaken") / "out"
    client.call(train, repo_id=NAME, folder=str(folder))
    return folder


def commits(hub):
    return len(hub.store.repo(NAME).history())


PASSING = {
    "429": ("POST", "/commit/", {"status": 429, "headers": {"Retry-After": "7"}}),
    "500": ("POST", "/commit/", {"status": 500}),
    "503": ("POST", "/preupload/", {"status": 503}),
    "cut in the content": ("PUT", "", {"cut": "before"}),
    "cut commit": ("POST", "/commit/", {"cut": "before", "reset": True}),
    "lost acknowledgement": ("POST", "/commit/", {"cut": "after"}),
    "card probe": ("GET", "README.md", {"status": 503}),
}


@pytest.mark.parametrize("fault", PASSING)
@pytest.mark.parametrize("how", ["background", "end"])
def test_an_error_that_passes(hub, client, shaken, fault, how):
    method, path, rule = PASSING[fault]
    before, ordered = commits(hub), hub.faults.add(method, path, **rule)
    if how == "background":
        told = client.call(save)
        assert (told["failed"], told["left"]) == ([], [])
    else:
        told = client.call(finish)
    assert ordered.used == 1
    assert commits(hub) == before + 1
    assert client.call(same)


@pytest.mark.parametrize("how", ["background", "end"])
def test_somebody_else_commits_at_the_same_time(hub, client, shaken, how):
    repo, before = hub.store.repo(NAME), commits(hub)
    hub.faults.add("POST", "/commit/", before=lambda: repo.write({f"{how}.txt": b"theirs"}))
    told = client.call(save if how == "background" else finish)
    assert told.get("failed", []) == []
    assert commits(hub) == before + 2
    assert repo.files()[f"{how}.txt"] == b"theirs"
    assert client.call(same)


LASTING = {
    "401": ({"status": 401, "message": "Invalid credentials in Authorization header"}, "the Hub does not know the token (401"),
    "403": ({"status": 403, "message": "no right"}, "the token may not do that in 'ann/shaken' (403"),
    "500 for ever": ({"status": 500, "times": 99}, "the Hub answers 500"),
}  # fmt: skip


@pytest.mark.parametrize("fault", LASTING)
def test_an_error_that_stays(hub, client, shaken, fault):
    """In the background it is said once and training goes on; at the end it is an error with the command to type."""
    rule, text = LASTING[fault]
    before = commits(hub)
    hub.faults.add("POST", "/commit/", **{**rule, "times": rule.get("times", 2)})
    told = client.call(save, times=2)
    assert [text in failure for failure in told["failed"]] == [True, True]
    spoken = [line for line in told["log"] if line.startswith("The push of step")]
    assert len(spoken) == 1
    assert text in spoken[0]
    assert spoken[0].endswith(
        "The next save pushes again, and trainer.push_to_hub() after the training brings everything."
    )
    assert (told["left"], commits(hub)) == ([], before)
    hub.faults.clear()

    hub.faults.add("POST", "/commit/", **rule)
    failure = client.fails(finish)
    assert failure.is_a("PushError")
    assert text in failure.message
    assert failure.message.endswith(
        f"Everything is in '{shaken}': call trainer.push_to_hub() again, or type\n    hf-mpruner push {shaken} {NAME}"
    )
    for name in ("README.md", "pruning_plan.json", "pruning_record.json", "report.json", "model.safetensors"):
        assert (shaken / name).is_file()
    hub.faults.clear()
    if fault == "403":
        client.call(type_command, line=failure.message.splitlines()[-1])
    else:
        client.call(finish, blocking=False)
    assert commits(hub) == before + 1
    assert client.call(same)


def test_a_full_disk(hub, client, shaken):
    before = commits(hub)
    told = client.call(save, full=True)
    assert told["failed"] == ["[Errno 28] No space left on device"]
    assert "No space left on device The next save pushes again" in " ".join(told["log"])
    assert (told["left"], commits(hub)) == ([], before)
    assert client.call(save)["failed"] == []
    assert commits(hub) == before + 1
    assert client.call(same)


def test_a_card_that_the_hub_cannot_tell_about_is_not_written_over(hub, client, shaken):
    repo = hub.store.repo(NAME)
    repo.write({"README.md": b"# By hand\n"})
    hub.faults.add("GET", "README.md", status=503, times=99)
    told = client.call(finish)
    assert repo.files()["README.md"] == b"# By hand\n"
    assert "README.md in 'ann/shaken' is as it was, everything else was pushed" in " ".join(told["log"])
    hub.faults.clear()
    client.call(finish)
    assert repo.files()["README.md"].startswith(b"---\n")
    assert b"# By hand\n" in repo.files()["README.md"]
    assert json.loads(repo.files()["pruning_plan.json"])


def push_another():
    """`trainer.push_to_hub` with a layer taken out by hand."""
    from hub.push_kit import KEPT

    layers = KEPT["trainer"].model.bert.encoder.layer
    last = layers[-1]
    del layers[-1]
    try:
        KEPT["trainer"].push_to_hub()
    finally:
        layers.append(last)


def test_a_model_that_is_not_the_runs_is_not_pushed_with_its_plan(hub, client, shaken):
    before = commits(hub)
    failure = client.fails(push_another)
    assert failure.is_a("PushError")
    assert (
        "The model has {'bert.encoder.layer': 1} layers, but the pruning run ended with {'bert.encoder.layer': 2}"
        in failure.message
    )
    assert commits(hub) == before
