"""What must be true of a Trainer before a pruning run begins: checked before any work is done."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from transformers import EarlyStoppingCallback

from .config import PruningConfig
from .errors import MPrunerError, UnsupportedBackendError
from .record import RECORD_NAME, PruningRecord
from .search import SearchBounds
from .subject import check_surroundings, trained_model, trained_whole
from .trainers import evaluator_of

if TYPE_CHECKING:
    from transformers import Trainer, TrainerState, TrainingArguments

# Schedules that follow the Trainer's evaluations.
_BY_EVALUATION = ("reduce_lr_on_plateau", "greedy", "ReduceLROnPlateau", "GreedyLR")

logger = logging.getLogger(__name__)


NOT_ATTACHED = (
    "LayerPruningCallback is not attached to a Trainer. Add it with\n"
    "    trainer.add_callback(LayerPruningCallback(trainer, config))\n"
    "or, if it was passed as Trainer(callbacks=[callback]), call\n"
    "    callback.attach(trainer)\nbefore trainer.train()."
)


def check_not_config(trainer: object) -> None:
    """Refuse a config in the place of the Trainer.

    Raises:
        TypeError: says how to write it.
    """
    if isinstance(trainer, PruningConfig):
        raise TypeError(
            "The first argument of LayerPruningCallback is the Trainer, but it got a PruningConfig: write "
            "LayerPruningCallback(trainer, config), or LayerPruningCallback(config=config) and attach it later."
        )


def check_alone(trainer: Trainer, state: TrainerState, kind: type) -> None:
    """Refuse a callback of another Trainer, and a second one.

    Args:
        trainer (`Trainer`): that the callback was made for.
        state (`TrainerState`): of the one that is training.
        kind (`type`): the callback's class.

    Raises:
        MPrunerError: for either.
    """
    if trainer.state is not state:
        raise MPrunerError(
            "This LayerPruningCallback was made for another Trainer than the one that is training. Make one "
            "for each: trainer.add_callback(LayerPruningCallback(trainer, config))."
        )
    others = [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, kind)]
    if len(others) > 1:
        raise MPrunerError(
            f"The Trainer has {len(others)} LayerPruningCallbacks; two would cut the same model. Keep one: it "
            "prunes every stack (PruningConfig(stacks=[...]) chooses)."
        )


def check_trainer(
    trainer: Trainer, config: PruningConfig, state: TrainerState, train_dataloader: Any, *, resumed: bool = False
) -> None:
    """Refuse a setting in which rounds could not be judged, or a run that cannot be gone on with.

    Args:
        trainer (`Trainer`): about to train.
        config (`PruningConfig`): what the user asked for.
        state (`TrainerState`): as `on_train_begin` receives it.
        train_dataloader: one epoch of training batches.
        resumed (`bool`): whether the model was cut as the checkpoint says.

    Raises:
        ValueError: without an evaluation set, without anything to judge by, or with too few epochs for one round.
        UnsupportedArchitectureError: if something around the transformers model counts its layers.
        UnsupportedBackendError: for `auto_find_batch_size`, a loss with weights in several processes, or a checkpoint of a run that had cut the model.
    """
    check_surroundings(cast(nn.Module, trainer.model), trained_model(trainer))
    check_judge(trainer, config)
    steps = steps_per_epoch(train_dataloader, trainer.args)
    needed = config.start_epoch + config.recovery_epochs
    if state.max_steps < needed * steps:
        raise ValueError(
            f"The training has {state.max_steps} steps ({state.max_steps / steps:.2g} epochs), but one round of "
            f"pruning needs start_epoch={config.start_epoch} + recovery_epochs={config.recovery_epochs} epochs of "
            f"{steps} steps. Pass TrainingArguments(num_train_epochs={needed}) or more."
        )
    if trainer.args.auto_find_batch_size:
        raise UnsupportedBackendError(
            "auto_find_batch_size=True restarts the training with a model that may have been cut already. Pass "
            "auto_find_batch_size=False and a batch size that fits. Nothing was changed."
        )
    if not resumed:
        _check_not_resumed(trainer.args, state)


def check_judge(trainer: Trainer, config: PruningConfig) -> None:
    """Refuse a Trainer that cannot judge a pruned model.

    Raises:
        ValueError: without an evaluation set, or without anything to judge by.
    """
    if trainer.args.world_size > 1 and trained_whole(trainer) is not trainer.model:
        raise UnsupportedBackendError(
            "The loss has weights of its own, which DDP does not average over the processes: each would train another loss, "
            "and none is saved. Train with one process, or with a loss without weights. Nothing was changed."
        )
    _check_promise(trainer, config)
    evaluator = evaluator_of(trainer)
    if trainer.eval_dataset is None and evaluator is None:
        raise ValueError(
            "The Trainer has no eval_dataset, so no pruned model can be judged. Pass Trainer(..., eval_dataset=...), "
            "a set that training does not see."
        )
    if trainer.eval_dataset is None and config.metric in ("loss", "perplexity"):
        raise ValueError(
            f"PruningConfig(metric={config.metric!r}) needs an eval_dataset to compute a loss on, but the Trainer has an "
            "evaluator only. Pass Trainer(..., eval_dataset=...), or leave metric out: the evaluator's primary_metric decides."
        )
    if trainer.compute_metrics is None and config.metric is None and evaluator is None:
        raise ValueError(
            "The Trainer has no compute_metrics and PruningConfig names no metric, so nothing can judge a pruned "
            'model. Pass Trainer(..., compute_metrics=...), or PruningConfig(metric="loss") to judge by the loss.'
        )


def _check_promise(trainer: Trainer, config: PruningConfig) -> None:
    """Refuse what lets the judging examples choose the weights that they judge, or other weights end the training."""
    args = trainer.args
    stopping = any(isinstance(one, EarlyStoppingCallback) for one in trainer.callback_handler.callbacks)
    asked = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    scheduler = trainer.lr_scheduler
    by_evaluation = (
        asked in _BY_EVALUATION or type(getattr(scheduler, "scheduler", scheduler)).__name__ in _BY_EVALUATION
    )
    for given, what, instead in (
        (args.load_best_model_at_end, "load_best_model_at_end=True", "load_best_model_at_end=False"),
        (stopping, "EarlyStoppingCallback", "trainer.remove_callback(EarlyStoppingCallback)"),
        (by_evaluation, "a learning rate that follows evaluations", 'lr_scheduler_type="linear"'),
    ):
        if given and config.confidence is not None:
            raise ValueError(
                f"PruningConfig(confidence={config.confidence:g}) promises something about weights that the evaluation set has "
                f"no part in but for the verdict, and {what} lets it choose them. Pass {instead}, or confidence=None. Nothing "
                "was changed."
            )


def check_search(config: PruningConfig, record: PruningRecord, epochs: float) -> None:
    """Say what a search can cost, and warn if the training may be too short for it.

    Args:
        config (`PruningConfig`): what the user asked for.
        record (`PruningRecord`): of a run that begins.
        epochs (`float`): of the training.
    """
    if not record.search:
        return
    bounds = SearchBounds.from_dict(record.search)
    needed = config.start_epoch + config.recovery_epochs * bounds.most_recoveries
    logger.info(
        "The search for the number of layers trains and judges at most %d candidates, of %d numbers of layers that may go.",
        bounds.most_recoveries,
        len(bounds.numbers),
    )
    if epochs < needed:
        logger.warning(
            "The search for the number of layers may need %d epochs (start_epoch=%d, and %d recoveries at most of "
            "recovery_epochs=%d), but the training has %g: it may end with fewer layers removed than would pass. For all of "
            "it pass TrainingArguments(num_train_epochs=%d).",
            needed,
            config.start_epoch,
            bounds.most_recoveries,
            config.recovery_epochs,
            epochs,
            needed,
        )


def steps_per_epoch(loader: Any, args: TrainingArguments) -> int:
    """Optimizer steps of one epoch, as the Trainer counts them; data without a length is one epoch of `max_steps`."""
    try:
        batches = len(loader)
    except TypeError:
        return max(args.max_steps, 1)
    return max(-(-batches // args.gradient_accumulation_steps), 1)


def _check_not_resumed(args: TrainingArguments, state: TrainerState) -> None:
    folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
    if state.global_step == 0 or not (folder / RECORD_NAME).is_file():
        return
    if PruningRecord.load(folder).rounds:
        raise UnsupportedBackendError(
            f"'{folder}' was saved by a pruning run that had cut the model, but this model was not cut before its weights "
            "were loaded. Call trainer.train(resume_from_checkpoint=...) after the callback was made with this trainer "
            "(or attached to it)."
        )
