"""`prune_width_in_rounds`: a share goes, a fresh Trainer trains what is left, its metric says whether that was too much."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hf_mpruner.architectures import count_parameters
from hf_mpruner.data import describe_data
from hf_mpruner.environment import describe_device, library_versions
from hf_mpruner.errors import MPrunerError, UnsupportedBackendError
from hf_mpruner.metric import Metric, choose_metric, strip_prefix
from hf_mpruner.plan import WidthPlan, WidthPreview

from .once import check_width, prune_width_
from .report import NarrowingReport, NarrowingRound

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

logger = logging.getLogger(__name__)

MakeTrainer = Callable[["PreTrainedModel"], "Trainer"]


def prune_width_in_rounds(
    model: PreTrainedModel,
    fraction: float | None,
    rounds: int,
    *,
    make_trainer: MakeTrainer,
    calibration: Any = None,
    max_metric_drop: float | None = None,
    metric: str | None = None,
    greater_is_better: bool | None = None,
    **settings: Any,
) -> NarrowingReport:
    """Narrow a model round by round, with a training of its own after each (Higgins 2023: fraction p, j rounds).

    In each round `fraction` of what each layer still has goes, a fresh Trainer trains what is left, and its evaluation is
    compared with the one before the first round. A round that loses more than `max_metric_drop` is taken back, weights and
    all, and is the last one.

    Args:
        model (`PreTrainedModel`): fine-tuned; changed in place, and in the end what the last accepted round left.
        fraction (`float`, *optional*): how many of each layer's neurons go in a round; `None`: as `mipp` decides.
        rounds (`int`): how many at most.
        make_trainer (callable): gets the model and returns a new Trainer for it, with new `TrainingArguments`: an optimizer
            of the wider model cannot go on. Its `num_train_epochs` is how long a round is trained.
        calibration (*optional*): as for `prune_width_`. By default the Trainer's evaluation set.
        max_metric_drop (`float`, *optional*): how much worse the metric may be, in its own unit. Default: any.
        metric (`str`, *optional*): what decides; by default as the Trainer says, or the only one there is.
        greater_is_better (`bool`, *optional*): its direction, where its name does not tell.
        settings: of `prune_width_`, but for `verify`: `criterion`, `what`, `fields`, `multiple_of`, `processing_class`,
            `calibration_samples`, `calibration_batch_size`, `seed`, `show_progress`.

    Returns:
        `NarrowingReport`: its plan is of all accepted rounds together, in the numbering of the model as it was. It cannot
        replay their training: save the model.

    Raises:
        TypeError, ValueError: for arguments that are none, or a `make_trainer` that does not return a Trainer of the model.
        UnsupportedArchitectureError, CalibrationError: as `prune_width_`.
        MPrunerError: the first evaluation's metric is not finite.

    Example:
        ```python
        def make_trainer(model):
            args = TrainingArguments("training", num_train_epochs=1, learning_rate=5e-5)
            return Trainer(model, args, train_dataset=train, eval_dataset=dev, compute_metrics=metrics)

        report = prune_width_in_rounds(model, 0.2, 5, make_trainer=make_trainer, max_metric_drop=0.01)
        model.save_pretrained("narrower")
        ```
    """
    _check_arguments(rounds, max_metric_drop, settings)
    check_width(model, fraction, **_of_check(settings))
    trainer = _make(make_trainer, model)
    decides, baseline = _choose(trainer, _evaluate(trainer), metric, greater_is_better)
    judging = describe_data(trainer.eval_dataset, "evaluation set")
    calibration = trainer.eval_dataset if calibration is None else calibration
    settings.setdefault("processing_class", trainer.processing_class)
    del trainer  # its optimizer is of the wider model

    def judge(number: int, report: NarrowingReport) -> NarrowingRound:
        trainer = _make(make_trainer, model)
        trainer.train()
        value = decides.read(_evaluate(trainer))
        drop = decides.drop(baseline, value)
        accepted = math.isfinite(value) and (max_metric_drop is None or drop <= max_metric_drop)
        return NarrowingRound(number, report.plan.num_removed, count_parameters(model), value, drop, accepted)

    report = _run_rounds(model, fraction, rounds, {"calibration": calibration, **settings}, judge)
    data = {**report.data, "judging": judging}
    return replace(report, metric_name=decides.name, baseline=baseline, data=data)


def _run_rounds(
    model: PreTrainedModel,
    fraction: float | None,
    rounds: int,
    settings: dict[str, Any],
    judge: Callable[[int, NarrowingReport], NarrowingRound],
) -> NarrowingReport:
    """Cut, let it be trained and judged, keep or take back."""
    parameters, size = count_parameters(model), _bytes(model)
    plan, data = WidthPlan({}, model_type=model.config.model_type), {}
    done: list[NarrowingRound] = []
    for number in range(1, rounds + 1):
        try:
            check_width(model, fraction, **_of_check(settings))
        except ValueError as error:  # of the first round this was checked before anything ran
            logger.info("No round %d: %s", number, error)
            break
        kept = _State(model)
        report = prune_width_(model, fraction, **settings)
        data = report.data
        round_ = judge(number, report)
        done.append(round_)
        logger.info("Round %d: %.4g, %s.", number, round_.metric, "kept" if round_.accepted else "taken back")
        if not round_.accepted:
            kept.restore_(model, report)
            break
        plan = plan.then(report.plan) if plan.units else report.plan
    preview = WidthPreview(parameters, count_parameters(model), size, _bytes(model))
    device = describe_device(model.device)
    return NarrowingReport(plan, preview, tuple(done), data=data, versions=library_versions(), device=device)


def _check_arguments(rounds: Any, max_metric_drop: Any, settings: Mapping[str, Any]) -> None:
    known = [name for name in inspect.signature(prune_width_).parameters if name not in ("verify", "calibration")][2:]
    if unknown := sorted(settings.keys() - known):
        raise TypeError(f"prune_width_in_rounds has no argument {unknown[0]!r}. Settings: {', '.join(known)}.")
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"rounds={rounds!r} is no whole number from 1: pass how many rounds there are at most.")
    if max_metric_drop is not None and not max_metric_drop >= 0:
        raise ValueError(
            f"max_metric_drop={max_metric_drop!r} is not 0 or more: pass how much worse the metric may be, in its own unit, "
            "or None to accept every round."
        )


def _of_check(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in ("criterion", "what", "fields", "multiple_of") if name in settings}


def _make(make_trainer: MakeTrainer, model: PreTrainedModel) -> Trainer:
    from transformers import Trainer

    trainer = make_trainer(model)
    if not isinstance(trainer, Trainer):
        raise TypeError(f"make_trainer returned {type(trainer).__name__}: return a new transformers Trainer.")
    if trainer.model is not model:
        raise ValueError(
            "make_trainer's Trainer trains another model than the one it was given: return Trainer(model, ...) of the argument."
        )
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise UnsupportedBackendError(
            "make_trainer's Trainer uses FSDP or DeepSpeed, which split or copy the weights that get narrower. Train with one "
            "process or DDP, or narrow with prune_width_, save, and train what was saved."
        )
    if trainer.args.load_best_model_at_end:
        raise ValueError(
            "make_trainer's Trainer has load_best_model_at_end=True, which may put back weights from before the round. Leave "
            "it out: rounds are judged by their last evaluation."
        )
    if trainer.state.global_step or trainer.optimizer is not None:
        raise ValueError(
            "make_trainer's Trainer has trained, or has an optimizer already: return a new one each time."
        )
    return trainer


def _choose(
    trainer: Trainer, metrics: dict[str, float], name: str | None, greater: bool | None
) -> tuple[Metric, float]:
    """What decides, and its value before the first round."""
    args = trainer.args
    hint = (args.metric_for_best_model or "").removeprefix("eval_") or None
    try:
        decides = choose_metric(
            metrics, name, greater, fallback_name=hint, fallback_greater_is_better=args.greater_is_better
        )
    except ValueError as error:
        raise ValueError(str(error).replace("PruningConfig(", "prune_width_in_rounds(..., ")) from None
    baseline = decides.read(metrics)
    if not math.isfinite(baseline):
        raise MPrunerError(f"{decides.name} is {baseline} before the first round: nothing can be compared with it.")
    return decides, baseline


def _evaluate(trainer: Trainer) -> dict[str, float]:
    return strip_prefix(trainer.evaluate(), "eval")


class _State:
    """All weights of a model before a round, on the CPU."""

    def __init__(self, model: nn.Module) -> None:
        self._training = model.training
        self._tensors = {name: tensor.detach().cpu().clone() for name, tensor in _named(model).items()}
        self._trains = {name: parameter.requires_grad for name, parameter in model.named_parameters()}

    def restore_(self, model: nn.Module, report: NarrowingReport) -> None:
        """Take a round back: the width, what its training did, and the training flag."""
        device = next(model.parameters()).device
        if report.edit is not None:
            report.edit.undo()
        with torch.no_grad():
            for name, tensor in _named(model).items():
                tensor.data = self._tensors[name].to(device)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self._trains[name])
            parameter.grad = None
        model.train(self._training)


def _named(model: nn.Module) -> Mapping[str, Tensor]:
    return dict((*model.named_parameters(), *model.named_buffers()))


def _bytes(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
