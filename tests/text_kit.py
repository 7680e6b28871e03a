"""What the tests of other libraries' trainers share: a text that is where Python is, and a tokenizer of its words."""

from __future__ import annotations

import inspect
import textwrap

from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "eos_token": "[EOS]",
}


def lines():
    """The lines of `textwrap.TextWrapper`'s docstring that have three words or more: of 3 to 14 words."""
    text = inspect.getdoc(textwrap.TextWrapper)
    return [line for line in text.splitlines() if len(line.split()) > 2]


def make_tokenizer(*, pairs: bool = False):
    """Words of `lines()`; with `pairs`, texts are put between [CLS] and [SEP] as BERT takes them."""
    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(lines(), trainers.WordLevelTrainer(special_tokens=list(SPECIAL.values())))
    if pairs:
        words.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=32, **SPECIAL)
