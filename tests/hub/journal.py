"""Every request that the Hub got, for tests to count, and to search for what must never have been sent."""

from __future__ import annotations

import base64
import binascii
import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote


@dataclass
class Request:
    """One request: `path` as sent, `query` without "?". `status` is None if the connection was cut instead.

    `fault` says that a fault was ordered for it, `known` is False if no route of the server fits.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    origin: str
    status: int | None = None
    fault: bool = False
    known: bool = True

    @property
    def url(self) -> str:
        return f"{self.path}?{self.query}" if self.query else self.path

    @property
    def token(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ")

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def __str__(self) -> str:
        return f"{self.method} {self.url} -> {self.status or 'cut'}"

    def texts(self) -> Iterator[bytes]:
        """All that left the client in clear: URL, headers but the token's, body, and what JSON and base64 hide in it."""
        yield unquote(self.url).encode()
        for name, value in self.headers.items():
            if name != "authorization":
                yield f"{name}: {value}".encode()
        yield self.body
        yield unquote(self.body.decode(errors="replace").replace("+", " ")).encode()
        for line in self.body.splitlines():
            try:
                yield from _strings(json.loads(line))
            except ValueError:
                continue


def _strings(value: Any) -> Iterator[bytes]:
    """The strings of a JSON value, and what they are decoded, if they are base64."""
    if isinstance(value, dict):
        for name, inside in value.items():
            yield name.encode()
            yield from _strings(inside)
    elif isinstance(value, list):
        for inside in value:
            yield from _strings(inside)
    elif isinstance(value, str):
        yield value.encode(errors="surrogatepass")
        try:
            yield base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            return


@dataclass
class Journal:
    """The requests in the order in which they arrived."""

    requests: list[Request] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)

    def mark(self) -> int:
        """A point in time, for `since=` below."""
        return len(self.requests)

    def find(self, method: str = "*", path: str = "", *, since: int = 0) -> list[Request]:
        """Requests whose path the regular expression is found in."""
        return [r for r in self.requests[since:] if method in (r.method, "*") and re.search(path, r.path)]

    def lines(self, *, since: int = 0) -> list[str]:
        """`POST /api/repos/create` of each, with the query left out."""
        return [f"{request.method} {request.path}" for request in self.requests[since:]]

    def containing(self, text: str, *, since: int = 0) -> list[Request]:
        """Requests that carried this text anywhere: URL, headers (but `Authorization`), body, base64 in the body.

        Compressed contents (a .png, a deflated archive) are not opened; what `torch.save` writes is not compressed.
        """
        needle = text.encode()
        return [r for r in self.requests[since:] if any(needle in found for found in r.texts())]

    @property
    def unknown(self) -> list[Request]:
        """Requests that the server has no route for: it is too small for what was tested."""
        return [request for request in self.requests if not request.known]
