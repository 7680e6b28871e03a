"""`--training KEY=VALUE`: any field of TrainingArguments that no flag of its own has."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any, cast

from transformers import HfArgumentParser, Seq2SeqTrainingArguments, TrainingArguments

from .parser import UsageError, closest

# Field -> the flag that says it.
_FLAGS = {
    "learning_rate": "--learning_rate",
    "weight_decay": "--weight_decay",
    "lr_scheduler_type": "--lr_scheduler_type",
    "num_train_epochs": "--num_train_epochs",
    "per_device_train_batch_size": "--batch_size",
    "seed": "--seed",
    "output_dir": "--output_dir",
    "metric_for_best_model": "--metric",
    "greater_is_better": "--greater_is_better",
    "generation_max_length": "--max_target_length",
    "push_to_hub": "--push_to_hub",
    "hub_model_id": "--push_to_hub",
}
# What this command needs as it sets it: nothing is saved between the rounds, and the rounds decide what is kept.
_SET_HERE = (
    "do_train", "do_eval", "do_predict", "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "save_strategy",
    "save_steps", "save_total_limit", "save_only_model", "save_on_each_node", "load_best_model_at_end",
    "resume_from_checkpoint", "max_steps", "remove_unused_columns", "label_names", "predict_with_generate",
    "prediction_loss_only", "batch_eval_metrics", "include_for_metrics", "eval_do_concat_batches", "disable_tqdm",
    "hub_token", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision", "enable_jit_checkpoint",
)  # fmt: skip


def read_training(words: Sequence[str]) -> dict[str, Any]:
    """`["warmup_steps=10"]` as arguments of the Trainer's settings, of the types that these have.

    Raises:
        UsageError: for a field that does not exist, that the command sets itself, or a value of another type.

    Example:
        >>> read_training(["warmup_steps=10", "bf16=false", "optim=adamw_torch"])["bf16"]
        False
    """
    if not words:
        return {}
    actions = {
        action.dest: action for action in reversed(HfArgumentParser(cast(Any, Seq2SeqTrainingArguments))._actions)
    }
    fields = [field.name for field in dataclasses.fields(TrainingArguments)]
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise UsageError(f"--training {word}: write KEY=VALUE, e.g. warmup_steps=10.")
        if name in _FLAGS:
            raise UsageError(f"--training {word}: {name} is said with {_FLAGS[name]}.")
        if name in _SET_HERE:
            raise UsageError(f"--training {word}: {name} is set by hf-mpruner prune itself. Leave it out.")
        if name not in actions:
            raise UsageError(f"--training {word}: TrainingArguments has no field '{name}'{closest(name, fields)}.")
        values[name] = _typed(actions[name], text, word)
    return values


def _typed(action: argparse.Action, text: str, word: str) -> Any:
    """The value as the field's own parser reads it; lists are written with commas."""
    convert: Any = action.type if callable(action.type) else str
    try:
        value = [convert(part) for part in text.split(",")] if action.nargs == "+" else convert(text)
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        kind = getattr(convert, "__name__", "value").replace("string_to_bool", "true or false")
        raise UsageError(f"--training {word}: '{text}' is no {kind} ({error}).") from error
    if action.choices is not None and value not in list(action.choices):
        raise UsageError(
            f"--training {word}: pass one of {', '.join(str(getattr(c, 'value', c)) for c in action.choices)}."
        )
    return value
