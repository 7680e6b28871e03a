"""Which task a checkpoint is for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..data import ModelKind
from ..errors import UnsupportedArchitectureError
from ..heads import find_head
from .answers import QuestionAnswering
from .base import Task
from .classification import ImageClassification, TextClassification
from .language import FillMask, TextGeneration
from .seq2seq import TextToText
from .tokens import TokenClassification

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

TASKS: dict[str, type[Task]] = {
    kind.name: kind
    for kind in (
        TextClassification,
        TokenClassification,
        ImageClassification,
        QuestionAnswering,
        TextGeneration,
        TextToText,
        FillMask,
    )
}
# What the Hub calls a text-to-text model, which its class does not tell.
ALIASES = dict.fromkeys(("summarization", "translation"), TextToText.name)


def find_task(config: PreTrainedConfig, name: str | None = None) -> Task:
    """The task that was named, that of the checkpoint's own head, or the only one that the model type has a head for.

    Args:
        config (`PreTrainedConfig`): of the checkpoint.
        name (`str`, *optional*): one of `TASKS`, or of `ALIASES`.

    Raises:
        ValueError: if several are possible, or the named one is not.
        UnsupportedArchitectureError: if none is.

    Example:
        >>> from transformers import BertConfig
        >>> find_task(BertConfig(architectures=["BertForSequenceClassification"])).name
        'text-classification'
    """
    possible = {task: kind for task, kind in TASKS.items() if kind().head.classes(config)}
    if name is not None:
        if ALIASES.get(name, name) not in possible:
            known = [*TASKS, *ALIASES]
            near = difflib.get_close_matches(name, known, n=1)
            what = f"a {config.model_type} model has no head for it, only for {_listed(possible)}"
            if name not in known:
                question = f" (did you mean '{near[0]}'?)" if near else ""
                what = f"there is no such task here{question}, only {_listed(known)}"
            raise ValueError(f"--task {name}: {what}.")
        return possible[ALIASES.get(name, name)](name if name in ALIASES else None)
    own = find_head(config)
    if own is not None and own.task in possible:
        return possible[own.task]()
    if own is None and len(possible) == 1:
        return next(iter(possible.values()))()
    if own is None and possible:
        raise ValueError(f"A {config.model_type} model can do {_listed(possible)}: say which with --task.")
    what = f"is for {own.task}" if own is not None else "has no head for a task here"
    raise UnsupportedArchitectureError(
        f"A {config.model_type} model {what}. hf-mpruner prune trains {_listed(TASKS)}. Use LayerPruningCallback in your "
        "own training script."
    )


def find_reader(kind: ModelKind) -> Task:
    """The task whose way of reading rows suits a model without a head for any task, to measure it."""
    return ImageClassification() if kind == "image" else TextClassification()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "nothing"
