"""Models by name: on the meta device to look at, with weights to measure, with a task's head to train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from hf_mpruner.data import ModelKind
from hf_mpruner.errors import UnsupportedArchitectureError

from .parser import UsageError


@dataclass(frozen=True)
class Task:
    """A task that `prune` trains and judges.

    Args:
        name (`str`): the Hub's `pipeline_tag`.
        kind (`"text"` or `"image"`): what the model reads.
        auto_class (`str`): the Auto class that makes models for it.
        table (`str`): the table of transformers from model type to the class with the task's head.
    """

    name: str
    kind: ModelKind
    auto_class: str
    table: str

    def head_class(self, model_type: str) -> str | None:
        """Class with this task's head for a model type, if there is one."""
        return getattr(modeling_auto, self.table).get(model_type)


TASKS = {
    task.name: task
    for task in (
        Task(
            "text-classification",
            "text",
            "AutoModelForSequenceClassification",
            "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
        ),
        Task(
            "image-classification",
            "image",
            "AutoModelForImageClassification",
            "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
        ),
    )
}

# A T5 tokenizer without a vocabulary still has its word separator.
_FEWEST_WORDS = 2


def load_config(name: str, revision: str | None = None) -> PreTrainedConfig:
    """Read a model's config; no code from the model's folder is run.

    Raises:
        FileNotFoundError: if there is no model of that name.
        UnsupportedArchitectureError: if the model needs code of its own.
    """
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise FileNotFoundError(f"No model at '{name}': the folder holds no config.json.")
    if not path.exists() and (path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2):
        raise FileNotFoundError(f"No model at '{name}': there is no such folder.")
    try:
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise UnsupportedArchitectureError(
                f"'{name}' brings Python code of its own, which hf-mpruner does not run. Load it in a script that you "
                "trust, and use prune_ or LayerPruningCallback there."
            ) from error
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise FileNotFoundError(
            f"No model at '{name}': it is no folder with a config.json, and no Hub id whose config could be read "
            f"({lines[0]})"
        ) from error


def build_empty(config: PreTrainedConfig) -> PreTrainedModel:
    """The model that a config describes, without weights, on the meta device."""
    with torch.device("meta"):
        return own_class(config)(config)


def own_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that a checkpoint was saved from.

    Raises:
        UnsupportedArchitectureError: if the config names no class of transformers.
    """
    names = config.architectures or []
    found = next((getattr(transformers, name) for name in names if hasattr(transformers, name)), None)
    if found is None:
        raise UnsupportedArchitectureError(
            f"The config (model_type='{config.model_type}') names the class {names[0] if names else 'of no model'}, "
            f"which transformers {transformers.__version__} does not have. Use find_block_stacks(model) in a script "
            "that builds the model."
        )
    return found


def find_task(config: PreTrainedConfig, name: str | None) -> Task:
    """The task that was named, or the only one that this model type has a head for.

    Raises:
        UsageError: if several are possible, or the named one is not.
        UnsupportedArchitectureError: if none is.
    """
    possible = {task.name: task for task in TASKS.values() if task.head_class(config.model_type)}
    own = [task for task in possible.values() if task.head_class(config.model_type) in (config.architectures or [])]
    if name is not None:
        if name not in possible:
            raise UsageError(
                f"--task {name}: a {config.model_type} model has no head for it, only for {_listed(possible)}."
            )
        return possible[name]
    if len(own) == 1 or len(possible) == 1:
        return (own or list(possible.values()))[0]
    if possible:
        raise UsageError(f"A {config.model_type} model can do {_listed(possible)}: say which with --task.")
    raise UnsupportedArchitectureError(
        f"A {config.model_type} model has no head for {_listed(TASKS)}, the tasks that hf-mpruner prune trains. Use "
        "LayerPruningCallback in your own training script."
    )


def load_processor(name: str, kind: ModelKind, revision: str | None = None) -> Any:
    """The model's tokenizer or image processor; a tokenizer without padding pads with its end-of-text token.

    Raises:
        FileNotFoundError: if there is none beside the model.
    """
    auto = transformers.AutoTokenizer if kind == "text" else transformers.AutoImageProcessor
    try:
        processor = auto.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        what = "tokenizer" if kind == "text" else "image processor"
        raise FileNotFoundError(
            f"No {what} at '{name}' ({' '.join(str(error).split())[:200]}). Save the model's {what} beside it: "
            f"{what.replace(' ', '_')}.save_pretrained('{name}')."
        ) from error
    if kind == "text":
        # without tokenizer files transformers makes a tokenizer of the model type that knows no word
        if len(set(processor.get_vocab()) - set(processor.all_special_tokens)) < _FEWEST_WORDS:
            raise FileNotFoundError(
                f"No tokenizer at '{name}': what is there knows no words. Save the model's tokenizer beside it: "
                f"tokenizer.save_pretrained('{name}')."
            )
        if processor.pad_token_id is None:
            processor.pad_token = processor.eos_token
    return processor


def load_for_analysis(name: str, config: PreTrainedConfig, revision: str | None = None) -> PreTrainedModel:
    """The model as it was saved, on the accelerator if there is one."""
    load: Any = own_class(config).from_pretrained
    model = load(name, revision=revision, dtype="auto")
    return model.to(torch.accelerator.current_accelerator() or "cpu")


def load_for_task(
    name: str, task: Task, *, label_names: list[str], revision: str | None, dtype: torch.dtype | str
) -> tuple[PreTrainedModel, list[str]]:
    """The model with the task's head, and the names of weights that the checkpoint does not have.

    Args:
        name (`str`): Hub id or folder.
        task (`Task`): says which head.
        label_names (`list[str]`): classes of the data; a head that is new gets these.
        revision (`str`, *optional*): branch, tag or commit.
        dtype: of the weights, or `"auto"` for the type they were saved in.
    """
    config = load_config(name, revision)
    auto = getattr(transformers, task.auto_class)
    if task.head_class(config.model_type) not in (config.architectures or []):
        config.id2label = dict(enumerate(label_names))
        config.label2id = {label: number for number, label in enumerate(label_names)}
    model, info = auto.from_pretrained(name, config=config, revision=revision, dtype=dtype, output_loading_info=True)
    return model, sorted(info["missing_keys"])


def main_input(config: PreTrainedConfig) -> ModelKind:
    """What the model reads.

    Raises:
        UnsupportedArchitectureError: if it reads neither text nor images, or needs targets for its decoder.
    """
    name = own_class(config).main_input_name
    if getattr(config, "is_encoder_decoder", False) or name not in ("input_ids", "pixel_values"):
        reason = "its decoder needs targets" if name == "input_ids" else f"it reads {name}"
        raise UnsupportedArchitectureError(
            f"hf-mpruner analyze feeds texts or images, but not a {config.model_type} model: {reason}. Use "
            "measure_similarity(model, loader) with batches of your own."
        )
    return "text" if name == "input_ids" else "image"


def _listed(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names)
