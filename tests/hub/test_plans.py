"""A plan's way to the Hub and back, and every reason why there is none at a place."""

from __future__ import annotations

import re

import pytest

from hf_mpruner.plan import PLAN_NAME


def push(repo_id, source_model="google-bert/bert-base-uncased", **options):
    """Push a plan of three layers of six; what `Pushed` says."""
    import dataclasses

    from hf_mpruner import PruningPlan
    from hf_mpruner.plan import StackPlan

    plan = PruningPlan({"encoder.layer": StackPlan(6, (0, 1, 5))}, "bert", source_model)
    return dataclasses.asdict(plan.push_to_hub(repo_id, **options))


def load(path, offline=False, **options):
    """Which layers the plan of a place keeps."""
    from huggingface_hub import constants

    from hf_mpruner import PruningPlan

    constants.HF_HUB_OFFLINE = offline
    try:
        return PruningPlan.from_pretrained(path, **options).kept
    finally:
        constants.HF_HUB_OFFLINE = False


def test_there_and_back(hub, client):
    repo = hub.add_repo("ann/plan", {"README.md": b"# Mine\n", "config.json": b"{}"})
    made = client.call(push, repo_id="ann/plan")
    assert (made["card"], made["commit"]) == ("none", repo.at("main").oid)
    assert set(repo.files()) == {".gitattributes", "README.md", "config.json", PLAN_NAME}
    assert client.call(load, path="ann/plan") == {"encoder.layer": [0, 1, 5]}
    assert client.call(load, path="ann/plan", offline=True) == {"encoder.layer": [0, 1, 5]}  # from the cache
    side = client.call(push, repo_id="ann/plan", source_model=None, revision="side")
    assert client.call(load, path="ann/plan", revision="side") == {"encoder.layer": [0, 1, 5]}
    assert side["revision"] == "side"
    made = client.call(push, repo_id="new-plan", private=True, create_pr=True)
    assert hub.store.repo("ann/new-plan").private
    assert client.call(load, path="ann/new-plan", revision=made["revision"]) == {"encoder.layer": [0, 1, 5]}
    with pytest.raises(KeyError):
        hub.store.repo("ann/new-plan").files()[PLAN_NAME]


def test_a_local_path_stays_here(hub, client):
    mark, place = hub.journal.mark(), f"{client.home}/bert"
    failure = client.fails(push, repo_id="ann/leak", source_model=place)
    assert failure.type == "PushError"
    assert re.search(
        r"pruning_plan\.json holds the local path .*/bert.*source_model=None.*Nothing was sent", failure.message
    )
    assert not hub.journal.requests[mark:]


@pytest.mark.parametrize(
    ("what", "type", "says"),
    [
        (
            "no repository",
            "FileNotFoundError",
            "no such folder here, and no such repository on the Hub.*hf auth login",
        ),
        ("no plan", "FileNotFoundError", "the Hub has that repository, but no plan in it"),
        ("no revision", "FileNotFoundError", "the repository has no revision 'v7'. Pass a branch, tag or commit"),
        ("gated", "PermissionError", "is gated.*Ask for access on its page"),
        ("forbidden", "PermissionError", "the token may not read .*403"),
        ("down", "ConnectionError", "503|cannot be reached"),
        ("offline", "ConnectionError", "Unset HF_HUB_OFFLINE"),
        ("a path", "FileNotFoundError", "there is no such file or folder, and the Hub has no such names"),
        ("no json", "ValueError", "holds no pruning plan: pruning_plan.json is no JSON"),
        ("a list", "ValueError", "holds no pruning plan: pruning_plan.json is a list"),
    ],
)
def test_why_there_is_no_plan(hub, client, what, type, says):
    name = f"ann/without-{what.replace(' ', '-')}"
    content = {"no plan": None, "no json": b"<html>", "a list": b"[]"}.get(what, b"{}")
    options = {}
    if what not in ("no repository", "a path"):
        hub.add_repo("bob/gated" if what == "gated" else name, {PLAN_NAME: content} if content else {"a": b"a"})
    if what == "gated":
        name = "bob/gated"
        hub.store.repo(name).gated = "auto"
    elif what == "forbidden":
        hub.faults.add("HEAD", "/resolve/", status=403)
    elif what == "down":
        hub.faults.add("HEAD", "/resolve/", status=503, times=99)
    elif what == "no revision":
        options = {"revision": "v7"}
    elif what == "offline":
        options = {"offline": True}
    elif what == "a path":
        name = "./runs/nowhere"
    failure = client.fails(load, path=name, **options)
    assert (failure.type, bool(re.search(says, failure.message))) == (type, True), failure.message
    assert name in failure.message
