"""What must never leave this machine: tokens, and where things lie here.

A pushed folder is public sooner or later. `training_args.bin` has the token in clear, a tokenizer's config the path it
was loaded from, a TensorBoard file the output folder: each file is searched before it is sent.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

NEVER_SENT = ("training_args.bin",)
"""The Trainer's arguments, pickled with `hub_token` in clear; no model needs them to load."""

_SECRET_VARIABLE = re.compile(r"(?:TOKEN|API_?KEY|SECRET|PASSWORD)$")
_TOKEN_PREFIXES = (b"hf_", b"api_org_")
_TOKEN = rb"(?:hf_|api_org_)[A-Za-z0-9]{30,}"
# In a pickle a string's length stands before it, which may look like a letter.
_TOKEN_IN_BINARY, _TOKEN_IN_TEXT = re.compile(_TOKEN), re.compile(rb"(?<![A-Za-z0-9_])" + _TOKEN)
_SYSTEM = ("/usr", "/bin", sys.prefix, sys.base_prefix)  # where a command may lie that tells nothing
_PATH_FIELD = re.compile(r"(?:name_or_path|_(?:file|path|dir|folder|checkpoint|directory))$")
# Most JSON files have no such field, and a vocabulary takes a second to parse.
_ANY_PATH_FIELD = re.compile(rb'(?:name_or_path|_(?:file|path|dir|folder|checkpoint|directory))"\s*:\s*"')
_SHORTEST = 8  # characters of a token: no word of a text
_CHUNK = 1 << 23
_WHOLE = 1 << 28  # bytes; of larger files only both ends are read
_STORAGE = re.compile(r"(?:^|/)data/\d+$")  # in a file of torch.save: the numbers of a tensor


@dataclass(frozen=True)
class Secrets:
    """What `find_leaks` looks for.

    Args:
        tokens (`frozenset[str]`): exact tokens. Whatever looks like a token of the Hub is found without being named.
        paths (`frozenset[str]`): absolute folders of this machine; what lies in them is found, too.

    Example:
        >>> secrets = Secrets(frozenset(), frozenset({"/home/ann"}))
        >>> find_leaks(b'{"name_or_path": "/home/ann/bert"}', secrets)
        ["the local path '/home/ann/bert'"]
        >>> find_leaks(b"see /home/annette, and home/ann on the web", secrets)
        []
    """

    tokens: frozenset[str]
    paths: frozenset[str]

    @classmethod
    def of_machine(
        cls, extra_paths: Iterable[str | os.PathLike[str]] = (), extra_tokens: Iterable[str | None] = ()
    ) -> Secrets:
        """The tokens and folders that this process knows of.

        Args:
            extra_paths: more folders, e.g. the Trainer's `output_dir`; relative ones are taken from here.
            extra_tokens: more tokens, e.g. the Trainer's `hub_token`; `None` is passed over.

        Returns:
            `Secrets`: with the tokens of the environment (variables that end in TOKEN, API_KEY, SECRET or PASSWORD) and
            of logins, the home, the working and the temporary folder, and the caches.
        """
        from huggingface_hub import constants, get_token
        from huggingface_hub.utils import get_stored_tokens  # type: ignore[attr-defined]  # in its __init__ for all to use

        tokens = {value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name) and len(value) >= 16}
        named = (os.environ.get("HF_TOKEN"), os.environ.get("HUGGING_FACE_HUB_TOKEN"), get_token())
        tokens |= {token for token in (*named, *get_stored_tokens().values(), *extra_tokens) if token}
        caches = (constants.HF_HOME, constants.HF_HUB_CACHE, constants.HF_ASSETS_CACHE)
        script = Path(sys.argv[0] if sys.argv and sys.argv[0] else ".").absolute().parent
        places = () if any(script.is_relative_to(folder) for folder in _SYSTEM) else (script,)
        home = Path(os.path.expanduser("~"))  # noqa: PTH111  Path.home() raises where there is none
        folders = (home, Path.cwd(), tempfile.gettempdir(), *places, *caches, *extra_paths)
        paths = {form for folder in folders for form in _forms(Path(folder))}
        return cls(frozenset(token for token in tokens if len(token) >= _SHORTEST), frozenset(paths))

    @cached_property
    def _tokens(self) -> tuple[bytes, ...]:
        return tuple(token.encode() for token in self.tokens)

    @cached_property
    def _folders(self) -> tuple[bytes, ...]:
        return tuple(path.encode() for path in self.paths)

    @cached_property
    def _in_text(self) -> re.Pattern[bytes] | None:
        return _any_path(self.paths, binary=False)

    @cached_property
    def _in_binary(self) -> re.Pattern[bytes] | None:
        return _any_path(self.paths, binary=True)


def find_leaks(file: Path | bytes, secrets: Secrets) -> list[str]:
    """What a file says that must not be sent.

    Text, JSON, pickles, archives (what `torch.save` writes is one) and event files are searched; of safetensors only the
    header, of an archive of tensors everything but their numbers, of another file of more than 256 MiB both ends.

    Args:
        file (`Path` or `bytes`): the file, or its whole content.
        secrets (`Secrets`): what to look for.

    Returns:
        `list[str]`: a phrase for each finding, without the token itself; empty if the file may be sent.
    """
    if isinstance(file, bytes):
        return _search(io.BytesIO(file), len(file), secrets)
    with file.open("rb") as stream:
        return _search(stream, os.fstat(stream.fileno()).st_size, secrets)


def scrub_json(content: bytes, secrets: Secrets) -> bytes:
    r"""A JSON file without the fields that say where something lay here, e.g. `name_or_path` of a tokenizer.

    Args:
        content (`bytes`): of the file.
        secrets (`Secrets`): what is local.

    Returns:
        `bytes`: the same bytes if there is nothing to take out, or if it is no JSON. A path elsewhere, or a token, stays:
        `find_leaks` finds it.

    Example:
        >>> secrets = Secrets(frozenset(), frozenset({"/home/ann"}))
        >>> scrub_json(b'{"name_or_path": "/home/ann/bert", "model_max_length": 512}', secrets)
        b'{\n  "model_max_length": 512\n}\n'
    """
    try:
        values = json.loads(content) if _ANY_PATH_FIELD.search(content) else None
    except ValueError:
        return content
    clean = _scrub(values, secrets)
    return content if clean == values else (json.dumps(clean, indent=2, ensure_ascii=False) + "\n").encode()


def is_local(value: str, secrets: Secrets) -> bool:
    """Whether a name is a place on this machine and no name on the Hub."""
    return Path(value).is_absolute() or bool(find_leaks(value.encode(), secrets))


def _scrub(values: Any, secrets: Secrets) -> Any:
    if isinstance(values, list):
        return [_scrub(value, secrets) for value in values]
    if not isinstance(values, dict):
        return values
    return {
        name: _scrub(value, secrets)
        for name, value in values.items()
        if not (isinstance(value, str) and _PATH_FIELD.search(name) and is_local(value, secrets))
    }


def _forms(path: Path) -> Iterator[str]:
    """A folder as it may be written: as given, with links followed; backslashes are doubled in JSON and in code."""
    for form in (Path(os.path.normpath(path.absolute())), path.resolve()):
        if form != Path(form.anchor):
            yield str(form)
            if "\\" in str(form):
                yield str(form).replace("\\", "\\\\")


def _any_path(paths: Iterable[str], *, binary: bool) -> re.Pattern[bytes] | None:
    found = []
    for path in sorted(paths, key=len, reverse=True):
        # "/tmp" and "/root" alone are words that any text may have; what lies in them is a place
        deep = b"" if binary else rb"(?![\w-])"
        found.append(re.escape(path.encode()) + (deep if len(Path(path).parts) > 2 else rb"(?=[/\\]+[\w.])"))
    if not found:
        return None
    known = b"(?:" + b"|".join(found) + b")"
    if binary:  # before and after a string of a pickle stand bytes that may look like letters
        return re.compile(known)
    # a path in a text begins where a word may begin: "https://host/tmp/x" holds no /tmp
    return re.compile(rb"(?:(?<=file://)|(?<![\w.~/-]))" + known + rb"[^\s\"'<>|:;,)\]}\x00-\x1f\x7f-\xff]*")


def _search(stream: BinaryIO, size: int, secrets: Secrets) -> list[str]:
    start = stream.read(10)
    header = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and 0 < header <= min(size, 100_000_000):  # safetensors
        stream.seek(8)
        return _unique(_find(stream.read(header), secrets, binary=False))
    stream.seek(0)
    if start.startswith(b"PK\x03\x04"):
        try:
            return _search_archive(stream, secrets)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError):
            stream.seek(0)
    return _unique(_search_parts(stream, size, secrets))


def _search_archive(stream: BinaryIO, secrets: Secrets) -> list[str]:
    with zipfile.ZipFile(stream) as archive:
        names = [name for name in archive.namelist() if not _STORAGE.search(name)]
        found = [leak for name in names for leak in _find(archive.read(name), secrets, binary=True)]
    return _unique(found)


def _search_parts(stream: BinaryIO, size: int, secrets: Secrets) -> Iterator[str]:
    """Piece by piece, each with the end of the one before it."""
    tail, binary, ended = b"", False, False
    while piece := stream.read(_CHUNK):
        binary = binary or b"\0" in piece
        yield from _find(tail + piece, secrets, binary=binary)
        tail = piece[-4096:]
        if size > _WHOLE and not ended:
            stream.seek(size - _CHUNK)
            tail, ended = b"", True


def _find(content: bytes, secrets: Secrets, *, binary: bool) -> Iterator[str]:
    if any(token in content for token in secrets._tokens):
        yield "a token that this machine is logged in with"
    if any(prefix in content for prefix in _TOKEN_PREFIXES):
        for match in (_TOKEN_IN_BINARY if binary else _TOKEN_IN_TEXT).finditer(content):
            if match[0].decode() not in secrets.tokens:
                yield f"what looks like a token ({match[0][:6].decode()}...)"
    if not any(path in content for path in secrets._folders):  # a hundred times faster than the expression
        return
    paths = secrets._in_binary if binary else secrets._in_text
    for match in paths.finditer(content) if paths is not None else ():
        place = match[0].decode(errors="replace")
        yield f"a path in '{place}'" if binary else f"the local path '{place}'"


def _unique(found: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(found))
