"""What the tests of several processes share: start a script on each, and what the scripts themselves need."""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import BertConfig, BertForSequenceClassification

from hf_mpruner import PruningConfig
from hf_mpruner.sets import Sets
from hf_mpruner.workbench import Workbench
from trainer_kit import STACK, Rows, add, build_trainer

TESTS = Path(__file__).parent
SCRIPTS = TESTS / "distributed" / "scripts"


def launch(
    script: str, output: Path, *arguments: str, ranks: int = 2, accelerate: bool = False, timeout: int = 150
) -> subprocess.CompletedProcess[str]:
    """Run a script to its end; `timeout` is far beyond what it needs, and a hang fails the test."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "MASTER_"))
    }
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), environment.get("PYTHONPATH", "")])
    environment["OMP_NUM_THREADS"] = "1"
    if accelerate:
        environment["ACCELERATE_USE_CPU"] = "true"
        module = [
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes",
            str(ranks),
            "--main_process_port",
            "0",
        ]
    else:
        module = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    command = [sys.executable, "-m", *module, str(SCRIPTS / script), str(output), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)


def fork(script: str, output: Path, *arguments: str, ranks: int = 2, timeout: int = 150) -> Any:
    """As `launch`, without torchrun and with one import of the libraries for all launches; what is printed is `stderr`."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        task = {
            "script": str(SCRIPTS / script),
            "arguments": [str(output), *arguments],
            "ranks": ranks,
            "log": str(log),
        }

        def stop() -> None:
            for child in (log.parent / "log.pids").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(child), signal.SIGKILL)

        watch = threading.Timer(timeout, stop)
        server = _forking()
        assert server.stdin is not None
        assert server.stdout is not None
        watch.start()
        try:
            server.stdin.write(json.dumps(task) + "\n")
            server.stdin.flush()
            code = int(server.stdout.readline())
        finally:
            watch.cancel()
        return subprocess.CompletedProcess(script, code, "", log.read_text())


@functools.cache
def _forking() -> subprocess.Popen[str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "MASTER_"))
    }
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), environment.get("PYTHONPATH", "")])
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-m", "distributed_forks"]
    return subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def results(output: Path, ranks: int = 2) -> list[dict[str, Any]]:
    """What each process has written with `write`."""
    return [json.loads((output / f"rank{rank}.json").read_text()) for rank in range(ranks)]


# -- in the scripts --------------------------------------------------------------------------------------------------

if (
    "RANK" in os.environ
):  # each Trainer has the garbage collected, through all that was ever imported unless it is frozen
    gc.collect()
    gc.freeze()

# A run that must not depend on the number of processes: what the loss is divided by, and dropout, would.
LIKE_ONE = {
    "sgd": {"optim": "sgd", "learning_rate": 0.05, "average_tokens_across_devices": False, "eval_strategy": "epoch"},
    "adamw_torch": {"optim": "adamw_torch", "average_tokens_across_devices": False, "eval_strategy": "epoch"},
}
LIKE_ONE_PRUNING = {"max_metric_drop": 1.0, "granularity": 3, "calibration_batch_size": 6}
# Rows that do not fill the last batch of two processes.
PROMISED = {
    "eval_rows": 121,
    "per_device_eval_batch_size": 20,
    "num_train_epochs": 3,
    "ddp_find_unused_parameters": False,
}
PROMISED_PRUNING = {"confidence": 0.95, "max_metric_drop": 0.3, "granularity": 2, "calibration_batch_size": 6}
SHARDED = {"save_strategy": "epoch", "num_train_epochs": 4, "average_tokens_across_devices": False}
SHARDED_PRUNING = {"granularity": 2, "max_rounds": 2, "start_epoch": 1, "calibration_batch_size": 6}

OUTPUT = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()


def bert(layers=6, seed=0):
    torch.manual_seed(seed)
    config = BertConfig(
        num_hidden_layers=layers, hidden_size=32, intermediate_size=64, num_attention_heads=4, vocab_size=99,
        max_position_embeddings=32, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def full(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def digest(model):
    """Of all names and values; a collective for a sharded model."""
    total = hashlib.sha256()
    for name, param in model.named_parameters():
        total.update(name.encode())
        total.update(full(param.detach()).contiguous().numpy().tobytes())
    return total.hexdigest()


def is_consistent(trainer):
    """Model, wrapper and optimizer hold the same parameters, and the config says how many layers there are."""
    model = {id(p) for p in trainer.model.parameters()}
    wrapped = {id(p) for p in trainer.model_wrapped.parameters()}
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    layers = len(trainer.model.get_submodule(STACK))
    return model == wrapped == held and trainer.model.config.num_hidden_layers == layers


def facts(trainer, callback):
    """What must be equal on all processes, and equal to a run of one."""
    record = callback.record
    return {
        "verdicts": [round_.verdict for round_ in record.rounds],
        "kept": [round_.kept[STACK] for round_ in record.rounds],
        "similarity": [round_.similarity[STACK]["values"] for round_ in record.rounds],
        "metrics": [record.baseline.metric, *(round_.after.metric for round_ in record.rounds)],
        "seconds": [(round_.after.evaluation_seconds, round_.after.latency_seconds) for round_ in record.rounds],
        "after": {path: matrix["values"] for path, matrix in record.similarity_after.items()},
        "intervals": [record.baseline.interval, *(round_.after.interval for round_ in record.rounds)],
        "digest": digest(trainer.model),
        "layers": len(trainer.model.get_submodule(STACK)),
        "consistent": is_consistent(trainer),
        "wrapper": type(trainer.model_wrapped).__name__,
        "evaluations": sum("eval_loss" in entry for entry in trainer.state.log_history),
    }


def taken_outcomes(folder, rows):
    """What an evaluation on so many rows is made of, for metrics of each kind, as JSON."""

    def values(prediction):
        said, right = prediction.predictions.argmax(-1), prediction.label_ids
        both = ((said == 1) & (right == 1)).sum()
        f1 = 2 * both / max((said == 1).sum() + (right == 1).sum(), 1)
        return {"accuracy": float((said == right).mean()), "f1": float(f1)}

    trainer = build_trainer(bert(), folder, values, average_tokens_across_devices=False)
    trainer.eval_dataset = Rows(rows, 1)
    bench, found = Workbench(trainer, PruningConfig(max_metric_drop=0.1, confidence=0.95)), {}
    bench.sets = Sets()  # what judges is all of the evaluation set
    for metric in ("accuracy", "f1", "loss", "perplexity"):
        bench.evaluate()
        found[metric] = bench.outcomes(metric).to_dict()
    return found


def life(folder, metric, *, ranks=1, checkpoint=None, train=True):
    """A run of as many optimizer steps with one process as with two; six layers to three is the cut that is accepted."""

    def values(_):
        depth = len(trainer.model.get_submodule(STACK))
        return {"accuracy": {6: 0.9, 3: 0.89}.get(depth, 0.5)}

    trainer = build_trainer(
        bert(), folder, values, per_device_train_batch_size=8 // ranks, num_train_epochs=4, save_strategy="steps",
        save_steps=1,
    )  # fmt: skip
    callback = add(trainer, metric=metric, calibration_batch_size=6, max_rounds=3)
    if train:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return trainer, callback


CRITERIA = (
    "cka", "cka_segments", "cka_evidence", "block_influence", "angular", "relative_magnitude", "magnitude", "taylor", "loss",
    "greedy_loss", "output_change", "laco", "mka", "mixture", "tail", "alternate", "random",
)  # fmt: skip


def scored_run(criterion, folder, *, ranks=1, **arguments):
    """One cut of six layers to three by a criterion, of a model whose layers differ; what must not depend on the processes."""
    model = bert()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    trainer = build_trainer(
        model, folder, lambda _: {"accuracy": 0.9}, per_device_train_batch_size=8 // ranks, num_train_epochs=2,
        optim="sgd", learning_rate=1e-4, average_tokens_across_devices=False, **arguments,
    )  # fmt: skip
    callback = add(
        trainer, criterion=criterion, target_num_layers=3, max_rounds=1, calibration_batch_size=6, start_epoch=1,
    )  # fmt: skip
    trainer.train()
    (round_,) = callback.record.rounds
    scores = round_.scores["scores"][STACK]
    return {
        "left_out": list(scores["details"].get("left_out", ())), "kept": round_.kept[STACK], "values": scores["values"], "merged": round_.merged.get(STACK, {}),
        "cost": [round_.scores["cost"][key] for key in ("forward_passes", "backward_passes")],
        "weights": {name: full(param.detach()).abs().mean().item() for name, param in model.named_parameters()},
    }  # fmt: skip


def failure(run):
    """Class and text of what `run` raises."""
    try:
        run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def write(found):
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / f"rank{distributed.get_rank()}.json").write_text(json.dumps(found))
