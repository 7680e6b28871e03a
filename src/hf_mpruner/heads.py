"""Tasks as transformers knows them: which Auto class loads a model with the head for a task, and what the Hub calls it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Head:
    """A task that transformers has model classes for.

    Args:
        task (`str`): its name; what the Hub calls `pipeline_tag`, except for `"text2text-generation"`, which the Hub
            splits into summarization, translation and others.
        auto_class (`str`): the Auto class that loads a model with this head.
        table (`str`): the table of transformers from model type to the class (or classes) with this head.
    """

    task: str
    auto_class: str
    table: str

    @property
    def pipeline_tag(self) -> str | None:
        """What the Hub calls the task; `None` if only the user knows it."""
        return None if self.task == "text2text-generation" else self.task

    def classes(self, config: PreTrainedConfig) -> tuple[str, ...]:
        """Names of the classes with this head for a model type: in transformers, or in the model's own code."""
        from transformers.models.auto import modeling_auto

        own = (getattr(config, "auto_map", None) or {}).get(self.auto_class)
        if isinstance(own, str):
            return (own.rpartition(".")[2],)
        made = getattr(modeling_auto, self.table, {}).get(config.model_type, ())
        return (made,) if isinstance(made, str) else tuple(made)


# In the order in which a class is looked up: T5ForConditionalGeneration is in the tables of two of them.
HEADS = {
    head.task: head
    for head in (
        Head(
            "text-classification",
            "AutoModelForSequenceClassification",
            "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
        ),
        Head(
            "token-classification", "AutoModelForTokenClassification", "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES"
        ),
        Head("question-answering", "AutoModelForQuestionAnswering", "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES"),
        Head(
            "image-classification", "AutoModelForImageClassification", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES"
        ),
        Head("text-generation", "AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"),
        Head("text2text-generation", "AutoModelForSeq2SeqLM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"),
        Head(
            "automatic-speech-recognition",
            "AutoModelForSpeechSeq2Seq",
            "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
        ),
        Head("fill-mask", "AutoModelForMaskedLM", "MODEL_FOR_MASKED_LM_MAPPING_NAMES"),
    )
}


def find_head(config: PreTrainedConfig, class_name: str | None = None) -> Head | None:
    """The head of a checkpoint, or `None` if its class is none of a task here.

    Args:
        config (`PreTrainedConfig`): of the checkpoint.
        class_name (`str`, *optional*): the model's class; by default the one that `config.architectures` names.

    Example:
        >>> from transformers import BertConfig
        >>> find_head(BertConfig(), "BertForMaskedLM").auto_class
        'AutoModelForMaskedLM'
    """
    name = class_name or next(iter(config.architectures or ()), None)
    return next((head for head in HEADS.values() if name in head.classes(config)), None)


def find_auto_class(model: PreTrainedModel) -> tuple[str, str]:
    """Name and module of what loads a model: its Auto class, or its own class if it has none.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 1}
        >>> find_auto_class(BertForMaskedLM(BertConfig(vocab_size=9, **sizes)))
        ('AutoModelForMaskedLM', 'transformers')
    """
    own, module = type(model).__name__, type(model).__module__
    head = find_head(model.config, own)
    if head is not None:
        return head.auto_class, "transformers"
    return own, "transformers" if module.startswith("transformers.") else module
