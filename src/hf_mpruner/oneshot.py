"""`prune_`: the engine driven by one call, without training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from .architectures.adapters import unwrap_adapters
from .config import PruningConfig
from .data import FirstBatch, calibration_loader, describe_data, describe_sample, has_one_label_each
from .engine import PruningEngine
from .environment import describe_device, library_versions
from .errors import MPrunerError
from .features import measure_similarity
from .latency import time_forward
from .metric import is_share
from .pruned_base import save_with_base
from .report import PruningReport
from .runtime import keep_rng_state
from .verdict import Judged

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from .architectures import BlockStack
    from .similarity import SimilarityMatrix


def prune_(
    model: PreTrainedModel | PeftModel,
    config: PruningConfig | None = None,
    *,
    calibration: Any,
    processing_class: Any = None,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    eval_dataset: Any = None,
    show_progress: bool | None = None,
) -> PruningReport:
    """Prune a model in place, in one call and without training.

    Without `evaluate` the model is measured once and cut once. With it, the rounds of MPruner's Algorithm 1 are run
    without recovery: cut, judge, keep or go back, until no round is left.

    Args:
        model (`PreTrainedModel`): changed in place; afterwards `save_pretrained` writes an ordinary checkpoint. Or peft's
            wrapper around one, whose `save_pretrained` then writes the cut base beside the adapters.
        config (`PruningConfig`, *optional*): what to prune. `start_epoch`, `recovery_epochs`, `freeze_untouched` and
            `snapshot` concern training and have no meaning here.
        calibration: data to measure similarity on: a dataset (model-ready, or with a text or image column and
            `processing_class`), or an iterable of batches.
        processing_class (*optional*): tokenizer or image processor for raw data.
        evaluate (*optional*): called with the model, returns metrics by name.
        eval_dataset (*optional*): the examples that `evaluate` judges on, for the report: how many there are, where they
            come from, and the interval of an accuracy. Nothing is evaluated on it here.
        show_progress (`bool`, *optional*): progress bar; by default only on a terminal.

    Returns:
        `PruningReport`: with `.plan`, which replays the cut on a fresh copy.

    Raises:
        UnsupportedArchitectureError: if the model has no stack that can be cut, or the cut cannot be proved right.
        CalibrationError: if the calibration data is empty or gives values that are not finite.
        ValueError: for a config that does not fit the model or the metrics.
    """
    config, whole = config or PruningConfig(), model
    model = cast("PreTrainedModel", unwrap_adapters(cast(nn.Module, whole)))
    with keep_rng_state():
        loader = calibration_loader(
            calibration,
            processing_class=processing_class,
            num_samples=config.calibration_samples,
            batch_size=config.calibration_batch_size,
            seed=config.seed,
            model=model,
        )
    first = FirstBatch(loader)

    def measure(stacks: list[BlockStack]) -> dict[str, SimilarityMatrix]:
        return measure_similarity(model, first.batches, stacks, protocol=config.protocol, show_progress=show_progress)

    engine = PruningEngine(
        model,
        config,
        measure=measure,
        evaluate=None if evaluate is None else lambda: _evaluated(evaluate, whole),
        trains=False,
        verify_inputs=first,
        time_forward=lambda record, measured: time_forward(model, first, record, measured),
        judged_on=lambda metric: _judged(metric, eval_dataset),
    )
    record = engine.record
    record.data["calibration"] = describe_sample(calibration, loader, "given by the user")
    record.versions, record.device = library_versions(), describe_device(model.device)
    save_with_base(whole)
    _run_rounds(engine, is_judged=evaluate is not None)
    return PruningReport(record)


def _run_rounds(engine: PruningEngine, *, is_judged: bool) -> None:
    with keep_rng_state():
        while engine.start_round():
            engine.decide()
            if not is_judged:
                engine.stop("one round was asked for: without evaluate nothing can judge a second one")
        engine.measure_kept()


def _judged(metric: str, eval_dataset: Any) -> Judged:
    facts = describe_data(eval_dataset, "given by the user")
    if "num_examples" not in facts:
        return Judged({} if eval_dataset is None else facts)
    with keep_rng_state():
        return Judged(facts, is_share(metric) and has_one_label_each(eval_dataset))


def _evaluated(evaluate: Callable[[Any], Mapping[str, float]], model: Any) -> dict[str, float]:
    metrics = evaluate(model)
    if not isinstance(metrics, Mapping):
        raise MPrunerError(
            f"evaluate returned {type(metrics).__name__}, not metrics by name: return a dict such as "
            "{'accuracy': 0.93}."
        )
    return {name.removeprefix("eval_"): value for name, value in metrics.items()}
