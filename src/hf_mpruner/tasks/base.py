"""The one interface of a task: which columns it needs, what becomes of its rows, who trains and what judges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..data import Columns, ModelKind, take_columns
from ..heads import HEADS, Head
from ..scoring import ComputeMetrics, LoadedMetric, make_compute_metrics

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, Trainer, TrainingArguments

# What rows are prepared for: training, judging a round, or measuring similarity (no loss, so no labels).
Purpose = Literal["train", "judge", "calibration"]


@dataclass(frozen=True)
class Settings:
    """What the user may say about the way from rows to model inputs.

    Args:
        max_length (`int`, *optional*): tokens of an input; by default as many as tokenizer and model take.
        max_target_length (`int`, *optional*): tokens of a target text; by default as many as the model takes.
        source_prefix (`str`): goes before each source text, as T5 was trained with: `"summarize: "`.
        seed (`int`): of what is drawn once and for all, such as the masks that judge.
    """

    max_length: int | None = None
    max_target_length: int | None = None
    source_prefix: str = ""
    seed: int = 0


class Task:
    """A task of transformers as the command line handles it.

    Args:
        pipeline_tag (`str`, *optional*): what the Hub calls it, where the user knows better than the model's class.
    """

    name: ClassVar[str]
    kind: ClassVar[ModelKind]
    #: The columns that it can use, as arguments of `find_columns`.
    roles: ClassVar[tuple[str, ...]]

    def __init__(self, pipeline_tag: str | None = None) -> None:
        self.pipeline_tag = pipeline_tag or HEADS[self.name].pipeline_tag

    @property
    def head(self) -> Head:
        """The Auto class and the model classes of this task."""
        return HEADS[self.name]

    @property
    def auto_class(self) -> str:
        """The Auto class that loads a model with this task's head."""
        return self.head.auto_class

    def find_columns(self, dataset: Any, named: Mapping[str, Any], *, need_label: bool) -> Columns:
        """The columns that the user named, or that can be found.

        Args:
            dataset (`datasets.Dataset`): only its features are read.
            named (`dict`): role (`"text_column"`) -> what the user typed, if anything.
            need_label (`bool`): whether data without labels is an error.

        Raises:
            ValueError: if a named column does not exist, or none or several could be meant.
        """
        raise NotImplementedError

    def take(self, dataset: Any, columns: Columns, folder: Path | None = None) -> Any:
        """The columns that matter, in one form whatever the file could hold.

        Args:
            dataset (`datasets.Dataset`): as it was loaded.
            columns (`Columns`): from `find_columns`.
            folder (`Path`, *optional*): what paths in the data are relative to.

        Raises:
            ValueError: if this part of the data lacks a column, or a cell cannot be read.
        """
        return take_columns(dataset, columns)

    def find_label_names(self, dataset: Any, columns: Columns) -> list[str] | None:
        """The classes in the data, for a head that is new; `None` for a task without classes."""
        return None

    def prepare(
        self,
        dataset: Any,
        columns: Columns,
        model: PreTrainedModel,
        processing_class: Any,
        settings: Settings,
        purpose: Purpose,
    ) -> Any:
        """Raw rows as model inputs, padded by the collator only.

        Raises:
            ValueError: for a cell or a label that cannot be used.
        """
        raise NotImplementedError

    def make_collator(self, model: PreTrainedModel, processing_class: Any) -> Callable[[list[Any]], Any] | None:
        """What makes batches; `None` for the Trainer's own."""
        return None

    def trainer_classes(self) -> tuple[type[Trainer], type[TrainingArguments]]:
        """The Trainer, and its arguments."""
        from transformers import Trainer, TrainingArguments

        return Trainer, TrainingArguments

    def own_metrics(self, config: PreTrainedConfig) -> tuple[str, ...]:
        """What is measured without being asked for, computed by hf_mpruner beside the loss; the first decides."""
        return ()

    def count_examples(self, judge: Any) -> int:
        """How many examples the prepared data that judges stands for."""
        return len(judge)

    def make_scorer(
        self, model: PreTrainedModel, processing_class: Any, judge: Any, metrics: Sequence[LoadedMetric] = ()
    ) -> ComputeMetrics | None:
        """What the Trainer computes of its predictions; `None` if the loss is all that is wanted.

        Args:
            model (`PreTrainedModel`): that is judged.
            processing_class: its tokenizer or image processor.
            judge: the prepared data that judges.
            metrics (sequence of `LoadedMetric`, *optional*): by default the task's own.
        """
        if not metrics and not self.own_metrics(model.config):
            return None
        names = [str(name) for _, name in sorted((model.config.id2label or {}).items())]
        return make_compute_metrics(
            list(metrics) or None, task=self.name, label_names=names, processing_class=processing_class
        )

    def training_options(self, settings: Settings, metrics: Sequence[Any]) -> dict[str, Any]:
        """Further fields of the Trainer's arguments."""
        return {}

    def trainer_options(self, metrics: Sequence[Any]) -> dict[str, Any]:
        """Further arguments of the Trainer."""
        return {}

    def processor_options(self, config: PreTrainedConfig) -> dict[str, Any]:
        """What the tokenizer or image processor is loaded with."""
        return {}


def refuse_other_roles(task: Task, named: Mapping[str, Any]) -> None:
    """Refuse a column for a role that the task does not have.

    Raises:
        ValueError: names the roles that it has.
    """
    for role, value in named.items():
        if value is not None and role not in task.roles:
            raise ValueError(
                f"--{role} {value}: {task.name} reads no such column. It takes "
                f"{', '.join(f'--{known}' for known in task.roles)}."
            )
