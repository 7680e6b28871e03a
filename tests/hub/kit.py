"""A running Hub and its clients, for tests.

with Hub(tmp_path) as hub:
    with hub.client(xet=False) as client:
        client.call(push, repo_id="ann/model")      # `push` runs in the client's process; imports stand inside
    assert hub.store.repo("ann/model").files()["config.json"]
    assert not hub.journal.containing(hub.token)
"""

from __future__ import annotations

import importlib.metadata
import inspect
import itertools
import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
from packaging.version import Version

from . import routes, transfers  # noqa: F401  they register themselves
from .faults import Faults
from .journal import Journal
from .server import Origin
from .store import Repo, Store, User

TESTS = Path(__file__).parents[1]
TIMEOUT = 120  # seconds: far beyond what any call needs
# What a client must not inherit: other endpoints, tokens and caches, offline mode, proxies.
NOT_INHERITED = ("HF_", "HUGGING", "TRANSFORMERS_", "PYTEST_")


def needs_hub(version: str, why: str) -> pytest.MarkDecorator:
    """For what older versions of huggingface_hub do otherwise."""
    here = importlib.metadata.version("huggingface_hub")
    return pytest.mark.skipif(Version(here) < Version(version), reason=f"huggingface_hub {here}: {why}")


@dataclass(frozen=True)
class Failure:
    """An exception of a client's process."""

    type: str
    bases: list[str]
    message: str
    status: int | None
    trace: str

    def is_a(self, name: str) -> bool:
        """Whether a class of this name is among the bases of the exception."""
        return name in self.bases


class Hub:
    """The server. `home` is a folder for the clients' caches and logs.

    Attributes:
        uploads: "lfs" sends binary files to LFS (for clients without Xet), "regular" keeps all in the commit.
        page_size: Entries of a page of the tree and of the commits.
        part_size: Bytes of a part of an LFS upload; None: all contents are sent whole.
        token: Of the user "ann", who may write.
    """

    def __init__(self, home: Path, uploads: str = "lfs"):
        if uploads not in ("lfs", "regular"):
            raise ValueError(f"uploads is lfs or regular, not {uploads!r}")
        self.home, self._first_uploads = home, uploads
        self.store, self.journal, self.faults = Store(), Journal(), Faults()
        self.parts: dict[tuple[str, int], bytes] = {}
        self.crashes: list[str] = []
        self.stopping = threading.Event()
        self.token = self.add_user("ann")
        self._numbers = itertools.count()
        self.reset()
        self._hub, self._storage = Origin(self, "hub"), Origin(self, "storage")
        self.url, self.storage_url = self._hub.url, self._storage.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.stopping.set()
        self._hub.stop()
        self._storage.stop()
        if kind is None:
            self.check()

    def reset(self) -> None:
        """Settings as they were at the start, and no faults. Repositories and the journal stay."""
        self.uploads, self.page_size = self._first_uploads, 1000
        self.part_size: int | None = None
        self.faults.clear()

    def clear(self) -> None:
        """As it was at the start: no repositories, nobody but ann, an empty journal."""
        self.reset()
        self.store.repos.clear()
        self.store.users.clear()
        self.journal.requests.clear()
        self.crashes.clear()
        self.parts.clear()
        self.add_user("ann")

    def check(self) -> None:
        """The server itself did nothing wrong: no crash, no request that it has no route for."""
        assert not self.crashes, "\n".join(self.crashes)
        assert not self.journal.unknown, [str(request) for request in self.journal.unknown]

    def add_user(self, name: str, role: str = "write", orgs: tuple[str, ...] = ()) -> str:
        """A token for a person; one person may have several."""
        token = f"hf_{name}_{role}"
        self.store.users[token] = User(name, role, orgs)
        return token

    def add_repo(
        self, id: str, files: dict[str, bytes] | None = None, *, kind: str = "model", private: bool = False
    ) -> Repo:
        """A repository that was there before the test."""
        repo = self.store.create(kind, id, id.partition("/")[0], private)
        if files:
            repo.write(files, "files")
        return repo

    def environment(self, home: Path, *, xet: bool = False, token: str | None = None) -> dict[str, str]:
        """Variables for a process that takes this server for the Hub. `token=""`: nobody is logged in."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(NOT_INHERITED) and not name.lower().endswith("_proxy")
        }
        kept |= {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home / "hf"),
            "HF_TOKEN": self.token if token is None else token,
            "HF_HUB_DISABLE_XET": "0" if xet else "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # evaluate and datasets count at s3.amazonaws.com
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")]),
        }
        return kept

    def client(self, *, xet: bool = False, token: str | None = None) -> Client:
        """A process with caches of its own, for several calls."""
        home = self.home / f"client{next(self._numbers)}"
        home.mkdir(parents=True)
        return Client(home, self.environment(home, xet=xet, token=token))

    def call(
        self, function: Callable[..., Any], *, xet: bool = False, token: str | None = None, **arguments: Any
    ) -> Any:
        """Run one function in a fresh process, which costs the imports."""
        with self.client(xet=xet, token=token) as client:
            return client.call(function, **arguments)


class Client:
    """A process that runs functions. They see nothing of the test: imports stand inside, arguments are JSON.

    Attributes:
        waits: Seconds that the last call would have waited, a number for each wait of a second or more.
    """

    def __init__(self, home: Path, environment: dict[str, str]):
        self.home = home
        self.waits: list[float] = []
        self._log = (home / "log.txt").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hub.child"], env=environment, cwd=home, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    @property
    def log(self) -> str:
        """What the process has printed and logged."""
        return (self.home / "log.txt").read_text()

    def _ask(self, function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
        source = textwrap.dedent(inspect.getsource(function))
        task = {"source": source, "name": function.__name__, "arguments": arguments}
        send, receive = self._process.stdin, self._process.stdout
        assert send is not None
        assert receive is not None
        watch = threading.Timer(TIMEOUT, self._process.kill)
        watch.start()
        try:
            send.write(json.dumps(task) + "\n")
            send.flush()
            line = receive.readline()
        finally:
            watch.cancel()
        assert line, f"the client died, or hung for {TIMEOUT} s\n{self.log}"
        answer: dict[str, Any] = json.loads(line)
        self.waits = answer["waits"]
        assert not answer["strays"], f"the client wanted to reach {answer['strays']}"
        return answer

    def call(self, function: Callable[..., Any], **arguments: Any) -> Any:
        """The function's result, which must be JSON. An exception there fails the test here, with its trace."""
        answer = self._ask(function, arguments)
        assert "error" not in answer, answer["error"]["trace"]
        return answer["value"]

    def fails(self, function: Callable[..., Any], **arguments: Any) -> Failure:
        """The exception that the function raised."""
        answer = self._ask(function, arguments)
        assert "error" in answer, f"no exception, but {answer['value']!r}"
        return Failure(**answer["error"])
