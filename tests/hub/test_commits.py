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


def test_a_card_of_a_person_is_kept_by_default_too(hub, client, name):
    repo = hub.add_repo(name, {"README.md": CARD})
    made = client.call(commit, repo_id=name, files={"a": "1", "README.md": "# Ours\n"})
    assert (made["card"], repo.files()["README.md"]) == ("unchanged", CARD)


def test_it_is_never_an_old_card_that_is_merged(hub, client, name):
    repo = hub.add_repo(name, {"README.md": CARD})
    client.call(download, repo_id=name)
    repo.write({"README.md": b"# Newer\n"})
    hub.faults.add("HEAD", "/resolve/", status=500, times=99)  # what a cache would be asked after
    client.call(commit, repo_id=name, card="and ours\n")
    assert repo.files()["README.md"] == b"# Newer\nand ours\n"


def download(repo_id):
    """Have the card in the cache."""
    from huggingface_hub import hf_hub_download

    hf_hub_download(repo_id, "README.md")


def test_a_hub_that_hangs(hub, client, name):
    hub.add_repo(name)
    hub.faults.add("GET", "/whoami", delay=0.4, times=99)
    failure = client.fails(commit, repo_id=name, seconds=0.05)
    assert failure.type == "PushError"
    assert "the Hub did not answer within 0.05 seconds, at the last of 6 tries too. Try again later" in failure.message
    hub.faults.clear()
    hub.faults.add("POST", "/commit/", delay=0.6)
    made = client.call(commit, repo_id=name, seconds=0.3)  # it thought about it, and did it
    assert (client.waits, made["commit"]) == ([1], hub.store.repo(name).at("main").oid)
    assert len(hub.store.repo(name).history()) == 2


LARGE = 10_000_001  # smaller files are read at once, and may do what they like
WHILE_SENT = {
    "shrinks": (
        "/preupload/",
        lambda file: file.write_bytes(b"\0"),
        r"a file changed while it was sent \(400: Incompl",
    ),
    "vanishes": ("/preupload/", lambda file: file.unlink(), r"a file went away while it was read .*Put it back"),
    "changes": (
        "/verify",
        lambda file: file.write_bytes(b"\1" * LARGE),
        r"'.*/model\.bin' changed while it was sent\. Wait until nothing writes to it",
    ),
}


@pytest.mark.parametrize("what", WHILE_SENT)
def test_a_large_file_while_it_is_sent(hub, client, name, tmp_path, what):
    path, act, says = WHILE_SENT[what]
    file, repo = tmp_path / "model.bin", hub.add_repo(name)
    file.write_bytes(b"\0" * LARGE)
    hub.faults.add("POST", path, before=lambda: act(file))
    failure = client.fails(commit, repo_id=name, files={}, change={"model.bin": str(file)})
    assert re.search(rf"{says}.* again\. Nothing was committed", failure.message), failure.message
    assert len(repo.history()) == 1


def test_a_file_that_the_repository_ignores(hub, client, name):
    repo = hub.add_repo(name)
    failure = client.fails(ignored, repo_id=name)
    assert re.search(rf"The \.gitignore of '{name}' leaves out 'a\.bin'.*Nothing was committed", failure.message)
    assert len(repo.history()) == 1


def ignored(repo_id):
    """What the client does when the Hub says that a file is ignored."""
    from huggingface_hub import HfApi

    from hf_mpruner.hub import commit_files

    original = HfApi.preupload_lfs_files

    def preupload(self, repo_id, additions, **options):
        original(self, repo_id, additions, **options)
        additions[0]._should_ignore = True

    HfApi.preupload_lfs_files = preupload
    try:
        commit_files(repo_id, {"a.bin": b"1"}, message="m")
    finally:
        HfApi.preupload_lfs_files = original


def test_offline_nothing_is_tried_twice(hub, client, name):
    mark = hub.journal.mark()
    failure = client.fails(offline, repo_id=name)
    assert (failure.type, client.waits) == ("PushError", [])
    assert "offline mode is on. Unset HF_HUB_OFFLINE" in failure.message
    assert not hub.journal.requests[mark:]


def offline(repo_id):
    """Push in offline mode."""
    from huggingface_hub import constants

    from hf_mpruner.hub import commit_files

    constants.HF_HUB_OFFLINE = True
    try:
        commit_files(repo_id, {"a": b"1"}, message="m")
    finally:
        constants.HF_HUB_OFFLINE = False
