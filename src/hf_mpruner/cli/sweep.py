"""`Sweep`: a cell for each model and sparsity, each measured once and kept as JSON."""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Subset

from hf_mpruner.architectures import count_parameters
from hf_mpruner.config import PruningConfig
from hf_mpruner.data import draw_sample, has_one_label_each
from hf_mpruner.intervals import interval_of_share
from hf_mpruner.metric import choose_metric, finite_values, is_share, strip_prefix
from hf_mpruner.sparsity import SparsityReport, find_paths, sparsify_
from hf_mpruner.storage import write_json

from .inputs import Inputs, choose_metric_name, read_metrics, refuse_unused_labels
from .loading import choose_columns, choose_task, load_split, read_settings, take
from .models import load_config, load_for_task, load_processor
from .output import say
from .parser import UsageError
from .training import REHEARSED, make_trainer, rehearse

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Cell = dict[str, Any]
FORMAT = 1
# What `make_trainer` is told of a training that there is none of.
_NO_TRAINING: dict[str, Any] = {
    "num_train_epochs": None, "learning_rate": 0.0, "lr_scheduler_type": "constant", "weight_decay": 0.0, "training": [],
}  # fmt: skip


class Sweep:
    """Measures a model and its pruned version at several sparsities.

    Args:
        args: of the command.
        config (`PruningConfig`): says which metric decides.
        sparsities (`list[float]`): ascending, without 0; each model is measured dense, too.

    Raises:
        UsageError: if one of the models or the data cannot be used; before anything is measured.
    """

    def __init__(self, args: argparse.Namespace, config: PruningConfig, sparsities: list[float]) -> None:
        """Read both configs, and nothing else yet."""
        self.args = argparse.Namespace(**{**vars(args), **_NO_TRAINING})
        self.config, self.sparsities = config, sparsities
        self.names = {"original": args.model, **({"pruned": args.pruned} if args.pruned else {})}
        self._configs = {who: self._read_config(who) for who in self.names}
        kinds = {who: found.model_type for who, found in self._configs.items()}
        if len(set(kinds.values())) > 1:
            raise UsageError(
                f"--pruned {args.pruned} is a {kinds['pruned']} model, but '{args.model}' a {kinds['original']}: pass a folder "
                "that hf-mpruner prune or apply wrote for it."
            )
        self._folder = None if args.output_dir is None else Path(args.output_dir).expanduser() / "cells"

    def run(self) -> list[Cell]:
        """All cells, those that were there before among them; finished ones stay if this is interrupted."""
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        number, total = 0, len(self.names) * (1 + len(self.sparsities))
        cells: list[Cell] = []
        for who in self.names:
            model = _Model(self, who)
            # of the pruned one, too: a stack of one block cannot always be told from any other list
            stacks = list(cells[0]["layers"]) if cells else None
            for sparsity in (0.0, *self.sparsities):
                number += 1
                settings = model.settings(sparsity)
                cell = self._read(who, sparsity, settings)
                known = cell is not None
                if cell is None:
                    cell = {"model": who, "asked": sparsity, **model.measure(sparsity, stacks)}
                    self._write(who, sparsity, settings, cell)
                shown = "measured before" if known else f"{cell['eval_seconds']:.1f} s"
                say(
                    self.args,
                    f"[{number}/{total}] {who}, sparsity {sparsity:g}: {cell['metric']} {cell['value']:.4f} ({shown})",
                )
                cells.append(cell)
        return cells

    def _read_config(self, who: str) -> PreTrainedConfig:
        revision = self.args.revision if who == "original" else None
        return load_config(self.names[who], revision, self.args.trust_remote_code)

    def _file(self, who: str, sparsity: float, settings: dict[str, Any]) -> Path | None:
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        return None if self._folder is None else self._folder / f"{who}-{sparsity:g}-{digest}.json"

    def _read(self, who: str, sparsity: float, settings: dict[str, Any]) -> Cell | None:
        file = self._file(who, sparsity, settings)
        try:
            found = None if file is None else json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return None if found is None or found.get("settings") != settings else found["cell"]

    def _write(self, who: str, sparsity: float, settings: dict[str, Any], cell: Cell) -> None:
        if (file := self._file(who, sparsity, settings)) is not None:
            write_json(file, {"settings": settings, "cell": cell})


class _Model:
    """One of the models with its data; its weights are read anew for each cell."""

    def __init__(self, sweep: Sweep, who: str) -> None:
        self._who, self._config = who, sweep.config
        revision = sweep.args.revision if who == "original" else None
        self._args = argparse.Namespace(**{**vars(sweep.args), "model": sweep.names[who], "revision": revision})
        self._model_config = sweep._configs[who]
        self._loaded: tuple[Inputs, Any, Any] | None = None
        args = self._args
        self._task = choose_task(args, self._model_config)
        self._metrics = read_metrics(args)
        judge = load_split(args, "eval_split")
        calibration = load_split(args, "calibration_split") if args.method == "wanda" else judge
        refuse_unused_labels(args, judge, self._task)
        self._columns = choose_columns(args, judge, self._task, need_label=True)
        self._prints = {"judge": _print(judge), "calibration": _print(calibration)}
        self._judge, self._calibration = (take(args, data, self._columns, self._task) for data in (judge, calibration))

    def settings(self, sparsity: float) -> dict[str, Any]:
        """All that a cell depends on, as plain values."""
        args = self._args
        settings: dict[str, Any] = {
            "format": FORMAT, "weights": _weights(args.model, self._model_config), "sparsity": sparsity,
            "dataset": args.dataset, "dataset_config": args.dataset_config, "eval_split": args.eval_split,
            "judge": self._prints["judge"], "task": self._task.name, "metrics": args.metrics, "metric": args.metric,
            "batch_size": args.batch_size, "max_length": args.max_length, "max_target_length": args.max_target_length,
            "source_prefix": args.source_prefix, "seed": args.seed, "columns": repr(self._columns),
        }  # fmt: skip
        if sparsity:
            settings |= {"method": args.method, "pattern": args.pattern, "skip": sorted(args.skip)}
        if sparsity and args.method == "wanda":
            settings |= {
                "calibration_split": args.calibration_split, "calibration": self._prints["calibration"],
                "calibration_samples": args.calibration_samples,
            }  # fmt: skip
        plain: dict[str, Any] = json.loads(json.dumps(settings))
        return plain

    def measure(self, sparsity: float, stacks: list[str] | None) -> Cell:
        """Set weights in these lists of blocks (by default, all that are found) to zero and evaluate."""
        inputs, judge, calibration = self._load()
        with tempfile.TemporaryDirectory(prefix="hf_mpruner-") as folder:
            trainer = make_trainer(self._args, self._config, inputs, train=None, judge=judge, folder=folder)
            config = rehearse(trainer, choose_metric_name(self._config, inputs), inputs)
            report, paths = None, stacks or find_paths(inputs.model)
            if sparsity:
                report = sparsify_(
                    inputs.model, sparsity, method=self._args.method, pattern=self._args.pattern,
                    calibration=calibration, processing_class=inputs.processing_class, skip=self._args.skip, stacks=paths,
                    num_samples=self._args.calibration_samples, batch_size=self._args.batch_size, seed=self._args.seed,
                )  # fmt: skip
            trainer.evaluate(Subset(judge, range(min(REHEARSED, len(judge)))))  # warms up, so that the time is fair
            started = time.perf_counter()
            metrics = strip_prefix(trainer.evaluate(), "eval")
            seconds = float(metrics.get("runtime", time.perf_counter() - started))
        metric = choose_metric(metrics, config.metric, config.greater_is_better)
        number = self._task.count_examples(judge)
        share = is_share(metric.name) and has_one_label_each(judge)
        value = metric.read(metrics)
        return {
            "metric": metric.name, "greater_is_better": metric.greater_is_better, "value": value,
            "interval": interval_of_share(value, number) if share else None, "num_examples": number,
            "metrics": finite_values(metrics), "eval_seconds": seconds,
            "layers": {path: len(inputs.model.get_submodule(path)._modules) for path in paths},
            "parameters": count_parameters(inputs.model), **_zeros(inputs.model, report),
        }  # fmt: skip

    def _load(self) -> tuple[Inputs, Any, Any]:
        """The dense model and the prepared data; the data once."""
        args, task = self._args, self._task
        model, new = load_for_task(
            args.model, task, label_names=None, revision=args.revision, dtype="auto",
            trust_remote_code=args.trust_remote_code,
        )  # fmt: skip
        if new:
            raise UsageError(
                f"'{args.model}' has no trained head for {task.name}: {len(new)} weights are new ({', '.join(new[:3])}). "
                "Fine-tune it first: what is random has no accuracy to compare."
            )
        if self._loaded is None:
            options = task.processor_options(self._model_config)
            processor = load_processor(args.model, task.kind, args.revision, args.trust_remote_code, **options)
            settings = read_settings(args, args.seed)
            inputs = Inputs(
                task, model, processor, self._columns, settings, self._metrics, None, self._judge, self._calibration
            )
            sample = draw_sample(self._calibration, args.calibration_samples, args.seed)
            self._loaded = (inputs, inputs.prepare(self._judge, "judge"), inputs.prepare(sample, "calibration"))
        inputs, judge, calibration = self._loaded
        if task.kind == "text" and getattr(model.config, "pad_token_id", None) is None:
            model.config.pad_token_id = inputs.processing_class.pad_token_id
        self._loaded = (inputs._replace(model=None), judge, calibration)  # type: ignore[arg-type]
        return inputs._replace(model=model), judge, calibration


def _zeros(model: PreTrainedModel, report: SparsityReport | None) -> dict[str, Any]:
    """What was set to zero; of a dense model what is zero anyway."""
    if report is not None:
        return {
            "sparsity": report.sparsity, "model_sparsity": report.model_sparsity, "sparsify_seconds": report.seconds,
            "passes": report.passes, "left_out": report.left_out,
        }  # fmt: skip
    zeros = sum(int(torch.count_nonzero(weight == 0)) for weight in model.parameters())
    share = zeros / count_parameters(model)
    return {"sparsity": 0.0, "model_sparsity": share, "sparsify_seconds": 0.0, "passes": 0.0, "left_out": {}}


def _print(data: Any) -> list[Any]:
    """What tells these rows from others of the same name."""
    return [len(data), getattr(data, "_fingerprint", None)]


def _weights(name: str, config: PreTrainedConfig) -> list[Any]:
    """What tells the weights of this name from others that lay or lie there."""
    return [name, getattr(config, "_commit_hash", None), *_files(Path(name).expanduser())]


def _files(folder: Path) -> Iterator[list[Any]]:
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if file.suffix in {".safetensors", ".bin"} or file.name == "config.json":
            yield [file.name, file.stat().st_size, file.stat().st_mtime_ns]
