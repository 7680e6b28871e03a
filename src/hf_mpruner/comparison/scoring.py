"""One criterion scores the uncut model, on one seed's calibration sample."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_mpruner.calibrate import calibration_batches
from hf_mpruner.criteria import Criterion, CriterionInputs, ScoredLayers, score_layers
from hf_mpruner.cycles.fresh import evaluate
from hf_mpruner.data import draw_sample
from hf_mpruner.errors import CalibrationError
from hf_mpruner.metric import Metric
from hf_mpruner.runtime import keep_rng_state
from hf_mpruner.subject import trained_model
from hf_mpruner.workbench import Workbench

if TYPE_CHECKING:
    from transformers import Trainer

    from hf_mpruner.architectures import BlockStack
    from hf_mpruner.config import PruningConfig

EvaluateSample = Callable[["Trainer", Any], Mapping[str, float]]
_WAY = "compare_criteria(..., calibration=other_dataset)"


def score(
    criterion: Criterion,
    trainer: Trainer,
    stacks: Sequence[BlockStack],
    num_removed: Mapping[str, int],
    config: PruningConfig,
    seed: int,
    calibration: Any,
    metric: Metric,
    evaluate_sample: EvaluateSample | None = None,
) -> ScoredLayers:
    """Let a criterion score a fresh Trainer's model.

    All criteria get the same batches for a seed: they are made once, as the Trainer makes its own, and kept. The loss is
    the Trainer's; the metric is its evaluation on the calibration sample, so that nothing is chosen by what judges.

    Args:
        criterion (`Criterion`): which measure.
        trainer (`Trainer`): nothing was done with it.
        stacks (`Sequence[BlockStack]`): to score.
        num_removed (`Mapping[str, int]`): the most layers that will be asked for.
        config (`PruningConfig`): how many examples, in which batches; how similarity is measured.
        seed (`int`): draws the sample, and whatever a criterion draws.
        calibration: data to measure on; `None` if no criterion needs any.
        metric (`Metric`): that judges.
        evaluate_sample (callable, *optional*): evaluates a Trainer's model on a sample; by default as it judges.

    Raises:
        Exception: whatever the criterion raises.
    """
    config = dataclasses.replace(config, seed=seed)
    bench = Workbench(trainer, config)
    trainer.args.per_device_eval_batch_size = (
        config.calibration_batch_size
    )  # an evaluation is as many passes as a loss
    loss: Any = trainer.compute_loss
    with bench.aside():
        raw = criterion.reads_labels  # as the Trainer's loss takes them
        batches = None if calibration is None else kept_batches(trainer, config, calibration, raw)
        whole = _can_evaluate(calibration)
        inputs = CriterionInputs(
            trained_model(trainer),
            stacks,
            batches=batches,
            compute_loss=lambda model, batch: loss(model, batch),
            evaluate=_metric_on_sample(trainer, config, calibration, metric, evaluate_sample) if whole else None,
            num_removed=num_removed,
            protocol=config.protocol,
            linkage=config.linkage,
            seed=seed,
            show_progress=False,
        )
        return score_layers(criterion, inputs)


def kept_batches(trainer: Trainer, config: PruningConfig, calibration: Any, raw: bool) -> list[Mapping[str, Any]]:
    """The calibration sample of the config's seed as batches that are the same whenever they are read."""
    with keep_rng_state():
        # a collator may draw, e.g. masks
        random.seed(config.seed)
        np.random.seed(config.seed)
        torch.manual_seed(config.seed)
        return list(calibration_batches(trainer, config, calibration, _WAY, raw=raw)[0])


def code_of(criterion: Criterion) -> str:
    """A digest of a criterion's code, so that scores of other code are not taken for its own; empty if it cannot be read."""
    try:
        source = inspect.getsource(inspect.getmodule(type(criterion)) or type(criterion))
    except (OSError, TypeError):
        return ""
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def _can_evaluate(calibration: Any) -> bool:
    """Whether examples can be drawn from it, as from a data set that judges."""
    return (
        hasattr(calibration, "__getitem__")
        and hasattr(calibration, "__len__")
        and not isinstance(calibration, Mapping)
    )


def _metric_on_sample(
    trainer: Trainer, config: PruningConfig, calibration: Any, metric: Metric, evaluate_sample: EvaluateSample | None
) -> Callable[[], float]:
    sample = draw_sample(calibration, config.calibration_samples, config.seed)

    def measure() -> float:
        judging = trainer.eval_dataset
        trainer.eval_dataset = sample
        try:
            found = evaluate_sample or (lambda trainer, sample: evaluate(Workbench(trainer, config)))
            value = metric.read(found(trainer, sample))
        except (KeyError, IndexError) as error:
            raise CalibrationError(f"The Trainer cannot evaluate on the calibration data: {error}") from error
        finally:
            trainer.eval_dataset = judging
        return value if metric.greater_is_better else -value

    return measure
