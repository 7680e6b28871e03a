"""What goes wrong, on order: the nth request of a kind gets another answer, half an answer, or none.

hub.faults.add("POST", r"/commit/", status=503)                  # the next commit is answered 503, once
hub.faults.add("PUT", r"/lfs/", status=500, times=2)             # two uploads in a row
hub.faults.add("POST", r"/commit/", nth=2, cut="after")          # the second commit happens, its answer is lost
hub.faults.add("POST", r"/commit/", before=lambda: repo.write({"a": b""}))  # somebody else was faster
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

HTML = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Welcome to the airport.</body></html>"
CUTS = ("before", "within", "after")


@dataclass
class Fault:
    """One rule. `seen` and `used` count the requests that matched it, and those that it changed."""

    method: str
    path: str
    nth: int = 1
    times: int = 1
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str = "an error on order"
    html: bool = False
    cut: str | None = None
    reset: bool = False
    delay: float = 0.0
    drip: float = 0.0
    before: Callable[[], object] | None = None
    seen: int = 0
    used: int = 0

    def matches(self, method: str, path: str) -> bool:
        return self.method in (method, "*") and re.search(self.path, path) is not None


class Faults:
    """The rules of a running Hub. Of several that match a request, the first one that is due is used."""

    def __init__(self) -> None:
        self._rules: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, method: str, path: str, **rule: object) -> Fault:
        """Order a fault for the `nth` to the `nth + times - 1`th request (from now on) that matches.

        Args:
            method: An HTTP method, or "*".
            path: A regular expression, searched in the path as it is sent (`refs%2Fpr%2F1`), without the query.
            **rule: What happens, in this order. `before` is called first, then `delay` seconds pass. `status` (with
                `headers` and `message`) is answered instead of doing the work; `html` sends a page where JSON is
                expected (status 200 unless given). `cut` closes the connection: "before" nothing is done, "within"
                half of the body is sent, "after" all is done and nothing is sent; with `reset` the peer gets an RST.
                `drip` is the pause in seconds in the middle of the body.

        Raises:
            ValueError: `cut` is none of the three, or the rule would change nothing.
        """
        fault = Fault(method, path, **rule)  # type: ignore[arg-type]
        if fault.cut not in (None, *CUTS):
            raise ValueError(f"cut is one of {', '.join(CUTS)}, not {fault.cut!r}")
        if not (fault.status or fault.html or fault.cut or fault.delay or fault.drip or fault.before):
            raise ValueError("the fault changes nothing: give status, html, cut, delay, drip or before")
        with self._lock:
            self._rules.append(fault)
        return fault

    def take(self, method: str, path: str) -> Fault | None:
        """The fault that this request meets; every rule that matches counts it."""
        with self._lock:
            due = None
            for fault in self._rules:
                if fault.matches(method, path):
                    fault.seen += 1
                    if due is None and fault.nth <= fault.seen < fault.nth + fault.times:
                        due = fault
            if due is not None:
                due.used += 1
            return due

    def clear(self) -> None:
        with self._lock:
            self._rules.clear()
