"""The real huggingface_hub against the test server: repositories, commits in both upload modes, refs, downloads."""

from __future__ import annotations

import hashlib
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from hub.store import Blob, HubError

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


def test_the_client_is_on_the_loopback(hub, client):
    def endpoint():
        from huggingface_hub import constants

        return constants.ENDPOINT

    def leave():
        from huggingface_hub.utils import get_session

        return get_session().get("https://huggingface.co/api/models").status_code

    assert client.call(endpoint) == hub.url
    assert hub.url.startswith("http://127.0.0.1:")
    with pytest.raises(AssertionError, match=r"wanted to reach \['huggingface\.co'\]"), hub.client() as another:
        another.call(leave)


def test_create_repo(hub, client):
    def run():
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        api = HfApi()
        try:
            first = str(api.create_repo("ann/made", private=True))
            second = str(api.create_repo("ann/made", exist_ok=True))
            api.create_repo("ann/made")
        except HfHubHTTPError as error:
            conflict = error.response.status_code
        there = [api.repo_exists("ann/made"), api.repo_exists("ann/nothing")]
        api.update_repo_settings("ann/made", private=False, gated="auto")
        api.move_repo("ann/made", "ann/moved")
        info = api.model_info("ann/moved")
        api.delete_repo("ann/moved")
        name = api.whoami()["name"]
        return [first, second, conflict, there, info.private, info.gated, api.repo_exists("ann/moved"), name]

    url = f"{hub.url}/ann/made"
    assert client.call(run) == [url, url, 409, [True, False], False, "auto", False, "ann"]


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


@pytest.mark.parametrize("kind", ["dataset", "space"])
def test_datasets_and_spaces(hub, kind):
    def run(kind):
        import pathlib

        from huggingface_hub import HfApi, hf_hub_download

        api, where = HfApi(), {"repo_id": "ann/data", "repo_type": kind}
        api.create_repo(**where, space_sdk="static" if kind == "space" else None)
        for name, data in {"a.txt": b"a", "b.bin": b"\0b"}.items():
            api.upload_file(path_or_fileobj=data, path_in_repo=name, **where)
        api.create_tag(**where, tag="v1")
        found = [pathlib.Path(hf_hub_download(filename=name, **where)).read_text() for name in ("a.txt", "b.bin")]
        return [found, sorted(api.list_repo_files(**where)), api.repo_info(**where, revision="v1").id]

    assert hub.call(run, kind=kind) == [["a", "\0b"], [".gitattributes", "a.txt", "b.bin"], "ann/data"]
    assert hub.store.repo("ann/data", kind).at("v1").files["b.bin"].lfs


def test_of_commits_on_one_parent_one_wins(hub):
    repo = hub.add_repo("ann/crowd")
    parent = repo.at("main").oid

    def commit(number):
        try:
            return repo.commit("main", lambda _: {str(number): Blob(b"")}, "mine", "", "ann", parent).oid
        except HubError as error:
            return error.status

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(commit, range(8)))
    assert answers.count(412) == 7
    assert repo.at("main").oid in answers
    assert len(repo.files()) == 2


def test_large_lfs_files_go_in_parts(hub, client, tmp_path):
    hub.part_size = 3000
    mark = hub.journal.mark()
    client.call(upload, folder=write_files(tmp_path / "files"), repo_id="ann/parts")
    assert hub.store.repo("ann/parts").files()["weights.bin"] == FILES["weights.bin"]
    assert [len(request.body) for request in hub.journal.find("PUT", since=mark)] == [3000, 3000, 3000, 1240]


def test_commits_with_a_parent_and_deletions(hub, client):
    def run():
        from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
        from huggingface_hub.errors import HfHubHTTPError

        api, name = HfApi(), "ann/parents"
        api.create_repo(name)
        first = api.upload_file(path_or_fileobj=b"1", path_in_repo="sub/a.txt", repo_id=name).oid
        add = [CommitOperationAdd("sub/b.txt", b"2"), CommitOperationAdd("c.bin", b"\0c")]
        api.create_commit(name, add, commit_message="two", commit_description="words", parent_commit=first)
        try:
            add = [CommitOperationAdd("d", b"4")]
            late = api.create_commit(name, add, commit_message="late", parent_commit=first).oid
        except HfHubHTTPError as error:
            late = [error.response.status_code, "A commit has happened since" in str(error)]
        copy = CommitOperationCopy("c.bin", "copy.bin")
        api.create_commit(name, [CommitOperationDelete("sub/"), copy], commit_message="less")
        commits = [[commit.title, commit.message, commit.authors] for commit in api.list_repo_commits(name)]
        return [late, commits, api.list_repo_files(name), api.file_exists(name, "sub/a.txt")]

    late, commits, files, exists = client.call(run)
    assert late == [412, True]
    assert commits[:2] == [["less", "", ["ann"]], ["two", "words", ["ann"]]]
    assert sorted(files) == [".gitattributes", "c.bin", "copy.bin"]
    assert not exists


def test_refs(hub, client):
    def run():
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

        api, name = HfApi(), "ann/refs"
        api.create_repo(name)
        oid = api.upload_file(path_or_fileobj=b"1", path_in_repo="a", repo_id=name).oid
        api.create_tag(name, tag="v1", tag_message="first")
        api.create_branch(name, branch="side/way")
        api.create_branch(name, branch="side/way", exist_ok=True)
        api.upload_file(path_or_fileobj=b"2", path_in_repo="a", repo_id=name, revision="side/way")
        statuses = []
        for act in (
            lambda: api.create_branch(name, branch="side/way"),
            lambda: api.create_tag(name, tag="v1"),
            lambda: api.upload_file(path_or_fileobj=b"3", path_in_repo="a", repo_id=name, revision="missing"),
        ):
            try:
                act()
            except HfHubHTTPError as error:
                statuses.append([error.response.status_code, isinstance(error, RevisionNotFoundError)])
        refs = api.list_repo_refs(name)
        found = [[ref.ref, ref.target_commit == oid] for ref in [*refs.branches, *refs.tags]]
        api.delete_branch(name, branch="side/way")
        api.delete_tag(name, tag="v1")
        refs = api.list_repo_refs(name)
        return [statuses, found, [ref.name for ref in [*refs.branches, *refs.tags]]]

    statuses, found, left = client.call(run)
    assert statuses == [[409, False], [409, False], [404, True]]
    assert found == [["refs/heads/main", True], ["refs/heads/side/way", False], ["refs/tags/v1", True]]
    assert left == ["main"]


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


def test_what_a_repository_shows(hub, client, tmp_path):
    def run():
        from huggingface_hub import HfApi

        api, name = HfApi(), "ann/shown"
        info = api.model_info(name, files_metadata=True)
        files = {item.rfilename: [item.size, item.blob_id, item.lfs and item.lfs.sha256] for item in info.siblings}
        tree = [[type(item).__name__, item.path] for item in api.list_repo_tree(name)]
        everything = [item.path for item in api.list_repo_tree(name, recursive=True)]
        below = [item.path for item in api.list_repo_tree(name, "plots", recursive=True)]
        paths = [item.path for item in api.get_paths_info(name, ["plots", "nothing", "config.json"])]
        about = [info.sha, info.tags, info.card_data.to_dict(), info.pipeline_tag, info.library_name]
        return [files, tree, everything, below, paths, about]

    card = b"---\nlicense: mit\nlibrary_name: transformers\nbase_model: a/b\nbase_model_relation: finetune\n---\n# Shown\n"
    repo = hub.add_repo("ann/shown", {**FILES, "config.json": b'{"model_type": "bert"}', "README.md": card})
    hub.page_size = 2  # every listing needs several pages
    mark = hub.journal.mark()
    files, tree, everything, below, paths, about = client.call(run)
    assert files["config.json"] == [22, repo.at("main").files["config.json"].oid, None]
    assert ["RepoFolder", "plots"] in tree
    assert len(tree) == 5
    assert everything == sorted([".gitattributes", "README.md", "plots", "plots/deep", *FILES])
    assert below == ["plots/deep", "plots/deep/a.txt"]
    assert sorted(paths) == ["config.json", "plots"]
    sha, tags, data, *rest = about
    assert (sha, rest) == (repo.at("main").oid, [None, "transformers"])
    assert tags == ["transformers", "bert", "base_model:a/b", "base_model:finetune:a/b", "license:mit"]
    assert data["base_model"] == "a/b"
    assert len(hub.journal.find("GET", "/tree/", since=mark)) == 3 + 4 + 1


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
