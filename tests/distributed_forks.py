"""Starts a script in several processes that share one import of the libraries: this process imports them, then forks.

`torchrun` starts an interpreter for each process, which costs more than what most scripts do. `python -m distributed_forks`
reads requests from stdin, a JSON object a line, and answers with the exit code of the first process that failed, or 0. No
process is ended for another's failure, so that what one fails at must reach the others by itself.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import socket
import sys
import traceback
from pathlib import Path
from typing import Any


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def start(task: dict[str, Any], rank: int, port: int) -> int:
    """A forked process that is one rank; its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        log = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": task["ranks"], "LOCAL_WORLD_SIZE": task["ranks"]}
        os.environ |= {name: str(value) for name, value in places.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        sys.argv = [task["script"], *task["arguments"]]
        runpy.run_path(task["script"], run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = 1 if stop.code else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return child


def main() -> None:
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import torch.distributed.fsdp  # noqa: F401
    from transformers import Trainer  # noqa: F401

    import hf_mpruner.callback  # noqa: F401

    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        task = json.loads(line)
        port = free_port()
        children = [start(task, rank, port) for rank in range(task["ranks"])]
        Path(task["log"] + ".pids").write_text(
            " ".join(map(str, children))
        )  # for whoever does not want to wait for ever
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        sys.stdout.write(f"{next(filter(None, codes), 0)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
