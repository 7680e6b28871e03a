"""Lives of one pruning run that are ended by SIGKILL, and resumed: run as a script, it prints a line of JSON a kill.

One process imports everything and forks a child for each life, so that a life costs a training and no imports.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

NAMED = ("weights", "optimizer", "record", "rollback", "state", "cut", "undo", "deletion")
# With adapters "weights" are those of the pruned base, of which there is one for each cut.
WITH_ADAPTERS = sys.argv[3:] == ["adapters"]
RARE = ("undo", "cut", "rollback", *(("weights",) if WITH_ADAPTERS else ()))


def say(values: dict) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def digest(model) -> str:
    import torch

    total = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        total.update(name.encode() + tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def live(folder: Path, place: str) -> None:
    """One life: build the uncut model, resume if there is a checkpoint, write down what came out."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from trainer_kit import STACK, add, begun_at, build_trainer, facts_of

    torch.manual_seed(7)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 99}
    inner = model = BertForSequenceClassification(BertConfig(num_hidden_layers=4, num_labels=2, **sizes))
    if WITH_ADAPTERS:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(inner, LoraConfig(task_type="SEQ_CLS", layers_to_transform=[0, 2, 3]))
    depths = {4: 0.9, 2: 0.89, 1: 0.5}  # four layers to one is rejected, to two accepted, two to one rejected

    def by_depth(_):
        return {"accuracy": depths[len(inner.bert.encoder.layer)]}

    trainer = build_trainer(
        model, folder / "out", by_depth, num_train_epochs=6, save_strategy="steps", save_steps=2, save_total_limit=2
    )
    callback = add(trainer, start_epoch=1, recovery_epochs=1, snapshot=place)
    trainer.train(resume_from_checkpoint=True if list((folder / "out").glob("checkpoint-*")) else None)
    rounds = [(r.verdict, r.kept[STACK], r.granularity) for r in callback.record.rounds]
    left = [
        str(p) for p in (folder / "out").rglob("*") if "_mpruner_rollback_" in p.name or p.suffix in (".tmp", ".old")
    ]
    result = {"weights": digest(model), "rounds": rounds, "left": left, "resumed": begun_at(trainer)}
    result["record"] = facts_of(callback.record)
    result["record"]["config"].pop("snapshot")  # the lives differ in it
    (folder / "result.json").write_text(json.dumps(result))


def arm(moment: str, nth: int) -> None:
    """Let this process kill itself in the middle of the nth call of something."""
    import torch
    import transformers.modeling_utils as modeling
    import transformers.trainer
    from transformers import TrainerState

    from hf_mpruner import checkpoint, rollback
    from hf_mpruner.snapshot import Snapshot
    from hf_mpruner.surgery.steps import Write

    left = [nth]

    def die_in(owner, name, half):
        original = getattr(owner, name)

        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                half(original, *args, **kwargs)
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(owner, name, call)

    def after(original, *args, **kwargs):
        original(*args, **kwargs)

    def torn(original, what, file, *args, **kwargs):
        original(what, file, *args, **kwargs)
        if hasattr(file, "flush"):
            file.flush()
            os.ftruncate(file.fileno(), file.tell() // 2)
        else:
            os.truncate(file, Path(file).stat().st_size // 2)

    def torn_state(original, self, path):
        original(self, path)
        os.truncate(path, Path(path).stat().st_size // 2)

    def torn_text(original, file, values):
        file.with_name(f".{file.name}.1.tmp").write_text("{")

    def torn_weights(original, tensors, file, *args, **kwargs):
        original(tensors, file, *args, **kwargs)
        os.truncate(file, Path(file).stat().st_size // 2)

    def half_deleted(original, *args, **kwargs):
        folders = sorted(Path(kwargs["output_dir"]).glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
        (folders[0] / f"{'adapter_' if WITH_ADAPTERS else ''}model.safetensors").unlink()

    if moment == "adapter":
        import peft.peft_model

        die_in(peft.peft_model, "safe_save_file", torn_weights)
        return
    {
        "weights": lambda: die_in(modeling, "safe_save_file", torn_weights),
        "optimizer": lambda: die_in(torch, "save", torn),
        "rollback": lambda: die_in(rollback, "write_tensors", torn_text),
        "record": lambda: die_in(checkpoint, "write_json", torn_text),
        "state": lambda: die_in(TrainerState, "save_to_json", torn_state),
        "cut": lambda: die_in(Write, "apply", after),
        "undo": lambda: die_in(Snapshot, "restore", after),
        "deletion": lambda: die_in(transformers.trainer, "rotate_checkpoints", half_deleted),
    }[moment]()


def spend(folder: Path, place: str, *, after: float | None = None, moment: tuple[str, int] | None = None) -> bool:
    """Fork a life and end it after some seconds or in a named moment; whether it was killed."""
    pid = os.fork()
    if pid == 0:
        with (folder / "log").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            try:
                if moment is not None:
                    arm(*moment)
                live(folder, place)
                os._exit(0)
            except BaseException:
                import traceback

                traceback.print_exc()
                log.flush()
                sys.stderr.flush()
                os._exit(1)
    if after is not None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"a life failed:\n{(folder / 'log').read_text()[-3000:]}")
    return os.WIFSIGNALED(status)


def main() -> None:
    """`killed_runs.py FOLDER NUMBER [adapters]`."""
    import hf_mpruner.callback  # noqa: F401  the forks inherit what is imported
    import trainer_kit  # noqa: F401

    root, number = Path(sys.argv[1]), int(sys.argv[2])
    draw, named = random.Random(0), (("adapter", *NAMED) if WITH_ADAPTERS else NAMED)
    (root / "whole").mkdir()
    started = time.perf_counter()
    spend(root / "whole", "cpu")
    seconds = time.perf_counter() - started
    whole = json.loads((root / "whole" / "result.json").read_text())
    say({"whole": whole, "seconds": seconds})
    for i in range(number):
        folder, place = root / str(i), ("cpu", "disk")[i % 2]
        folder.mkdir()
        kills = []
        if i < len(named):
            kills.append({"moment": (named[i], draw.randint(1, 2) if named[i] in RARE else draw.randint(2, 6))})
        else:
            kills.append({"after": draw.uniform(0.2, 0.75) * seconds})
        if i % 4 == 3:  # and once more while it resumes
            kills.append({"after": draw.uniform(0.05, 0.6) * seconds})
        killed = [spend(folder, place, **kill) for kill in kills]
        spend(folder, place)
        result = json.loads((folder / "result.json").read_text())
        say({"kill": i, "how": str(kills), "killed": killed, **result})


if __name__ == "__main__":
    main()
