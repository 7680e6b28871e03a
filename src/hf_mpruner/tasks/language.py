"""Plain text: the next token, or the masked ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from ..data import Columns, drop_blank, find_columns, find_max_length, preprocess, quiet_bars, take_columns
from ..runtime import keep_rng_state
from .base import Purpose, Settings, Task, refuse_other_roles

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import DataCollatorForLanguageModeling, PreTrainedModel

# Longest block of a causal model, whatever it takes: attention over more costs more than it tells.
LONGEST_BLOCK = 1024
_MASKED_PART = 0.15


class _LanguageTask(Task):
    """Reads one column of text; the loss decides."""

    kind, roles = "text", ("text_column",)

    def find_columns(self, dataset: Any, named: Mapping[str, Any], *, need_label: bool) -> Columns:
        """The text."""
        refuse_other_roles(self, named)
        found = find_columns(dataset, "text", named.get("text_column"), need_label=False)
        if len(found.inputs) != 1:
            first = found.inputs[0]
            raise ValueError(
                f"{self.name} reads one text, and the data has a pair ('{first}', '{found.inputs[1]}'): name one, "
                f"--text_column {first}."
            )
        return Columns("text", found.inputs)

    def take(self, dataset: Any, columns: Columns, folder: Path | None = None) -> Any:
        """Rows with text in them."""
        return drop_blank(take_columns(dataset, columns), columns.inputs[0])

    def trainer_options(self, metrics: Sequence[Any]) -> dict[str, Any]:
        """Metrics see the likeliest tokens, not the logits of the whole vocabulary."""
        return {"preprocess_logits_for_metrics": likeliest_tokens} if metrics else {}


class TextGeneration(_LanguageTask):
    """The next token of running text."""

    name = "text-generation"

    def prepare(
        self,
        dataset: Any,
        columns: Columns,
        model: PreTrainedModel,
        processing_class: Any,
        settings: Settings,
        purpose: Purpose,
    ) -> Any:
        """Blocks of one length, cut from all texts put together; for measuring each text alone, so that it is a row."""
        limit = settings.max_length or min(
            find_max_length(processing_class, model.config) or LONGEST_BLOCK, LONGEST_BLOCK
        )
        if purpose == "calibration":
            return preprocess(dataset, processing_class, columns, model, max_length=limit)

        def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            # no limit yet: the text is cut into blocks, not off
            encoded = processing_class(batch[columns.inputs[0]], return_attention_mask=False, verbose=False)
            return make_blocks(encoded["input_ids"], limit)

        with quiet_bars():
            return dataset.map(encode, batched=True, remove_columns=dataset.column_names)

    def make_collator(self, model: PreTrainedModel, processing_class: Any) -> Callable[[list[Any]], Any] | None:
        """Pads labels by -100: a padding token that is also the end-of-text token still counts inside a text."""
        from transformers import DataCollatorForTokenClassification

        return DataCollatorForTokenClassification(processing_class)


class FillMask(_LanguageTask):
    """Tokens behind masks: drawn anew each epoch to train, once and for all to judge."""

    name = "fill-mask"

    def prepare(
        self,
        dataset: Any,
        columns: Columns,
        model: PreTrainedModel,
        processing_class: Any,
        settings: Settings,
        purpose: Purpose,
    ) -> Any:
        """Each text with masks, at least one; without any to measure."""
        texts = preprocess(dataset, processing_class, columns, model, max_length=settings.max_length)
        if purpose == "calibration":
            return texts
        if processing_class.mask_token is None:
            raise ValueError(
                f"fill-mask needs a tokenizer with a mask token, and this {type(processing_class).__name__} has none. Save "
                "the model's own tokenizer beside it, or name another task with --task."
            )
        masks = make_masks(processing_class)
        if purpose == "train":
            return MaskedWhenRead(texts, masks)
        with quiet_bars(), keep_rng_state():
            torch.manual_seed(settings.seed)
            return texts.map(lambda example: mask(example, masks), load_from_cache_file=False)

    def make_collator(self, model: PreTrainedModel, processing_class: Any) -> Callable[[list[Any]], Any] | None:
        """Pads inputs and labels that are masked already."""
        from transformers import DataCollatorForTokenClassification

        return DataCollatorForTokenClassification(processing_class)


def make_blocks(texts: Sequence[list[int]], length: int) -> dict[str, list[list[int]]]:
    """Put texts together and cut them into blocks; what is left over at the end is dropped, as run_clm.py does.

    Fewer tokens than one block are one shorter block, so that small data is not empty.

    Args:
        texts (sequence of `list[int]`): token ids.
        length (`int`): tokens of a block.

    Example:
        >>> make_blocks([[1, 2, 3], [4, 5]], 2)["input_ids"]
        [[1, 2], [3, 4]]
    """
    tokens = list(chain.from_iterable(texts))
    whole = len(tokens) // length * length or len(tokens)
    blocks = [tokens[start : start + length] for start in range(0, whole, length)]
    return {"input_ids": blocks, "labels": [list(block) for block in blocks]}


def likeliest_tokens(logits: Any, labels: Tensor) -> Tensor:
    """Token ids `(num_examples, positions)` from logits with one dimension more, or from a model's first output."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)


def make_masks(tokenizer: Any) -> DataCollatorForLanguageModeling:
    """What draws masks, from the global random state."""
    from transformers import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(tokenizer, mlm_probability=_MASKED_PART)


def mask(example: Mapping[str, Any], masks: DataCollatorForLanguageModeling) -> dict[str, list[int]]:
    """One text with masks, and `labels` that are -100 where there is none.

    A text without any is drawn again (at most so often that it must be one of special tokens only): the mean over no
    token is not a number, and would spoil the weights.
    """
    names = ("input_ids", "attention_mask", "token_type_ids", "special_tokens_mask")
    single = {name: example[name] for name in names if name in example}
    for _ in range(100):
        batch = masks([single])
        if bool((batch["labels"] != -100).any()):
            break
    return {name: value[0].tolist() for name, value in batch.items()}


class MaskedWhenRead(TorchDataset):
    """Texts whose masks are drawn when they are read, other ones in each epoch.

    Args:
        dataset (`datasets.Dataset`): token ids.
        masks (`DataCollatorForLanguageModeling`): draws them.
    """

    def __init__(self, dataset: Dataset, masks: DataCollatorForLanguageModeling) -> None:
        """Remember both."""
        self.dataset, self.masks = dataset, masks

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return mask(self.dataset[index], self.masks)
