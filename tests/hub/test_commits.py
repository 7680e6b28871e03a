"""`hub.commit_files` against the test server: one commit, tried again as a whole, and whose card it is."""

from __future__ import annotations

import re

import pytest

CARD = b"---\nlicense: mit\n---\n# By hand\n"


def commit(repo_id, files=None, card=None, seconds=None, change=None, **options):
    """One `commit_files`; `card` is put after the README.md that is there."""
    import dataclasses
    import pathlib

    from huggingface_hub.utils import close_session

    from hf_mpruner.hub import commit_files, retry

    def merge(theirs):
        return (theirs or "") + card

    retry.ANSWER_SECONDS = seconds or 180
    close_session()  # the next one gets that limit
    files = {"config.json": "{}", "pytorch_model.bin": "weights"} if files is None else files
    contents = {path: text.encode() for path, text in files.items()}
    contents |= {path: pathlib.Path(file) for path, file in (change or {}).items()}
    pushed = commit_files(repo_id, contents, message="pruned", card=merge if card else None, **options)
    return dataclasses.asdict(pushed)


@pytest.fixture
def name(request):
    return f"ann/{re.sub(r'[^a-z0-9]+', '-', request.node.name.lower()).strip('-')}"


@pytest.mark.parametrize("uploads", ["lfs", "regular"])
def test_one_commit_and_the_next_one_changes_nothing(hub, client, xet_client, name, uploads):
    hub.uploads = uploads
    sender = {"lfs": client, "regular": xet_client}[uploads]
    first = sender.call(commit, repo_id=name.partition("/")[2], card="# Ours\n", private=True)
    repo = hub.store.repo(name)
    assert (first["repo_id"], first["card"], repo.private) == (name, "written", True)
    assert first["commit"] == first["head"] == repo.at("main").oid
    assert first["url"] == f"{hub.url}/{name}/commit/{first['head']}"
    assert len(repo.history()) == 2
    assert repo.files()["README.md"] == b"# Ours\n"
    again = sender.call(commit, repo_id=name)
    assert (again["commit"], again["head"], again["card"]) == (None, first["head"], "none")
    assert len(repo.history()) == 2
    other = sender.call(commit, repo_id=name, files={"config.json": "{}", "README.md": "# Not asked for\n"})
    assert (other["commit"], other["card"]) == (None, "unchanged")


def test_a_branch_is_made_and_a_pull_request_opened(hub, client, name):
    repo = hub.add_repo(name, {"README.md": CARD, "old.safetensors": b"old"})
    main = repo.at("main").oid
    side = client.call(commit, repo_id=name, revision="side/way", card="more\n", replaces=["*.safetensors"])
    assert side["revision"] == "side/way"
    assert repo.files("side/way")["README.md"] == CARD + b"more\n"
    assert "old.safetensors" not in repo.files("side/way")
    proposed = client.call(commit, repo_id=name, create_pr=True, card="more\n")
    assert (proposed["revision"], proposed["pull_request_url"]) == ("refs/pr/1", proposed["url"])
    assert proposed["url"] == f"{hub.url}/{name}/discussions/1"
    assert set(repo.files("refs/pr/1")) == {
        ".gitattributes",
        "README.md",
        "old.safetensors",
        "config.json",
        "pytorch_model.bin",
    }
    more = client.call(commit, repo_id=name, files={"more": "1"}, revision="refs/pr/1")
    assert repo.at("refs/pr/1").oid == more["commit"]
    assert repo.at("main").oid == main


RETRIED = {
    "429": ("POST", "/commit/", {"status": 429, "headers": {"Retry-After": "7"}}, [7.0]),
    "500": ("POST", "/commit/", {"status": 500}, [1.0]),
}


@pytest.mark.parametrize("fault", RETRIED)
def test_smoke(hub, client, name, fault):
    method, path, rule, waits = RETRIED[fault]
    hub.faults.add(method, path, **rule)
    client.call(commit, repo_id=name)
    assert client.waits == waits
    assert len(hub.store.repo(name).history()) == 2
