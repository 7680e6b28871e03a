"""Check many model types, each in a process that may crash, hang or run out of memory without ending the sweep.

    python -m zoo.sweep --jobs 2 --output results.jsonl     # all types; --types, --shard, --resume for less

A worker process imports the libraries once and is told one type at a time over a pipe. The parent watches the clock;
a worker that dies or takes too long costs its type, and the next type gets a new one.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

CHECK = "zoo.checks:check_type"
IMPORT_SECONDS = 180.0
TYPES_A_WORKER = 120  # what a worker has imported and cached is dropped with it
GIGABYTES = 6
BAD = ("wrong", "crash", "timeout")

Result = dict[str, Any]


class _Worker:
    """A child process that checks one type at a time."""

    def __init__(self, check: str, folder: str) -> None:
        self.served = 0
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            **{"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TMPDIR": folder, "CUDA_VISIBLE_DEVICES": ""},
            **{"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"},
        }
        self._errors = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed with the worker
        self._process = subprocess.Popen(
            [sys.executable, "-m", "zoo.sweep", "--worker", check],
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors, "env": environment},
        )
        self._unread = b""

    def ask(self, model_type: str, seed: int, timeout: float) -> Result:
        """The result for one type. A result with `fatal` set: this worker is gone."""
        if not self.served and self._read_line(IMPORT_SECONDS) is None:
            return self._bury(model_type, IMPORT_SECONDS)
        self.served += 1
        try:
            self._process.stdin.write(f"{json.dumps([model_type, seed])}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            return self._bury(model_type, timeout)
        line = self._read_line(timeout)
        return self._bury(model_type, timeout) if line is None else json.loads(line)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _read_line(self, timeout: float) -> bytes | None:
        """The next line of the worker; None if it ends or the time is over."""
        end = time.monotonic() + timeout
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))
            chunk = os.read(self._process.stdout.fileno(), 1 << 16) if ready else b""
            if not chunk:
                return None
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _bury(self, model_type: str, timeout: float) -> Result:
        try:
            code = self._process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            self.close()
            reason = f"not done after {timeout:g} seconds"
            return {"model_type": model_type, "status": "timeout", "reason": reason, "fatal": True}
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
        self.close()
        reason = ": ".join([f"the process ended with code {code}", *last])
        return {"model_type": model_type, "status": "crash", "reason": reason[:300], "fatal": True}


def sweep(
    types: Iterable[str],
    *,
    jobs: int = 1,
    timeout: float = 120.0,
    seed: int = 0,
    check: str = CHECK,
    report: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Check types in worker processes.

    Args:
        types: model types.
        jobs: worker processes at a time.
        timeout: seconds for one type.
        seed: of the weights and inputs.
        check: `module:function` that gets a type and a seed and returns an object with `to_json()`.
        report: called with each result as it comes.

    Returns:
        Results in the order of `types`, each a dict with at least `model_type`, `status`, `reason` and `seconds`.
    """
    waiting, lock = deque(types), threading.Lock()
    order, results = list(waiting), {}

    def serve() -> None:
        worker: _Worker | None = None
        while True:
            with lock:
                if not waiting:
                    break
                model_type = waiting.popleft()
            if worker is not None and worker.served >= TYPES_A_WORKER:
                worker.close()
                worker = None
            worker = worker or _Worker(check, folder)
            start = time.monotonic()
            result = worker.ask(model_type, seed, timeout)
            if result.pop("fatal", False):
                worker = None
            result["seconds"] = round(time.monotonic() - start, 1)
            with lock:
                results[model_type] = result
                report(result)
        if worker is not None:
            worker.close()

    with tempfile.TemporaryDirectory(prefix="zoo-", ignore_cleanup_errors=True) as folder:
        threads = [threading.Thread(target=serve, daemon=True) for _ in range(jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return [results[model_type] for model_type in order]


def serve_parent(check: str) -> None:
    """The worker's side: read types from stdin, write a line of JSON for each. Nothing else may write to that pipe."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    limit = GIGABYTES << 30
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # an allocation beyond fails, and only there
    module, _, name = check.partition(":")
    call = getattr(importlib.import_module(module), name)
    _say(answers, "{}")
    for line in sys.stdin:
        model_type, seed = json.loads(line)
        try:
            answer = call(model_type, seed).to_json()
        except Exception as error:  # a defect of the checks themselves
            reason = f"{type(error).__name__}: {error}"[:300]
            answer = json.dumps({"model_type": model_type, "status": "crash", "reason": reason})
        _say(answers, answer)


def _say(stream: TextIO, line: str) -> None:
    stream.write(line + "\n")
    stream.flush()


def read_results(path: Path) -> list[Result]:
    """Results in a file, without a last line that was cut off."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def select_types(names: Sequence[str], shard: str) -> list[str]:
    """Every n-th type, beginning with the i-th, for a shard `i/n`.

    Example:
        >>> select_types(["albert", "bart", "bert", "bit", "blip"], "2/3")
        ['bart', 'blip']
    """
    first, every = (int(part) for part in shard.split("/"))
    if not 1 <= first <= every:
        raise ValueError(f"--shard {shard}: expected i/n with 1 <= i <= n, e.g. 1/4")
    return list(names)[first - 1 :: every]


def summarize(results: Sequence[Result]) -> str:
    """Counts, and a line for every type that is wrong.

    Example:
        >>> print(summarize([{"model_type": "bert", "status": "right"}, {"model_type": "odd", "status": "crash", "reason": "-9"}]))
        2 types: 1 crash, 1 right
        odd: crash: -9
    """
    counts = Counter(result["status"] for result in results)
    lines = [f"{len(results)} types: " + ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))]
    for result in sorted(results, key=lambda result: result["model_type"]):
        if result["status"] in BAD:
            faults = [f"{f['check']}: {f['cut']}: {f['message']}" for f in result.get("failures", ())]
            lines.append(f"{result['model_type']}: {result['status']}: {(faults or [result.get('reason', '')])[0]}")
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m zoo.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("--types", metavar="A,B", help="these model types instead of all")
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="every N-th type from the I-th on")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes at a time")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="S", help="seconds for a type")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of weights and inputs")
    parser.add_argument("--output", type=Path, metavar="FILE", help="a line of JSON for each type")
    parser.add_argument("--resume", action="store_true", help="keep what the output holds, check the rest")
    parser.add_argument("--worker", metavar="MODULE:FUNCTION", help=argparse.SUPPRESS)
    return parser


def main(
    arguments: Sequence[str] | None = None,
    *,
    check: str = CHECK,
    summary: Callable[[Sequence[Result]], str] = summarize,
) -> int:
    """Run the command line; exit code 1 if a type is wrong, crashes or hangs."""
    args = make_parser().parse_args(arguments)
    if args.worker:
        serve_parent(args.worker)
        return 0
    from zoo.tiny import model_types

    names = args.types.split(",") if args.types else model_types()
    if unknown := sorted(set(names) - set(model_types())):
        raise SystemExit(f"--types {','.join(unknown)}: no model type of the installed transformers")
    names = select_types(names, args.shard)
    known = read_results(args.output) if args.resume and args.output else []
    done = [result for result in known if result["model_type"] in names]
    left = [name for name in names if name not in {result["model_type"] for result in known}]
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
    output = args.output.open("w") if args.output else None
    bar = tqdm(total=len(left), unit="type", disable=not sys.stderr.isatty())

    def report(result: Result) -> None:
        if output:
            _say(output, json.dumps(result, sort_keys=True, ensure_ascii=False))
        bar.set_postfix_str(result["model_type"], refresh=False)
        bar.update()

    if output:
        for result in known:
            _say(output, json.dumps(result, sort_keys=True, ensure_ascii=False))
    try:
        results = done + sweep(left, jobs=args.jobs, timeout=args.timeout, seed=args.seed, check=check, report=report)
    finally:
        bar.close()
        if output:
            output.close()
    sys.stdout.write(summary(results) + "\n")
    return int(any(result["status"] in BAD for result in results))


if __name__ == "__main__":
    sys.exit(main())
