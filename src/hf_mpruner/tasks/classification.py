"""Classes of texts and of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import Columns, find_columns, find_label_names, preprocess
from .base import Purpose, Settings, Task, refuse_other_roles

if TYPE_CHECKING:
    from transformers import EvalPrediction, PreTrainedModel


class Classification(Task):
    """One label for each row."""

    metrics = ("accuracy", "f1_macro")

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

    def make_compute_metrics(
        self, model: PreTrainedModel, processing_class: Any, judge: Any, metrics: Sequence[Any] = ()
    ) -> Callable[[Any], dict[str, float]] | None:
        """Accuracy and macro F1."""
        return classification_metrics


class TextClassification(Classification):
    """A class for each text, or pair of texts."""

    name, kind, roles = "text-classification", "text", ("text_column", "label_column")


class ImageClassification(Classification):
    """A class for each image."""

    name, kind, roles = "image-classification", "image", ("image_column", "label_column")


def classification_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy, and F1 averaged over the classes that occur.

    Example:
        >>> from transformers import EvalPrediction
        >>> scores = np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0], [3.0, 1.0]])
        >>> classification_metrics(EvalPrediction(scores, np.array([0, 1, 1, 0])))
        {'accuracy': 0.75, 'f1_macro': 0.7333333333333334}
    """
    scores = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    guessed, labels = scores.argmax(-1), prediction.label_ids
    f1 = []
    for label in np.union1d(guessed, labels):
        hits = int(((guessed == label) & (labels == label)).sum())
        f1.append(2 * hits / int((guessed == label).sum() + (labels == label).sum()))
    return {"accuracy": float((guessed == labels).mean()), "f1_macro": float(np.mean(f1))}
