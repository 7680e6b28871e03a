"""Calibration batches as a Trainer makes its own, and what a criterion gets of the Trainer: its loss, its metric."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from .architectures import BlockStack
from .architectures.adapters import unwrap_adapters
from .config import PruningConfig
from .criteria import Criterion, CriterionInputs, ScoredLayers, check_needs, score_layers
from .data import calibration_loader, describe_sample, draw_sample
from .errors import CalibrationError, UnsupportedBackendError
from .features.measure import evaluating
from .heads import find_head
from .metric import Metric, strip_prefix
from .record import CHOSEN_BY_JUDGE, PruningRecord
from .runtime import Runtime, SingleProcess, keep_rng_state
from .sets import Sets
from .subject import trained_model
from .trainers import UnflattenedBatches, as_model_inputs, evaluator_of, unflatten

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)

PREFIX = "mpruner"


def calibration_batches(
    trainer: Trainer, config: PruningConfig, calibration: Any, way: str, *, raw: bool = False
) -> tuple[Any, dict[str, Any]]:
    """Calibration batches, built the way a Trainer builds its own.

    Args:
        trainer (`Trainer`): its collator, and the columns that its model takes.
        config (`PruningConfig`): how many examples, in which batches, drawn by which seed.
        calibration (*optional*): data to measure on; see `Workbench`.
        way (`str`): how the user passes other data, for a warning.
        raw (`bool`): batches as the Trainer's own loss takes them, and not as the transformers model does.

    Returns:
        the batches, and facts for the record.

    Raises:
        CalibrationError: if there are no examples.
    """
    given = _find_data(trainer, calibration)
    trained = given is trainer.train_dataset
    same = _judges(trainer, given)
    if same:
        logger.warning(
            "The same examples choose the layers and judge the result: %s a sample of the evaluation set. For an "
            "unbiased verdict pass %s, a part of the training set for instance.",
            "similarity is measured on" if config.criterion == "cka" else "layers are scored on",
            way,
        )
    with keep_rng_state():
        # public, and it does what the Trainer does: drops columns that the model does not take, picks the collator
        like_trainer = trainer.get_test_dataloader(cast(Any, given)) if _is_dataset(given) else None
        collate: Any = None if like_trainer is None else like_trainer.collate_fn
        loader = calibration_loader(
            given if like_trainer is None else like_trainer.dataset,
            collate_fn=collate if raw or collate is None else UnflattenedBatches(collate),
            num_samples=config.calibration_samples,
            batch_size=config.calibration_batch_size,
            seed=config.seed,
            model=trained_model(trainer),
            keep_labels=raw,
        )
    source = "sample of the evaluation set" if same else "sample of the training set"
    facts = describe_sample(given, loader, source if same or trained else "given by the user")
    return (loader if raw else as_model_inputs(trainer, loader)), facts


def batches_of_sets(
    trainer: Trainer, config: PruningConfig, sets: Sets, way: str, *, raw: bool = False
) -> tuple[Any, Any, dict[str, dict[str, Any]]]:
    """Batches of the set that layers are measured on, of the one that cuts are proposed on if that is another, and facts.

    Args:
        trainer (`Trainer`): see `calibration_batches`, as for all but `sets`.
        config (`PruningConfig`): what the user asked for.
        sets (`Sets`): of the run.
        way (`str`): how the user passes other data.
        raw (`bool`): batches as the Trainer's own loss takes them.

    Returns:
        batches, batches or `None`, and for the record facts about each of the sets by its role.
    """
    batches, facts = calibration_batches(trainer, config, sets.measured, way, raw=raw)
    found = {sets.role: sets.describe(sets.role, facts)}
    if sets.proposing is None:
        return batches, None, found
    proposing, facts = calibration_batches(trainer, config, sets.proposing, way, raw=raw)
    return batches, proposing, {"calibration": sets.describe("calibration", facts), **found}


class ModelInputs:
    """A Trainer's own batches as its transformers model takes them.

    Args:
        trainer (`Trainer`): whose batches they are.
        batches: from `calibration_batches(..., raw=True)`.
    """

    def __init__(self, trainer: Trainer, batches: Any) -> None:
        """Remember what was given."""
        self.trainer, self.batches = trainer, batches

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """Each of them, taken apart where sequences were packed."""
        return iter(as_model_inputs(self.trainer, (unflatten(batch) for batch in self.batches)))


class TrainerScores:
    """Lets criteria score the layers of the model that a Trainer trains.

    The loss is the Trainer's own, with label smoothing or whatever `compute_loss` does, on its own batches. The metric is
    that of its evaluation, of the calibration data where that can be evaluated.

    Args:
        trainer (`Trainer`): training, or about to.
        config (`PruningConfig`): what the user asked for.
        calibration (*optional*): data to measure on; see `Workbench`.
        runtime (`Runtime`, *optional*): the processes; one unless given.
        batches: calibration batches; of `raw=True` where the criterion measures the loss.
        proposing (*optional*): the same, of what cuts are proposed on; see `CriterionInputs`.
        judge (callable): the Trainer's evaluation of its own evaluation set, keys without prefix.
        record (callable): returns the record, which knows the metric that decides.
    """

    def __init__(
        self,
        trainer: Trainer,
        config: PruningConfig,
        calibration: Any,
        runtime: Runtime | None,
        *,
        batches: Any,
        proposing: Any = None,
        judge: Callable[[], dict[str, float]],
        record: Callable[[], PruningRecord],
    ) -> None:
        """Remember what was given."""
        self.trainer, self.config, self.runtime = trainer, config, runtime or SingleProcess()
        self._batches, self._proposing, self._judge, self._record = batches, proposing, judge, record
        given = _find_data(trainer, calibration)
        self._no_sample = _why_not_judged(trainer, given)
        self._sample = None if self._no_sample else draw_sample(given, config.calibration_samples, config.seed)

    def check(self, criterion: Criterion) -> dict[str, Any]:
        """Refuse a criterion that could not score, before anything is trained.

        Returns:
            `dict`: facts about what chooses layers that replace those of the calibration data; mostly none.

        Raises:
            UnsupportedBackendError: if the processes cannot run what it needs.
            CalibrationError: without labels, a finite loss or gradients that it needs.
        """
        inputs, needs = self._inputs([], {}), criterion.needs
        alone = {"gradients", "metric"} & needs
        if self.runtime.equal_forwards and alone:
            raise UnsupportedBackendError(
                f"The criterion '{criterion.name}' needs {' and '.join(sorted(alone))}, which {self.runtime.name} does not "
                "give of single layers. Take one that needs forward passes only, e.g. block_influence or loss. Nothing was "
                "changed."
            )
        check_needs(criterion, inputs)
        if needs & {"loss", "gradients"}:
            self._check_loss(criterion, inputs)
        return self._check_metric(criterion) if "metric" in needs else {}

    def _check_loss(self, criterion: Criterion, inputs: CriterionInputs) -> None:
        try:
            with keep_rng_state(), evaluating(cast(nn.Module, self.trainer.model)), torch.no_grad():
                inputs.loss(next(inputs.each_batch()))
        except CalibrationError:
            raise
        except Exception as error:
            raise CalibrationError(
                f"The criterion '{criterion.name}' measures the loss on calibration data, but the Trainer's loss fails on it: "
                f"{type(error).__name__}: {error}. Pass calibration data with labels, like the training data, or take a "
                "criterion that needs none, e.g. block_influence."
            ) from error

    def _check_metric(self, criterion: Criterion) -> dict[str, Any]:
        if self._sample is None and self.config.keeps_sets_apart:
            raise CalibrationError(
                f"The criterion '{criterion.name}' would choose by the very examples that judge, since {self._no_sample}, and then "
                "nothing could be promised of them. Take a criterion that needs no metric, e.g. loss or block_influence."
            )
        if self._sample is None:
            logger.warning(
                "The same examples choose the layers and judge the result: the criterion '%s' evaluates on the evaluation "
                "set, since %s.",
                criterion.name,
                self._no_sample,
            )
            return {"source": CHOSEN_BY_JUDGE}
        batch: Mapping[str, Any] = next(iter(self._batches), {})
        missing = [name for name in self.trainer.label_names if name not in batch]
        if missing:
            raise CalibrationError(
                f"The criterion '{criterion.name}' evaluates on the calibration data, but that has no {', '.join(missing)}, "
                f"only {', '.join(batch)}. Pass calibration data with labels, or take a criterion that needs none, e.g. "
                "block_influence."
            )
        return {}

    def __call__(self, criterion: Criterion, stacks: list[BlockStack], num_removed: Mapping[str, int]) -> ScoredLayers:
        """What a criterion says of the model as it is; every process gets its own, the main one's plan holds."""
        with evaluating(cast(nn.Module, self.trainer.model)):
            return score_layers(criterion, self._inputs(stacks, num_removed))

    def _inputs(self, stacks: list[BlockStack], num_removed: Mapping[str, int]) -> CriterionInputs:
        return CriterionInputs(
            trained_model(self.trainer),
            stacks,
            batches=self._batches,
            proposing=self._proposing,
            compute_loss=self._compute_loss,
            evaluate=self._evaluate,
            num_removed=num_removed,
            protocol=self.config.protocol,
            linkage=self.config.linkage,
            seed=self.config.seed,
            show_progress=False if self.trainer.args.disable_tqdm else None,
            runtime=self.runtime,
        )

    def _compute_loss(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        trainer, whole = self.trainer, cast(nn.Module, self.trainer.model)
        # what stands around the model (sentence-transformers) is a part of its loss; adapters are inside of it
        subject = model if unwrap_adapters(whole) is model else whole
        with trainer.compute_loss_context_manager():
            return cast(Tensor, trainer.compute_loss(subject, batch))

    def _evaluate(self) -> float:
        record = self._record()
        if record.metric is None or record.greater_is_better is None:
            raise CalibrationError("No metric is known yet: the uncut model was not evaluated.")
        name = record.metric
        if self._sample is None:
            metrics = self._judge()
        else:
            with own_loader(self.trainer, self._sample):
                found = self.trainer.evaluate(cast(Any, self._sample), metric_key_prefix=PREFIX)
            metrics = strip_prefix(strip_prefix(found, PREFIX), "eval")
            sets: Any = self.trainer.eval_dataset  # "data1_accuracy" of several sets is "accuracy" of this one
            parts = [part for part in sets if name.startswith(f"{part}_")] if isinstance(sets, Mapping) else []
            name = name.removeprefix(f"{max(parts, key=len)}_") if parts else name
        value = Metric(name, record.greater_is_better).read(metrics)
        return value if record.greater_is_better else -value


@contextmanager
def own_loader(trainer: Trainer, data: Any) -> Iterator[None]:
    """Let an evaluation of other examples than the Trainer's own not be given the loader that it keeps for its own.

    With `dataloader_persistent_workers` a Trainer keeps one loader for every data set that it is called with.

    Args:
        trainer (`Trainer`): about to evaluate.
        data (*optional*): those examples; `None` for the Trainer's own, whose loader is kept.
    """
    kept = trainer.args.dataloader_persistent_workers
    trainer.args.dataloader_persistent_workers = kept and data is None
    try:
        yield
    finally:
        trainer.args.dataloader_persistent_workers = kept


def _find_data(trainer: Trainer, calibration: Any) -> Any:
    """What the user gave, else the Trainer's evaluation set, else its training set."""
    candidates = (calibration, trainer.eval_dataset, trainer.train_dataset)
    given: Any = next((data for data in candidates if data is not None), None)
    return next(iter(given.values())) if isinstance(given, dict) else given


def _judges(trainer: Trainer, given: Any) -> bool:
    judges = trainer.eval_dataset.values() if isinstance(trainer.eval_dataset, dict) else [trainer.eval_dataset]
    return any(given is judge for judge in judges)


def _why_not_judged(trainer: Trainer, given: Any) -> str:
    """Why the Trainer cannot evaluate calibration examples, in words; empty if it can."""
    if evaluator_of(trainer) is not None:
        return "an evaluator has data of its own"
    if not _is_dataset(given) or not hasattr(given, "__len__"):
        return "the calibration data is no data set with a length"
    head = find_head(trained_model(trainer).config, type(trained_model(trainer)).__name__)
    if head is not None and head.task == "question-answering":
        return "answers are read back from the texts of that set"
    return ""


def _is_dataset(data: Any) -> bool:
    return not isinstance(data, DataLoader) and (hasattr(data, "__getitem__") or isinstance(data, IterableDataset))
