"""What the real huggingface_hub does when the Hub fails: what it tries again, what it gives up at once, what stays."""

from __future__ import annotations

import re

import pytest

from hub.faults import Faults
from hub.kit import needs_hub


def act(what, repo_id, folder=None):
    """One call, by name; the answer is what can be compared."""
    import os
    import pathlib
    import tempfile

    from huggingface_hub import CommitOperationAdd, HfApi, constants, hf_hub_download

    api = HfApi()
    constants.DOWNLOAD_CHUNK_SIZE = 1000  # a download that breaks off goes on at the last whole piece, of 10 MB
    data = os.urandom(8)  # nothing may be known to the Hub already

    def upload(suffix, **options):
        content = data.hex().encode() if suffix == ".txt" else b"\0" + data
        return api.upload_file(path_or_fileobj=content, path_in_repo=f"a{suffix}", repo_id=repo_id, **options).oid

    def download():
        with tempfile.TemporaryDirectory() as cache:
            return pathlib.Path(hf_hub_download(repo_id, "a", cache_dir=cache)).read_bytes().hex()

    def push_card():
        return api.upload_file(path_or_fileobj=b"# Text\n", path_in_repo="README.md", repo_id=repo_id).oid

    known = {
        "whoami": lambda: api.whoami()["name"],
        "create_repo": lambda: str(api.create_repo(f"{repo_id}-{data.hex()}")),
        "model_info": lambda: api.model_info(repo_id).sha,
        "branch": lambda: api.create_branch(repo_id, branch=data.hex()),
        "tag": lambda: api.create_tag(repo_id, tag=data.hex()),
        "refs": lambda: len(api.list_repo_refs(repo_id).branches),
        "paths": lambda: len(api.get_paths_info(repo_id, ["a"])),
        "settings": lambda: api.update_repo_settings(repo_id, private=False),
        "discussion": lambda: api.create_pull_request(repo_id, title="a pull request").num,
        "tree": lambda: len(list(api.list_repo_tree(repo_id))),
        "commits": lambda: len(api.list_repo_commits(repo_id)),
        "file": lambda: upload(".txt"),
        "lfs": lambda: upload(".bin"),
        "guarded": lambda: upload(".txt", parent_commit=api.model_info(repo_id).sha),
        "card": push_card,
        "folder": lambda: api.upload_folder(folder_path=folder, repo_id=repo_id).oid,
        "same": lambda: api.create_commit(repo_id, [CommitOperationAdd("same", b"1")], commit_message="same").oid,
        "same lfs": lambda: api.create_commit(repo_id, [CommitOperationAdd("b", b"\0b")], commit_message="same").oid,
        "download": download,
    }
    return known[what]()


@pytest.fixture
def repo(hub, request):
    return hub.add_repo(f"ann/{re.sub(r'[^a-z0-9]+', '-', request.node.name.lower()).strip('-')}", {"a": b"a"})


GIVES_UP = [
    ("whoami", "GET", "/whoami-v2"),
    ("create_repo", "POST", "/repos/create"),
    ("model_info", "GET", "/api/models/"),
    ("branch", "POST", "/branch/"),
    ("tag", "POST", "/tag/"),
    ("refs", "GET", "/refs"),
    ("paths", "POST", "/paths-info/"),
    ("settings", "PUT", "/settings"),
    ("discussion", "POST", "/discussions"),
    ("file", "POST", "/commit/"),
    ("card", "POST", "/validate-yaml"),
]
FIRST_PAGE = needs_hub("2.4", "the first page of a list is asked for once")
TRIES_AGAIN = [
    ("file", "POST", "/preupload/"),
    ("lfs", "POST", "/objects/batch"),
    ("lfs", "PUT", "/lfs/"),
    ("lfs", "POST", "/verify"),
    pytest.param("tree", "GET", "/tree/", marks=FIRST_PAGE),
    pytest.param("commits", "GET", "/commits/", marks=FIRST_PAGE),
]


@pytest.mark.parametrize(("what", "method", "path"), GIVES_UP)
def test_one_error_ends_it(hub, client, repo, what, method, path):
    fault = hub.faults.add(method, path, status=503)
    failure = client.fails(act, what=what, repo_id=repo.id)
    assert (failure.status, client.waits, fault.seen) == (503, [], 1)
    assert failure.is_a("HfHubHTTPError")
    hub.faults.add(method, path, cut="before")
    failure = client.fails(act, what=what, repo_id=repo.id)
    assert (failure.type, client.waits) == ("RemoteProtocolError", [])
    assert not failure.is_a("HfHubHTTPError")
    assert len(repo.history()) == 2
    client.call(act, what=what, repo_id=repo.id)


@pytest.mark.parametrize(("what", "method", "path"), TRIES_AGAIN)
def test_errors_that_are_tried_again(hub, client, repo, what, method, path):
    fault = hub.faults.add(method, path, status=500, times=2)
    client.call(act, what=what, repo_id=repo.id)
    assert (fault.used, client.waits) == (2, [1, 2])
    hub.faults.add(method, path, cut="before")
    client.call(act, what=what, repo_id=repo.id)
    assert client.waits == [1]


@pytest.mark.parametrize(
    ("headers", "waits"),
    [({"Retry-After": "3"}, [4.0]), ({"RateLimit": '"api";r=0;t=7'}, [8.0]), ({}, [1])],
)
def test_too_many_requests(hub, client, repo, headers, waits):
    hub.faults.add("POST", "/preupload/", status=429, headers=headers)
    client.call(act, what="file", repo_id=repo.id)
    assert client.waits == waits
    hub.faults.add("POST", "/commit/", status=429, headers=headers)
    assert client.fails(act, what="file", repo_id=repo.id).status == 429


def test_a_part_of_an_lfs_file_is_tried_again(hub, client, repo):
    hub.part_size = 4
    fault = hub.faults.add("PUT", "/lfs/", status=500, nth=2)
    client.call(act, what="lfs", repo_id=repo.id)
    assert (fault.seen, client.waits) == (4, [1])  # of 9 bytes
    assert len(repo.files()["a.bin"]) == 9


def test_how_often_it_is_tried(hub, client, repo):
    fault = hub.faults.add("POST", "/preupload/", status=500, times=99)
    assert client.fails(act, what="file", repo_id=repo.id).status == 500
    assert (fault.used, client.waits) == (6, [1, 2, 4, 8, 8])


def test_a_lost_acknowledgement_of_a_commit(hub, client, repo):
    hub.faults.add("POST", "/commit/", cut="after")
    failure = client.fails(act, what="same", repo_id=repo.id)
    assert failure.is_a("HTTPError")
    assert not failure.is_a("HfHubHTTPError")
    assert repo.files()["same"] == b"1"
    # The second call finds nothing to do.
    assert client.call(act, what="same", repo_id=repo.id) == repo.at("main").oid
    assert len(repo.history()) == 3


@pytest.mark.parametrize(
    "fault", [{"cut": "within"}, {"cut": "before", "reset": True}, {"cut": "within", "reset": True}]
)
def test_half_an_answer(hub, client, repo, fault):
    hub.faults.add("POST", "/commit/", **fault)
    failure = client.fails(act, what="same", repo_id=repo.id)
    assert failure.type == ("ReadError" if "reset" in fault else "RemoteProtocolError")
    assert ("same" in repo.files()) == (fault["cut"] == "within")


def test_the_pipeline_of_upload_folder_commits_twice_after_a_lost_acknowledgement(hub, xet_client, repo, tmp_path):
    hub.uploads = "regular"
    (tmp_path / "b").write_bytes(b"b")
    hub.faults.add("POST", "/commit/", cut="after")
    xet_client.call(act, what="folder", repo_id=repo.id, folder=str(tmp_path))
    assert xet_client.waits == [1]
    newest, before, *_ = repo.history()
    assert (newest.files, newest.title) == (before.files, before.title)
    assert len(repo.history()) == 4


def test_the_pipeline_of_upload_folder_is_not_atomic(hub, client, xet_client, repo, tmp_path):
    hub.uploads = "regular"
    for number in range(260):
        (tmp_path / f"{number:03}.txt").write_text(f"{number}")
    hub.faults.add("POST", "/commit/", status=403, nth=2)
    assert xet_client.fails(act, what="folder", repo_id=repo.id, folder=str(tmp_path)).status == 403
    assert 2 < len(repo.files()) < 262
    # Again: only what is missing. Without Xet it would have been one commit.
    xet_client.call(act, what="folder", repo_id=repo.id, folder=str(tmp_path))
    assert (len(repo.files()), len(repo.history())) == (262, 4)
    one = hub.add_repo(f"{repo.id}-one")
    client.call(act, what="folder", repo_id=one.id, folder=str(tmp_path))
    assert len(one.history()) == 2


def test_a_race_and_what_a_failed_commit_leaves(hub, client, repo):
    hub.faults.add("POST", "/commit/", before=lambda: repo.write({"theirs": b"1"}))
    failure = client.fails(act, what="guarded", repo_id=repo.id)
    assert (failure.status, client.waits) == (412, [])
    assert "A commit has happened since" in failure.message
    client.call(act, what="guarded", repo_id=repo.id)  # with the new head
    assert {"theirs", "a.txt"} <= set(repo.files())
    # Without a parent both commits stand, unless the Hub says no all the same.
    message = "A commit has happened since. Please refresh and try again."
    hub.faults.add("POST", "/commit/", before=lambda: repo.write({"one": b"1"}), status=412, message=message)
    assert client.fails(act, what="file", repo_id=repo.id).status == 412
    hub.faults.add("POST", "/commit/", before=lambda: repo.write({"more": b"1"}))
    client.call(act, what="file", repo_id=repo.id)
    assert [commit.title for commit in repo.history()][1] == "somebody else's commit"
    # LFS content stays, referenced by nothing, and need not be sent again.
    hub.faults.add("POST", "/commit/", status=403)
    assert client.fails(act, what="same lfs", repo_id=repo.id).status == 403
    assert list(repo.objects.values()) == [b"\0b"]
    assert "b" not in repo.files()
    mark = hub.journal.mark()
    client.call(act, what="same lfs", repo_id=repo.id)
    assert repo.files()["b"] == b"\0b"
    assert not hub.journal.find("PUT", since=mark)


def test_a_page_where_json_is_expected(hub, client, repo):
    hub.faults.add("POST", "/validate-yaml", html=True, status=502)
    assert client.fails(act, what="card", repo_id=repo.id).type == "JSONDecodeError"
    hub.faults.add("POST", "/commit/", html=True)
    assert client.fails(act, what="file", repo_id=repo.id).type == "JSONDecodeError"
    assert "a.txt" not in repo.files()


def test_the_metadata_of_a_file_that_is_not_cached(hub, client, repo):
    hub.faults.add("HEAD", "/resolve/", status=503, times=2)
    assert client.call(act, what="download", repo_id=repo.id) == b"a".hex()
    assert client.waits == [1]  # the first try is for the cache's sake, and is not waited for
    fault = hub.faults.add("HEAD", "/resolve/", status=503, times=99)
    failure = client.fails(act, what="download", repo_id=repo.id)
    assert failure.is_a("LocalEntryNotFoundError")
    assert failure.is_a("EntryNotFoundError")  # as if there were no such file
    assert (fault.used, client.waits) == (7, [1, 2, 4, 8, 8])


def test_downloads(hub, client, repo):
    data = bytes(range(256)) * 40
    repo.write({"a": data})

    def get(since):
        assert client.call(act, what="download", repo_id=repo.id) == data.hex()
        return hub.journal.find("GET", "/resolve/", since=since)

    hub.faults.add("GET", "/resolve/", drip=0.2)
    get(hub.journal.mark())
    assert client.waits == []
    hub.faults.add("GET", "/resolve/", cut="before")
    assert [request.status for request in get(hub.journal.mark())] == [None, 200]
    assert client.waits == [1]
    hub.faults.add("GET", "/resolve/", status=429)
    get(hub.journal.mark())
    hub.faults.add("GET", "/resolve/", cut="within")
    first, second = get(hub.journal.mark())
    assert (first.status, second.status, second.headers["range"]) == (None, 206, "bytes=5000-")
    # 5xx and a reset are not tried again.
    hub.faults.add("GET", "/resolve/", status=500)
    failure = client.fails(act, what="download", repo_id=repo.id)
    assert (failure.type, failure.status, client.waits) == ("HfHubHTTPError", 500, [])
    hub.faults.add("GET", "/resolve/", cut="within", reset=True)
    assert client.fails(act, what="download", repo_id=repo.id).type == "ReadError"


def test_a_server_that_thinks(hub, client, repo):
    hub.faults.add("POST", "/commit/", delay=0.5)
    assert client.call(act, what="file", repo_id=repo.id) == repo.at("main").oid


def test_rules_of_faults():
    faults = Faults()
    second = faults.add("GET", r"/a$", nth=2, times=2, status=500)
    any_method = faults.add("*", "a", status=501, nth=4)
    taken = [faults.take("GET", "/a"), faults.take("POST", "/b"), *(faults.take("GET", "/a") for _ in range(4))]
    assert taken == [None, None, second, second, any_method, None]
    faults.clear()
    assert faults.take("GET", "/a") is None
    with pytest.raises(ValueError, match="changes nothing"):
        faults.add("GET", "/a")
    with pytest.raises(ValueError, match="cut is one of before, within, after"):
        faults.add("GET", "/a", cut="during")
