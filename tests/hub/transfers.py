"""How contents get in and out: preupload, commit, LFS uploads, and downloads with `Range` and redirects."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from . import cards
from .routes import page_of
from .server import IN_API, IN_GIT, NAME, Answer, Call, as_json, route
from .store import Blob, Changes, HubError, Repo

LFS_SUFFIXES = (".bin", ".safetensors", ".pt", ".npz", ".png", ".zip", ".onnx")


@route("POST", rf"{IN_API}/preupload/(?P<revision>[^/]+)")
def preupload(call: Call) -> Answer:
    files = call.writable(as_pull_request=call.is_pull_request).at(call.revision).files
    rows = []
    for asked in call.json["files"]:
        path = asked["path"]
        is_binary = path.endswith(LFS_SUFFIXES) or b"\0" in base64.b64decode(asked["sample"])
        mode = "lfs" if is_binary and call.hub.uploads == "lfs" else "regular"
        rows.append({"path": path, "uploadMode": mode, "shouldIgnore": False})
        if path in files:
            rows[-1]["oid"] = files[path].etag
    return as_json({"files": rows})


def _read_change(repo: Repo, files: Mapping[str, Blob], key: str, value: dict[str, Any]) -> Changes:
    """One line of a commit as changes of paths."""
    path = value["path"].rstrip("/") if key == "deletedFolder" else value["path"]
    if not path or path.startswith("/") or {"..", ".", ""} & set(path.split("/")):
        raise HubError(400, f"Invalid path: {path!r}")
    if key == "file":
        try:
            data = base64.b64decode(value["content"], validate=True)
        except binascii.Error:
            raise HubError(400, f"{path}: the content is no base64") from None
        errors = cards.check(data.decode(errors="replace"))[0] if path == "README.md" else []
        if errors:
            raise HubError(400, f"Invalid metadata in README.md: {'; '.join(errors)}")
        return {path: Blob(data)}
    if key == "lfsFile":
        content = repo.objects.get(value["oid"])
        if content is None or len(content) != value.get("size", len(content)):
            raise HubError(400, f"LFS pointer pointed to a file that does not exist: {path}")
        return {path: Blob(content, lfs=True)}
    if key == "deletedFolder":
        gone = {name: None for name in files if name.startswith(f"{path}/")}
    elif key == "deletedFile":
        gone = {name: None for name in files if name == path}
    else:
        raise HubError(400, f"unknown line of a commit: {key!r}")
    if not gone:
        raise HubError(404, f"{path} does not exist", "EntryNotFound")
    return gone


@route("POST", rf"{IN_API}/commit/(?P<revision>[^/]+)")
def commit(call: Call) -> Answer:
    repo, user = call.writable(as_pull_request=call.is_pull_request), call.who()
    try:
        header, *lines = [json.loads(line) for line in call.request.body.splitlines() if line.strip()]
    except ValueError:
        raise HubError(400, "the body is no ndjson with a header") from None
    asked, ref, parent = header["value"], call.revision, header["value"].get("parentCommit")

    def change(files: Mapping[str, Blob]) -> Changes:
        changes: dict[str, Blob | None] = {}
        for line in lines:
            changes.update(_read_change(repo, files, line["key"], line["value"]))
        return changes

    answer = {}
    if call.is_pull_request:
        change(repo.at(parent or ref).files)  # what is refused opens no pull request
        opened = repo.open_discussion(asked["summary"], user.name, pull_request=True, status="open", parent=parent)
        ref, parent = opened.ref, None
        answer["pullRequestUrl"] = f"{page_of(call, repo)}/discussions/{opened.num}"
    made = repo.commit(ref, change, asked["summary"], asked.get("description") or "", user.name, parent)
    answer |= {"commitOid": made.oid, "commitUrl": f"{page_of(call, repo)}/commit/{made.oid}"}
    return as_json({"success": True, **answer})


# -- LFS contents: batch and verify at the Hub, the bytes at the storage ----------------------------------------------

IN_LFS = rf"{IN_GIT}\.git/info/lfs"
IN_STORAGE = rf"/lfs/(?P<kind>models|datasets|spaces)/(?P<id>{NAME}/{NAME})/(?P<oid>[0-9a-f]{{64}})"


def _in_storage(call: Call, repo: Repo, oid: str) -> str:
    return f"{call.hub.storage_url}/lfs/{repo.kind}s/{repo.id}/{oid}"


@route("POST", rf"{IN_LFS}/objects/batch")
def lfs_batch(call: Call) -> Answer:
    asked = call.json
    repo = call.writable(as_pull_request="ref" not in asked)
    if "ref" in asked:
        repo.find_oid(asked["ref"]["name"])
    rows = []
    for item in asked["objects"]:
        oid, size = item["oid"], item["size"]
        rows.append({"oid": oid, "size": size})
        if oid not in repo.objects:
            rows[-1]["actions"] = _upload_actions(call, repo, oid, size, "multipart" in asked["transfers"])
    return as_json({"transfer": "basic", "objects": rows})


def _upload_actions(call: Call, repo: Repo, oid: str, size: int, may_split: bool) -> dict[str, Any]:
    lfs_url = f"{page_of(call, repo)}.git/info/lfs"
    href, part = f"{_in_storage(call, repo, oid)}?size={size}", call.hub.part_size
    upload: dict[str, Any] = {"href": href}
    if part and size > part and may_split:
        urls = {f"{i + 1:05}": f"{href}&part={i + 1}" for i in range(-(-size // part))}
        upload = {"href": f"{lfs_url}/complete/{oid}?size={size}", "header": {"chunk_size": str(part), **urls}}
    return {"upload": upload, "verify": {"href": f"{lfs_url}/verify"}}


def _keep(repo: Repo, oid: str, size: int, data: bytes) -> None:
    """The check that shows a file which changed while it was sent."""
    if len(data) != size:
        raise HubError(400, f"IncompleteBody: {len(data)} bytes came, {size} were announced")
    if hashlib.sha256(data).hexdigest() != oid:
        raise HubError(400, "BadDigest: the content is not what its SHA-256 says")
    repo.objects[oid] = data


def _stored(call: Call) -> tuple[Repo, str]:
    """The storage asks nobody who they are: its addresses are signed."""
    try:
        return call.hub.store.repo(call.id, call.kind), str(call.parts["oid"])
    except KeyError:
        raise HubError(404, "NoSuchKey") from None


@route("PUT", IN_STORAGE, "storage")
def put_content(call: Call) -> Answer:
    repo, oid = _stored(call)
    etag = {"ETag": f'"{hashlib.md5(call.request.body, usedforsecurity=False).hexdigest()}"'}
    if "part" in call.query:
        call.hub.parts[oid, int(call.query["part"])] = call.request.body
    else:
        _keep(repo, oid, int(call.query["size"]), call.request.body)
    return Answer(headers=etag)


@route("POST", rf"{IN_LFS}/complete/(?P<oid>[0-9a-f]{{64}})")
def complete_parts(call: Call) -> Answer:
    repo, oid = _stored(call)
    try:
        data = b"".join(call.hub.parts[oid, row["partNumber"]] for row in call.json["parts"])
    except KeyError as missing:
        raise HubError(400, f"InvalidPart: {missing}") from None
    _keep(repo, oid, int(call.query["size"]), data)
    return as_json({})


@route("POST", rf"{IN_LFS}/verify")
def verify_content(call: Call) -> Answer:
    repo, asked = call.writable(as_pull_request=True), call.json
    if len(repo.objects.get(asked["oid"], b"")) != asked["size"]:
        raise HubError(404, f"object {asked['oid']} of {asked['size']} bytes is not here")
    return as_json({})


# -- downloads ---------------------------------------------------------------------------------------------------------


def _content(call: Call, data: bytes, headers: dict[str, str]) -> Answer:
    """The bytes, or the range of them that was asked for."""
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", call.request.headers.get("range", ""))
    if asked is None or asked[0] == "bytes=-":
        return Answer(data, headers=headers)
    start = int(asked[1]) if asked[1] else max(0, len(data) - int(asked[2]))
    end = min(int(asked[2]), len(data) - 1) if asked[1] and asked[2] else len(data) - 1
    if start >= len(data) or end < start:
        raise HubError(416, "Requested Range Not Satisfiable", headers={"Content-Range": f"bytes */{len(data)}"})
    headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
    return Answer(data[start : end + 1], 206, headers)


@route("GET HEAD", rf"{IN_GIT}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(call: Call) -> Answer:
    repo = call.hub.store.find_files(call.kind, call.id, call.user)
    commit = repo.at(call.revision)
    headers, path = {"X-Repo-Commit": commit.oid}, str(call.parts["path"])
    blob = commit.files.get(path)
    if blob is None:
        raise HubError(404, f"Entry not found: {path}", "EntryNotFound", headers)
    if not blob.lfs:
        return _content(call, blob.data, {**headers, "ETag": f'"{blob.etag}"'})
    headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.data))}
    headers["Location"] = f"{_in_storage(call, repo, blob.sha256)}?filename={quote(path, safe='')}"
    return Answer(b"Found. Redirecting", 302, {**headers, "ETag": f'"{blob.oid}"'})


@route("GET HEAD", IN_STORAGE, "storage")
def get_content(call: Call) -> Answer:
    repo, oid = _stored(call)
    if oid not in repo.objects:
        raise HubError(404, "NoSuchKey")
    return _content(call, repo.objects[oid], {"ETag": f'"{oid}"'})
