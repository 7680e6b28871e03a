"""Cards that transformers writes by itself, recognised only if nobody has added a word to them."""

from __future__ import annotations

import re
from typing import Any

from .front import read_metadata, split_card

# What transformers' PreTrainedModel.push_to_hub fills huggingface_hub's template with.
_DESCRIPTION = (
    "This is the model card of a 🤗 transformers model that has been pushed on the Hub. This model card has been "
    "automatically generated."
)
_UNSAID = "[More Information Needed]"
_NUMBER = r"-?[\d.]+(e-?\d+)?"
_ASKED = "More information needed"
# A Trainer's card from its first line to its last; one other word, and a person has written in it.
_OF_TRAINER = re.compile(
    r"\s*<!-- This model card has been generated automatically according to the information the Trainer had access to\. "
    r"You\nshould probably proofread and complete it, then remove this comment\. -->\n"
    r"\n# \S+\n\n"
    r"This model (is a fine-tuned version of \[\S+\]\(https://huggingface\.co/\S+\)|was trained from scratch) on "
    r"(an unknown dataset|the [^\n]+ datasets?)\.\n"
    rf"(It achieves the following results on the evaluation set:\n(- [^\n:]+: {_NUMBER}\n)+)?"
    rf"\n## Model description\n\n{_ASKED}\n"
    rf"\n## Intended uses & limitations\n\n{_ASKED}\n"
    rf"\n## Training and evaluation data\n\n{_ASKED}\n"
    r"\n## Training procedure\n\n### Training hyperparameters\n\n"
    rf"({_ASKED}\n|The following hyperparameters were used during training:\n(- ((optimizer|mixed_precision_training): [^\n]+|[a-z_]+: \S+)\n)+)"
    r"(\n### Training results\n\n\| Training Loss +\|[^\n]+\|\n\|[:|-]+\|\n"
    rf"(\|( +(No log|{_NUMBER}) +\|)+\n)+\n*)?"
    r"\n### Framework versions\n\n(- [A-Z]\w+ [\w.+-]+\n)+\s*"
)


def is_untouched_default(text: str) -> bool:
    """Whether a README.md is transformers' own, with not one line more: of `model.push_to_hub`, or of a Trainer."""
    text = text.replace("\r\n", "\n")
    body = split_card(text).body
    if _OF_TRAINER.fullmatch(body):
        return True
    return _UNSAID in body and body.strip() == _template_body(read_metadata(text)).strip()


def _template_body(metadata: dict[str, Any]) -> str:
    from huggingface_hub import ModelCard, ModelCardData

    try:
        data = ModelCardData(ignore_metadata_errors=True, **{str(key): value for key, value in metadata.items()})
        return split_card(str(ModelCard.from_template(data, model_description=_DESCRIPTION))).body
    except (AttributeError, KeyError, TypeError, ValueError):  # metadata that this class does not take: of a person
        return ""
