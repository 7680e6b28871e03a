"""Lives of one `prune_in_cycles` that are ended by SIGKILL, and called again: prints a line of JSON for each kill.

One process imports everything and forks a child for each life, so that a life costs no imports.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path

# What is going on when a life ends; several for several lives that end before one may finish.
KILLS = [
    ["first training"],
    ["first model renamed"],
    ["baseline record"],
    ["candidate half-written"],
    ["candidate's Trainer"],
    ["training of round 2"],
    ["verdict of round 2"],
    ["record of round 1"],
    ["weights half-written"],
    ["model before its rename"],
    ["model after its rename"],
    ["record of round 2"],
    ["deletion of the older model"],
    ["training of round 3"],
    ["last name before"],
    ["last name after"],
    ["plan"],
    ["report"],
    ["training of round 2", "model after its rename", "plan"],
    ["first training", "deletion of the older model", "last name after"],
]


def say(values: dict) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def live(folder: Path) -> None:
    """One life: four layers to one is rejected, to two accepted, two to one rejected."""
    from cycles_kit import Maker, prune, rounds_of
    from trainer_kit import facts_of

    maker = Maker(folder / "training")
    report = prune(maker, str(folder.parent / "source"), folder / "out", start_epoch=1)
    total = hashlib.sha256()
    for name, tensor in maker.load(folder / "out" / "model").state_dict().items():
        total.update(name.encode() + tensor.numpy().tobytes())
    result = {"weights": total.hexdigest(), "rounds": rounds_of(report.record), "trainings": len(maker.paths) - 1}
    result["files"] = sorted(str(p.relative_to(folder / "out")) for p in (folder / "out").rglob("*"))
    result["record"] = facts_of(report.record)
    (folder / "result.json").write_text(json.dumps(result))


def arm(moment: str) -> None:
    """Let this process kill itself in the middle of something."""
    import shutil

    from transformers import PreTrainedModel, Trainer

    from cycles_kit import Maker
    from hf_mpruner import storage
    from hf_mpruner.cycles import ledger

    def die_in(owner, name, when, half=None):
        original = getattr(owner, name)

        def call(*args, **kwargs):
            if when(*args, **kwargs):
                if half is not None:
                    half(original, *args, **kwargs)
                die()
            return original(*args, **kwargs)

        setattr(owner, name, call)

    def done(original, *args, **kwargs):
        original(*args, **kwargs)

    def torn_weights(original, model, draft, *args, **kwargs):
        original(model, draft, *args, **kwargs)
        weights = Path(draft) / "model.safetensors"
        os.truncate(weights, weights.stat().st_size // 2)

    def torn_text(original, file, text):
        file.with_name(f".{file.name}.{os.getpid()}.tmp").write_text(text[: len(text) // 2])

    def half_deleted(original, folder, *args, **kwargs):
        (Path(folder) / "config.json").unlink()

    def is_step(number):
        """In the second step of the number-th candidate's training; 0: of the first training."""
        steps = [0]

        def when(trainer, *args, **kwargs):
            path = trainer.model.config.name_or_path
            here = path.endswith(f"candidate-{number}" if number else "source")
            steps[0] += here
            return here and steps[0] == 2

        return when

    def says(number, verdict="accepted"):
        def when(file, text):
            values = json.loads(text) if file.name == "pruning_record.json" else {}
            rounds = values.get("rounds", [])
            if number == 0:
                return bool(values) and values["baseline"] is not None and not rounds
            return len(rounds) == number and rounds[-1]["verdict"] == verdict

        return when

    def named(name, ending=""):
        return lambda path, target: Path(target).name == name and str(path).endswith(ending)

    def writes(name):
        return lambda file, text: file.name == name

    {
        "first training": lambda: die_in(Trainer, "training_step", is_step(0)),
        "first model renamed": lambda: die_in(Path, "rename", named("model-0"), done),
        "baseline record": lambda: die_in(storage, "write_text", says(0), torn_text),
        "candidate half-written": lambda: die_in(
            PreTrainedModel, "save_pretrained", lambda model, draft, **_: "candidate-1" in str(draft), torn_weights
        ),
        "candidate's Trainer": lambda: die_in(Maker, "__call__", lambda maker, path: path.endswith("candidate-2")),
        "training of round 2": lambda: die_in(Trainer, "training_step", is_step(2)),
        "verdict of round 2": lambda: die_in(
            Trainer, "evaluate", lambda trainer, **_: trainer.model.config.name_or_path.endswith("candidate-2")
        ),
        "record of round 1": lambda: die_in(storage, "write_text", says(1, "rejected"), done),
        "weights half-written": lambda: die_in(
            PreTrainedModel, "save_pretrained", lambda model, draft, **_: "model-2" in str(draft), torn_weights
        ),
        "model before its rename": lambda: die_in(Path, "rename", named("model-2")),
        "model after its rename": lambda: die_in(Path, "rename", named("model-2"), done),
        "record of round 2": lambda: die_in(storage, "write_text", says(2), torn_text),
        "deletion of the older model": lambda: die_in(
            shutil, "rmtree", lambda folder, *_, **__: Path(folder).name == "model-0", half_deleted
        ),
        "training of round 3": lambda: die_in(Trainer, "training_step", is_step(3)),
        "last name before": lambda: die_in(Path, "rename", named("model", "model-2")),
        "last name after": lambda: die_in(Path, "rename", named("model", "model-2"), done),
        "plan": lambda: die_in(storage, "write_text", writes("pruning_plan.json"), torn_text),
        "report": lambda: die_in(storage, "write_text", writes("report.json"), torn_text),
    }[moment]()
    assert ledger.shutil is shutil  # the deletions that are armed are the ledger's


def spend(folder: Path, moment: str | None) -> bool:
    """Fork a life and end it in a named moment; whether it was killed."""
    pid = os.fork()
    if pid == 0:
        with (folder / "log").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            try:
                if moment is not None:
                    arm(moment)
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
    """`killed_cycles.py FOLDER [NUMBER OF A KILL] ...`; all of them by default."""
    import gc

    import hf_mpruner.cycles  # noqa: F401  the forks inherit what is imported
    from cycles_kit import save_bert

    root = Path(sys.argv[1])
    save_bert(root / "source")
    gc.collect()
    gc.freeze()  # each Trainer has the garbage collected
    chosen = [KILLS[int(number)] for number in sys.argv[2:]] or KILLS
    for i, kills in enumerate([[], *chosen]):
        folder = root / str(i)
        folder.mkdir()
        killed = [spend(folder, moment) for moment in kills]
        spend(folder, None)
        say({"kills": kills, "killed": killed, **json.loads((folder / "result.json").read_text())})


if __name__ == "__main__":
    main()
