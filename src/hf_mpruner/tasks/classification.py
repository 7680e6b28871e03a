"""Classes of texts and of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import Columns, find_columns, find_label_names, open_images, preprocess, take_columns
from .base import Purpose, Settings, Task, refuse_other_roles

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


class Classification(Task):
    """One label for each row."""

    def find_columns(self, dataset: Any, named: Mapping[str, Any], *, need_label: bool) -> Columns:
        """One text or a pair, or one image; and the class."""
        refuse_other_roles(self, named)
        return find_columns(
            dataset,
            self.kind,
            named.get("text_column"),
            named.get("label_column"),
            named.get("image_column"),
            need_label=need_label,
        )

    def find_label_names(self, dataset: Any, columns: Columns) -> list[str] | None:
        """The classes in the data, in the order of their numbers."""
        return find_label_names(dataset, str(columns.label))

    def prepare(
        self,
        dataset: Any,
        columns: Columns,
        model: PreTrainedModel,
        processing_class: Any,
        settings: Settings,
        purpose: Purpose,
    ) -> Any:
        """Token ids or pixels, and `labels` in the model's own numbers."""
        if purpose == "calibration":
            columns = dataclasses.replace(columns, label=None)
        return preprocess(dataset, processing_class, columns, model, max_length=settings.max_length)

    def own_metrics(self, config: PreTrainedConfig) -> tuple[str, ...]:
        """Accuracy decides."""
        return ("accuracy", "f1_macro")


class TextClassification(Classification):
    """A class for each text, or pair of texts."""

    name, kind, roles = "text-classification", "text", ("text_column", "label_column")


class ImageClassification(Classification):
    """A class for each image."""

    name, kind, roles = "image-classification", "image", ("image_column", "label_column")

    def take(self, dataset: Any, columns: Columns, folder: Path | None = None) -> Any:
        """Pictures, also where the data has the paths of their files."""
        return open_images(take_columns(dataset, columns), columns.inputs[0], folder)
