"""The process of a client: runs functions that it is sent, with the environment it was started with.

huggingface_hub, transformers and datasets read the environment when they are imported, so a client of the test server
is a process of its own. It reaches the loopback only: another address is an error, and is reported even if the
libraries swallow it. Waits of a second or more (retries) are noted instead of waited.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import time
import traceback
from typing import Any

LOOPBACK = ("127.0.0.1", "::1", "localhost")
strays: list[str] = []
waits: list[float] = []


def stay_home() -> None:
    """Refuse every connection and every name that is not the loopback's."""
    connect, find = socket.socket.connect, socket.getaddrinfo

    def check(host: Any) -> None:
        if host is not None and str(host) not in LOOPBACK:
            if not str(host).endswith(
                ".127.0.0.1"
            ):  # datasets asks `datasets-server.` in front of the endpoint, or none
                strays.append(str(host))
            raise OSError(f"a test wanted to reach {host}: only the loopback is allowed")

    def guarded_connect(self: socket.socket, address: Any) -> None:
        check(address[0] if isinstance(address, tuple) else None)
        connect(self, address)

    def guarded_find(host: Any, *args: Any, **kwargs: Any) -> Any:
        check(host.decode() if isinstance(host, bytes) else host)
        return find(host, *args, **kwargs)

    socket.socket.connect = guarded_connect  # type: ignore[assignment, method-assign]
    socket.getaddrinfo = guarded_find


def do_not_wait() -> None:
    sleep = time.sleep

    def short(seconds: Any) -> None:
        if seconds >= 1:
            waits.append(seconds)
        sleep(min(seconds, 0.01))

    time.sleep = short


def describe(error: BaseException) -> dict[str, Any]:
    """What can be said of an exception in another process. The status may be that of an exception behind it."""
    status: int | None = None
    behind: BaseException | None = error
    while status is None and behind is not None:
        status, behind = getattr(getattr(behind, "response", None), "status_code", None), behind.__cause__
    return {
        "type": type(error).__name__,
        "bases": [cls.__name__ for cls in type(error).__mro__],
        "message": str(error),
        "status": status,
        "trace": traceback.format_exc(),
    }


def run(task: dict[str, Any]) -> dict[str, Any]:
    waits.clear()
    strays.clear()
    namespace: dict[str, Any] = {"__name__": "client"}
    try:
        exec(compile(task["source"], f"<{task['name']}>", "exec"), namespace)
        result = {"value": namespace[task["name"]](**task["arguments"])}
        json.dumps(result)
    except Exception as error:
        result = {"error": describe(error)}
    gc.collect()
    gc.freeze()  # each Trainer has the garbage collected, through all that was ever imported unless that is frozen
    return {**result, "waits": list(waits), "strays": list(strays)}


def main() -> None:
    if not os.environ["HF_ENDPOINT"].startswith("http://127.0.0.1:"):
        raise SystemExit(f"HF_ENDPOINT is {os.environ['HF_ENDPOINT']}, which is not the loopback")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    stay_home()
    do_not_wait()
    for line in sys.stdin:
        answers.write(json.dumps(run(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
