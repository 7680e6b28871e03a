"""What lies beside the weights: config and generation config anew, tokenizer and the rest as they are."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_mpruner.hub import Secrets, find_leaks

from .checkpoint import Checkpoint

if TYPE_CHECKING:
    from transformers import GenerationConfig

logger = logging.getLogger(__name__)

# Weights in any form, lists of them, and data. Patterns are for a file's own name, in whatever case.
_WEIGHTS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.bin",
    "*.bin.index.json",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.ckpt.*",
    "*.gguf",
    "*.ggml",
    "*.onnx",
    "*.onnx_data",
    "*.msgpack",
    "*.msgpack.index.json",
    "*.h5",
    "*.h5.index.json",
    "*.tflite",
    "*.ot",
    "*.mlmodel",
    "*.npz",
    "*.distcp",
    "*.parquet",
    "*.arrow",
    "*.tar",
    "*.tar.gz",
    "*.zip",
)
# Of the folder itself: what is written anew, or is about the larger model.
_AT_TOP = (
    "config.json",
    "generation_config.json",
    "readme.md",
    "pruning_plan.json",
    "pruning_config.json",
    "pruning_record.json",
    "report.json",
    "report.html",
)
# What a training leaves, and what is secret.
_OTHERS = (
    "training_args.*",
    "optimizer*",
    "scheduler.*",
    "scaler.*",
    "rng_state*",
    "trainer_state.json",
    "all_results.json",
    "train_results.json",
    "eval_results.json",
    "events.out.tfevents.*",
    "*.pickle",
    "*.pkl",
    "*.pem",
    "*.key",
    "*token.txt",
    "*credentials*",
    "*.tmp",
    "*.log",
)
# What a model is used with may lie in these; anything else may, beside a model on somebody's disk.
_FOLDERS = ("*tokenizer*", "*processor*", "*extractor*", "*chat_templates*", "custom_generate", "licen[cs]e*")
_MODULES = "modules.json"


def choose_files(names: Iterable[str], modules: Iterable[str] = ()) -> list[str]:
    """Which files of a model's folder are taken over as they are.

    Args:
        names: paths in the folder, with "/" between.
        modules: folders of further modules that are used with the model (`modules.json` of sentence-transformers names
            them); their weights are not those of the model and go along.

    Example:
        >>> choose_files(["tokenizer.json", "LICENSE", "model.safetensors", "onnx/model.json", "optimizer.pt", ".env"])
        ['tokenizer.json', 'LICENSE']
        >>> choose_files(["2_Dense/model.safetensors", "2_Dense/config.json"], modules=["2_Dense"])
        ['2_Dense/model.safetensors', '2_Dense/config.json']
    """
    inside = tuple(f"{module}/" for module in modules)
    return [name for name in names if (inside and name.startswith(inside)) or _is_chosen(name)]


def _is_chosen(name: str) -> bool:
    *folders, file = name.lower().split("/")
    hidden = any(part.startswith(".") for part in (*folders, file))
    return not (
        hidden
        or (not folders and file in _AT_TOP)
        or (folders and not any(fnmatchcase(folders[0], pattern) for pattern in _FOLDERS))
        or any(fnmatchcase(file, pattern) for pattern in (*_WEIGHTS, *_OTHERS))
    )


def copy_beside(checkpoint: Checkpoint, folder: Path) -> list[str]:
    """Take tokenizer, processor, chat templates, licences and other files over, byte for byte.

    Not taken over: weights in any form, data, what a training left, hidden files, README.md, files of an earlier pruning,
    folders but those of tokenizers, processors, templates and the modules of sentence-transformers, and files that hold a
    token of the Hub, which a warning names. What is written before stays.

    Args:
        checkpoint (`Checkpoint`): whose files; from the Hub, only those that are taken over are downloaded.
        folder (`Path`): exists.

    Returns:
        `list[str]`: their paths.
    """
    copied = []
    for name in choose_files(checkpoint.folder_files, _find_modules(checkpoint)):
        target = folder / name
        if target.exists() or name in checkpoint.weights:
            continue
        file = checkpoint.fetch(name)
        if leaks := find_leaks(file, Secrets(frozenset(), frozenset())):
            logger.warning("%s of '%s' holds %s and is not taken over.", name, checkpoint.source, leaks[0])
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        copied.append(name)
    return copied


def _find_modules(checkpoint: Checkpoint) -> list[str]:
    if _MODULES not in checkpoint.folder_files:
        return []
    try:
        listed = json.loads(checkpoint.fetch(_MODULES).read_text(encoding="utf-8"))
        return [str(module["path"]) for module in listed if module.get("path")]
    except (ValueError, TypeError, AttributeError, KeyError):  # of something else
        return []


def find_generation_config(checkpoint: Checkpoint) -> GenerationConfig | None:
    """The generation config that a model loaded from this checkpoint has; `None` if the model's config says it all.

    As `from_pretrained` does: of generation_config.json, else of the settings for generating in an old config.json. Only a
    checkpoint that does not have the file is without one: it is not lost because the Hub cannot be asked just now.

    Raises:
        CheckpointError: if the Hub does not give a file that is there.
        OSError: for a file that is no JSON.
    """
    from transformers import GenerationConfig

    for name in ("generation_config.json", "config.json"):
        if name in checkpoint.folder_files:
            old: dict[str, Any] = {"_from_model_config": True} if name == "config.json" else {}
            folder = checkpoint.fetch(name).parent
            return GenerationConfig.from_pretrained(folder, config_file_name=name, **old)
    return None
