"""Models by name: on the meta device to look at, with weights to measure, with a task's head to train."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from hf_mpruner.data import ModelKind
from hf_mpruner.errors import UnsupportedArchitectureError
from hf_mpruner.placement import Placement, is_quantised
from hf_mpruner.tasks import Task

# A T5 tokenizer without a vocabulary still has its word separator.
_FEWEST_WORDS = 2


def load_config(name: str, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Read a model's config; code from the model's folder is run only if it is trusted.

    Raises:
        FileNotFoundError: if there is no model of that name.
        UnsupportedArchitectureError: if the model needs code of its own, and that is not trusted.
    """
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        merge = (
            " It holds adapters: merge them into their base first (model.merge_and_unload().save_pretrained(...)), or prune "
            "with hf_mpruner.prune_ or LayerPruningCallback."
        )
        adapters = (path / "adapter_config.json").is_file()
        raise FileNotFoundError(f"No model at '{name}': the folder holds no config.json.{merge if adapters else ''}")
    if not path.exists() and (path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2):
        raise FileNotFoundError(f"No model at '{name}': there is no such folder.")
    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error) and not trust_remote_code:
            raise _untrusted(name) from error
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise FileNotFoundError(
            f"No model at '{name}': it is no folder with a config.json, and no Hub id whose config could be read "
            f"({lines[0]})"
        ) from error
    return config


def _untrusted(name: str) -> UnsupportedArchitectureError:
    return UnsupportedArchitectureError(
        f"'{name}' brings Python code of its own, which is not run unless you say so. Read it, and if you trust it, add "
        "--trust_remote_code."
    )


def _own_code(config: PreTrainedConfig) -> dict[str, str]:
    """Auto class -> class in the code that comes with the model."""
    return {auto: found for auto, found in (getattr(config, "auto_map", None) or {}).items() if isinstance(found, str)}


def build_empty(config: PreTrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model that a config describes, without weights, on the meta device."""
    kind = own_class(config, trust_remote_code)
    with torch.device("meta"):
        return kind(config)


def own_class(config: PreTrainedConfig, trust_remote_code: bool = False) -> type[PreTrainedModel]:
    """The class that a checkpoint was saved from.

    Args:
        config (`PreTrainedConfig`): of the checkpoint.
        trust_remote_code (`bool`): whether the class may come from the model's own code, which is then run.

    Raises:
        UnsupportedArchitectureError: if the config names no class of transformers, and none of trusted code.
    """
    names = config.architectures or []
    code = _own_code(config)
    if code and trust_remote_code:
        named = [found for found in code.values() if found.rpartition(".")[2] in names]
        models = [found for auto, found in code.items() if auto.startswith("AutoModel")]
        for reference in [*named, *models][:1]:
            return cast(
                type[PreTrainedModel], get_class_from_dynamic_module(reference, config._name_or_path, revision=None)
            )
    found = next((getattr(transformers, name) for name in names if hasattr(transformers, name)), None)
    if found is None and code:
        raise _untrusted(config._name_or_path)
    if found is None:
        raise UnsupportedArchitectureError(
            f"The config (model_type='{config.model_type}') names the class {names[0] if names else 'of no model'}, "
            f"which transformers {transformers.__version__} does not have. Use find_block_stacks(model) in a script "
            "that builds the model."
        )
    return found


def load_processor(
    name: str, kind: ModelKind, revision: str | None = None, trust_remote_code: bool = False, **options: Any
) -> Any:
    """The model's tokenizer or image processor; a tokenizer without padding pads with its end-of-text token.

    Args:
        name (`str`): Hub id or folder of the model.
        kind (`"text"` or `"image"`): what the model reads.
        revision (`str`, *optional*): branch, tag or commit.
        trust_remote_code (`bool`): whether the model's own code may run.
        options: further arguments of its `from_pretrained`.

    Raises:
        FileNotFoundError: if there is none beside the model.
    """
    auto = transformers.AutoTokenizer if kind == "text" else transformers.AutoImageProcessor
    try:
        processor = auto.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code, **options)
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


def load_for_analysis(
    name: str,
    config: PreTrainedConfig,
    revision: str | None = None,
    trust_remote_code: bool = False,
    task: Task | None = None,
    placement: Placement | None = None,
) -> PreTrainedModel:
    """The model as it was saved, or with the head of a task that was named.

    On the accelerator if there is one, but for what a placement puts elsewhere and for checkpoints that are quantised.
    """
    model: Any
    placement = placement or Placement()
    options = placement.arguments(config)
    with placement.loading():
        if task is not None:
            model, _ = load_for_task(
                name, task, label_names=None, revision=revision, trust_remote_code=trust_remote_code, **options
            )
        else:
            load: Any = own_class(config, trust_remote_code).from_pretrained
            model = load(name, revision=revision, **options)
    if placement.places or is_quantised(model):
        return cast(PreTrainedModel, model)
    return cast(PreTrainedModel, model.to(torch.accelerator.current_accelerator() or "cpu"))


def load_for_task(
    name: str,
    task: Task,
    *,
    label_names: list[str] | None,
    revision: str | None,
    dtype: torch.dtype | str,
    trust_remote_code: bool = False,
    **options: Any,
) -> tuple[PreTrainedModel, list[str]]:
    """The model with the task's head, and the names of weights that the checkpoint does not have.

    Args:
        name (`str`): Hub id or folder.
        task (`Task`): says which head.
        label_names (`list[str]`, *optional*): classes of the data; a head that is new gets these.
        revision (`str`, *optional*): branch, tag or commit.
        dtype: of the weights, or `"auto"` for the type they were saved in.
        trust_remote_code (`bool`): whether the model's own code may run.
        options: further arguments of `from_pretrained`.
    """
    config = load_config(name, revision, trust_remote_code)
    auto = getattr(transformers, task.auto_class)
    if not set(task.head.classes(config)) & set(config.architectures or []) and label_names is not None:
        config.id2label = dict(enumerate(label_names))
        config.label2id = {label: number for number, label in enumerate(label_names)}
    model, info = auto.from_pretrained(
        name,
        config=config,
        revision=revision,
        dtype=dtype,
        output_loading_info=True,
        trust_remote_code=trust_remote_code,
        **options,
    )
    return model, sorted(info["missing_keys"])


def main_input(config: PreTrainedConfig, trust_remote_code: bool = False) -> ModelKind:
    """What the model reads.

    Raises:
        UnsupportedArchitectureError: if it reads neither text nor images, or needs targets for its decoder and has no
            head that says which.
    """
    name = own_class(config, trust_remote_code).main_input_name
    if getattr(config, "is_encoder_decoder", False) or name not in ("input_ids", "pixel_values"):
        reason = "its decoder needs targets" if name == "input_ids" else f"it reads {name}"
        raise UnsupportedArchitectureError(
            f"hf-mpruner analyze feeds texts or images, but not a {config.model_type} model without a head for a task here: "
            f"{reason}. Name the task with --task, or use measure_similarity(model, loader) with batches of your own."
        )
    return "text" if name == "input_ids" else "image"
