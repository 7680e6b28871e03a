"""What is pushed beside the weights: the plan that they are of, config, record, report, plots, and the card."""

from __future__ import annotations

import dataclasses
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_mpruner.card import BEGIN, ModelFacts, check_card, merge_card, render_card
from hf_mpruner.card.check import is_hub_id
from hf_mpruner.card.front import dump_yaml, read_metadata, split_card
from hf_mpruner.errors import PushError
from hf_mpruner.hub import Secrets, find_leaks
from hf_mpruner.plan import PruningPlan
from hf_mpruner.report import PruningReport, write_plots
from hf_mpruner.roundplan import plan_of
from hf_mpruner.storage import write_text
from hf_mpruner.subject import trained_model

from .parcel import PARCEL_PREFIX

if TYPE_CHECKING:
    from transformers import Trainer

    from hf_mpruner.config import PruningConfig
    from hf_mpruner.record import PruningRecord

logger = logging.getLogger(__name__)

CARD_NAME = "README.md"
_GENERATED = "generated_from_trainer"  # a tag in the card of every Trainer
# Of an earlier run in the same repository these would show another model.
OWN_PLOTS = ("plots/similarity_round_*.png", "plots/similarity_after_*.png")


class Pages:
    """Writes them; what did not change since the last time is not drawn again."""

    def __init__(self) -> None:
        """Nothing was written yet."""
        self._key: str | None = None
        self._files: dict[str, bytes] = {}

    def files(self, record: PruningRecord, config: PruningConfig, output_dir: Path) -> dict[str, bytes]:
        """Contents by name, without the card.

        Args:
            record (`PruningRecord`): of the run so far; a pending round is part of the plan, which says so.
            config (`PruningConfig`): what was asked for.
            output_dir (`Path`): where there is room to write.

        Raises:
            OSError: if nothing can be written there.
        """
        key = json.dumps([record.to_dict(), config.to_dict()], sort_keys=True, default=str)
        if key != self._key:
            output_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=PARCEL_PREFIX, dir=output_dir) as folder:
                _write(record, config, Path(folder))
                found = sorted(file for file in Path(folder).rglob("*") if file.is_file())
                self._files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in found}
            self._key = key
        return dict(self._files)


def plan_of_weights(record: PruningRecord) -> PruningPlan:
    """The plan that fits the weights as they are now: with the pending round, if one is being recovered."""
    plan, pending = record.to_plan(), record.pending
    if pending is None:
        return plan
    stacks = plan.then(plan_of(pending, record).plan).stacks
    said = f"Round {pending.number} is being recovered and is not judged yet: it may be taken back."
    return dataclasses.replace(plan, stacks=stacks, evidence={**plan.evidence, "pending": said})


def check_depths(trainer: Trainer, plan: PruningPlan) -> None:
    """Refuse to describe a model as what it is not.

    Raises:
        PushError: if the live model has other depths than the plan.
    """
    model = trained_model(trainer)
    live = {path: len(model.get_submodule(path)._modules) for path in plan.stacks}
    wanted = {path: len(stack.kept) for path, stack in plan.stacks.items()}
    if live != wanted:
        raise PushError(
            f"The model has {live} layers, but the pruning run ended with {wanted}: its plan and card would be wrong. Push "
            "the model that the run left, or take the callback off first: trainer.remove_callback(LayerPruningCallback). "
            "Nothing was sent."
        )


def make_card(
    trainer: Trainer,
    record: PruningRecord,
    config: PruningConfig,
    *,
    repo_id: str,
    pictures: list[str],
    present: Sequence[str | None],
    secrets: Secrets,
) -> str | None:
    """README.md with our section; a card never stops a push.

    Args:
        trainer (`Trainer`): whose model is pushed.
        record (`PruningRecord`): every number is from it.
        config (`PruningConfig`): what was asked for.
        repo_id (`str`): where the model will be loaded from.
        pictures (`list[str]`): names of the plots.
        present: texts of README.md in the output folder, by the Trainer and by hand; the last one's words come first.
        secrets (`Secrets`): what it must not tell.

    Returns:
        `str`, *optional*: the text; `None`, and the log says why, if it cannot be made.
    """
    try:
        model = trained_model(trainer)
        ours = render_card(
            PruningReport(record),
            model=ModelFacts.of_model(model, trainer.processing_class),
            config=config,
            repo_id=repo_id,
            title=repo_id.rpartition("/")[2],
            pictures=pictures,
            tags=list(getattr(trainer.model, "model_tags", None) or []),
        )
        if leaks := find_leaks(ours.encode(), secrets):
            raise ValueError(f"it would hold {leaks[0]}")
    except Exception as error:
        logger.warning("No model card is pushed: %s", error)
        return None
    for text in present:
        ours = _joined(text, ours, secrets)
    return ours


def has_section(text: str | None) -> bool:
    """Whether a README.md has our section."""
    return text is not None and BEGIN in text


def is_by_hand(text: str | None) -> bool:
    """Whether somebody has written in a README.md, or may have, so that a Trainer's card must not replace it."""
    if text is None or has_section(text):
        return text is not None
    try:
        return _GENERATED not in (read_metadata(text).get("tags") or [])
    except ValueError:
        return True


def metadata_alone(text: str | None) -> str | None:
    """The card that a Trainer writes by itself, without its words: they are of a model that was only trained."""
    parts = split_card(text or "")
    return f"{parts.opening}{parts.yaml}\n{parts.closing}\n" if parts.opening else None


def _joined(local: str | None, ours: str, secrets: Secrets) -> str:
    if local is None:
        return ours
    try:
        local = _without_local_base(local)
        local = local if split_card(local).body.strip() else local + split_card(ours).body
        text = merge_card(local, ours)
        check_card(text)
        if leaks := find_leaks(text.encode(), secrets):
            raise ValueError(f"it holds {leaks[0]}")
    except ValueError as error:
        logger.warning("The README.md of the output folder is left out of the pushed card: %s", error)
        return ours
    return text


def _without_local_base(text: str) -> str:
    """A Trainer takes the folder that a model came from for its name on the Hub, once that folder is gone."""
    values, parts = read_metadata(text), split_card(text)
    if not isinstance(values.get("base_model"), str) or is_hub_id(values["base_model"]):
        return text
    del values["base_model"]
    return f"{parts.opening}{dump_yaml(values)}{parts.closing}{parts.body}"


def _write(record: PruningRecord, config: PruningConfig, folder: Path) -> None:
    report = PruningReport(record)
    plan_of_weights(record).save_pretrained(folder)
    config.save_pretrained(folder)
    record.save(folder)
    report.save(folder)
    try:
        write_plots(report, folder)
        write_text(folder / "report.html", report.to_html())
    except Exception as error:  # a picture never stops the weights
        logger.warning("Not every figure is pushed: %s", error)
