"""`prune_`: the engine driven by one call, without training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from .architectures.adapters import unwrap_adapters
from .config import PruningConfig
from .criteria import Criterion, CriterionInputs, ScoredLayers, check_needs, find_criterion, score_layers
from .data import FirstBatch, Parts, calibration_loader, describe_data, describe_sample, has_one_label_each
from .engine import PruningEngine
from .environment import describe_device, library_versions
from .errors import CalibrationError
from .features import measure_similarity
from .features.measure import evaluating
from .footprint import measure_costs
from .metric import Metric, is_share
from .placement import check_not_offloaded
from .pruned_base import save_with_base
from .record import CHOSEN_BY_JUDGE, PruningRecord
from .report import PruningReport
from .runtime import keep_rng_state
from .sets import Sets, given_sets
from .verdict import Evaluate, Judged
from .watching import UserEvaluation, uncut_outcomes

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from .architectures import BlockStack
    from .similarity import SimilarityMatrix

logger = logging.getLogger(__name__)

_GIVEN = "given by the user"


def prune_(
    model: PreTrainedModel | PeftModel,
    config: PruningConfig | None = None,
    *,
    calibration: Any,
    choosing: Any = None,
    processing_class: Any = None,
    evaluate: Callable[[Any], Mapping[str, Any]] | None = None,
    eval_dataset: Any = None,
    show_progress: bool | None = None,
) -> PruningReport:
    """Prune a model in place, in one call and without training.

    Without `evaluate` the model is measured once and cut once, or until as many layers are left as `target_num_layers`
    asks for. With it, the rounds of MPruner's Algorithm 1 (or those of a search, for `threshold="auto"`) are run without
    recovery: cut, judge, keep or go back, until no round is left.

    Args:
        model (`PreTrainedModel`): changed in place; afterwards `save_pretrained` writes an ordinary checkpoint. Or peft's
            wrapper around one, whose `save_pretrained` then writes the cut base beside the adapters.
        config (`PruningConfig`, *optional*): what to prune; what concerns training (`recovery_epochs`) has no meaning here.
        calibration: data to measure similarity, or what else the criterion measures, on: a dataset (model-ready, or with
            a text or image column and `processing_class`), or an iterable of batches.
        choosing (*optional*): with `confidence` or `threshold="auto"`, data for a criterion that reads labels. A `mixture`
            proposes on `calibration` and chooses by this; without it, each gets half of `calibration`.
        processing_class (*optional*): tokenizer or image processor for raw data.
        evaluate (*optional*): called with the model, returns metrics by name. A criterion that needs a metric takes this
            one, too, so that the same examples choose and judge. A metric may be a list or a 1-D array of a number for each
            example: then it is their mean, and with a `confidence` the examples of two models are compared pair by
            pair. Or an object with a method `outcomes(metric, like)`, asked after a call.
        eval_dataset (*optional*): the examples that `evaluate` judges on, for the report (how many there are, their
            origin, the interval of an accuracy), and to refuse data that chooses and judges. Nothing is evaluated here.
        show_progress (`bool`, *optional*): progress bar; by default only on a terminal.

    Returns:
        `PruningReport`: with `.plan`, which replays the cut on a fresh copy.

    Raises:
        UnsupportedArchitectureError: if the model has no stack that can be cut, or the cut cannot be proved right.
        CalibrationError: if the calibration data is empty or gives values that are not finite, or if the criterion needs
            labels, gradients or a metric that are not there; or if data that chooses judges, where it must not.
        ValueError: for a config that does not fit the model or the metrics.
        UnsupportedBackendError: if weights are offloaded (`device_map`).
    """
    config, whole = config or PruningConfig(), model
    criterion = None if config.plans_by_threshold else find_criterion(config.criterion)
    model = cast("PreTrainedModel", unwrap_adapters(cast(nn.Module, whole)))
    check_not_offloaded(
        model,
        "prune_ keeps copies of weights to go back to",
        "Measure with measure_similarity, and carry out the plan with apply_plan_ or on disk with hf-mpruner apply.",
    )
    sets = given_sets(config, Parts(calibration, choosing, eval_dataset))
    loader = _load(sets.measured, config, model, processing_class, criterion)
    apart = sets.proposing is not None
    proposing = _load(sets.proposing, config, model, processing_class, criterion) if apart else None
    judge = None if evaluate is None else UserEvaluation(evaluate, whole)
    engine = _make_engine(model, config, FirstBatch(loader), judge, eval_dataset, show_progress, proposing)
    asks_judge = criterion is not None and "metric" in criterion.needs
    _write_facts(engine.record, sets, None if asks_judge else loader, proposing, model)
    save_with_base(whole)
    _run_rounds(engine, goes_on=evaluate is not None or config.has_target)
    return PruningReport(engine.record)


def _load(
    data: Any, config: PruningConfig, model: PreTrainedModel, processing_class: Any, criterion: Criterion | None
) -> Any:
    with keep_rng_state():
        return calibration_loader(
            data,
            processing_class=processing_class,
            num_samples=config.calibration_samples,
            batch_size=config.calibration_batch_size,
            seed=config.seed,
            model=model,
            keep_labels=criterion is not None and criterion.reads_labels,
        )


def _write_facts(record: PruningRecord, sets: Sets, loader: Any, proposing: Any, model: PreTrainedModel) -> None:
    known = {"source": CHOSEN_BY_JUDGE} if loader is None else describe_sample(sets.measured, loader, _GIVEN)
    record.data[sets.role] = known
    if proposing is not None:
        record.data["calibration"] = describe_sample(sets.proposing, proposing, _GIVEN)
    record.versions, record.device = library_versions(), describe_device(model.device)


def _make_engine(
    model: PreTrainedModel,
    config: PruningConfig,
    first: FirstBatch,
    evaluate: UserEvaluation | None,
    eval_dataset: Any,
    show_progress: bool | None,
    proposing: Any = None,
) -> PruningEngine:
    if config.searches and evaluate is None:
        raise ValueError(
            "threshold='auto' searches for the most layers that a metric allows, but nothing evaluates the model: pass "
            "prune_(..., evaluate=function), or a number as the threshold, e.g. threshold=0.98."
        )

    def measure(stacks: list[BlockStack]) -> dict[str, SimilarityMatrix]:
        return measure_similarity(
            model,
            first.batches,
            stacks,
            protocol=config.protocol,
            stop=config.stop,
            show_progress=show_progress,
        )

    scores = _Scores(model, config, first.batches, show_progress, evaluate, proposing)
    engine = PruningEngine(
        model,
        config,
        measure=measure,
        score=scores,
        evaluate=evaluate,
        trains=False,
        verify_inputs=first,
        time_forward=lambda record, measured: measure_costs(model, first, record, measured),
        judged_on=lambda metric: _judged(metric, eval_dataset),
        take_outcomes=None
        if evaluate is None
        else lambda metric: evaluate.outcomes(metric, uncut_outcomes(engine.record)),
    )
    scores.record = engine.record
    if not config.plans_by_threshold:
        scores.check(find_criterion(config.criterion))
    engine.settle_target()
    return engine


class _Scores:
    """Lets criteria score the layers of a model, with the user's own `evaluate`."""

    def __init__(
        self,
        model: PreTrainedModel,
        config: PruningConfig,
        batches: Any,
        show_progress: bool | None,
        evaluate: Evaluate | None,
        proposing: Any = None,
    ) -> None:
        self.proposing = proposing
        self.model, self.config, self.batches, self.show_progress = model, config, batches, show_progress
        self._evaluate = evaluate
        self.record: PruningRecord  # of the engine, which knows the metric that decides

    def check(self, criterion: Criterion) -> None:
        """Refuse a criterion that could not score, before anything is measured, and say who chooses."""
        inputs = self._inputs([], {})
        check_needs(criterion, inputs)
        if criterion.needs & {"loss", "gradients"}:
            with keep_rng_state(), evaluating(self.model), torch.no_grad():
                inputs.loss(next(inputs.each_batch()))
        if "metric" in criterion.needs and self.config.keeps_sets_apart:
            raise CalibrationError(
                f"The criterion '{criterion.name}' would choose by the very examples that judge, since it asks evaluate as the "
                "verdict does. Take a criterion that needs no metric, e.g. loss or block_influence."
            )
        if "metric" in criterion.needs:
            logger.warning(
                "The same examples choose the layers and judge the result: the criterion '%s' asks evaluate, as the "
                "verdict does. For an unbiased one evaluate the pruned model on other data.",
                criterion.name,
            )

    def __call__(self, criterion: Criterion, stacks: list[BlockStack], num_removed: Mapping[str, int]) -> ScoredLayers:
        """What a criterion says of the model as it is."""
        return score_layers(criterion, self._inputs(stacks, num_removed))

    def _inputs(self, stacks: list[BlockStack], num_removed: Mapping[str, int]) -> CriterionInputs:
        return CriterionInputs(
            self.model,
            stacks,
            batches=self.batches,
            proposing=self.proposing,
            evaluate=None if self._evaluate is None else self._value,
            num_removed=num_removed,
            protocol=self.config.protocol,
            linkage=self.config.linkage,
            seed=self.config.seed,
            show_progress=self.show_progress,
        )

    def _value(self) -> float:
        metric = Metric(str(self.record.metric), self.record.greater_is_better is not False)
        value = metric.read(self._evaluate() if self._evaluate is not None else {})
        return value if metric.greater_is_better else -value


def _run_rounds(engine: PruningEngine, *, goes_on: bool) -> None:
    with keep_rng_state():
        while engine.start_round():
            engine.decide()
            if not goes_on:
                engine.stop("one round was asked for: without evaluate nothing can judge a second one")
        engine.measure_kept()


def _judged(metric: str, eval_dataset: Any) -> Judged:
    facts = describe_data(eval_dataset, _GIVEN)
    if "num_examples" not in facts:
        return Judged({} if eval_dataset is None else facts)
    with keep_rng_state():
        return Judged(facts, is_share(metric) and has_one_label_each(eval_dataset))
