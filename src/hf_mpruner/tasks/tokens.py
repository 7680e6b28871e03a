"""A tag for each word of a sentence: named entities, parts of speech."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import (
    Columns,
    find_label_names,
    find_max_length,
    find_token_columns,
    label_ids,
    quiet_bars,
    split_words,
    take_columns,
)
from ..scoring import has_entities
from .base import Purpose, Settings, Task, refuse_other_roles

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# The loss skips these positions.
_IGNORED = -100
# Their tokenizers see the space before a word as part of it, and must be told that there is one before the first.
_SPACE_BEFORE = ("bloom", "gpt2", "roberta", "deberta", "bart", "longformer", "led", "mvp")


class TokenClassification(Task):
    """A tag for each word."""

    name, kind, roles = "token-classification", "text", ("tokens_column", "label_column")

    def find_columns(self, dataset: Any, named: Mapping[str, Any], *, need_label: bool) -> Columns:
        """The words and the tags."""
        refuse_other_roles(self, named)
        return find_token_columns(
            dataset, named.get("tokens_column"), named.get("label_column"), need_label=need_label
        )

    def take(self, dataset: Any, columns: Columns, folder: Path | None = None) -> Any:
        """Lists of words and tags, also where a file has them as text."""
        return split_words(take_columns(dataset, columns), columns)

    def find_label_names(self, dataset: Any, columns: Columns) -> list[str] | None:
        """The tags in the data, in the order of their numbers."""
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
        """Token ids, and `labels`: the tag at the first token of each word, -100 at the others."""
        if not getattr(processing_class, "is_fast", False):
            raise ValueError(
                f"token-classification needs a fast tokenizer, which knows the word of each token, and "
                f"{type(processing_class).__name__} is none. Save one beside the model: AutoTokenizer.from_pretrained(...)."
            )
        limit = settings.max_length or find_max_length(processing_class, model.config)
        label = None if purpose == "calibration" else columns.label
        numbers = {} if label is None else label_ids(dataset, label, model.config)

        def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            words = [[str(word) for word in sentence] for sentence in batch[columns.inputs[0]]]
            encoded = processing_class(words, is_split_into_words=True, truncation=limit is not None, max_length=limit)
            inputs = dict(encoded)
            if label is not None:
                inputs["labels"] = [
                    align([numbers[tag] for tag in tags], encoded.word_ids(row))
                    for row, tags in enumerate(batch[label])
                ]
            return inputs

        with quiet_bars():
            return dataset.map(encode, batched=True, remove_columns=dataset.column_names)

    def make_collator(self, model: PreTrainedModel, processing_class: Any) -> Callable[[list[Any]], Any] | None:
        """Pads the labels, too."""
        from transformers import DataCollatorForTokenClassification

        return DataCollatorForTokenClassification(processing_class)

    def own_metrics(self, config: PreTrainedConfig) -> tuple[str, ...]:
        """F1 of whole entities decides if tags mark entities, else accuracy."""
        if has_entities([str(name) for name in (config.id2label or {}).values()]):
            return ("f1", "accuracy", "precision", "recall")
        return ("accuracy", "f1_macro")

    def processor_options(self, config: PreTrainedConfig) -> dict[str, Any]:
        """A space before the first word, for tokenizers that would take it for the inside of one."""
        return {"add_prefix_space": True} if config.model_type in _SPACE_BEFORE else {}


def align(tags: list[int], words: list[int | None]) -> list[int]:
    """Labels of tokens from tags of words.

    Args:
        tags (`list[int]`): one for each word.
        words (`list[int | None]`): for each token the word it belongs to, `None` for special tokens.

    Example:
        >>> align([5, 7], [None, 0, 0, 1, None])
        [-100, 5, -100, 7, -100]
    """
    before = [None, *words[:-1]]
    return [
        tags[word] if word is not None and word != last else _IGNORED for word, last in zip(words, before, strict=True)
    ]
