"""The Hub's API for repositories: make, describe, list, refs, discussions, cards."""

from __future__ import annotations

import json
import struct
from typing import Any
from urllib.parse import parse_qs, urlencode

import yaml

from . import cards
from .server import IN_API, Answer, Call, as_json, route
from .store import MAIN, Blob, Commit, Discussion, HubError, Repo, directory_entry, file_entry, is_folder, tree_entries

PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}


def page_of(call: Call, repo: Repo) -> str:
    return f"{call.hub.url}/{PREFIXES[repo.kind]}{repo.id}"


@route("GET", r"/api/whoami-v2")
def whoami(call: Call) -> Answer:
    user = call.who()
    token = {"accessToken": {"displayName": "test", "role": user.role}, "type": "access_token"}
    return as_json({
        "type": "user", "id": user.name, "name": user.name, "fullname": user.name, "auth": token,
        "orgs": [{"type": "org", "id": name, "name": name, "roleInOrg": "write"} for name in user.orgs],
    })  # fmt: skip


@route("POST", r"/api/repos/create")
def create_repo(call: Call) -> Answer:
    asked, user = call.json, call.who()
    kind = asked.get("type") or "model"
    id = f"{asked.get('organization') or user.name}/{asked['name']}"
    if user.role != "write" or not user.owns(id):
        raise HubError(403, f"You don't have the rights to create a {kind} under the namespace {id.split('/')[0]!r}")
    private = asked.get("visibility") == "private" or bool(asked.get("private"))
    try:
        repo = call.hub.store.create(kind, id, user.name, private)
    except FileExistsError:
        url = page_of(call, call.hub.store.repo(id, kind))
        raise HubError(409, f"You already created this {kind} repo", url=url) from None
    return as_json({"url": page_of(call, repo), "name": id, "id": id, "private": private})


@route("DELETE", r"/api/repos/delete")
def delete_repo(call: Call) -> Answer:
    asked = call.json
    call.parts = {
        "kind": f"{asked.get('type') or 'model'}s",
        "id": f"{asked.get('organization') or call.who().name}/{asked['name']}",
    }
    repo = call.writable()
    del call.hub.store.repos[repo.kind, repo.id]
    return as_json({})


@route("POST", r"/api/repos/move")
def move_repo(call: Call) -> Answer:
    asked = call.json
    call.parts = {"kind": f"{asked.get('type') or 'model'}s", "id": asked["fromRepo"]}
    repo, store = call.writable(), call.hub.store
    if not call.who().owns(asked["toRepo"]) or (repo.kind, asked["toRepo"]) in store.repos:
        raise HubError(403, f"cannot move to {asked['toRepo']}")
    del store.repos[repo.kind, repo.id]
    repo.id = asked["toRepo"]
    store.repos[repo.kind, repo.id] = repo
    return as_json({"url": page_of(call, repo)})


@route("PUT", rf"{IN_API}/settings")
def settings(call: Call) -> Answer:
    repo, asked = call.writable(), call.json
    if "visibility" in asked or "private" in asked:
        repo.private = asked.get("visibility") == "private" or bool(asked.get("private"))
    if "gated" in asked:
        repo.gated = asked["gated"]
    return as_json({"private": repo.private, "gated": repo.gated})


@route("GET", rf"{IN_API}/auth-check")
def auth_check(call: Call) -> Answer:
    call.hub.store.find_files(call.kind, call.id, call.user)
    return Answer(b"OK")


def _read_json(blob: Blob | None) -> dict[str, Any]:
    try:
        found = json.loads(blob.data) if blob else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _read_card(blob: Blob | None) -> dict[str, Any]:
    try:
        found = cards.read_metadata(blob.data.decode(errors="replace")) if blob else {}
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _count_parameters(blob: Blob) -> dict[str, Any]:
    """What the header of a safetensors file says: parameters of each type."""
    (size,) = struct.unpack("<Q", blob.data[:8])
    parameters: dict[str, int] = {}
    for name, tensor in json.loads(blob.data[8 : 8 + size]).items():
        if name != "__metadata__":
            count = 1
            for length in tensor["shape"]:
                count *= length
            parameters[tensor["dtype"]] = parameters.get(tensor["dtype"], 0) + count
    return {"parameters": parameters, "total": sum(parameters.values())}


def _find_tags(card: dict[str, Any], config: dict[str, Any], commit: Commit) -> list[str]:
    def each(name: str) -> list[Any]:
        value = card.get(name) or []
        return value if isinstance(value, list) else [value]

    tags = [card.get("library_name"), "safetensors" if "model.safetensors" in commit.files else None]
    tags += [config.get("model_type"), card.get("pipeline_tag"), *each("tags"), *each("language")]
    tags += [f"dataset:{name}" for name in each("datasets")] + [f"base_model:{name}" for name in each("base_model")]
    if "base_model_relation" in card:
        tags += [f"base_model:{card['base_model_relation']}:{name}" for name in each("base_model")]
    tags += [f"license:{name}" for name in each("license")]
    return list(dict.fromkeys(str(tag) for tag in tags if tag))


@route("GET", rf"{IN_API}(?:/revision/(?P<revision>[^/]+))?")
def repo_info(call: Call) -> Answer:
    repo = call.repo()
    commit = repo.at(call.parts["revision"] or MAIN)
    card, config = _read_card(commit.files.get("README.md")), _read_json(commit.files.get("config.json"))
    with_sizes = call.query.get("blobs", "").lower() == "true"
    siblings: list[dict[str, Any]] = []
    for path, blob in sorted(commit.files.items()):
        siblings.append({"rfilename": path})
        if with_sizes:
            siblings[-1] |= {"size": len(blob.data), "blobId": blob.oid}
        if with_sizes and blob.lfs:
            siblings[-1]["lfs"] = {"size": len(blob.data), "sha256": blob.sha256, "pointerSize": len(blob.pointer)}
    info = {
        "_id": repo.id, "id": repo.id, "modelId": repo.id, "author": repo.id.split("/")[0], "sha": commit.oid,
        "createdAt": repo.created, "lastModified": commit.date, "private": repo.private, "gated": repo.gated,
        "disabled": False, "downloads": 0, "likes": 0, "siblings": siblings, "tags": _find_tags(card, config, commit),
        "cardData": card, "pipeline_tag": card.get("pipeline_tag"), "library_name": card.get("library_name"),
        "config": {name: config[name] for name in ("architectures", "model_type") if name in config},
    }  # fmt: skip
    if "model.safetensors" in commit.files:
        info["safetensors"] = _count_parameters(commit.files["model.safetensors"])
    return as_json(info)


@route("GET", rf"{IN_API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?")
def tree(call: Call) -> Answer:
    commit, folder = call.repo().at(call.revision), (call.parts["path"] or "").strip("/")
    if folder and not is_folder(commit.files, folder):
        message = f"{folder} does not exist on {call.revision}"
        raise HubError(404, message, "EntryNotFound", {"X-Repo-Commit": commit.oid})
    entries = tree_entries(commit.files, folder, call.query.get("recursive", "").lower() == "true")
    return _one_page(call, entries)


def _one_page(call: Call, entries: list[Any]) -> Answer:
    """`Hub.page_size` entries, and where the next ones are."""
    start = int(call.query.get("cursor", 0))
    end = start + call.hub.page_size
    answer = as_json(entries[start:end])
    if end < len(entries):
        following = urlencode({**call.query, "cursor": end})
        answer.headers["Link"] = f'<{call.hub.url}{call.request.path}?{following}>; rel="next"'
    return answer


@route("POST", rf"{IN_API}/paths-info/(?P<revision>[^/]+)")
def paths_info(call: Call) -> Answer:
    files = call.repo().at(call.revision).files
    found = []
    for path in parse_qs(call.request.body.decode()).get("paths", []):
        if path in files:
            found.append(file_entry(path, files[path]))
        elif is_folder(files, path):
            found.append(directory_entry(files, path))
    return as_json(found)


@route("GET", rf"{IN_API}/commits/(?P<revision>[^/]+)")
def commits(call: Call) -> Answer:
    return _one_page(call, [
        {"id": commit.oid, "title": commit.title, "message": commit.message, "date": commit.date,
         "authors": [{"user": commit.user}]}
        for commit in call.repo().history(call.revision)
    ])  # fmt: skip


@route("GET", rf"{IN_API}/refs")
def refs(call: Call) -> Answer:
    repo = call.repo()

    def rows(refs: dict[str, str], prefix: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"{prefix}{name}", "targetCommit": oid} for name, oid in refs.items()]

    found = {"branches": rows(repo.branches, "refs/heads/"), "converts": [], "tags": rows(repo.tags, "refs/tags/")}
    if call.query.get("include_prs") == "1":
        found["pullRequests"] = rows(repo.pull_refs, "")
    return as_json(found)


@route("POST DELETE", rf"{IN_API}/(?P<what>branch|tag)/(?P<revision>[^/]+)")
def make_or_delete_ref(call: Call) -> Answer:
    repo, asked = call.writable(), call.json
    is_branch = call.parts["what"] == "branch"
    names, name, start = repo.branches, call.revision, asked.get("startingPoint") or MAIN
    if not is_branch:
        names, name, start = repo.tags, asked.get("tag", call.revision), call.revision
    if call.request.method == "POST":
        if name in names:
            raise HubError(409, f"Reference already exists: {name}")
        names[name] = repo.find_oid(start)
    elif name not in names:
        raise HubError(404, f"Reference does not exist: {name}", "RevisionNotFound")
    elif is_branch and name == MAIN:
        raise HubError(400, "Cannot delete the default branch")
    else:
        del names[name]
    return as_json({})


def _find_discussion(call: Call) -> tuple[Repo, Discussion]:
    repo = call.repo()
    found = repo.discussions.get(int(call.parts["num"] or 0))
    if found is None:
        raise HubError(404, "Discussion not found")
    return repo, found


@route("POST", rf"{IN_API}/discussions")
def open_discussion(call: Call) -> Answer:
    asked, user = call.json, call.who()
    repo = call.writable(as_pull_request=True)
    is_pull_request = bool(asked.get("pullRequest"))
    status = "draft" if is_pull_request else "open"
    found = repo.open_discussion(asked["title"], user.name, pull_request=is_pull_request, status=status)
    found.add_event("comment", user.name, edited=False, hidden=False, latest={"raw": asked.get("description", "")})
    url = f"{page_of(call, repo)}/discussions/{found.num}"
    return as_json({"num": found.num, "url": url, "pullRequest": is_pull_request})


@route("GET", rf"{IN_API}/discussions/(?P<num>\d+)")
def discussion(call: Call) -> Answer:
    repo, found = _find_discussion(call)
    details = {
        "title": found.title, "num": found.num, "author": {"name": found.author}, "createdAt": found.created,
        "status": found.status, "isPullRequest": found.is_pull_request, "events": found.events,
        "repo": {"name": repo.id, "type": repo.kind},
    }  # fmt: skip
    if found.is_pull_request:
        changes = {"base": f"refs/heads/{MAIN}", **({"mergeCommitId": found.merged_as} if found.merged_as else {})}
        details |= {"changes": changes, "filesWithConflicts": [], "diff": ""}
    return as_json(details)


@route("POST", rf"{IN_API}/discussions/(?P<num>\d+)/(?P<what>comment|status|title|merge)")
def change_discussion(call: Call) -> Answer:
    what, asked, user = call.parts["what"], call.json, call.who()
    repo, found = _find_discussion(call)
    if what == "comment":
        event = found.add_event("comment", user.name, edited=False, hidden=False, latest={"raw": asked["comment"]})
        return as_json({"newMessage": event})
    call.writable(as_pull_request=user.name == found.author and what != "merge")
    if what == "merge":
        repo.merge(found, user.name)
        return as_json({})
    if what == "status":
        found.status = asked["status"]
        return as_json({"newStatus": found.add_event("status-change", user.name, status=found.status)})
    event = found.add_event("title-change", user.name, **{"from": found.title, "to": asked["title"]})
    found.title = asked["title"]
    return as_json({"newTitle": event})


@route("POST", r"/api/validate-yaml")
def validate_yaml(call: Call) -> Answer:
    errors, warnings = cards.check(call.json["content"])
    answer = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return as_json(answer, 400 if errors else 200)
