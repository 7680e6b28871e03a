"""The real huggingface_hub against the test server: contents in both upload modes, and back."""

from __future__ import annotations

import hashlib
import subprocess
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from hub.store import Blob

FILES = {"config.json": b'{"a": 1}\n', "weights.bin": bytes(range(256)) * 40, "plots/deep/a.txt": b"a plot"}


def write_files(folder):
    for name, data in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(folder)


def upload(folder, repo_id, **options):
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repo_id, exist_ok=True)
    info = api.upload_folder(folder_path=folder, repo_id=repo_id, commit_message="all", **options)
    return {"oid": info.oid, "pr": info.pr_revision}


def download(repo_id, cache, revision=None):
    import pathlib

    from huggingface_hub import snapshot_download

    root = pathlib.Path(snapshot_download(repo_id, revision=revision, cache_dir=cache))
    found = [path for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes().hex() for path in found}


def as_hex(files):
    return {name: data.hex() for name, data in files.items()}


def test_git_would_give_the_same_names(tmp_path):
    data = b"some bytes\n"
    (tmp_path / "a").write_bytes(data)
    git = subprocess.run(["git", "hash-object", "a"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Blob(data).oid == git.stdout.strip()
    assert Blob(data, lfs=True).etag == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("uploads", ["lfs", "regular"])
def test_upload_folder_and_snapshot_download(hub, client, xet_client, tmp_path, uploads):
    hub.uploads = uploads
    sender = {"lfs": client, "regular": xet_client}[uploads]
    name, mark = f"ann/folder-{uploads}", hub.journal.mark()
    made = sender.call(upload, folder=write_files(tmp_path / "files"), repo_id=name)
    repo = hub.store.repo(name)
    assert repo.at("main").oid == made["oid"]
    assert repo.files() == {**FILES, ".gitattributes": repo.files()[".gitattributes"]}
    assert repo.at("main").files["weights.bin"].lfs == (uploads == "lfs")
    puts = [request for request in hub.journal.find("PUT", since=mark) if request.origin == "storage"]
    assert [request.status for request in puts] == ([200] if uploads == "lfs" else [])
    assert sender.call(download, repo_id=name, cache=str(tmp_path / "cache")) == as_hex(repo.files())
    # Nothing has changed: no second commit, and the content is known to be there.
    mark = hub.journal.mark()
    assert sender.call(upload, folder=str(tmp_path / "files"), repo_id=name)["oid"] == made["oid"]
    assert not hub.journal.find("POST", "/commit/", since=mark)
    assert len(repo.history()) == 2


def test_with_xet_on_lfs_answers_are_of_no_use(hub, xet_client, tmp_path):
    failure = xet_client.fails(upload, folder=write_files(tmp_path / "files"), repo_id="ann/xet")
    assert failure.is_a("ConnectionError")
    assert not failure.is_a("HfHubHTTPError")
    assert len(hub.store.repo("ann/xet").history()) == 1
    tried = hub.journal.find("GET", "/xet-write-token/")
    assert tried
    for request in tried:  # the route is missing on purpose
        request.known = True


def test_large_lfs_files_go_in_parts(hub, client, tmp_path):
    hub.part_size = 3000
    mark = hub.journal.mark()
    client.call(upload, folder=write_files(tmp_path / "files"), repo_id="ann/parts")
    assert hub.store.repo("ann/parts").files()["weights.bin"] == FILES["weights.bin"]
    assert [len(request.body) for request in hub.journal.find("PUT", since=mark)] == [3000, 3000, 3000, 1240]


def test_the_storage_wants_no_token(hub):
    repo = hub.add_repo("ann/stored")
    repo.objects["0" * 64] = b"content"
    url = f"{hub.storage_url}/lfs/models/ann/stored/{'0' * 64}"
    assert urlopen(url).read() == b"content"
    with pytest.raises(HTTPError, match="400"):
        urlopen(Request(url, headers={"Authorization": f"Bearer {hub.token}"}))


@pytest.mark.parametrize("uploads", ["lfs", "regular"])
def test_pull_requests(hub, client, xet_client, tmp_path, uploads):
    def look(repo_id):
        from huggingface_hub import HfApi

        api = HfApi()
        found = api.get_discussion_details(repo_id, 1)
        api.comment_discussion(repo_id, 1, "fine")
        api.rename_discussion(repo_id, 1, new_title="renamed")
        if found.status == "draft":
            api.change_discussion_status(repo_id, 1, new_status="open")
        api.merge_pull_request(repo_id, 1)
        merged = api.get_discussion_details(repo_id, 1)
        return [found.status, found.git_reference, merged.status, merged.title, merged.merge_commit_oid]

    hub.uploads = uploads
    sender = {"lfs": client, "regular": xet_client}[uploads]
    name = f"ann/pull-{uploads}"
    made = sender.call(upload, folder=write_files(tmp_path / "files"), repo_id=name, create_pr=True)
    repo = hub.store.repo(name)
    assert made["pr"] == "refs/pr/1"
    assert set(repo.files()) == {".gitattributes"}
    assert set(repo.files("refs/pr/1")) == {".gitattributes", *FILES}
    repo.write({"meanwhile": b"1"})
    # One commit with create_pr=1, or a draft that commits go to.
    status = "open" if uploads == "lfs" else "draft"
    merged = sender.call(look, repo_id=name)
    assert merged == [status, "refs/pr/1", "merged", "renamed", repo.at("main").oid]
    assert set(repo.files()) == {".gitattributes", "meanwhile", *FILES}


def test_downloads_of_lfs_files_come_from_elsewhere_without_a_token(hub, client, tmp_path):
    def run(cache, name="weights.bin"):
        import pathlib

        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

        path = pathlib.Path(hf_hub_download("ann/there", name, cache_dir=cache))
        data = get_hf_file_metadata(hf_hub_url("ann/there", name))
        return [path.read_bytes().hex(), data.etag, data.size, data.commit_hash, data.location]

    client.call(upload, folder=write_files(tmp_path / "files"), repo_id="ann/there")
    mark, blob = hub.journal.mark(), hub.store.repo("ann/there").at("main").files["weights.bin"]
    content, etag, size, commit, location = client.call(run, cache=str(tmp_path / "cache"))
    assert content == FILES["weights.bin"].hex()
    assert (etag, size, commit) == (blob.sha256, len(blob.data), hub.store.repo("ann/there").at("main").oid)
    assert location.startswith(hub.storage_url)
    assert [(r.method, r.token) for r in hub.journal.requests[mark:] if r.origin == "storage"] == [("GET", "")]
    failure = client.fails(run, cache=str(tmp_path / "cache"), name="missing.bin")
    assert failure.is_a("RemoteEntryNotFoundError")
    # The absence is remembered, by X-Repo-Commit.
    assert list((tmp_path / "cache").rglob(".no_exist/*/missing.bin"))


def test_a_file_that_changes_while_it_is_sent_is_refused(hub, client, tmp_path):
    def run(path):
        from huggingface_hub import CommitOperationAdd, HfApi

        add = CommitOperationAdd("w.bin", path)
        add.upload_info.sha256  # noqa: B018  read now
        with open(path, "wb") as file:  # noqa: PTH123
            file.write(b"\0other")
        HfApi().create_commit("ann/torn", [add], commit_message="torn")

    repo = hub.add_repo("ann/torn")
    (tmp_path / "w.bin").write_bytes(b"\0whole")
    failure = client.fails(run, path=str(tmp_path / "w.bin"))
    assert (failure.type, failure.status) == ("RuntimeError", 400)
    assert "BadDigest" in failure.trace
    assert (repo.objects, len(repo.history())) == ({}, 1)
