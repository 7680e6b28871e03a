"""Two origins on the loopback, as the Hub has them: the Hub, and the storage that contents of LFS files come from and go to."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

from .faults import HTML, Fault
from .journal import Request
from .store import HubError, Repo, User

if TYPE_CHECKING:
    from .kit import Hub


@dataclass
class Answer:
    """Status, body and headers. A HEAD request gets the same without the body."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def as_json(value: Any, status: int = 200, **headers: str) -> Answer:
    headers = {name.replace("_", "-"): text for name, text in headers.items()}
    return Answer(json.dumps(value).encode(), status, {"Content-Type": "application/json; charset=utf-8", **headers})


def as_error(error: HubError) -> Answer:
    answer = as_json({"error": error.message, **error.body}, error.status, X_Error_Message=error.message)
    if error.code:
        answer.headers["X-Error-Code"] = error.code
    answer.headers |= error.headers
    return answer


@dataclass
class Call:
    """A request on its way through a route: what the route's pattern found, who asks, and the running Hub."""

    hub: Hub
    request: Request
    parts: Mapping[str, str | None]
    user: User | None = None

    @cached_property
    def query(self) -> dict[str, str]:
        return {name: values[-1] for name, values in parse_qs(self.request.query, keep_blank_values=True).items()}

    @property
    def json(self) -> Any:
        try:
            return json.loads(self.request.body or b"{}")
        except ValueError:
            raise HubError(400, "the body is no JSON") from None

    @property
    def kind(self) -> str:
        return (self.parts.get("kind") or "models").rstrip("/").removesuffix("s")

    @property
    def id(self) -> str:
        return str(self.parts["id"])

    @property
    def revision(self) -> str:
        return str(self.parts["revision"])

    @property
    def is_pull_request(self) -> bool:
        return self.query.get("create_pr") == "1"

    def repo(self) -> Repo:
        return self.hub.store.find(self.kind, self.id, self.user)

    def writable(self, *, as_pull_request: bool = False) -> Repo:
        return self.hub.store.find_writable(self.kind, self.id, self.user, as_pull_request=as_pull_request)

    def who(self) -> User:
        """Whoever is logged in.

        Raises:
            HubError: 401, nobody is.
        """
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        return self.user


Route = Callable[[Call], Answer]
NAME = r"[\w.-]+"
IN_API = rf"/api/(?P<kind>models|datasets|spaces)/(?P<id>{NAME}/{NAME})"
IN_GIT = rf"/(?P<kind>datasets/|spaces/)?(?P<id>{NAME}/{NAME}?)"  # not greedy: the name ends before ".git"
ROUTES: dict[str, list[tuple[str, re.Pattern[str], Route]]] = {"hub": [], "storage": []}


def route(methods: str, pattern: str, origin: str = "hub") -> Callable[[Route], Route]:
    """Register a function for "GET HEAD" and the like, and a pattern that the whole path must fit."""

    def register(function: Route) -> Route:
        ROUTES[origin].extend((method, re.compile(pattern), function) for method in methods.split())
        return function

    return register


def find_user(hub: Hub, request: Request) -> User | None:
    """Who the token belongs to; None without one."""
    if not request.token:
        return None
    user = hub.store.users.get(request.token)
    if user is None:
        raise HubError(401, "Invalid credentials in Authorization header")
    return user


def answer(hub: Hub, request: Request) -> Answer:
    """Do what is asked for."""
    try:
        for method, pattern, function in ROUTES[request.origin]:
            found = pattern.fullmatch(request.path) if method == request.method else None
            if found:
                parts = {name: value and unquote(value) for name, value in found.groupdict().items()}
                call = Call(hub, request, parts)
                if request.origin == "hub":
                    call.user = find_user(hub, request)
                elif request.token:  # the Hub's token is nobody else's business, and S3 refuses two kinds of auth
                    raise HubError(400, "Only one auth mechanism allowed")
                return function(call)
        request.known = False
        raise HubError(404, f"the test server has no route for {request.method} {request.path}")
    except HubError as error:
        return as_error(error)
    except Exception:
        hub.crashes.append(f"{request.method} {request.url}\n{traceback.format_exc()}")
        return as_error(HubError(500, "the test server crashed, see Hub.crashes"))


class Handler(BaseHTTPRequestHandler):
    """HTTP/1.1 with kept connections; an answer leaves in one piece unless a fault says otherwise."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Origin

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            continue
        return b"".join(chunks)

    def _serve(self) -> None:
        hub = self.server.hub
        path, _, query = self.path.partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, path, query, headers, self._read_body(), self.server.name)
        hub.journal.add(request)
        fault = hub.faults.take(request.method, path)
        request.fault = fault is not None
        try:
            self._answer(request, fault or Fault("*", ""))
        except OSError:  # the client went away
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _serve

    def _answer(self, request: Request, fault: Fault) -> None:
        hub = self.server.hub
        if fault.before:
            fault.before()
        if fault.delay:
            hub.stopping.wait(fault.delay)
        if fault.cut == "before":
            return self._cut(fault)
        if fault.html:
            found = Answer(HTML, fault.status or 200, {"Content-Type": "text/html; charset=utf-8", **fault.headers})
        elif fault.status:
            found = as_error(HubError(fault.status, fault.message, headers=fault.headers))
        else:
            found = answer(hub, request)
        if fault.cut == "after":
            return self._cut(fault)
        head, body = self._head(found), b"" if request.method == "HEAD" else found.body
        half = len(head) + len(body) // 2 if body else len(head) // 2
        if fault.cut == "within":
            self.wfile.write((head + body)[:half])
            return self._cut(fault)
        request.status = found.status  # before it is sent: who has the answer may look
        if fault.drip:
            self.wfile.write((head + body)[:half])
            hub.stopping.wait(fault.drip)
            self.wfile.write((head + body)[half:])
        else:
            self.wfile.write(head + body)
        return None

    def _head(self, found: Answer) -> bytes:
        headers = {"Content-Length": str(len(found.body)), **found.headers}
        lines = [f"HTTP/1.1 {found.status} {HTTPStatus(found.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def _cut(self, fault: Fault) -> None:
        self.close_connection = True
        if fault.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.server.to_reset.add(id(self.connection))

    def log_message(self, format: str, *args: Any) -> None:
        """The journal is the log."""


class Origin(ThreadingHTTPServer):
    """One of the two servers, on a port that the system chose."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, hub: Hub, name: str):
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub, self.name = hub, name
        self.to_reset: set[int] = set()
        # Of another name, too: huggingface_hub 1 takes what has the same host for the Hub, whatever the port.
        self.url = f"http://{'localhost' if name == 'storage' else '127.0.0.1'}:{self.server_port}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def shutdown_request(self, request: Any) -> None:
        """An orderly end says FIN first; a reset must not."""
        if id(request) in self.to_reset:
            self.to_reset.discard(id(request))
            request.close()
        else:
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Called for a client that broke off in the middle of its request."""

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
