"""A pruning run in a client's process that pushes to the test server: what the tests of the Trainer's pushes share."""

from __future__ import annotations

import hashlib
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

from resume_kit import begin

logging.basicConfig(stream=sys.stderr, level=logging.WARNING)


def make_bert(num_hidden_layers: int = 4, **config: Any) -> BertForSequenceClassification:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 99}
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(num_hidden_layers=num_hidden_layers, max_position_embeddings=32, **{**sizes, **config})
    ).eval()


def make_tokenizer(home: str) -> PreTrainedTokenizerFast:
    """One that says where it was loaded from, as a tokenizer from a local folder does."""
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "a": 2, "b": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
    tokenizer.init_kwargs["special_tokens_map_file"] = home
    return tokenizer


class Log(logging.Handler):
    """What hf_mpruner says in the process."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        logging.getLogger("hf_mpruner").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def take(self) -> list[str]:
        """The lines since the last time."""
        lines, self.lines = self.lines, []
        return lines


LOG = Log()
KEPT: dict[str, Any] = {}  # what one call of the client leaves for the next


class Patient(TrainerCallback):
    """Waits for each push, so that every save is pushed, and keeps what is to be compared afterwards."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.failed: list[str] = []
        self.waits = True

    def on_push_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A callback of the user's puts a file beside the model."""
        (Path(args.output_dir) / "notes.md").write_text(f"step {state.global_step}\n")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        push = getattr(self.trainer, "push_in_progress", None)
        if push is not None and self.waits:
            push.wait_until_done()
            self.failed += [str(job.exception()) for job in push.jobs if job.exception()]


def build(folder: str, repo_id: str, **options: Any) -> tuple[Any, Any, Patient]:
    """Trainer, pruning callback and `Patient` of a run with cuts pending at the steps 4 and 6, 8 and 10."""
    arguments = {"push_to_hub": True, "hub_model_id": repo_id, "save_steps": 4, **options}
    trainer, callback = begin(make_bert, folder, **arguments)
    trainer.processing_class = make_tokenizer(str(Path(folder) / "tokenizer"))
    trainer.model.config._name_or_path = str(Path(folder) / "base")
    trainer.model.add_model_tags(["tagged"])
    patient = Patient()
    patient.trainer = trainer
    trainer.add_callback(patient)
    return trainer, callback, patient


def logits(model: Any) -> list[list[float]]:
    """As doubles, which JSON keeps to the last bit."""
    model = model.eval()
    for parameter in model.parameters():  # another alignment in memory may give other last bits
        parameter.data = parameter.data.clone()
    with torch.no_grad():
        found: list[list[float]] = model(torch.arange(2, 18).reshape(2, 8)).logits.double().tolist()
        return found


def loaded_logits(repo_id: str, **options: Any) -> list[list[float]]:
    return logits(AutoModelForSequenceClassification.from_pretrained(repo_id, **options))


def digest(model: Any) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode() + tensor.numpy().tobytes())
    return total.hexdigest()
