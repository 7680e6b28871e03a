"""The real huggingface_hub against the test server: repositories, commits, refs, listings."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from hub.store import Blob, HubError

FILES = {"config.json": b'{"a": 1}\n', "weights.bin": bytes(range(256)) * 40, "plots/deep/a.txt": b"a plot"}


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

    def change(number):
        time.sleep(0.01)  # the others come meanwhile
        return {str(number): Blob(b"")}

    def commit(number):
        try:
            return repo.commit("main", lambda _: change(number), "mine", "", "ann", parent).oid
        except HubError as error:
            return error.status

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(commit, range(8)))
    assert answers.count(412) == 7
    assert repo.at("main").oid in answers
    assert len(repo.files()) == 2


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


def test_what_is_refused_leaves_nothing(hub, client):
    def run(repo_id):
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
        from huggingface_hub.errors import HfHubHTTPError

        api, found = HfApi(), []
        api._validate_yaml = lambda *args, **kwargs: None  # past the check of the client
        good, bad = CommitOperationAdd("new", b"1"), CommitOperationAdd("README.md", b"---\nbase_model: ''\n---\n")
        for operations, as_pull_request in (
            ([good, bad], False),
            ([good, bad], True),
            ([good, CommitOperationDelete("missing")], False),
        ):
            try:
                api.create_commit(repo_id, operations, commit_message="m", create_pr=as_pull_request)
            except HfHubHTTPError as error:
                found.append([error.response.status_code, type(error).__name__])
        return found

    repo = hub.add_repo("ann/refused")
    bad = [400, "BadRequestError"]
    assert client.call(run, repo_id=repo.id) == [bad, bad, [404, "RemoteEntryNotFoundError"]]
    assert (len(repo.commits), repo.discussions) == (1, {})


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
