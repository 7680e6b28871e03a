"""The output folder: model, processor, plan, config, record, report, plots and card, written whole or not at all."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .card import ModelFacts, merge_card, render_card
from .card.facts import processor_in
from .card.front import read_metadata
from .errors import MPrunerError
from .footprint import weight_files_bytes
from .narrowing import render_narrowing_card
from .report import PAGE_NAME, write_plots
from .runtime import keep_rng_state
from .storage import check_output_dir, new_folder, write_bytes
from .verify.saved import same_bits, why_other

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .config import PruningConfig
    from .narrowing import NarrowingReport
    from .report import PruningReport

logger = logging.getLogger(__name__)

CARD_NAME = "README.md"
_UNREADABLE_CARD = "README.before.md"


def write_artifacts(
    output_dir: str | os.PathLike[str],
    *,
    model: PreTrainedModel,
    processing_class: Any = None,
    report: PruningReport,
    config: PruningConfig | None = None,
    source: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    max_shard_size: int | str = "50GB",
    save: Callable[[Path], object] | None = None,
) -> Path:
    """Write everything that a pruned model needs, in one step: the folder appears complete or not at all.

    The model is loaded back from the files and compared with the live one, bit for bit, before the folder appears.

    Args:
        output_dir (path): new, empty, or (with `overwrite`) a folder that holds a model.
        model (`PreTrainedModel`): the pruned model.
        processing_class (*optional*): its tokenizer, image processor or processor.
        report (`PruningReport`): of the run that pruned it.
        config (`PruningConfig`, *optional*): what was asked for; without it no `pruning_config.json` is written.
        source (path or `str`, *optional*): the model that was read; its folder is never replaced.
        overwrite (`bool`): replace a model that is there. Of its README.md the words of a person stay.
        max_shard_size (`int` or `str`): bytes of a file of weights at most, as in `save_pretrained`.
        save (callable, *optional*): what writes and compares the model and its processor, for a model without weights:
            `save(folder)`. By default `model.save_pretrained` and that of `processing_class` do.

    Returns:
        `Path`: the folder, absolute. It holds the model and its processor, `pruning_plan.json`,
        `pruning_config.json`, `pruning_record.json`, `report.json`, `report.html`, `plots/*.png` and `README.md`, the
        model card.

    Raises:
        MPrunerError: if the saved model is not the live one, or it carries adapters; nothing is left behind.
        ValueError, FileExistsError, PermissionError: see `check_output_dir`.
    """
    from .architectures.adapters import adapter_configs

    if adapter_configs(model):
        raise MPrunerError(
            f"{type(model).__name__} carries PEFT adapters, which are saved with the path of their base: call "
            "model.save_pretrained(folder) instead, or write the merged model, model.merge_and_unload(). Nothing was written."
        )
    folder = check_output_dir(output_dir, source=source, overwrite=overwrite)
    with new_folder(folder) as draft, _no_bars(), keep_rng_state():
        if save is not None:
            save(draft)
        else:
            _save_whole(model, processing_class, draft, max_shard_size)
        report.record.disk_bytes = weight_files_bytes(draft)
        report.plan.save_pretrained(draft)
        if config is not None:
            config.save_pretrained(draft)
        report.record.save(draft)
        report.save(draft)
        facts = ModelFacts.of_model(model, processing_class)
        if save is not None:
            facts = replace(facts, processor=processor_in(draft))
        try:
            write_pages(draft, report, facts, config=config, title=folder.name, present=_card_before(folder, draft))
        except Exception as error:  # hours of training are worth more than their description
            logger.warning("The model is written, its card is not: %s. Try again: hf-mpruner card %s", error, folder)
    return folder


def write_narrowed(
    output_dir: str | os.PathLike[str],
    *,
    model: PreTrainedModel,
    processing_class: Any = None,
    report: NarrowingReport,
    source: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write everything that a narrowed model needs, in one step; arguments and errors as `write_artifacts`.

    Returns:
        `Path`: the folder, absolute. It holds the model and its processor, `width_plan.json`, `narrowing_report.json` and
        `README.md`, the model card.
    """
    folder = check_output_dir(output_dir, source=source, overwrite=overwrite)
    with new_folder(folder) as draft, _no_bars(), keep_rng_state():
        _save_whole(model, processing_class, draft)
        report.plan.save_pretrained(draft)
        report.save(draft)
        facts = ModelFacts.of_model(model, processing_class)
        try:
            text = merge_card(
                _card_before(folder, draft), render_narrowing_card(report, model=facts, title=folder.name)
            )
            write_bytes(draft / CARD_NAME, text.encode("utf-8"))
        except Exception as error:
            logger.warning("The model is written, its card is not: %s. Try again: hf-mpruner card %s", error, folder)
    return folder


def _save_whole(
    model: PreTrainedModel, processing_class: Any, folder: Path, max_shard_size: int | str = "50GB"
) -> None:
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    if processing_class is not None:
        processing_class.save_pretrained(folder)
    check_saved_model(model, folder)


def write_pages(
    folder: Path,
    report: PruningReport,
    model: ModelFacts,
    *,
    config: PruningConfig | None,
    title: str,
    present: str | None = None,
    **card: Any,
) -> list[str]:
    """Write what people look at into a model's folder: plots, the report as a page, and the card.

    Args:
        folder (`Path`): of the model.
        report (`PruningReport`): of the run that pruned it.
        model (`ModelFacts`): of the pruned model.
        config (`PruningConfig`, *optional*): what was asked for.
        title (`str`): heading of a new card.
        present (`str`, *optional*): the README.md that is there, or was; what a person wrote in it stays.
        card: more for `render_card`: `repo_id`, `base_model`, `license`, `language`, `tags`, `datasets`.

    Returns:
        `list[str]`: names of the files, relative to the folder.

    Raises:
        ValueError: see `render_card` and `merge_card`.
    """
    pictures = write_plots(report, folder) or find_pictures(folder)
    ours = render_card(report, model=model, config=config, title=title, pictures=pictures, **card)
    text = merge_card(present, ours)
    report.save_html(folder)
    write_bytes(folder / CARD_NAME, text.encode("utf-8"))
    return [*pictures, PAGE_NAME, CARD_NAME]


def find_pictures(folder: Path) -> list[str]:
    """Names of the pictures that an earlier `write_plots` has left, where nothing can be drawn now."""
    return sorted(file.relative_to(folder).as_posix() for file in (folder / "plots").glob("*.png"))


def read_card(folder: Path) -> str | None:
    """The README.md of a folder, with its line endings; `None` if there is none.

    Raises:
        ValueError: if it is not in UTF-8, or its metadata cannot be read.
    """
    file = folder / CARD_NAME
    if not file.is_file():
        return None
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"'{file}' is not in UTF-8 ({error}). Save it as UTF-8, or move it away.") from error
    read_metadata(text)
    return text


def _card_before(folder: Path, draft: Path) -> str | None:
    """The README.md of the folder that is replaced; one that cannot be read stays whole, beside the new one."""
    try:
        return read_card(folder)
    except ValueError as error:
        logger.warning("The README.md that was there is now %s: %s", _UNREADABLE_CARD, error)
        write_bytes(draft / _UNREADABLE_CARD, (folder / CARD_NAME).read_bytes())
        return None


def check_saved_model(model: PreTrainedModel, folder: Path) -> None:
    """Load a saved model the way its users will, and compare it with the live one.

    Raises:
        MPrunerError: for names, shapes, types or values that differ.
    """
    # mismatched sizes are reported below, with everything else, instead of ending the comparison
    from_pretrained: Any = type(model).from_pretrained
    loaded, info = from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True, dtype="auto")
    live, saved = model.state_dict(), loaded.state_dict()
    problems = [f"{kind} {_listed(sorted(map(str, found)))}" for kind, found in info.items() if found]
    problems += [f"no {name}" for name in sorted(set(live) - set(saved))]
    problems += [f"an unknown {name}" for name in sorted(set(saved) - set(live))]
    other = [name for name in live if name in saved and not same_bits(live[name], saved[name])]
    problems += [f"another {name}{why_other(model, name, folder)}" for name in other[:5]]
    if problems:
        raise MPrunerError(
            f"The saved {type(model).__name__} is not the model in memory: loaded back it has {'; '.join(problems[:5])}. "
            "Nothing was written. Unless a reason is given, this is a defect: please report it with the model's config."
        )


@contextmanager
def _no_bars() -> Iterator[None]:
    """Saving and loading back is no work that anyone waits for with a bar."""
    from transformers.utils import logging as chatter

    shown = chatter.is_progress_bar_enabled()
    chatter.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            chatter.enable_progress_bar()


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
