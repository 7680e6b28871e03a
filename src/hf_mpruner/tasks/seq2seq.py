"""Text in, text out: summaries, translations, questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..data import Columns, find_max_length, find_target_columns, quiet_bars, refuse_empty
from .base import Purpose, Settings, Task, refuse_other_roles

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainingArguments


class TextToText(Task):
    """A target text for each source text; the loss decides, or metrics of what the model writes."""

    name, kind, roles = "text2text-generation", "text", ("text_column", "target_column")

    def find_columns(self, dataset: Any, named: Mapping[str, Any], *, need_label: bool) -> Columns:
        """Source and target; measuring needs the target, too, which feeds the decoder."""
        refuse_other_roles(self, named)
        return find_target_columns(dataset, named.get("text_column"), named.get("target_column"))

    def prepare(
        self,
        dataset: Any,
        columns: Columns,
        model: PreTrainedModel,
        processing_class: Any,
        settings: Settings,
        purpose: Purpose,
    ) -> Any:
        """Token ids of the source, and of the target as `labels`, from which the collator makes decoder inputs.

        Raises:
            ValueError: for a cell that is empty, or a tokenizer of many languages that does not know which is wanted.
        """
        if getattr(processing_class, "tgt_lang", "") is None:
            raise ValueError(
                f"{type(processing_class).__name__} marks the languages of both texts, and its tgt_lang is not set. Load it "
                "once with both, and save it beside the model: AutoTokenizer.from_pretrained(model, src_lang='en_XX', "
                "tgt_lang='de_DE').save_pretrained(folder)."
            )
        source, target = columns.inputs[0], str(columns.label)
        most = find_max_length(processing_class, model.config)
        limit, target_limit = settings.max_length or most, settings.max_target_length or most

        def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            for column in (source, target):
                refuse_empty(batch[column], column)
            texts = [settings.source_prefix + text for text in batch[source]]
            inputs = dict(processing_class(texts, truncation=limit is not None, max_length=limit))
            labels = processing_class(
                text_target=batch[target], truncation=target_limit is not None, max_length=target_limit
            )
            return {**inputs, "labels": labels["input_ids"]}

        with quiet_bars():
            return dataset.map(encode, batched=True, remove_columns=dataset.column_names)

    def make_collator(self, model: PreTrainedModel, processing_class: Any) -> Callable[[list[Any]], Any] | None:
        """Pads both, and makes the decoder's inputs of the labels."""
        from transformers import DataCollatorForSeq2Seq

        return DataCollatorForSeq2Seq(processing_class, model=model)

    def trainer_classes(self) -> tuple[type[Trainer], type[TrainingArguments]]:
        """The Trainer that can let the model write while it is judged."""
        from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

        return Seq2SeqTrainer, Seq2SeqTrainingArguments

    def training_options(self, settings: Settings, metrics: Sequence[Any]) -> dict[str, Any]:
        """The model writes only if a metric reads it."""
        return {"predict_with_generate": bool(metrics), "generation_max_length": settings.max_target_length}
