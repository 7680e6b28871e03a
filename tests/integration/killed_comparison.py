"""Lives of one `compare_criteria` that are ended by SIGKILL, and called again: prints a line of JSON for each kill.

One process imports everything and forks a child for each life, so that a life costs no imports.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import traceback
from pathlib import Path

# In which call of which function a life ends; `before` its work, `half` through it, or `after` it.
KILLS = [
    [],
    [("comparison settings", 1, "half")],
    [("score", 1, "before")],
    [("score", 2, "after")],
    [("cell", 3, "half")],
    [("cell", 4, "after")],
    [("train step", 2, "before")],
    [("cut saved", 2, "half")],
    [("judge", 5, "after")],
    [("comparison", 1, "half")],
    [("score", 2, "before"), ("train step", 5, "before"), ("cell", 2, "half"), ("comparison", 1, "half")],
]


def arm(what: str, call: int, when: str) -> None:
    """Let this process kill itself in the middle of something."""
    from transformers import PreTrainedModel, Trainer

    from hf_mpruner import storage
    from hf_mpruner.comparison import run as run_module

    def half_text(original, file, text):
        file.with_name(f".{file.name}.{os.getpid()}.tmp").write_text(text[: len(text) // 2])

    def half_model(original, model, folder, *args, **kwargs):
        original(model, folder, *args, **kwargs)
        weights = Path(folder) / "model.safetensors"
        os.truncate(weights, weights.stat().st_size // 2)

    def writes(*names):
        return lambda file, text: file.name in names or (names == ("cell",) and file.parent.name == "cells")

    owner, name, counts, half = {
        "comparison settings": (storage, "write_text", writes("comparison_settings.json"), half_text),
        "comparison": (storage, "write_text", writes("comparison.json"), half_text),
        "cell": (storage, "write_text", writes("cell"), half_text),
        "score": (run_module, "score", lambda *_: True, None),
        "judge": (run_module, "judge", lambda *_: True, None),
        "train step": (Trainer, "training_step", lambda *_: True, None),
        "cut saved": (PreTrainedModel, "save_pretrained", lambda *_, **__: True, half_model),
    }[what]
    original, seen = getattr(owner, name), [0]

    def replacement(*args, **kwargs):
        seen[0] += bool(counts(*args, **kwargs))
        fatal = bool(counts(*args, **kwargs)) and seen[0] == call
        if fatal and when == "half":
            half(original, *args, **kwargs)
        if fatal and when != "after":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, replacement)


def live(folder: Path) -> None:
    """One life: two criteria, two depths, two seeds."""
    from test_comparison import Chance, First, Script, compare, timeless

    from hf_mpruner.comparison import run as run_module

    trained, original = [], run_module.recover
    run_module.recover = lambda trainer, seed, epochs: (trained.append(seed), original(trainer, seed, epochs))[1]
    script = Script(folder / "training")
    found = compare(script, str(folder.parent / "source"), folder / "out", [First(), Chance("chance")])
    files = sorted(str(path.relative_to(folder / "out")) for path in (folder / "out").rglob("*"))
    result = {"table": repr(timeless(found)), "files": files, "trained": len(trained)}
    (folder / "result.json").write_text(json.dumps(result))


def spend(folder: Path, kill: tuple[str, int, str] | None) -> bool:
    """Fork a life and end it; whether it was killed."""
    pid = os.fork()
    if pid == 0:
        with (folder / "log").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            try:
                if kill is not None:
                    arm(*kill)
                live(folder)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                log.flush()
                sys.stderr.flush()
                os._exit(1)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"a life failed:\n{(folder / 'log').read_text()[-3000:]}")
    return os.WIFSIGNALED(status)


def main() -> None:
    """`killed_comparison.py FOLDER`."""
    sys.path.insert(0, str(Path(__file__).parent))
    import test_comparison  # noqa: F401

    import hf_mpruner.comparison  # noqa: F401  the forks inherit what is imported
    from cycles_kit import save_bert

    root = Path(sys.argv[1])
    save_bert(root / "source")
    gc.collect()
    gc.freeze()  # each Trainer has the garbage collected
    for i, kills in enumerate(KILLS):
        folder = root / str(i)
        folder.mkdir()
        killed = [spend(folder, kill) for kill in kills]
        spend(folder, None)
        values = {"kills": kills, "killed": killed, **json.loads((folder / "result.json").read_text())}
        sys.stdout.write(json.dumps(values) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
