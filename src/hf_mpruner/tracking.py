"""Figures of a run where the Trainer's own integrations log: TensorBoard and Weights & Biases, when they are on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from transformers.integrations.integration_utils import TensorBoardCallback, WandbCallback

from .calibrate import PREFIX
from .report import PruningReport
from .report.plots import draw_figures, to_pixels
from .runtime import keep_rng_state

if TYPE_CHECKING:
    from transformers import Trainer

    from .record import PruningRecord

logger = logging.getLogger(__name__)

_OF_A_ROUND = ("similarity_round_", "scores_round_")


def log_figures(trainer: Trainer, record: PruningRecord, *, ended: bool = False) -> None:
    """Send the run's figures to the TensorBoard and W&B integrations of a Trainer, at its `global_step`.

    The scores and heat maps of the last decided round (once the run has ended: of the model that was kept), the layers as a strip,
    the metric against size and the similarity curves. Nothing is imported or drawn where no integration is on, and what
    goes wrong is logged: a picture must not end a training.

    Args:
        trainer (`Trainer`): in training, or at its end.
        record (`PruningRecord`): the run so far.
        ended (`bool`): whether no further round follows.
    """
    if not trainer.is_world_process_zero():
        return
    targets = [
        one for one in trainer.callback_handler.callbacks if isinstance(one, TensorBoardCallback | WandbCallback)
    ]
    if not targets or not any(round_.verdict != "pending" for round_ in record.rounds):
        return
    try:
        with keep_rng_state():
            pictures = dict(_draw(record, ended))
    except ImportError:
        _say_once("No figures are logged: they need matplotlib, which is missing: pip install hf_mpruner[plots]")
        return
    except Exception as error:
        logger.warning("The figures of this round were not drawn: %s: %s", type(error).__name__, error)
        return
    for target in targets:
        try:
            with keep_rng_state():
                if isinstance(target, TensorBoardCallback):
                    _to_tensorboard(target, trainer, pictures, ended)
                else:
                    _to_wandb(target, trainer, pictures)
        except Exception as error:
            name = type(target).__name__.removesuffix("Callback")
            logger.warning("Figures were not logged to %s: %s: %s", name, type(error).__name__, error)


def _draw(record: PruningRecord, ended: bool) -> Iterator[tuple[str, Any]]:
    """Names without the round's number, so that a stack's heat maps are one picture that changes with the step."""
    report = PruningReport(record)
    last = f"_round_{report.rounds[-1].number}_"
    for name, figure in draw_figures(report, only=lambda name: _is_wanted(name, last, ended)):
        yield f"{PREFIX}/{_without_round(name, last)}", to_pixels(figure)


def _without_round(name: str, last: str) -> str:
    return name.replace(last, "_", 1) if name.startswith(_OF_A_ROUND) else name


def _is_wanted(name: str, last: str, ended: bool) -> bool:
    if name.startswith(_OF_A_ROUND):
        return name.startswith((f"similarity{last}", f"scores{last}")) and not ended
    return ended or not name.startswith("similarity_after_")


def _to_tensorboard(target: Any, trainer: Trainer, pictures: dict[str, Any], ended: bool) -> None:
    closed = target.tb_writer is None  # it is when training ends, before the callbacks of a user hear of that
    if closed:
        target._init_summary_writer(trainer.args)
    for name, pixels in pictures.items():
        target.tb_writer.add_image(name, pixels, trainer.state.global_step, dataformats="HWC")
    target.tb_writer.flush()
    if closed or ended:
        target.tb_writer.close()
        target.tb_writer = None


def _to_wandb(target: Any, trainer: Trainer, pictures: dict[str, Any]) -> None:
    if target._wandb is None or target._wandb.run is None:
        return
    images = {name: target._wandb.Image(pixels) for name, pixels in pictures.items()}
    target._wandb.log({**images, "train/global_step": trainer.state.global_step})


@cache
def _say_once(text: str) -> None:
    logger.warning(text)
