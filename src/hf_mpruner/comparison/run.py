"""`compare_criteria`: criteria side by side, at several depths, before and after the same recovery, over several seeds."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from hf_mpruner.architectures import find_block_stacks
from hf_mpruner.architectures.size import count_parameters
from hf_mpruner.config import PruningConfig
from hf_mpruner.criteria import Criterion, ScoredLayers, plan_layers
from hf_mpruner.cycles.fresh import digest
from hf_mpruner.cycles.whole import load_source, save_whole
from hf_mpruner.data import count_shared, fingerprint
from hf_mpruner.environment import describe_device, library_versions
from hf_mpruner.errors import MPrunerError, PlanMismatchError, UnsupportedArchitectureError
from hf_mpruner.facts import training_facts
from hf_mpruner.metric import Metric, choose_metric
from hf_mpruner.plan import PruningPlan
from hf_mpruner.runtime import keep_rng_state
from hf_mpruner.subject import trained_model
from hf_mpruner.surgery import apply_plan_
from hf_mpruner.workbench import Workbench

from .request import FIELDS, Request
from .result import Comparison
from .scoring import EvaluateSample, code_of, score
from .store import Store, digest_of, name_of
from .table import Found, key_of, make_rows, told
from .trainers import MakeTrainer, fresh_trainer, judge, recover, time_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

    from hf_mpruner.architectures import BlockStack

logger = logging.getLogger(__name__)

# Versions that may change a measured value in its leading digits.
_VERSIONS = ("hf_mpruner", "torch", "transformers", "accelerate")
# A cell that took less was read from its file.
_READ_SECONDS = 0.05


def compare_criteria(
    make_trainer: MakeTrainer,
    model: str | os.PathLike[str],
    config: PruningConfig | None = None,
    *,
    criteria: Sequence[str | Criterion],
    num_layers: Sequence[int | str | Sequence[str]],
    output_dir: str | os.PathLike[str],
    calibration: Any = None,
    seeds: int | Sequence[int] = (0, 1, 2),
    evaluate_sample: EvaluateSample | None = None,
    show_progress: bool | None = None,
) -> Comparison:
    """Compare criteria on one model and one data set: which layers they remove, what that costs, what recovery brings back.

    For each criterion, number of layers and seed, a fresh copy of the model is cut, judged, trained within the same
    budget, and judged again. A seed draws the calibration sample, whatever a criterion draws, and the order of the
    recovery's data; within a seed all criteria get the same of each. The uncut model is judged and trained likewise.

    Nothing is computed twice: a criterion scores once a seed for all numbers of layers, and criteria that choose the same
    layers share their training. Every finished part is a file in `output_dir`: called again with the same arguments,
    also after a kill, it goes on; further criteria, numbers of layers and seeds may be added.

    Args:
        make_trainer (callable): gets a folder, or `model` itself, and a seed; loads the model from there with
            `from_pretrained` and returns a new Trainer for it, with new `TrainingArguments(seed=seed)`. Their
            `num_train_epochs` is replaced by `recovery_epochs`; `max_steps` stays in force where it is given.
        model (path or `str`): the fine-tuned model's folder or Hub id.
        config (`PruningConfig`, *optional*): `recovery_epochs` (0: no recovery), `calibration_samples`,
            `calibration_batch_size`, `protect`, `stacks`, `metric`, `greater_is_better`, and how similarity is measured.
            Other fields mean nothing here and are refused.
        criteria (sequence of `str` or `Criterion`): names of [`known_criteria`][hf_mpruner.criteria.known_criteria], or
            criteria of your own.
        num_layers (sequence): each is one number of layers that are left: `8` in every stack, `"encoder.block:6"` in one,
            or a list of such entries.
        output_dir (path): a folder of its own. In the end it holds `comparison.json`.
        calibration (*optional*): examples that criteria measure on, not those that judge; a dataset as the Trainer takes
            it, with labels for criteria that need the loss. Needed unless no criterion needs data.
        seeds (`int` or sequence of `int`): the seeds, or how many: 0, 1, ...
        evaluate_sample (callable, *optional*): gets a Trainer and a calibration sample, returns metrics by name; for
            criteria that need the metric. By default the Trainer's own evaluation.
        show_progress (`bool`, *optional*): progress bars; by default only on a terminal.

    Returns:
        `Comparison`: prints as a table.

    Raises:
        TypeError, ValueError, CalibrationError, UnsupportedArchitectureError: for arguments, a Trainer or a model that cannot
            be used, and for what no criterion can do: an unknown one, too many layers, no data. Before anything is computed.
        MPrunerError: if `output_dir` holds a comparison with other settings, or `make_trainer` gives another model.

    Example:
        ```python
        def make_trainer(path, seed):
            model = AutoModelForSequenceClassification.from_pretrained(path)
            args = TrainingArguments("training", seed=seed)
            return Trainer(model, args, train_dataset=train, eval_dataset=test, compute_metrics=accuracy)

        comparison = compare_criteria(
            make_trainer, "my-model", criteria=["cka", "tail"], num_layers=[8, 6], calibration=train, output_dir="compared"
        )
        ```
    """
    config = config or PruningConfig()
    request = Request.read(make_trainer, model, criteria, num_layers, seeds, config)
    request.check_data(calibration)
    run = _Run(make_trainer, str(model), request, calibration, Store(Path(output_dir)), evaluate_sample, show_progress)
    with keep_rng_state():
        return run.run()


class _Run:
    """One comparison; see `compare_criteria` for the arguments."""

    def __init__(
        self,
        make_trainer: MakeTrainer,
        source: str,
        request: Request,
        calibration: Any,
        store: Store,
        evaluate_sample: EvaluateSample | None,
        show_progress: bool | None,
    ) -> None:
        self.make_trainer, self.source, self.request = make_trainer, source, request
        self.calibration, self.store, self.evaluate_sample = calibration, store, evaluate_sample
        self.config = request.config
        self.shows = sys.stderr.isatty() if show_progress is None else show_progress
        self.settings: dict[str, Any] = {}
        self.uncut: PreTrainedModel  # never changed: what every Trainer of the uncut model is held against
        self.stacks: list[BlockStack]
        self.metric: Metric
        self.hint: tuple[str | None, bool | None] = (None, None)
        self.processor: Any = None
        self.load: Callable[[], tuple[PreTrainedModel, set[str]]]

    def run(self) -> Comparison:
        """Everything that is not there yet, then the table."""
        self._open()
        found = Found(self.request, self.metric, PruningPlan.from_kept({}, self.stacks))
        for name, seed in self._bar([(c, s) for s in self.request.seeds for c in self.request.criteria], "Scoring"):
            self._score(found, name, seed)
        self._plan(found)
        for plan, seed in self._bar(found.trainings(), "Judging and recovering"):
            self._judge(found, plan, seed)
        uncut, rows = make_rows(found)
        comparison = Comparison(
            metric=self.metric.name,
            greater_is_better=self.metric.greater_is_better,
            seeds=self.request.seeds,
            recovers=self.config.recovery_epochs > 0,
            uncut=uncut,
            rows=tuple(rows),
            settings={**self.settings, "calibration_samples": self.config.calibration_samples},
            latency=found.cuts[key_of(found.whole)]["latency"],
        )
        comparison.save(self.store.folder)
        return comparison

    # -- before anything is computed ----------------------------------------------------------------------------------

    def _open(self) -> None:
        with self._trainer(self.source, self.request.seeds[0], None) as trainer:
            model = trained_model(trainer)
            config, kind, dtype = model.config, type(model), model.dtype
            self.load = lambda: load_source(kind, self.source, config, dtype)
            self.uncut, new = self.load()
            if new:
                raise MPrunerError(
                    f"'{self.source}' has no weights for {sorted(new)[:3]}, so each cell would begin with others. Fine-tune the "
                    "model first, and pass the folder it is saved in."
                )
        with self._trainer(self.source, self.request.seeds[0], self.uncut) as trainer:
            self.stacks = self.request.choose_stacks(find_block_stacks(self.uncut))
            self.hint, self.processor = Workbench(trainer, self.config).metric_hint(), trainer.processing_class
            self._warn_of_shared(trainer)
            self.settings = self._settings(trainer)
        self.store.open(self.settings)
        cell = self._plan_cell(PruningPlan.from_kept({}, self.stacks))
        self.metric = choose_metric(
            cell["metrics"],
            self.config.metric,
            self.config.greater_is_better,
            fallback_name=self.hint[0],
            fallback_greater_is_better=self.hint[1],
        )

    def _settings(self, trainer: Trainer) -> dict[str, Any]:
        """All that a cell depends on and its name does not say."""
        training = training_facts(trainer)
        for name in ("seed", "data_seed", "num_train_epochs", "world_size"):
            training.pop(name, None)
        own = json.loads(self.uncut.config.to_json_string(use_diff=False))
        described = {key: value for key, value in own.items() if key not in ("_name_or_path", "transformers_version")}
        versions = library_versions()
        return {
            "model": {
                "type": self.uncut.config.model_type,
                "class": type(self.uncut).__name__,
                "layers": {stack.path: stack.depth for stack in self.stacks},
                "config": digest_of(described),
                "weights": digest(self.uncut)[:16],
                "dtype": str(self.uncut.dtype).removeprefix("torch."),
            },
            "data": {
                "training": fingerprint(trainer.train_dataset),
                "calibration": fingerprint(self.calibration),
                "judging": fingerprint(trainer.eval_dataset),
            },
            "trainer": type(trainer).__name__,
            "training": training,
            "config": {name: getattr(self.config, name) for name in FIELDS},
            "device": describe_device(trainer.args.device),
            "versions": {name: versions[name] for name in _VERSIONS if name in versions},
        }

    def _warn_of_shared(self, trainer: Trainer) -> None:
        for what, data in (("choose the layers", self.calibration), ("train", trainer.train_dataset)):
            if shared := count_shared(data, trainer.eval_dataset):
                logger.warning(
                    "%d of the examples that %s are also among those that judge, so what is judged is not new to the "
                    "model. Pass %s without them.",
                    shared,
                    what,
                    "calibration" if data is self.calibration else "train_dataset",
                )

    # -- cells ----------------------------------------------------------------------------------------------------------

    def _score(self, found: Found, name: str, seed: int) -> None:
        if (name, None) in found.failed:
            return
        criterion = self.request.criteria[name]
        most = self.request.most_removed(self.stacks)
        stamp = {"code": code_of(criterion), "num_removed": most}
        cell = self.store.read(name_of("score", name, f"seed{seed}"), **stamp)
        if cell is None:
            try:
                with self._trainer(self.source, seed, self.uncut) as trainer:
                    given = (self.stacks, most, self.config, seed, self.calibration, self.metric, self.evaluate_sample)
                    scored = score(criterion, trainer, *given)
            except Exception as error:  # whatever a criterion cannot do ends its own rows, not the comparison
                found.fail(name, f"with seed {seed}: {told(error)}")
                return
            cell = self.store.write(name_of("score", name, f"seed{seed}"), {**stamp, "scored": scored.to_dict()})
        found.scores[name, seed] = ScoredLayers.from_dict(cell["scored"])

    def _plan(self, found: Found) -> None:
        """The plan of every criterion, depth and seed."""
        for (name, seed), scored in found.scores.items():
            for depth in self.request.depths:
                removed = depth.num_removed(self.stacks)
                try:
                    plan = plan_layers(self.request.criteria[name], scored, self.stacks, removed, self.config.protect)
                except Exception as error:
                    found.fail(name, told(error), depth)
                else:
                    found.plans[name, depth, seed] = dataclasses.replace(plan, evidence={})

    def _judge(self, found: Found, plan: PruningPlan, seed: int | None) -> None:
        """Judge a cut model (`seed` is `None`), or one that has recovered."""
        key = key_of(plan)
        if key in found.refused:
            return
        try:
            if seed is None:
                found.cuts[key] = self._plan_cell(plan)
            else:
                found.recoveries[key, seed] = self._recovery_cell(plan, seed)
        except (UnsupportedArchitectureError, PlanMismatchError) as error:
            found.refused[key] = told(error)

    def _plan_cell(self, plan: PruningPlan) -> dict[str, Any]:
        name = name_of("plan", key_of(plan))
        cell = self.store.read(name)
        if cell is None:
            with self._cut(plan, self.request.seeds[0]) as trainer:
                seconds, latency = time_model(trainer)
                size = {"parameters": count_parameters(trained_model(trainer)), "latency_seconds": seconds}
                judged = judge(trainer, self.config)
            cell = self.store.write(name, {"plan": plan.to_dict(), **size, "latency": latency, **judged})
        return cell

    def _recovery_cell(self, plan: PruningPlan, seed: int) -> dict[str, Any]:
        name = name_of("recovery", key_of(plan), f"seed{seed}")
        cell = self.store.read(name)
        if cell is None:
            with self._cut(plan, seed) as trainer:
                spent = recover(trainer, seed, self.config.recovery_epochs)
                cell = self.store.write(name, {"seed": seed, **spent, **judge(trainer, self.config)})
        return cell

    @contextmanager
    def _cut(self, plan: PruningPlan, seed: int) -> Iterator[Trainer]:
        """A fresh Trainer of the model that a plan leaves, which went over the disk."""
        if not plan.num_removed:
            with self._trainer(self.source, seed, self.uncut) as trainer:
                yield trainer
            return
        cut, _ = self.load()
        apply_plan_(cut, plan)
        with self.store.work() as folder:
            save_whole(cut, folder)
            if self.processor is not None:
                self.processor.save_pretrained(folder)
            with self._trainer(str(folder), seed, cut) as trainer:
                yield trainer

    def _trainer(self, path: str, seed: int, expected: PreTrainedModel | None) -> Any:
        return fresh_trainer(self.make_trainer, path, seed, self.config, expected)

    def _bar(self, cells: Sequence[tuple[Any, Any]], what: str) -> Iterator[tuple[Any, Any]]:
        """Cells in turn, with a bar that takes the time left from those that were not finished before."""
        with tqdm(total=len(cells), desc=what, unit="cell", smoothing=0, disable=not self.shows) as bar:
            for cell in cells:
                started = time.perf_counter()
                yield cell
                if self.shows and time.perf_counter() - started < _READ_SECONDS:
                    bar.initial += 1
                bar.update()
